/* Which tasks a slow worker leaves to faster ones: the rule by itself, and in an engine with a virtual
 * clock. */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/late.h"
#include "server/plan_time.h"
#include "tests/lib/engine_case.h"

/* --- the rule ------------------------------------------------------------------- */

enum { ROW_OTHERS = 4 };

/* One quantize task of 1000 units among `ready` of them, asked for by a worker of that rate. */
static const struct row {
	const char *what;
	double rate;
	struct { double rate, busy; } others[ROW_OTHERS];
	size_t ready;
	bool more, leave;
} rows[] = {
	{ "nobody else", 1, { { 0, 0 } }, 1, false, false },
	{ "a faster one is idle", 1, { { 100, 0 } }, 1, false, true },
	{ "a faster one drains ten before", 1, { { 100, 0 } }, 10, false, true },
	{ "as many as the slow one lasts", 1, { { 100, 0 } }, 98, false, true },
	{ "more than the slow one lasts", 1, { { 100, 0 } }, 101, false, false },
	{ "two fast ones drain twice as many", 1, { { 100, 0 }, { 100, 0 } }, 196, false, true },
	{ "but not more", 1, { { 100, 0 }, { 100, 0 } }, 202, false, false },
	{ "a faster one is busy for less", 1, { { 100, 900 } }, 1, false, true },
	{ "a faster one is busy for longer", 1, { { 100, 1000 } }, 1, false, false },
	{ "one of two is busy", 1, { { 100, 5000 }, { 100, 0 } }, 50, false, true },
	{ "the rates are alike", 70, { { 100, 0 } }, 1, false, false },
	{ "as fast", 100, { { 100, 0 } }, 1, false, false },
	{ "the fastest", 100, { { 1, 0 }, { 50, 0 } }, 1, false, false },
	{ "its own rate is not known", 0, { { 100, 0 } }, 1, false, false },
	{ "the other's is not known", 1, { { 0, 0 } }, 1, false, false },
	{ "nothing to gain but a moment", 1000, { { 100000, 0 } }, 1, false, false },
	{ "more is ready than can be looked at", 1, { { 100, 0 } }, 10, true, false },
	{ "three times as fast, two ready", 1, { { 3, 0 } }, 2, false, true },
	{ "three times as fast, three ready", 1, { { 3, 0 } }, 3, false, false },
	{ "slower ones do not count", 10, { { 100, 80 }, { 1, 0 }, { 2, 0 } }, 1, false, true },
};

static struct late_view *view_of(const struct row *row)
{
	static struct late_view v;

	v = (struct late_view){ .asking = { .worker = 1 }, .ready_count = row->ready, .more = row->more };
	v.asking.rate[KIND_QUANTIZE] = row->rate;
	for (size_t i = 0; i < ROW_OTHERS && (row->others[i].rate > 0 || row->others[i].busy > 0 || i == 0); i++) {
		v.others[v.other_count] = (struct late_worker){ .worker = 2 + (int64_t)i,
								.busy_seconds = row->others[i].busy };
		v.others[v.other_count++].rate[KIND_QUANTIZE] = row->others[i].rate;
	}
	for (size_t i = 0; i < row->ready; i++)
		v.ready[i] = (struct late_task){ KIND_QUANTIZE, 1000 };
	return &v;
}

static bool leaves(const struct late_view *v, int64_t kind, double work)
{
	const struct late_task task = { kind, work };

	return late_has_faster(v, kind) && late_leave(v, &task, late_drained(v, kind));
}

static void the_rule(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct late_view *v = view_of(&rows[i]);

		if (leaves(v, KIND_QUANTIZE, 1000) != rows[i].leave)
			fail_msg("%s: %s, drained after %g s", rows[i].what, rows[i].leave ? "takes" : "leaves",
				 late_drained(v, KIND_QUANTIZE));
	}
}

/* What is ready of other kinds is in the queue of the faster ones too; a kind of theirs that nobody knows
 * the pace of says nothing. */
static void other_kinds_are_in_the_queue(void **state)
{
	const struct row fast = { .rate = 1, .others = { { 100, 0 } }, .ready = 1 };
	struct late_view *v = view_of(&fast);

	(void)state;
	assert_true(leaves(v, KIND_QUANTIZE, 1000));
	v->ready[v->ready_count++] = (struct late_task){ KIND_ASSEMBLE, 500 };
	assert_false(leaves(v, KIND_QUANTIZE, 1000));
	v->others[0].rate[KIND_ASSEMBLE] = 1;
	assert_true(leaves(v, KIND_QUANTIZE, 1000));
	v->others[0].rate[KIND_ASSEMBLE] = 0.5;
	assert_false(leaves(v, KIND_QUANTIZE, 1000));
	assert_false(leaves(v, KIND_ASSEMBLE, 500)); /* its own pace there is not known */
}

