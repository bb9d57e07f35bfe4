/* The agent's state tables and its judgements: no clock, no network. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "worker/agent_decide.h"
#include "worker/agent_state.h"
#include "worker/agent_wire.h"

/* --- the tables ------------------------------------------------------------------------------------------ */

static const char *const hold_table[] = {
	"ACCEPTING=>FETCHING", "ACCEPTING=>FAILING", "ACCEPTING=>RELEASING", "ACCEPTING=>GONE",
	"FETCHING=>COMPUTING", "FETCHING=>FAILING", "FETCHING=>RELEASING", "FETCHING=>GONE",
	"COMPUTING=>SEALING", "COMPUTING=>FAILING", "COMPUTING=>RELEASING", "COMPUTING=>STOPPING",
	"SEALING=>UPLOADING", "SEALING=>FAILING", "SEALING=>RELEASING", "SEALING=>GONE",
	"UPLOADING=>COMPLETING", "UPLOADING=>FAILING", "UPLOADING=>RELEASING", "UPLOADING=>GONE",
	"COMPLETING=>UPLOADING", "COMPLETING=>FAILING", "COMPLETING=>GONE",
	"FAILING=>GONE", "RELEASING=>STOPPING", "RELEASING=>GONE", "STOPPING=>GONE",
};

static const char *const agent_table[] = {
	"REGISTERING=>SERVING", "REGISTERING=>DRAINING", "REGISTERING=>STOPPED",
	"SERVING=>REGISTERING", "SERVING=>DRAINING", "DRAINING=>STOPPED",
};

static bool listed(const char *const *table, size_t count, const char *from, const char *to)
{
	char move[64];

	snprintf(move, sizeof(move), "%s=>%s", from, to);
	for (size_t i = 0; i < count; i++)
		if (strcmp(table[i], move) == 0)
			return true;
	return false;
}

static void test_hold_moves(void **state)
{
	(void)state;
	for (int from = 0; from < HOLD_STATES; from++)
		for (int to = 0; to < HOLD_STATES; to++)
			assert_int_equal(hold_move_allowed(from, to),
					 listed(hold_table, sizeof(hold_table) / sizeof(hold_table[0]),
						hold_state_name(from), hold_state_name(to)));
	assert_false(hold_move_allowed(HOLD_STATES, HOLD_GONE));
	assert_false(hold_move_allowed(HOLD_GONE, HOLD_STATES));
	assert_string_equal(hold_state_name(HOLD_STATES), "?");
}

static void test_agent_moves(void **state)
{
	(void)state;
	for (int from = 0; from < AGENT_STATES; from++)
		for (int to = 0; to < AGENT_STATES; to++)
			assert_int_equal(agent_move_allowed(from, to),
					 listed(agent_table, sizeof(agent_table) / sizeof(agent_table[0]),
						agent_state_name(from), agent_state_name(to)));
	assert_string_equal(agent_state_name(AGENT_STATES), "?");
}

static void test_moves_change_the_state(void **state)
{
	enum hold_state h = HOLD_ACCEPTING;
	enum agent_state a = AGENT_REGISTERING;

	(void)state;
	hold_move(&h, HOLD_FETCHING, "t_1", 1);
	assert_int_equal(h, HOLD_FETCHING);
	agent_move(&a, AGENT_SERVING);
	assert_int_equal(a, AGENT_SERVING);
}

