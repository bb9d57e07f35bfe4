/* Leases under a virtual clock: hours pass in microseconds. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "tests/lib/engine_case.h"

enum { SECOND = 1000, MINUTE = 60 * SECOND };

static struct engine_case c;
static char job[64], one[64], two[64];

/* A fresh engine with a submitted job and two workers, the second of which is silent until it acts. */
static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, one, "one");
	play_worker(&c, two, "two");
}

static void fail_task(const struct play_lease *l, const char *name, const char *detail)
{
	json_free(play_call(&c, VERB_FAIL, l->task, 200,
			    "{'worker':'%s','epoch':%" PRId64 ",'error':{'name':'%s','detail':'%s'},'log':'the log of %s'}",
			    l->worker, l->epoch, name, detail, l->worker));
}

static int64_t task_field(const char *task, const char *field)
{
	struct json *list = play_call(&c, VERB_JOB_TASKS, job, 200, NULL);
	int64_t value = -1;

	for (const struct json *t = json_first(json_get(list, "items")); t; t = json_next(t))
		if (strcmp(json_get_string(t, "id", ""), task) == 0)
			value = json_get_int(t, field, -1);
	json_free(list);
	return value;
}

/* --- time --------------------------------------------------------------------- */

static void an_unaccepted_lease_goes_back_uncounted(void **state)
{
	struct play_lease l, again;

	(void)state;
	start("unaccepted");
	assert_true(play_lease(&c, one, &l));
	assert_int_equal(l.epoch, 1);
	c.now_ms += 9 * SECOND;
	engine_tick(c.engine);
	assert_int_equal(task_field(l.task, "epoch"), 1);
	c.now_ms += 2 * SECOND;
	engine_tick(c.engine);
	play_heartbeat(&c, &l, 0, 409);
	assert_true(play_lease(&c, one, &again));
	assert_string_equal(again.task, l.task);
	assert_int_equal(again.epoch, 2);
	assert_int_equal(task_field(l.task, "attempts"), 0);
	play_lease_drop(&l);
	play_lease_drop(&again);
	play_close(&c);
}

/* The reply with the lease was lost: the worker asks again, and does not name the task. */
static void a_lease_that_never_arrived_goes_back_at_once(void **state)
{
	struct play_lease l, other, third;
	char many[65 * 4 + 1] = "";
	struct json *again;

	(void)state;
	start("unheard");
	assert_true(play_lease(&c, one, &l));
	assert_true(play_lease(&c, two, &other));
	again = play_call(&c, VERB_LEASE, "", 200, "{'worker':'%s','holds':[]}", one);
	assert_string_equal(json_get_string(again, "task", ""), l.task);
	assert_int_equal(json_get_int(again, "epoch", 0), 2);
	assert_int_equal(task_field(l.task, "attempts"), 0);
	json_free(again);
	assert_int_equal(task_field(other.task, "epoch"), 1); /* another worker's */

	/* Asked for without the field, named, or accepted: it stays. */
	l.epoch = 2;
	assert_true(play_lease(&c, one, &third));
	assert_int_equal(task_field(l.task, "epoch"), 2);
	again = play_call(&c, VERB_LEASE, "", 200, "{'worker':'%s','holds':['%s']}", one, l.task);
	assert_string_equal(json_get_string(again, "task", ""), third.task);
	json_free(again);
	play_heartbeat(&c, &l, 0.1, 200);
	json_free(play_call(&c, VERB_LEASE, "", 200, "{'worker':'%s','holds':[]}", one));
	assert_int_equal(task_field(l.task, "epoch"), 2);
	play_complete(&c, &l, 200);
	play_refused(&c, VERB_LEASE, "", ERR_INVALID, "{'worker':'%s','holds':[7]}", one);
	for (int i = 0; i < 65; i++) /* one more than there may be */
		strcat(many, i ? ",'t'" : "'t'");
	play_refused(&c, VERB_LEASE, "", ERR_INVALID, "{'worker':'%s','holds':[%s]}", one, many);
	play_lease_drop(&l);
	play_lease_drop(&other);
	play_lease_drop(&third);
	play_close(&c);
}

