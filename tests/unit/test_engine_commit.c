/* Group commit: a batch is one transaction; one bad request spoils nothing; a COMMIT that fails acknowledges nothing. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "server/engine_internal.h"
#include "tests/lib/engine_case.h"

enum { BATCH = 3 };

static struct engine_case c;
static int done_count;

static void count_done(struct engine_call *call)
{
	(void)call;
	done_count++;
}

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
	done_count = 0;
}

/* Registers BATCH workers in one batch; the one numbered `bad` has no name. */
static void run_batch(struct engine_call calls[BATCH], int bad)
{
	struct engine_call *list[BATCH];

	for (int i = 0; i < BATCH; i++) {
		char name[16];

		snprintf(name, sizeof(name), "w%d", i);
		calls[i] = (struct engine_call){ .done = count_done, .request = { .verb = VERB_WORKER_ADD } };
		snprintf(calls[i].request.subject, sizeof(calls[i].request.subject), "tester");
		calls[i].request.body = json_new_object();
		json_set_string(calls[i].request.body, "name", i == bad ? "" : name);
		list[i] = &calls[i];
	}
	writer_run_batch(c.engine, list, BATCH);
}

static void drop_batch(struct engine_call calls[BATCH])
{
	for (int i = 0; i < BATCH; i++) {
		engine_reply_deinit(&calls[i].reply);
		engine_request_deinit(&calls[i].request);
	}
}

static size_t count_workers(void)
{
	struct json *body = play_call(&c, VERB_WORKER_LIST, "", 200, NULL);
	size_t count = json_size(json_get(body, "items"));

	json_free(body);
	return count;
}

static void a_batch_is_one_transaction(void **state)
{
	struct engine_call calls[BATCH];
	uint64_t commits;

	(void)state;
	start("batch");
	commits = c.engine->commits;
	run_batch(calls, -1);
	assert_int_equal(c.engine->commits - commits, 1);
	assert_int_equal(done_count, BATCH);
	assert_int_equal(count_workers(), BATCH);
	drop_batch(calls);
	play_close(&c);
}

static void a_bad_request_spoils_nothing(void **state)
{
	struct engine_call calls[BATCH];

	(void)state;
	start("spoil");
	run_batch(calls, 1);
	assert_int_equal(done_count, BATCH);
	assert_int_equal(calls[0].reply.status, 201);
	assert_int_equal(calls[1].reply.err.code, ERR_INVALID);
	assert_int_equal(calls[2].reply.status, 201);
	assert_int_equal(count_workers(), BATCH - 1);
	drop_batch(calls);
	play_close(&c);
}

/* Files of this process may not grow: the write-ahead log cannot take the transaction. */
static void allow_file_bytes(rlim_t bytes)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = bytes;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void a_failed_commit_acknowledges_nothing(void **state)
{
	struct engine_call calls[BATCH];
	struct rlimit before;
	char why[256];

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	start("commit");
	allow_file_bytes(1);
	run_batch(calls, -1);
	allow_file_bytes(before.rlim_cur);
	assert_int_equal(done_count, BATCH);
	for (int i = 0; i < BATCH; i++) {
		assert_true(calls[i].reply.err.code == ERR_IO || calls[i].reply.err.code == ERR_NOSPC);
		assert_null(calls[i].reply.body);
	}
	assert_int_equal(count_workers(), 0);
	assert_false(engine_ready(c.engine, why, sizeof(why)));
	assert_int_equal(c.engine->failed_commits, 1);
	drop_batch(calls);
	engine_tick(c.engine); /* looks whether writing works again */
	assert_true(engine_ready(c.engine, why, sizeof(why)));
	run_batch(calls, -1);
	assert_int_equal(count_workers(), BATCH);
	drop_batch(calls);
	play_close(&c);
}

/* Dropped blobs follow the transaction: no COMMIT, no deletion. */
static void files_are_deleted_after_commit_only(void **state)
{
	struct rlimit before;
	struct err err = ERR_INIT;
	char sha256[DIGEST_HEX];
	struct json *body;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	start("files");
	assert_int_equal(blobs_put(c.blobs, "a text", 6, sha256, &err), 0);
	json_free(play_call(&c, VERB_BLOB_ADD, sha256, 201, "{'sha256':'%s'}", sha256));
	body = play_call(&c, VERB_DATASET_ADD, "", 201, "{'name':'t.txt','sha256':'%s'}", sha256);
	allow_file_bytes(1);
	{
		struct engine_request r = { .verb = VERB_DATASET_DELETE };
		struct engine_reply reply;

		snprintf(r.id, sizeof(r.id), "%s", json_get_string(body, "dataset", ""));
		engine_call(c.engine, &r, &reply);
		allow_file_bytes(before.rlim_cur);
		assert_true(reply.err.code == ERR_IO || reply.err.code == ERR_NOSPC);
		engine_reply_deinit(&reply);
	}
	assert_true(blobs_has(c.blobs, sha256, NULL));
	json_free(play_call(&c, VERB_DATASET_DELETE, json_get_string(body, "dataset", ""), 204, NULL));
	assert_false(blobs_has(c.blobs, sha256, NULL));
	json_free(body);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_batch_is_one_transaction),
		cmocka_unit_test(a_bad_request_spoils_nothing),
		cmocka_unit_test(a_failed_commit_acknowledges_nothing),
		cmocka_unit_test(files_are_deleted_after_commit_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