/* The signal that ends a child which makes this move. */
static int ends_by(void (*move)(void))
{
	pid_t child = fork();
	int status = 0;

	if (child == 0) {
		signal(SIGABRT, SIG_DFL);
		move();
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void illegal_hold_move(void)
{
	enum hold_state h = HOLD_GONE;

	hold_move(&h, HOLD_COMPUTING, "t_1", 1);
}

static void illegal_agent_move(void)
{
	enum agent_state a = AGENT_STOPPED;

	agent_move(&a, AGENT_SERVING);
}

static void test_illegal_moves_end_the_program(void **state)
{
	(void)state;
	assert_int_equal(ends_by(illegal_hold_move), SIGABRT);
	assert_int_equal(ends_by(illegal_agent_move), SIGABRT);
}

/* --- judgements --------------------------------------------------------------------------------------------- */

static void test_backoff(void **state)
{
	static const int64_t most[] = { 250, 250, 500, 1000, 2000, 4000, 8000, 10000, 10000 };

	(void)state;
	for (unsigned i = 0; i < 9; i++) {
		assert_int_equal(decide_backoff_ms(i, UINT32_MAX), most[i]);
		assert_int_equal(decide_backoff_ms(i, 0), most[i] / 2);
	}
	assert_int_equal(decide_backoff_ms(4000000000u, UINT32_MAX), DECIDE_BACKOFF_MOST_MS);
	assert_in_range(decide_backoff_ms(3, 0x80000000u), 500, 1000);
}

static void test_heartbeats(void **state)
{
	(void)state;
	assert_int_equal(decide_heartbeat_ms(60000), 15000);
	assert_int_equal(decide_heartbeat_ms(1000), 250);
	assert_int_equal(decide_heartbeat_ms(1), 50);
	assert_int_equal(decide_heartbeat_ms(86400000), 60000);
	assert_int_equal(decide_heartbeat_retry_ms(60000, 1, UINT32_MAX), 250);
	assert_int_equal(decide_heartbeat_retry_ms(1000, 9, UINT32_MAX), 250);
	assert_int_equal(decide_heartbeat_retry_ms(60000, 9, UINT32_MAX), 10000);
}

static void test_replies(void **state)
{
	static const struct { enum request_kind kind; int status; enum err_code code; enum verdict verdict; } rows[] = {
		{ REQUEST_REGISTER, 201, ERR_NONE, VERDICT_DONE },
		{ REQUEST_REGISTER, 401, ERR_UNAUTHORIZED, VERDICT_REFUSED },
		{ REQUEST_REGISTER, 403, ERR_FORBIDDEN, VERDICT_REFUSED },
		{ REQUEST_REGISTER, 0, ERR_UNAVAILABLE, VERDICT_RETRY },
		{ REQUEST_REGISTER, 503, ERR_UNAVAILABLE, VERDICT_RETRY },
		{ REQUEST_LEASE, 204, ERR_NONE, VERDICT_DONE },
		{ REQUEST_LEASE, 404, ERR_NOT_FOUND, VERDICT_REGISTER },
		{ REQUEST_LEASE, 401, ERR_UNAUTHORIZED, VERDICT_RETRY },
		{ REQUEST_LEASE, 400, ERR_INVALID, VERDICT_RETRY },
		{ REQUEST_LEASE, 429, ERR_BUSY, VERDICT_RETRY },
		{ REQUEST_HEARTBEAT, 200, ERR_NONE, VERDICT_DONE },
		{ REQUEST_HEARTBEAT, 409, ERR_CONFLICT, VERDICT_LOST },
		{ REQUEST_HEARTBEAT, 404, ERR_NOT_FOUND, VERDICT_LOST },
		{ REQUEST_HEARTBEAT, 0, ERR_TIMEOUT, VERDICT_RETRY },
		{ REQUEST_HEARTBEAT, 500, ERR_INTERNAL, VERDICT_RETRY },
		{ REQUEST_HEARTBEAT, 400, ERR_INVALID, VERDICT_RETRY },
		{ REQUEST_COMPLETE, 422, ERR_CORRUPT, VERDICT_UPLOAD_AGAIN },
		{ REQUEST_COMPLETE, 422, ERR_REFUSED, VERDICT_REFUSED },
		{ REQUEST_COMPLETE, 409, ERR_CONFLICT, VERDICT_LOST },
		{ REQUEST_COMPLETE, 404, ERR_NOT_FOUND, VERDICT_LOST },
		{ REQUEST_COMPLETE, 507, ERR_NOSPC, VERDICT_RETRY },
		{ REQUEST_FAIL, 409, ERR_CONFLICT, VERDICT_LOST },
		{ REQUEST_FAIL, 413, ERR_TOO_LARGE, VERDICT_REFUSED },
		{ REQUEST_RELEASE, 404, ERR_NOT_FOUND, VERDICT_LOST },
		{ REQUEST_CHECKPOINT, 200, ERR_NONE, VERDICT_DONE },
		{ REQUEST_CHECKPOINT, 409, ERR_CONFLICT, VERDICT_LOST },
		{ REQUEST_CHECKPOINT, 404, ERR_NOT_FOUND, VERDICT_REFUSED },    /* an older coordinator */
		{ REQUEST_CHECKPOINT, 422, ERR_CORRUPT, VERDICT_REFUSED },
		{ REQUEST_CHECKPOINT, 503, ERR_UNAVAILABLE, VERDICT_RETRY },
		{ REQUEST_UPLOAD_BEGIN, 507, ERR_NOSPC, VERDICT_RETRY },
		{ REQUEST_UPLOAD_BEGIN, 413, ERR_TOO_LARGE, VERDICT_REFUSED },
		{ REQUEST_UPLOAD_PART, 404, ERR_NOT_FOUND, VERDICT_RETRY },
		{ REQUEST_UPLOAD_PART, 204, ERR_NONE, VERDICT_DONE },
		{ REQUEST_UPLOAD_COMPLETE, 422, ERR_CORRUPT, VERDICT_UPLOAD_AGAIN },
		{ REQUEST_UPLOAD_COMPLETE, 400, ERR_INVALID, VERDICT_REFUSED },
		{ REQUEST_DOWNLOAD, 206, ERR_NONE, VERDICT_DONE },
		{ REQUEST_DOWNLOAD, 404, ERR_NOT_FOUND, VERDICT_REFUSED },
		{ REQUEST_DOWNLOAD, 416, ERR_INVALID, VERDICT_RETRY },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		enum verdict got = decide_reply(rows[i].kind, rows[i].status, rows[i].code);

		if (got != rows[i].verdict)
			fail_msg("request %d, status %d, %s: verdict %d, not %d", rows[i].kind, rows[i].status,
				 err_name(rows[i].code), got, rows[i].verdict);
	}
}

static void test_want_lease(void **state)
{
	struct decide_view v = { .state = AGENT_SERVING };

	(void)state;
	assert_true(decide_want_lease(&v));
	v.uploading = v.held = DECIDE_UPLOADS_MOST - 1;
	assert_true(decide_want_lease(&v));
	v.uploading = v.held = DECIDE_UPLOADS_MOST;
	assert_false(decide_want_lease(&v));
	v = (struct decide_view){ .state = AGENT_SERVING, .sealing = 1, .uploading = DECIDE_UPLOADS_MOST - 2 };
	assert_true(decide_want_lease(&v)); /* the compute thread is free */
	v.sealing_soon = 1;
	assert_false(decide_want_lease(&v)); /* its output may decide which task is the best */
	v.sealing_soon = 0;
	v.sealing = 2;
	assert_false(decide_want_lease(&v));
	v = (struct decide_view){ .state = AGENT_SERVING, .busy = 1, .held = 1 };
	assert_false(decide_want_lease(&v));
	v = (struct decide_view){ .state = AGENT_SERVING, .lease_under_way = true };
	assert_false(decide_want_lease(&v));
	v = (struct decide_view){ .state = AGENT_DRAINING };
	assert_false(decide_want_lease(&v));
	v.state = AGENT_REGISTERING;
	assert_false(decide_want_lease(&v));
	assert_int_equal(decide_poll_again_ms(25000), 0);
	assert_int_equal(decide_poll_again_ms(3), 1000);
}

static void test_leave(void **state)
{
	(void)state;
	assert_true(decide_leave(0));
	assert_true(decide_leave(0.9));
	assert_false(decide_leave(0.995));
}

static void test_give_back(void **state)
{
	(void)state;
	assert_true(decide_give_back(HOLD_ACCEPTING, 0, 0, false));
	assert_true(decide_give_back(HOLD_FETCHING, 0, 0, false));
	assert_false(decide_give_back(HOLD_COMPUTING, 0.51, 1000000, false)); /* more than half done */
	assert_true(decide_give_back(HOLD_COMPUTING, 0.5, 21000, false));     /* 21 s to go */
	assert_false(decide_give_back(HOLD_COMPUTING, 0.5, 19000, false));    /* 19 s to go */
	assert_false(decide_give_back(HOLD_COMPUTING, 0.1, 2000, false));     /* 18 s to go */
	assert_true(decide_give_back(HOLD_COMPUTING, 0.1, 3000, false));      /* 27 s to go */
	assert_true(decide_give_back(HOLD_COMPUTING, 0, 1, false));           /* nobody knows */
	assert_true(decide_give_back(HOLD_COMPUTING, 0.99, 1, true));
	assert_false(decide_give_back(HOLD_SEALING, 1, 0, false));
	assert_true(decide_give_back(HOLD_SEALING, 1, 0, true));
	assert_false(decide_give_back(HOLD_UPLOADING, 1, 0, false));
	assert_true(decide_give_back(HOLD_UPLOADING, 1, 0, true));
	for (int s = HOLD_COMPLETING; s <= HOLD_STATES; s++)
		assert_false(decide_give_back(s, 1, 0, true));
}

static void test_stop(void **state)
{
	struct decide_view v = { .state = AGENT_DRAINING, .held = 1, .uploading = 1 };

	(void)state;
	assert_false(decide_stop(&v, 0, -1));
	assert_false(decide_stop(&v, DECIDE_DRAIN_AWAY_MS - 1, -1));
	assert_true(decide_stop(&v, DECIDE_DRAIN_AWAY_MS, -1)); /* the spool keeps it */
	assert_false(decide_stop(&v, 0, 0));
	assert_true(decide_stop(&v, 0, DECIDE_HURRY_MS));
	v.busy = 1;
	assert_false(decide_stop(&v, DECIDE_DRAIN_AWAY_MS, -1)); /* computing goes on */
	v.busy = 0;
	v.sealing = 1;
	assert_false(decide_stop(&v, DECIDE_DRAIN_AWAY_MS, -1)); /* not on disk yet */
	assert_true(decide_stop(&v, 0, DECIDE_HURRY_MS));
	v.held = v.sealing = 0;
	assert_true(decide_stop(&v, 0, -1));
	v.state = AGENT_SERVING;
	assert_false(decide_stop(&v, 0, DECIDE_HURRY_MS));
}

static void test_start_anew(void **state)
{
	struct decide_view v = { .state = AGENT_DRAINING, .held = 2, .uploading = 2 };

	(void)state;
	assert_true(decide_start_anew(&v)); /* results wait on disk */
	v.parting = 1;
	assert_false(decide_start_anew(&v)); /* the coordinator has to hear of it first */
	v = (struct decide_view){ .state = AGENT_DRAINING, .held = 1, .busy = 1 };
	assert_false(decide_start_anew(&v));
	v = (struct decide_view){ .state = AGENT_DRAINING, .held = 1, .sealing = 1 };
	assert_false(decide_start_anew(&v));
	v = (struct decide_view){ .state = AGENT_SERVING };
	assert_false(decide_start_anew(&v));
}

/* --- messages --------------------------------------------------------------------------------------------------- */

static const char good_lease[] =
	"{\"task\":\"t_1\",\"epoch\":3,\"job\":\"j_1\",\"kind\":\"quantize\",\"lease_seconds\":60,\"accept_seconds\":10,"
	"\"spec\":{\"layer\":1},\"inputs\":[{\"name\":\"hidden-0\",\"sha256\":"
	"\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\",\"bytes\":123}],"
	"\"model\":{\"id\":\"m_1\",\"path\":null,\"files\":[{\"name\":\"config.json\",\"bytes\":850}]}}";

static void test_lease(void **state)
{
	struct lease lease;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(lease_parse(&lease, good_lease, strlen(good_lease), &err), 0);
	assert_string_equal(lease.task, "t_1");
	assert_string_equal(lease.kind, "quantize");
	assert_int_equal(lease.epoch, 3);
	assert_int_equal(lease.lease_ms, 60000);
	assert_int_equal(lease.input_count, 1);
	assert_string_equal(lease.inputs[0].name, "hidden-0");
	assert_int_equal(lease.inputs[0].bytes, 123);
	assert_non_null(lease.model);
	assert_null(lease.inputs[0].path);
	lease_deinit(&lease);
}

#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static int parse_with_path(struct lease *lease, const char *path, struct err *err)
{
	const char *at = strstr(good_lease, "\"bytes\":123");
	char *text = malloc(PATH_MAX + 2 * sizeof(good_lease));
	int rc;

	snprintf(text, PATH_MAX + 2 * sizeof(good_lease), "%.*s\"path\":%s,%s", (int)(at - good_lease), good_lease, path, at);
	rc = lease_parse(lease, text, strlen(text), err);
	free(text);
	return rc;
}

/* The file of an input: only one that is named by its digest, by an absolute path. */
static void test_lease_with_paths(void **state)
{
	static const char *const bad[] = {
		"\"data/blobs/01/" SHA "\"", "\"" SHA "\"", "\"\"", "\"/\"", "\"/etc/passwd\"", "\"/etc/passwd/\"",
		"\"../" SHA "\"", "\"/x/" SHA "/\"", "\"/x/" SHA ".part\"", "\"/x/y" SHA "\"", "7", "true", "[]",
	};
	struct lease lease;
	struct err err = ERR_INIT;
	char *deep = malloc(PATH_MAX + 128);

	(void)state;
	assert_int_equal(parse_with_path(&lease, "\"/data/blobs/01/" SHA "\"", &err), 0);
	assert_string_equal(lease.inputs[0].path, "/data/blobs/01/" SHA);
	lease_deinit(&lease);
	assert_int_equal(parse_with_path(&lease, "null", &err), 0);
	assert_null(lease.inputs[0].path);
	lease_deinit(&lease);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (parse_with_path(&lease, bad[i], &err) == 0)
			fail_msg("%s is accepted", bad[i]);
		assert_int_equal(err.code, ERR_INVALID);
		assert_non_null(strstr(err.text, "hidden-0"));
	}
	snprintf(deep, PATH_MAX + 128, "\"/%0*d/" SHA "\"", PATH_MAX - 65, 0);
	assert_int_equal(parse_with_path(&lease, deep, &err), -1);
	free(deep);
}

/* Replaces the first `from` in the good lease; the sentence must hold `word`. */
static void refuse(const char *from, const char *to, const char *word)
{
	char text[2048];
	const char *at = strstr(good_lease, from);
	struct lease lease;
	struct err err = ERR_INIT;

	assert_non_null(at);
	snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - good_lease), good_lease, to, at + strlen(from));
	assert_int_equal(lease_parse(&lease, text, strlen(text), &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	if (!strstr(err.text, word))
		fail_msg("\"%s\" is not in \"%s\"", word, err.text);
}

static void test_bad_leases(void **state)
{
	(void)state;
	refuse("t_1", "../t_1", "not an id");
	refuse("t_1", "", "not an id");
	refuse("\"epoch\":3", "\"epoch\":-1", "epoch");
	refuse("\"epoch\":3", "\"epoch\":0.5", "epoch");
	refuse("\"lease_seconds\":60", "\"lease_seconds\":0", "lease_seconds");
	refuse("{\"layer\":1}", "[]", "spec");
	refuse("hidden-0", "a/b", "plain name");
	refuse("0123456789abcdef", "0123456789ABCDEF", "SHA-256");
	refuse("\"bytes\":123", "\"bytes\":-5", "bytes");
	refuse("m_1", "m/1", "model");
	refuse("config.json", "../config.json", "plain name");
	refuse("\"bytes\":850", "\"bytes\":\"many\"", "model.files");
	refuse("}}", "}", "lease");
}

static void test_lease_without_memory(void **state)
{
	struct lease lease;
	struct err err = ERR_INIT;
	bool done = false;
	uint64_t n;

	(void)state;
	for (n = 1; !done && n < 1000; n++) {
		mem_fail_after(n);
		done = lease_parse(&lease, good_lease, strlen(good_lease), &err) == 0;
		mem_fail_after(0);
	}
	assert_true(done);
	assert_in_range(n, 3, 999); /* some attempts did fail */
	lease_deinit(&lease);
}

static void test_upload_answers(void **state)
{
	static const char part[] = "{\"upload\":\"u_1\",\"part_bytes\":1024,\"parts_done\":[0,2,9,-1,\"x\"]}";
	static const char *const bad[] = {
		"{}", "[]", "{\"upload\":\"u_1\",\"part_bytes\":1}", "{\"upload\":\"u/1\",\"part_bytes\":1024}", "nonsense",
	};
	struct wire_upload up;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(wire_parse_upload(&up, SHA, 2049, part, strlen(part), &err), 0);
	assert_false(up.exists);
	assert_int_equal(up.parts, 3);
	assert_memory_equal(up.done, "\1\0\1", 3);
	assert_null(up.place);
	wire_upload_deinit(&up);
	assert_int_equal(wire_parse_upload(&up, SHA, 5, "{\"exists\":true}", 15, &err), 0);
	assert_true(up.exists);
	for (size_t i = 0; i < 5; i++)
		assert_int_equal(wire_parse_upload(&up, SHA, 2049, bad[i], strlen(bad[i]), &err), -1);
	assert_int_equal(wire_parse_upload(&up, SHA, (uint64_t)1 << 40, part, strlen(part), &err), -1); /* too many parts */
}

/* Where a file may be put: nothing that could be another file of this host. */
static void test_upload_places(void **state)
{
	static const char *const bad[] = {
		"\"uploads/" SHA ".placed\"", "\"" SHA ".placed\"", "\"/etc/passwd\"", "\"/x/" SHA "\"", "\"/x/" SHA ".part\"",
		"\"/x/" SHA ".placed/\"", "\"\"", "1",
	};
	char text[512];
	struct wire_upload up;
	struct err err = ERR_INIT;
	bool done = false;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(text, sizeof(text), "{\"upload\":\"u_1\",\"part_bytes\":1024,\"place\":%s}", bad[i]);
		if (wire_parse_upload(&up, SHA, 7, text, strlen(text), &err) == 0)
			fail_msg("%s is accepted", bad[i]);
		assert_int_equal(err.code, ERR_INVALID);
		assert_null(up.done);
	}
	snprintf(text, sizeof(text), "{\"upload\":\"u_1\",\"part_bytes\":1024,\"place\":\"/x/uploads/" SHA ".placed\"}");
	for (uint64_t n = 1; !done; n++) {
		mem_fail_after(n);
		done = wire_parse_upload(&up, SHA, 7, text, strlen(text), &err) == 0;
		mem_fail_after(0);
		if (!done)
			assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_string_equal(up.place, "/x/uploads/" SHA ".placed");
	wire_upload_deinit(&up);
	assert_null(up.place);
}

static void check_text(char *text, const char *expected)
{
	assert_non_null(text);
	assert_string_equal(text, expected);
	mem_free(text);
}

static void test_registrations(void **state)
{
	const struct backend_device device = { .name = "GPU", .driver = "CUDA 13.0", .number = 2, .clock_mhz = 1980,
					       .memory_bytes = 150754820096, .memory_free = 7 };
	struct wire_worker w = { .name = "n", .backend = "cpu", .identity = "i", .version = "1", .threads = 3,
				 .memory_bytes = 5, .sees_paths = true };

	(void)state;
	check_text(wire_register(&w), "{\"name\":\"n\",\"backend\":\"cpu\",\"identity\":\"i\",\"threads\":3,\"memory_bytes\":5,"
				      "\"version\":\"1\",\"sees_paths\":true}");
	w.device = &device;
	check_text(wire_register(&w), "{\"name\":\"n\",\"backend\":\"cpu\",\"identity\":\"i\",\"threads\":3,\"memory_bytes\":5,"
				      "\"version\":\"1\",\"sees_paths\":true,\"device\":{\"number\":2,\"name\":\"GPU\","
				      "\"driver\":\"CUDA 13.0\",\"clock_mhz\":1980,\"memory_bytes\":150754820096}}");
}

static void test_bodies(void **state)
{
	const char *have[] = { "aa", "bb" };
	struct err why = { .code = ERR_NOSPC, .text = "no room \xff" }, lost = { .code = ERR_UNAVAILABLE, .text = "gone" };
	static const char content[] = "{\"task\":\"t\",\"outputs\":[],\"result\":{\"a\":1},\"stats\":{}}";
	struct json *complete = json_parse(content, strlen(content), NULL);

	(void)state;
	check_text(wire_lease_request("w_1", have, 2, have, 1),
		   "{\"worker\":\"w_1\",\"have\":[\"aa\",\"bb\"],\"holds\":[\"aa\"]}");
	check_text(wire_lease_request("w_1", have, 0, have, WIRE_HOLDS_MAX + 1), "{\"worker\":\"w_1\",\"have\":[]}");
	check_text(wire_heartbeat("w_1", 2, 0.5, "half"),
		   "{\"worker\":\"w_1\",\"epoch\":2,\"progress\":0.5,\"note\":\"half\"}");
	check_text(wire_fail("w_1", 2, &why, "last"),
		   "{\"worker\":\"w_1\",\"epoch\":2,\"error\":{\"name\":\"no-space\",\"detail\":\"no room \xEF\xBF\xBD\"},"
		   "\"log\":\"last\"}");
	check_text(wire_release("w_1", 2, "drain", NULL, ""),
		   "{\"worker\":\"w_1\",\"epoch\":2,\"reason\":\"drain\"}");
	check_text(wire_release("w_1", 2, "lost", &lost, "last"),
		   "{\"worker\":\"w_1\",\"epoch\":2,\"reason\":\"lost\",\"error\":{\"name\":\"unavailable\",\"detail\":\"gone\"},"
		   "\"log\":\"last\"}");
	check_text(wire_upload_begin("ab", 7, false), "{\"sha256\":\"ab\",\"bytes\":7}");
	check_text(wire_upload_begin("ab", 7, true), "{\"sha256\":\"ab\",\"bytes\":7,\"place\":true}");
	check_text(wire_complete("w_1", 2, complete),
		   "{\"worker\":\"w_1\",\"epoch\":2,\"outputs\":[],\"result\":{\"a\":1},\"stats\":{}}");
	json_free(complete);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hold_moves),
		cmocka_unit_test(test_agent_moves),
		cmocka_unit_test(test_moves_change_the_state),
		cmocka_unit_test(test_illegal_moves_end_the_program),
		cmocka_unit_test(test_backoff),
		cmocka_unit_test(test_heartbeats),
		cmocka_unit_test(test_replies),
		cmocka_unit_test(test_want_lease),
		cmocka_unit_test(test_leave),
		cmocka_unit_test(test_give_back),
		cmocka_unit_test(test_stop),
		cmocka_unit_test(test_start_anew),
		cmocka_unit_test(test_lease),
		cmocka_unit_test(test_lease_with_paths),
		cmocka_unit_test(test_bad_leases),
		cmocka_unit_test(test_lease_without_memory),
		cmocka_unit_test(test_upload_answers),
		cmocka_unit_test(test_upload_places),
		cmocka_unit_test(test_registrations),
		cmocka_unit_test(test_bodies),
	};

	return cmocka_run_group_tests_name("worker states", tests, NULL, NULL);
}
