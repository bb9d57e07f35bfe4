/* The checkpoint of a running task: who may leave one, who gets it, and when it goes. */
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

enum { MINUTE = 60 * 1000 };
static const int64_t day_ms = 24 * 60 * (int64_t)MINUTE;

static struct engine_case c;
static char job[64], one[64], two[64];

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, one, "one");
	play_worker(&c, two, "two");
}

struct blob { char sha256[DIGEST_HEX]; int bytes; };

static struct blob stored(const char *text)
{
	struct blob b = { .bytes = (int)strlen(text) };
	struct err err = ERR_INIT;

	assert_int_equal(blobs_put(c.blobs, text, strlen(text), b.sha256, &err), 0);
	json_free(play_call(&c, VERB_BLOB_ADD, b.sha256, 201, "{'sha256':'%s','bytes':%d}", b.sha256, b.bytes));
	return b;
}

static bool is_stored(const struct blob *b)
{
	return blobs_has(c.blobs, b->sha256, NULL);
}

static void leave(const struct play_lease *l, const struct blob *b)
{
	json_free(play_call(&c, VERB_CHECKPOINT, l->task, 200,
			    "{'worker':'%s','epoch':%" PRId64 ",'sha256':'%s','bytes':%d}", l->worker, l->epoch, b->sha256,
			    b->bytes));
}

static const char *refused(const struct play_lease *l, const struct blob *b, enum err_code code)
{
	return play_refused(&c, VERB_CHECKPOINT, l->task, code,
			    "{'worker':'%s','epoch':%" PRId64 ",'sha256':'%s','bytes':%d}", l->worker, l->epoch, b->sha256,
			    b->bytes);
}

static void give_back(const struct play_lease *l)
{
	json_free(play_call(&c, VERB_RELEASE, l->task, 200, "{'worker':'%s','epoch':%" PRId64 ",'reason':'drain'}", l->worker,
			    l->epoch));
}

static void fail_task(const struct play_lease *l, const char *name)
{
	json_free(play_call(&c, VERB_FAIL, l->task, 200, "{'worker':'%s','epoch':%" PRId64 ",'error':{'name':'%s','detail':'x'}}",
			    l->worker, l->epoch, name));
}

/* The input `checkpoint` of a lease, or NULL; it is the last one. */
static const struct json *checkpoint_of(const struct play_lease *l)
{
	const struct json *found = NULL;

	for (const struct json *i = json_first(json_get(l->json, "inputs")); i; i = json_next(i)) {
		assert_null(found);
		if (strcmp(json_get_string(i, "name", ""), "checkpoint") == 0)
			found = i;
	}
	return found;
}

static void expect(const struct play_lease *l, const struct blob *b)
{
	const struct json *in = checkpoint_of(l);

	assert_non_null(in);
	assert_string_equal(json_get_string(in, "sha256", ""), b->sha256);
	assert_int_equal(json_get_int(in, "bytes", -1), b->bytes);
}

/* --- left and found ------------------------------------------------------------- */

static void the_next_lease_gets_it(void **state)
{
	struct play_lease l;
	struct blob half;

	(void)state;
	start("next");
	half = stored("half of the work");
	assert_true(play_lease(&c, one, &l));
	assert_null(checkpoint_of(&l));
	leave(&l, &half);
	give_back(&l); /* a drain */
	play_lease_drop(&l);
	assert_true(play_lease(&c, two, &l));
	expect(&l, &half);
	play_heartbeat(&c, &l, 0.1, 200);
	c.now_ms += 2 * MINUTE; /* a lapse */
	engine_tick(c.engine);
	play_lease_drop(&l);
	assert_true(play_lease(&c, one, &l));
	expect(&l, &half);
	fail_task(&l, "io"); /* an attempt that may go better elsewhere */
	play_lease_drop(&l);
	play_worker(&c, two, "two");
	assert_true(play_lease(&c, two, &l));
	expect(&l, &half);
	play_lease_drop(&l);
	play_close(&c);
}

