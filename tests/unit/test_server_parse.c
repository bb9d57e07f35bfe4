/* Small parts of the HTTP side: Range, percent-encoding, ETag lists, options, addresses, helper threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "server/listen.h"
#include "server/offload.h"
#include "server/options.h"
#include "server/percent.h"
#include "server/range.h"
#include "server/reply.h"

static void test_range(void **state)
{
	static const struct { const char *header; uint64_t size; enum range_kind kind; uint64_t first,
	last; } rows[] = {
		{ NULL, 10, RANGE_ALL, 0, 0 },
		{ "bytes=0-3", 10, RANGE_PART, 0, 3 },
		{ "Bytes=0-3", 10, RANGE_PART, 0, 3 },
		{ "bytes=4-", 10, RANGE_PART, 4, 9 },
		{ "bytes=4-100", 10, RANGE_PART, 4, 9 },
		{ "bytes=9-9", 10, RANGE_PART, 9, 9 },
		{ "bytes=-3", 10, RANGE_PART, 7, 9 },
		{ "bytes=-30", 10, RANGE_PART, 0, 9 },
		{ "bytes=10-", 10, RANGE_NONE, 0, 0 },
		{ "bytes=-0", 10, RANGE_NONE, 0, 0 },
		{ "bytes=0-", 0, RANGE_NONE, 0, 0 },
		{ "bytes=-5", 0, RANGE_NONE, 0, 0 },
		{ "bytes=5-4", 10, RANGE_ALL, 0, 0 },
		{ "bytes=", 10, RANGE_ALL, 0, 0 },
		{ "bytes=-", 10, RANGE_ALL, 0, 0 },
		{ "bytes=a-b", 10, RANGE_ALL, 0, 0 },
		{ "bytes=1-2x", 10, RANGE_ALL, 0, 0 },
		{ "bytes=-2x", 10, RANGE_ALL, 0, 0 },
		{ "bytes=0-1,3-4", 10, RANGE_ALL, 0, 0 },
		{ "lines=0-3", 10, RANGE_ALL, 0, 0 },
		{ "bytes=0-18446744073709551615", 10, RANGE_ALL, 0, 0 },
		{ "bytes=99999999999999999999-", 10, RANGE_ALL, 0, 0 },
		{ "bytes=0-9223372036854775807", 10, RANGE_PART, 0, 9 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint64_t first = 0, last = 0;
		enum range_kind kind = range_parse(rows[i].header, rows[i].size, &first, &last);

		if (kind != rows[i].kind)
			fail_msg("%s of %d: %d", rows[i].header, (int)rows[i].size, (int)kind);
		assert_int_equal(first, rows[i].first);
		assert_int_equal(last, rows[i].last);
	}
}

static void test_percent(void **state)
{
	static const struct { const char *text, *right; } rows[] = {
		{ "", "" }, { "plain", "plain" }, { "a%20b", "a b" }, { "%C3%A9", "\xc3\xa9" }, { "%2e%2E",
		".." },
		{ "%", NULL }, { "%4", NULL }, { "%4g", NULL }, { "a%00", NULL }, { "%0d", NULL }, { "%7f",
		NULL },
		{ "%C3", NULL }, { "%ED%A0%80", NULL }, { "123456789", NULL },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char out[9];
		int rc = percent_decode(rows[i].text, strlen(rows[i].text), out, sizeof(out));

		assert_int_equal(rc, rows[i].right ? 0 : -1);
		if (rc == 0)
			assert_string_equal(out, rows[i].right);
	}
}

static void test_etag_listed(void **state)
{
	(void)state;
	assert_true(etag_listed("\"a\"", "a"));
	assert_true(etag_listed("W/\"a\"", "a"));
	assert_true(etag_listed("\"x\", \"a\"", "a"));
	assert_true(etag_listed("\"x\" ,\"a\" ", "a"));
	assert_true(etag_listed("*", "a"));
	assert_false(etag_listed(NULL, "a"));
	assert_false(etag_listed("", "a"));
	assert_false(etag_listed("a", "a"));
	assert_false(etag_listed("\"ab\"", "a"));
	assert_false(etag_listed("\"", "a"));
	assert_false(etag_listed(",,,", "a"));
}

/* --- options ------------------------------------------------------------------------------ */

static int parse(struct server_options *o, struct err *err, char *const *words)
{
	char *argv[32] = { "quarry-server" };
	int argc = 1;

	for (; words[argc - 1]; argc++)
		argv[argc] = words[argc - 1];
	err_clear(err);
	return options_parse(o, argc, argv, err);
}

#define PARSE(...) parse(&o, &err, (char *const[]){ __VA_ARGS__, NULL })