static void a_rate_tells_of_its_relatives(void **state)
{
	struct late_worker w = { .worker = 1 };

	(void)state;
	late_rates(&w);
	for (int k = 0; k < KIND_COUNT; k++)
		assert_true(w.rate[k] == 0);
	w.work[KIND_CAPTURE] = 20 * plan_default_rate[KIND_CAPTURE]; /* twice as fast as one default thread */
	w.seconds[KIND_CAPTURE] = 10;
	w.work[KIND_TOKENIZE] = 5;
	w.seconds[KIND_TOKENIZE] = 1000;
	late_rates(&w);
	assert_true(fabs(w.rate[KIND_QUANTIZE] - 2 * plan_default_rate[KIND_QUANTIZE]) < 1);
	assert_true(fabs(w.rate[KIND_DISTILL] - 2 * plan_default_rate[KIND_DISTILL]) < 1);
	assert_true(w.rate[KIND_TOKENIZE] == 0.005);
	assert_true(w.rate[KIND_VERIFY] == 0 && w.rate[KIND_EMBED] == 0 && w.rate[KIND_ASSEMBLE] == 0);
	w.work[KIND_QUANTIZE] = 7;
	w.seconds[KIND_QUANTIZE] = 2;
	late_rates(&w);
	assert_true(w.rate[KIND_QUANTIZE] == 3.5); /* what was measured is taken as it is */
}

static void what_remains(void **state)
{
	const double whole = 10 + plan_task_seconds; /* 1000 units at 100 a second */

	(void)state;
	assert_true(late_remaining(1000, 100, 0, 0) == whole);
	assert_true(fabs(late_remaining(1000, 100, 4, 0) - (whole - 4)) < 1e-9);
	assert_true(late_remaining(1000, 100, 30, 0.75) == 10);               /* its own progress says more */
	assert_true(late_remaining(1000, 100, 300, 0.75) == 100);             /* and gets later while it stands still */
	assert_true(fabs(late_remaining(1000, 100, 25, 0) - 14.98) < 1e-9);   /* overdue by so much: as long again */
	assert_true(fabs(late_remaining(1000, 100, 25, 1) - 14.98) < 1e-9);   /* computed, and still not handed in */
	assert_true(late_remaining(1000, 0, 25, 0) == 25);
}

/* --- in the engine ---------------------------------------------------------------- */

static struct engine_case c;
static char job[64], fast[64], slow[64];

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
	play_worker(&c, fast, "fast");
	play_worker(&c, slow, "slow");
	play_make_model(&c, "model", 4);
	/* Captures and quantizes of some thousand units each: that is enough to measure by. */
	play_submit(&c, job, "{'bits':2,'group_size':8,'samples':64,'seq_len':4096,'eval':'none','effort':'fast'}");
}

/* A lease, at the end of which so many seconds have passed. */
static void work_for(const char *worker, double seconds)
{
	struct play_lease l;

	assert_true(play_lease(&c, worker, &l));
	play_heartbeat(&c, &l, 0, 200);
	c.now_ms += (int64_t)(seconds * 1000);
	play_heartbeat(&c, &l, 0.9, 200);
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
}

static int64_t ready_of(const char *kind)
{
	struct json *list = play_call(&c, VERB_JOB_TASKS, job, 200, NULL);
	int64_t count = 0;

	for (const struct json *t = json_first(json_get(list, "items")); t; t = json_next(t))
		count += strcmp(json_get_string(t, "kind", ""), kind) == 0 &&
			 strcmp(json_get_string(t, "state", ""), "READY") == 0;
	json_free(list);
	return count;
}