static void heartbeats_keep_a_lease_for_hours(void **state)
{
	struct play_lease l;

	(void)state;
	start("hours");
	assert_true(play_lease(&c, one, &l));
	for (int i = 0; i < 4 * 60 * 3; i++) { /* three hours, a beat each 15 s */
		play_heartbeat(&c, &l, i / 1000.0, 200);
		c.now_ms += 15 * SECOND;
		engine_tick(c.engine);
	}
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_close(&c);
}

static void a_silent_holder_loses_the_task(void **state)
{
	struct play_lease l, again;

	(void)state;
	start("silent");
	assert_true(play_lease(&c, one, &l));
	play_heartbeat(&c, &l, 0.2, 200);
	c.now_ms += 59 * SECOND;
	engine_tick(c.engine);
	play_heartbeat(&c, &l, 0.2, 200);
	c.now_ms += 61 * SECOND;
	assert_int_equal(c.wakes > 0, 1);
	c.wakes = 0;
	engine_tick(c.engine);
	assert_true(c.wakes > 0); /* parked polls hear that there is work */
	assert_int_equal(task_field(l.task, "attempts"), 1);
	assert_true(play_lease(&c, two, &again));
	assert_string_equal(again.task, l.task);
	assert_int_equal(again.epoch, 2);
	play_heartbeat(&c, &l, 0.3, 409); /* the first holder wakes up (SIGCONT) and is fenced off */
	play_complete(&c, &l, 409);
	play_complete(&c, &again, 200);
	play_complete(&c, &l, 409);
	play_lease_drop(&l);
	play_lease_drop(&again);
	play_close(&c);
}

static void a_restart_gives_a_fresh_deadline(void **state)
{
	struct play_lease l;

	(void)state;
	start("restart");
	assert_true(play_lease(&c, one, &l));
	play_heartbeat(&c, &l, 0.2, 200);
	c.now_ms += 50 * SECOND;
	play_close(&c);
	c.now_ms += 3 * 60 * MINUTE; /* the server was away for three hours */
	play_open(&c);
	engine_tick(c.engine);
	c.now_ms += 59 * SECOND;
	engine_tick(c.engine);
	play_complete(&c, &l, 200);
	assert_int_equal(task_field(l.task, "epoch"), 1);
	assert_int_equal(task_field(l.task, "attempts"), 0);
	play_lease_drop(&l);
	play_close(&c);
}