static void the_newest_is_kept_and_the_one_before_released(void **state)
{
	struct play_lease l;
	struct blob first, second;

	(void)state;
	start("newest");
	first = stored("a third");
	second = stored("two thirds");
	assert_true(play_lease(&c, one, &l));
	leave(&l, &first);
	leave(&l, &first); /* one effect */
	assert_true(is_stored(&first));
	leave(&l, &second);
	assert_false(is_stored(&first));
	play_refused(&c, VERB_DATASET_ADD, "", ERR_CORRUPT, "{'name':'x.txt','sha256':'%s'}", first.sha256);
	leave(&l, &second);
	assert_true(is_stored(&second));
	give_back(&l);
	play_lease_drop(&l);
	assert_true(play_lease(&c, one, &l));
	expect(&l, &second);
	play_lease_drop(&l);
	play_close(&c);
}

static void a_blob_that_others_use_stays(void **state)
{
	struct play_lease l;
	struct blob shared, later;

	(void)state;
	start("shared");
	shared = stored("text and checkpoint at once");
	later = stored("later");
	json_free(play_call(&c, VERB_DATASET_ADD, "", 201, "{'name':'x.txt','sha256':'%s'}", shared.sha256));
	assert_true(play_lease(&c, one, &l));
	leave(&l, &shared);
	leave(&l, &later);
	assert_true(is_stored(&shared));
	play_lease_drop(&l);
	play_close(&c);
}