/* Both workers have done a capture, `fast` in a second and `slow` in half a minute; a quantize is ready. */
static void measured(const char *dir)
{
	struct play_lease l;
	bool both[2] = { false, false };

	start(dir);
	for (int i = 0; i < 2000 && !(both[0] && both[1]); i++) {
		int which = both[0] ? 1 : 0;

		assert_true(play_lease(&c, which ? slow : fast, &l));
		play_heartbeat(&c, &l, 0, 200);
		if (strcmp(l.kind, "capture") == 0) {
			c.now_ms += which ? 30000 : 1000;
			both[which] = true;
		}
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	assert_true(both[0] && both[1]);
}

/* So few are ready that the fast one is soon through, but more than one. */
static void shrink(void)
{
	for (int i = 0; i < 1000; i++) {
		int64_t ready = ready_of("capture") + ready_of("quantize");

		if (ready == 2 || ready == 3)
			return;
		work_for(fast, 1);
	}
	fail_msg("there are never two or three");
}

static void a_slow_worker_leaves_what_a_fast_one_finishes_sooner(void **state)
{
	struct play_lease l, held;
	int waits = 0;

	(void)state;
	measured("left");
	while (ready_of("capture") != 2) /* so few that the fast one is soon through */
		work_for(fast, 1);
	assert_false(play_lease(&c, slow, &l));
	assert_true(play_lease(&c, fast, &held));
	play_heartbeat(&c, &held, 0, 200);
	assert_true(ready_of("capture") + ready_of("quantize") > 0);
	assert_false(play_lease(&c, slow, &l)); /* the fast one is back in a second */
	while (waits < 100 && !play_lease(&c, slow, &l)) { /* or so it seems */
		c.now_ms += 10000;
		play_heartbeat(&c, &held, 0, 200);
		waits++;
	}
	/* Given when the fast one is late by more than the slow one needs: half a minute for each
	 * capture's worth of work. */
	assert_in_range(waits, 2, 99);
	assert_string_not_equal(l.task, held.task);
	play_lease_drop(&l);
	play_lease_drop(&held);
	play_close(&c);
}

static void nobody_waits_for_a_worker_that_is_gone(void **state)
{
	struct play_lease l;

	(void)state;
	measured("gone");
	shrink();
	assert_false(play_lease(&c, slow, &l));
	c.now_ms += 61000;                      /* nothing was heard of the fast one since */
	assert_true(play_lease(&c, slow, &l));
	play_lease_drop(&l);
	play_close(&c);
}

static void nobody_waits_for_a_worker_that_drains(void **state)
{
	struct play_lease l;

	(void)state;
	measured("drains");
	shrink();
	assert_false(play_lease(&c, slow, &l));
	json_free(play_call(&c, VERB_WORKER_DRAIN, fast, 200, NULL));
	assert_true(play_lease(&c, slow, &l));
	play_lease_drop(&l);
	play_close(&c);
}

static void another_backend_is_another_worker(void **state)
{
	struct play_lease l;

	(void)state;
	measured("changed");
	shrink();
	assert_false(play_lease(&c, slow, &l));
	json_free(play_call(&c, VERB_WORKER_ADD, "", 201, "{'name':'slow','backend':'ref','identity':'played','threads':1}"));
	assert_false(play_lease(&c, slow, &l)); /* the same again */
	json_free(play_call(&c, VERB_WORKER_ADD, "", 201, "{'name':'slow','backend':'cuda','identity':'played','threads':1}"));
	assert_true(play_lease(&c, slow, &l)); /* how fast that is has to be seen */
	play_lease_drop(&l);
	play_close(&c);
}

static void a_task_that_failed_is_left_to_nobody(void **state)
{
	struct play_lease l, again;

	(void)state;
	measured("failed");
	shrink();
	assert_false(play_lease(&c, slow, &l));
	assert_true(play_lease(&c, fast, &l));
	json_free(play_call(&c, VERB_FAIL, l.task, 200, "{'worker':'%s','epoch':%" PRId64 ",'error':{'name':'out-of-memory',"
			    "'detail':'the GPU is full'}}", fast, l.epoch));
	assert_true(play_lease(&c, slow, &again));
	assert_string_equal(again.task, l.task);
	play_lease_drop(&again);
	play_lease_drop(&l);
	play_close(&c);
}

static void a_job_with_both_is_done(void **state)
{
	int idle = 0;

	(void)state;
	measured("both");
	while (strcmp(play_job_state(&c, job), "DONE") != 0 && idle < 10000) {
		struct play_lease l;

		idle++;
		if (play_lease(&c, slow, &l)) {
			play_complete(&c, &l, 200);
			play_lease_drop(&l);
		}
		if (play_lease(&c, fast, &l)) {
			play_complete(&c, &l, 200);
			play_lease_drop(&l);
		}
		c.now_ms += 100;
		engine_tick(c.engine);
	}
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_rule),
		cmocka_unit_test(other_kinds_are_in_the_queue),
		cmocka_unit_test(a_rate_tells_of_its_relatives),
		cmocka_unit_test(what_remains),
		cmocka_unit_test(a_slow_worker_leaves_what_a_fast_one_finishes_sooner),
		cmocka_unit_test(nobody_waits_for_a_worker_that_is_gone),
		cmocka_unit_test(nobody_waits_for_a_worker_that_drains),
		cmocka_unit_test(another_backend_is_another_worker),
		cmocka_unit_test(a_task_that_failed_is_left_to_nobody),
		cmocka_unit_test(a_job_with_both_is_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