static void test_options(void **state)
{
	struct server_options o;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(PARSE("--data", "d", "--listen", "[::1]:0", "--model-root", "/a", "--model-root=/b",
			       "--tokens", "t",
			       "--ready-file", "r", "--exit-with-parent", "--lease-seconds", "5",
				       "--log-level", "warn"), 0);
	assert_string_equal(o.data, "d");
	assert_string_equal(o.listen, "[::1]:0");
	assert_string_equal(o.model_roots[1], "/b");
	assert_null(o.model_roots[2]);
	assert_int_equal(o.lease_s, 5);
	assert_int_equal(o.log_level, LOG_WARN);
	assert_true(o.exit_with_parent);
	assert_int_equal(PARSE("--data", "d"), 0);
	assert_string_equal(o.listen, "127.0.0.1:8750");
	assert_int_equal(PARSE("--help"), 0);
	assert_true(o.help);
	assert_int_equal(PARSE("--version"), 0);
	assert_true(o.version);
}

static void assert_refused(int rc, const struct err *err, const char *names)
{
	assert_int_equal(rc, -1);
	if (!strstr(err->text, names))
		fail_msg("'%s' does not name %s", err->text, names);
}

static void test_bad_options(void **state)
{
	struct server_options o;
	struct err err = ERR_INIT;

	(void)state;
	assert_refused(PARSE("--listen", "127.0.0.1:0"), &err, "--data DIR");
	assert_refused(PARSE("--date", "d"), &err, "--date");
	assert_refused(PARSE("--data", "d", "more"), &err, "more");
	assert_refused(PARSE("-x"), &err, "-x");
	assert_refused(PARSE("--data"), &err, "--data");
	assert_refused(PARSE("--data", "d", "--lease-seconds", "0"), &err, "--lease-seconds 0");
	assert_refused(PARSE("--data", "d", "--lease-seconds", "5s"), &err, "--lease-seconds 5s");
	assert_refused(PARSE("--data", "d", "--header-timeout", "-1"), &err, "--header-timeout");
	assert_refused(PARSE("--data", "d", "--connections", "x"), &err, "--connections");
	assert_refused(PARSE("--data", "d", "--log-level", "loud"), &err, "loud");
}

static void test_listen(void **state)
{
	static const char *const wrong[] = {
		"", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:x", "127.0.0.1:99999",
			"no.such.host.invalid:0", "192.0.2.1:0",
	};
	struct err err = ERR_INIT;
	unsigned port = 0;
	int fd = listen_open("127.0.0.1:0", &port, &err), second;
	char same[32];

	(void)state;
	assert_true(fd >= 0);
	assert_true(port > 0);
	snprintf(same, sizeof(same), "127.0.0.1:%u", port);
	second = listen_open(same, &port, &err);
	assert_int_equal(second, -1);
	assert_non_null(strstr(err.text, same));
	close(fd);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(listen_open(wrong[i], &port, &err), -1);
}

/* --- helper threads -------------------------------------------------------------------------- */

struct counted { struct offload_job job; atomic_int *runs; };

static void count(struct offload_job *job)
{
	atomic_fetch_add(((struct counted *)job)->runs, 1);
}

static void test_offload_runs_what_is_queued(void **state)
{
	struct err err = ERR_INIT;
	struct offload *o = offload_new(2, 64, &err);
	struct counted jobs[50];
	atomic_int runs = 0;

	(void)state;
	assert_non_null(o);
	for (int i = 0; i < 50; i++) {
		jobs[i] = (struct counted){ .job.run = count, .runs = &runs };
		assert_int_equal(offload_post(o, &jobs[i].job, &err), 0);
	}
	offload_free(o);
	assert_int_equal(runs, 50);
}

static void test_offload_says_when_it_is_full(void **state)
{
	struct err err = ERR_INIT;
	struct offload *o = offload_new(0, 1, &err);
	struct counted jobs[2];
	atomic_int runs = 0;

	(void)state;
	jobs[0] = jobs[1] = (struct counted){ .job.run = count, .runs = &runs };
	assert_int_equal(offload_post(o, &jobs[0].job, &err), 0);
	assert_int_equal(offload_post(o, &jobs[1].job, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	offload_free(o);
	mem_fail_after(1);
	assert_null(offload_new(1, 1, &err));
	mem_fail_after(0);
	assert_int_equal(err.code, ERR_NOMEM);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_range),
		cmocka_unit_test(test_percent),
		cmocka_unit_test(test_etag_listed),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_bad_options),
		cmocka_unit_test(test_listen),
		cmocka_unit_test(test_offload_runs_what_is_queued),
		cmocka_unit_test(test_offload_says_when_it_is_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