static void it_survives_restarts_and_the_sweep_of_orphans(void **state)
{
	struct play_lease l;
	struct blob kept, orphan;

	(void)state;
	start("restart");
	kept = stored("kept");
	orphan = stored("nobody names this");
	assert_true(play_lease(&c, one, &l));
	play_heartbeat(&c, &l, 0.5, 200);
	leave(&l, &kept);
	give_back(&l);
	play_lease_drop(&l);
	play_close(&c);
	c.now_ms += 2 * day_ms;
	play_open(&c);
	engine_tick(c.engine);
	assert_false(is_stored(&orphan));
	assert_true(is_stored(&kept));
	assert_true(play_lease(&c, two, &l));
	expect(&l, &kept);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- refused ---------------------------------------------------------------------- */

static void only_the_holder_at_its_epoch_may(void **state)
{
	struct play_lease l, again, other;
	struct blob mine, theirs;

	(void)state;
	start("fenced");
	mine = stored("of the first holder");
	theirs = stored("of the second");
	assert_true(play_lease(&c, one, &l));
	play_heartbeat(&c, &l, 0.2, 200);
	leave(&l, &mine);
	c.now_ms += 2 * MINUTE;
	engine_tick(c.engine);
	refused(&l, &theirs, ERR_CONFLICT); /* nobody holds it now */
	play_worker(&c, two, "two");
	assert_true(play_lease(&c, two, &again));
	assert_string_equal(again.task, l.task);
	refused(&l, &theirs, ERR_CONFLICT); /* the first wakes up and is fenced off */
	other = again;
	snprintf(other.worker, sizeof(other.worker), "%s", one);
	refused(&other, &theirs, ERR_CONFLICT); /* the right epoch, another worker */
	leave(&again, &theirs);
	play_complete(&c, &again, 200);
	refused(&again, &theirs, ERR_CONFLICT);
	play_lease_drop(&l);
	play_lease_drop(&again);
	play_close(&c);
}

static void what_is_not_stored_is_refused(void **state)
{
	struct play_lease l;
	struct blob good, absent = { "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", 4 };

	(void)state;
	start("not-stored");
	good = stored("stored");
	assert_true(play_lease(&c, one, &l));
	leave(&l, &good);
	assert_non_null(strstr(refused(&l, &absent, ERR_CORRUPT), "not stored"));
	absent.sha256[0] = 'X';
	refused(&l, &absent, ERR_INVALID);
	good.bytes++;
	assert_non_null(strstr(refused(&l, &good, ERR_INVALID), "has 6"));
	good.bytes--;
	play_refused(&c, VERB_CHECKPOINT, l.task, ERR_INVALID, "{'worker':'%s','epoch':1,'sha256':'%s'}", one, good.sha256);
	play_refused(&c, VERB_CHECKPOINT, l.task, ERR_INVALID, "{'worker':'%s','epoch':1}", one);
	play_refused(&c, VERB_CHECKPOINT, l.task, ERR_INVALID, "{'worker':'%s'}", one);
	play_refused(&c, VERB_CHECKPOINT, "t_x", ERR_NOT_FOUND, "{'worker':'%s','epoch':1}", one);
	give_back(&l);
	play_lease_drop(&l);
	assert_true(play_lease(&c, one, &l));
	expect(&l, &good); /* what was refused changed nothing */
	play_lease_drop(&l);
	play_close(&c);
}

/* --- the end ---------------------------------------------------------------------- */

static void done_drops_it(void **state)
{
	struct play_lease l;
	struct blob half;

	(void)state;
	start("done");
	half = stored("half");
	assert_true(play_lease(&c, one, &l));
	leave(&l, &half);
	play_complete(&c, &l, 200);
	assert_false(is_stored(&half));
	play_complete(&c, &l, 200); /* repeated */
	play_lease_drop(&l);
	play_drain(&c, one);
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_close(&c);
}

static void cancel_drops_it(void **state)
{
	struct play_lease l;
	struct blob half;

	(void)state;
	start("cancelled");
	half = stored("half");
	assert_true(play_lease(&c, one, &l));
	leave(&l, &half);
	json_free(play_call(&c, VERB_JOB_CANCEL, job, 200, NULL));
	assert_false(is_stored(&half));
	half = stored("half");
	refused(&l, &half, ERR_CANCELLED);
	play_lease_drop(&l);
	json_free(play_call(&c, VERB_JOB_DELETE, job, 204, NULL));
	play_close(&c);
}

/* One task leaves a checkpoint and goes back, another of the same job fails for good. */
static void a_failed_job_drops_all_and_a_retry_starts_afresh(void **state)
{
	struct play_lease l, other;
	struct blob half, mine;
	char task[128];

	(void)state;
	start("failed");
	half = stored("half of one task");
	mine = stored("half of another");
	assert_true(play_lease(&c, one, &l));
	assert_true(play_lease(&c, two, &other));
	leave(&l, &half);
	leave(&other, &mine);
	snprintf(task, sizeof(task), "%s", l.task);
	fail_task(&l, "corrupt");
	assert_string_equal(play_job_state(&c, job), "FAILED");
	assert_false(is_stored(&half));
	assert_false(is_stored(&mine));
	play_lease_drop(&l);
	play_lease_drop(&other);
	json_free(play_call(&c, VERB_JOB_RETRY, job, 200, NULL));
	assert_true(play_lease(&c, one, &l));
	assert_string_equal(l.task, task);
	assert_null(checkpoint_of(&l));
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_drain(&c, one);
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_close(&c);
}

static void every_allocation_may_fail(void **state)
{
	struct engine_reply reply;
	struct play_lease l;
	struct blob first, second;
	int failures = 0;
	bool done = false;

	(void)state;
	start("memory");
	first = stored("first");
	second = stored("second");
	assert_true(play_lease(&c, one, &l));
	leave(&l, &first);
	for (int64_t n = 1; !done; n++) {
		struct engine_request r = { .verb = VERB_CHECKPOINT };

		snprintf(r.subject, sizeof(r.subject), "tester");
		snprintf(r.id, sizeof(r.id), "%s", l.task);
		r.body = json_new_object();
		json_set_string(r.body, "worker", one);
		json_set_int(r.body, "epoch", l.epoch);
		json_set_string(r.body, "sha256", second.sha256);
		json_set_int(r.body, "bytes", second.bytes);
		mem_fail_after(n);
		engine_call(c.engine, &r, &reply);
		mem_fail_after(0);
		done = reply.err.code == ERR_NONE;
		if (!done) {
			assert_int_equal(reply.err.code, ERR_NOMEM);
			assert_true(is_stored(&first) && is_stored(&second));
			failures++;
		}
		engine_reply_deinit(&reply);
		engine_request_deinit(&r);
	}
	assert_true(failures > 0);
	assert_false(is_stored(&first));
	give_back(&l);
	play_lease_drop(&l);
	assert_true(play_lease(&c, one, &l));
	expect(&l, &second);
	play_lease_drop(&l);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_next_lease_gets_it),
		cmocka_unit_test(the_newest_is_kept_and_the_one_before_released),
		cmocka_unit_test(a_blob_that_others_use_stays),
		cmocka_unit_test(it_survives_restarts_and_the_sweep_of_orphans),
		cmocka_unit_test(only_the_holder_at_its_epoch_may),
		cmocka_unit_test(what_is_not_stored_is_refused),
		cmocka_unit_test(done_drops_it),
		cmocka_unit_test(cancel_drops_it),
		cmocka_unit_test(a_failed_job_drops_all_and_a_retry_starts_afresh),
		cmocka_unit_test(every_allocation_may_fail),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