static void setting_the_clock_costs_nobody_a_lease(void **state)
{
	struct play_lease l;

	(void)state;
	start("clock");
	assert_true(play_lease(&c, one, &l));
	play_heartbeat(&c, &l, 0.2, 200);
	engine_tick(c.engine);
	c.now_ms += SECOND;
	c.wall_ahead_ms = 24 * 60 * (int64_t)MINUTE; /* a day forward */
	engine_tick(c.engine);
	assert_int_equal(task_field(l.task, "attempts"), 0);
	play_heartbeat(&c, &l, 0.3, 200);
	c.now_ms += SECOND;
	c.wall_ahead_ms = 0; /* and back */
	engine_tick(c.engine);
	play_heartbeat(&c, &l, 0.4, 200);
	c.now_ms += 61 * SECOND; /* deadlines are not a day away now */
	engine_tick(c.engine);
	assert_int_equal(task_field(l.task, "attempts"), 1);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- repeats ------------------------------------------------------------------ */

static void completing_twice_is_once(void **state)
{
	struct play_lease l;
	static char work[1 << 16];

	(void)state;
	start("twice");
	assert_true(play_lease(&c, one, &l));
	play_complete(&c, &l, 200);
	play_complete(&c, &l, 200);
	play_make_outputs(&c, &l, work, sizeof(work));
	play_refused(&c, VERB_COMPLETE, l.task, ERR_CONFLICT, "{'worker':'%s','epoch':%" PRId64 ",'outputs':[],'result':{}}",
		     one, l.epoch);
	play_refused(&c, VERB_COMPLETE, l.task, ERR_CONFLICT, "{'worker':'%s','epoch':%" PRId64 ",%s,'stats':{}}", two,
		     l.epoch, work);
	assert_int_equal(task_field(l.task, "epoch"), 1);
	play_lease_drop(&l);
	play_close(&c);
}

static void bad_results_are_refused_and_the_lease_stays(void **state)
{
	struct play_lease l;
	const char *hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

	(void)state;
	start("bad-results");
	assert_true(play_lease(&c, one, &l)); /* a tokenize task */
	assert_string_equal(l.kind, "tokenize");
	play_refused(&c, VERB_COMPLETE, l.task, ERR_CORRUPT,
		     "{'worker':'%s','epoch':1,'outputs':[{'name':'tokens','sha256':'%s','bytes':4}],"
		     "'result':{'sequences':1,'tokens':1}}", one, hex);
	play_refused(&c, VERB_COMPLETE, l.task, ERR_INVALID, "{'worker':'%s','epoch':1,'outputs':[],'result':{}}", one);
	play_refused(&c, VERB_COMPLETE, l.task, ERR_INVALID, "{'worker':'%s','epoch':1,'outputs':[{'name':'other',"
		     "'sha256':'%s','bytes':4}],'result':{}}", one, hex);
	play_refused(&c, VERB_COMPLETE, l.task, ERR_INVALID, "{'worker':'%s','epoch':1,'result':{}}", one);
	play_refused(&c, VERB_COMPLETE, l.task, ERR_INVALID, "{'worker':'%s','outputs':[],'result':{}}", one);
	play_refused(&c, VERB_COMPLETE, l.task, ERR_NOT_FOUND, "{'worker':'w_x','epoch':1,'outputs':[],'result':{}}");
	play_refused(&c, VERB_COMPLETE, "t_x", ERR_NOT_FOUND, "{'worker':'%s','epoch':1,'outputs':[],'result':{}}", one);
	play_refused(&c, VERB_HEARTBEAT, "t_zz-99999999999999999999", ERR_NOT_FOUND, "{'worker':'%s','epoch':1}", one);
	play_subject = "somebody-else"; /* another token cannot speak for the worker */
	play_refused(&c, VERB_HEARTBEAT, l.task, ERR_NOT_FOUND, "{'worker':'%s','epoch':1}", one);
	play_subject = NULL;
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- failing ------------------------------------------------------------------ */

static void a_failed_task_goes_to_another_worker(void **state)
{
	struct play_lease l, other;

	(void)state;
	start("other-worker");
	assert_true(play_lease(&c, one, &l));
	fail_task(&l, "io", "disk on fire");
	assert_true(play_lease(&c, one, &other)); /* worker one is offered something else */
	assert_string_not_equal(other.task, l.task);
	play_complete(&c, &other, 200);
	play_lease_drop(&other);
	assert_true(play_lease(&c, two, &other));
	assert_string_equal(other.task, l.task);
	fail_task(&other, "io", "disk on fire");
	play_lease_drop(&other);
	assert_true(play_lease(&c, one, &other)); /* nobody is left who has not failed it */
	assert_string_equal(other.task, l.task);
	play_lease_drop(&other);
	play_lease_drop(&l);
	play_close(&c);
}

static void the_only_worker_may_try_again(void **state)
{
	struct play_lease l, again;

	(void)state;
	start("only-worker");
	assert_true(play_lease(&c, one, &l));
	fail_task(&l, "io", "a hiccup");
	c.now_ms += 2 * MINUTE; /* worker two was last heard of long ago */
	assert_true(play_lease(&c, one, &again));
	assert_string_equal(again.task, l.task);
	play_lease_drop(&again);
	play_lease_drop(&l);
	play_close(&c);
}

static void three_attempts_fail_the_job(void **state)
{
	const char *worker[] = { one, two, one };
	struct json *body, *failure;
	struct play_lease l;

	(void)state;
	start("poison");
	for (int i = 0; i < 3; i++) {
		assert_true(play_lease(&c, worker[i], &l));
		assert_int_equal(l.epoch, i + 1);
		fail_task(&l, "out-of-memory", "too little memory");
		if (i < 2)
			play_lease_drop(&l);
	}
	body = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	assert_string_equal(json_get_string(body, "state", ""), "FAILED");
	failure = json_get(body, "failure");
	assert_non_null(strstr(json_get_string(failure, "detail", ""), "too little memory"));
	assert_string_equal(json_get_string(failure, "task", ""), l.task);
	assert_int_equal(json_size(json_get(failure, "attempts")), 3);
	assert_string_equal(json_get_string(json_at(json_get(failure, "attempts"), 1), "worker", ""), "two");
	assert_non_null(strstr(json_get_string(json_at(json_get(failure, "attempts"), 0), "log", ""), "the log of"));
	assert_int_equal(json_get_int(json_get(body, "tasks"), "READY", -1), 0);
	json_free(body);
	play_lease_drop(&l);
	assert_false(play_lease(&c, two, &l));
	/* Retry: fresh attempts, and the job can be done. */
	json_free(play_call(&c, VERB_JOB_RETRY, job, 200, NULL));
	assert_true(play_drain(&c, one) > 10);
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_refused(&c, VERB_JOB_RETRY, job, ERR_CONFLICT, NULL);
	play_close(&c);
}

static void a_worker_that_vanishes_three_times_fails_the_job(void **state)
{
	struct play_lease l;

	(void)state;
	start("vanish");
	for (int i = 0; i < 3; i++) {
		assert_true(play_lease(&c, one, &l));
		play_heartbeat(&c, &l, 0.1, 200);
		play_lease_drop(&l);
		c.now_ms += 2 * MINUTE;
		engine_tick(c.engine);
	}
	assert_string_equal(play_job_state(&c, job), "FAILED");
	play_close(&c);
}

static void some_errors_fail_at_once(void **state)
{
	static const char *const names[] = { "corrupt", "unsupported", "refused", "invalid", "numeric" };
	struct play_lease l;

	(void)state;
	for (size_t i = 0; i < 5; i++) {
		start(names[i]);
		assert_true(play_lease(&c, one, &l));
		fail_task(&l, names[i], "it will not get better");
		assert_string_equal(play_job_state(&c, job), "FAILED");
		play_lease_drop(&l);
		play_close(&c);
	}
}

static void a_failing_job_takes_its_leases_along(void **state)
{
	struct play_lease l, other;

	(void)state;
	start("along");
	assert_true(play_lease(&c, one, &l));
	assert_true(play_lease(&c, two, &other));
	play_heartbeat(&c, &other, 0.5, 200);
	fail_task(&l, "corrupt", "bad weights");
	play_refused(&c, VERB_HEARTBEAT, other.task, ERR_CANCELLED, "{'worker':'%s','epoch':1}", two);
	play_complete(&c, &other, -1);
	play_lease_drop(&l);
	play_lease_drop(&other);
	play_close(&c);
}

/* --- giving back -------------------------------------------------------------- */

static void a_release_does_not_count(void **state)
{
	struct play_lease l;

	(void)state;
	start("release");
	for (int i = 0; i < 5; i++) {
		assert_true(play_lease(&c, one, &l));
		assert_int_equal(l.epoch, i + 1);
		play_heartbeat(&c, &l, 0.1, 200);
		json_free(play_call(&c, VERB_RELEASE, l.task, 200, "{'worker':'%s','epoch':%" PRId64 ",'reason':'drain'}", one,
				    l.epoch));
		play_lease_drop(&l);
	}
	assert_string_equal(play_job_state(&c, job), "RUNNING");
	play_close(&c);
}

/* "path" of every input: an absolute path to the file of the blob, which has that name. */
static void check_paths(const struct play_lease *l, bool told)
{
	size_t count = 0;

	for (const struct json *i = json_first(json_get(l->json, "inputs")); i; i = json_next(i), count++) {
		const char *path = json_get_string(i, "path", NULL);
		char hex[DIGEST_HEX];

		if (!told) {
			assert_null(json_get(i, "path"));
			continue;
		}
		assert_non_null(path);
		assert_int_equal(path[0], '/');
		assert_string_equal(strrchr(path, '/') + 1, json_get_string(i, "sha256", ""));
		assert_int_equal(digest_file(path, hex, NULL, NULL), 0);
		assert_string_equal(hex, json_get_string(i, "sha256", ""));
	}
	assert_true(count > 0);
}

/* The last input is the checkpoint that the first lease left. */
static void paths_for_those_who_see_them(void **state)
{
	struct play_lease l;
	struct json *body;
	char sha256[DIGEST_HEX], far[64];

	(void)state;
	start("paths");
	body = play_call(&c, VERB_WORKER_ADD, "", 201, "{'name':'far','backend':'ref','identity':'played','threads':1,"
			 "'memory_bytes':1000000000,'version':'1','sees_paths':false}");
	snprintf(far, sizeof(far), "%s", json_get_string(body, "worker", ""));
	json_free(body);
	assert_true(play_lease(&c, one, &l));
	assert_string_equal(l.kind, "tokenize");
	check_paths(&l, true);
	assert_int_equal(blobs_put(c.blobs, "so far", 6, sha256, NULL), 0);
	json_free(play_call(&c, VERB_BLOB_ADD, sha256, 201, "{'sha256':'%s','bytes':6}", sha256));
	json_free(play_call(&c, VERB_CHECKPOINT, l.task, 200, "{'worker':'%s','epoch':%" PRId64 ",'sha256':'%s','bytes':6}",
			    l.worker, l.epoch, sha256));
	for (int i = 0; i < 2; i++) {
		json_free(play_call(&c, VERB_RELEASE, l.task, 200, "{'worker':'%s','epoch':%" PRId64 ",'reason':'x'}", l.worker,
				    l.epoch));
		play_lease_drop(&l);
		assert_true(play_lease(&c, i == 0 ? two : far, &l));
		assert_int_equal(json_size(json_get(l.json, "inputs")), 2);
		check_paths(&l, i == 0);
	}
	play_lease_drop(&l);
	play_close(&c);
}

/* Every allocation fails once: no lease is given, none is lost, and the next one is whole. */
static void a_lease_without_memory(void **state)
{
	struct engine_request r = { .verb = VERB_LEASE, .subject = "tester" };
	struct engine_reply reply;
	struct play_lease l = { 0 };
	uint64_t n = 0;

	(void)state;
	start("memory");
	r.body = json_new_object();
	json_set_string(r.body, "worker", one);
	do {
		if (n > 0)
			engine_reply_deinit(&reply);
		mem_fail_after(++n);
		engine_call(c.engine, &r, &reply);
		mem_fail_after(0);
		if (reply.err.code != ERR_NONE)
			assert_int_equal(reply.err.code, ERR_NOMEM);
	} while (reply.err.code != ERR_NONE);
	assert_in_range(n, 20, 10000);
	l.json = reply.body;
	assert_int_equal(json_get_int(l.json, "epoch", 0), 1);
	check_paths(&l, true);
	engine_reply_deinit(&reply);
	engine_request_deinit(&r);
	play_close(&c);
}

static void a_draining_worker_gets_nothing(void **state)
{
	struct engine_request r = { .verb = VERB_LEASE };
	struct engine_reply reply;
	struct json *body;
	struct play_lease l;

	(void)state;
	start("drain");
	assert_true(play_lease(&c, one, &l));
	json_free(play_call(&c, VERB_WORKER_DRAIN, one, 200, NULL));
	body = play_call(&c, VERB_HEARTBEAT, l.task, 200, "{'worker':'%s','epoch':1}", one);
	assert_true(json_get_bool(body, "drain", false));
	json_free(body);
	r.body = json_new_object();
	json_set_string(r.body, "worker", one);
	snprintf(r.subject, sizeof(r.subject), "tester");
	engine_call(c.engine, &r, &reply);
	assert_int_equal(reply.status, 204);
	assert_true(reply.drain);
	assert_false(reply.wait);
	engine_reply_deinit(&reply);
	engine_request_deinit(&r);
	play_complete(&c, &l, 200); /* what it holds it may finish */
	play_lease_drop(&l);
	play_refused(&c, VERB_WORKER_DRAIN, "w_none", ERR_NOT_FOUND, NULL);
	play_worker(&c, two, "one"); /* registering again ends the drain, and is the same worker */
	assert_string_equal(one, two);
	assert_true(play_lease(&c, one, &l));
	play_lease_drop(&l);
	play_close(&c);
}

static void cancel_means_cancel(void **state)
{
	struct play_lease l;
	struct json *body;

	(void)state;
	start("cancel");
	assert_true(play_lease(&c, one, &l));
	play_heartbeat(&c, &l, 0.1, 200);
	body = play_call(&c, VERB_JOB_CANCEL, job, 200, NULL);
	assert_string_equal(json_get_string(body, "state", ""), "CANCELLED");
	json_free(body);
	json_free(play_call(&c, VERB_JOB_CANCEL, job, 200, NULL)); /* one effect */
	play_refused(&c, VERB_HEARTBEAT, l.task, ERR_CANCELLED, "{'worker':'%s','epoch':1}", one);
	play_complete(&c, &l, -1);
	play_lease_drop(&l);
	assert_false(play_lease(&c, two, &l));
	play_refused(&c, VERB_JOB_RETRY, job, ERR_CONFLICT, NULL);
	play_close(&c);
}

static void workers_look_right(void **state)
{
	struct play_lease l;
	struct json *body;

	(void)state;
	start("workers");
	assert_true(play_lease(&c, one, &l));
	play_heartbeat(&c, &l, 0.25, 200);
	body = play_call(&c, VERB_WORKER_GET, one, 200, NULL);
	assert_string_equal(json_get_string(body, "state", ""), "busy");
	assert_string_equal(json_get_string(json_at(json_get(body, "tasks"), 0), "note", ""), "at it");
	json_free(body);
	body = play_call(&c, VERB_WORKER_LIST, "", 200, NULL);
	assert_int_equal(json_size(json_get(body, "items")), 2);
	assert_string_equal(json_get_string(json_at(json_get(body, "items"), 0), "state", ""), "idle");
	json_free(body);
	c.now_ms += 2 * MINUTE;
	body = play_call(&c, VERB_STATS, "", 200, NULL);
	assert_int_equal(json_get_int(json_get(body, "workers"), "lost", -1), 2);
	assert_int_equal(json_get_int(json_get(body, "jobs"), "RUNNING", -1), 1);
	assert_int_equal(json_get_int(json_get(body, "tasks"), "LEASED", -1), 1);
	json_free(body);
	play_refused(&c, VERB_WORKER_GET, "w_none", ERR_NOT_FOUND, NULL);
	play_refused(&c, VERB_WORKER_ADD, "", ERR_INVALID, "{'name':''}");
	play_refused(&c, VERB_WORKER_ADD, "", ERR_INVALID, "{}");
	play_refused(&c, VERB_LEASE, "", ERR_NOT_FOUND, "{'worker':'w_none'}");
	play_refused(&c, VERB_LEASE, "", ERR_INVALID, "{'worker':'%s','have':['short']}", one);
	play_lease_drop(&l);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_unaccepted_lease_goes_back_uncounted),
		cmocka_unit_test(a_lease_that_never_arrived_goes_back_at_once),
		cmocka_unit_test(heartbeats_keep_a_lease_for_hours),
		cmocka_unit_test(a_silent_holder_loses_the_task),
		cmocka_unit_test(a_restart_gives_a_fresh_deadline),
		cmocka_unit_test(setting_the_clock_costs_nobody_a_lease),
		cmocka_unit_test(completing_twice_is_once),
		cmocka_unit_test(bad_results_are_refused_and_the_lease_stays),
		cmocka_unit_test(a_failed_task_goes_to_another_worker),
		cmocka_unit_test(the_only_worker_may_try_again),
		cmocka_unit_test(three_attempts_fail_the_job),
		cmocka_unit_test(a_worker_that_vanishes_three_times_fails_the_job),
		cmocka_unit_test(some_errors_fail_at_once),
		cmocka_unit_test(a_failing_job_takes_its_leases_along),
		cmocka_unit_test(a_release_does_not_count),
		cmocka_unit_test(paths_for_those_who_see_them),
		cmocka_unit_test(a_lease_without_memory),
		cmocka_unit_test(a_draining_worker_gets_nothing),
		cmocka_unit_test(cancel_means_cancel),
		cmocka_unit_test(workers_look_right),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
