/* How often a worker may start itself anew. (That it does is tests/system/test_worker_faults.py.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "worker/restart.h"

static const int64_t start_ms = 1700000000000;

static void begin(const char *dir)
{
	struct err err = ERR_INIT;

	assert_int_equal(dir_make(dir, &err), 0);
}

static void noted(const char *dir, int64_t now_ms)
{
	struct err err = ERR_INIT;

	if (restart_note(dir, now_ms, &err) != 0)
		fail_msg("at %lld: %s", (long long)(now_ms - start_ms), err.text);
}

static void refused(const char *dir, int64_t now_ms)
{
	struct err err = ERR_INIT;

	assert_int_equal(restart_note(dir, now_ms, &err), -1);
	assert_int_equal(err.code, ERR_UNAVAILABLE);
	assert_non_null(strstr(err.text, "5 times within an hour"));
}

static void no_more_than_a_few_an_hour(void **state)
{
	(void)state;
	begin("few");
	for (int i = 0; i < RESTARTS_MOST; i++)
		noted("few", start_ms + i * 60000);
	refused("few", start_ms + 300000);
	refused("few", start_ms + RESTART_WINDOW_MS - 1); /* what was refused was not noted, what was noted still counts */
	noted("few", start_ms + RESTART_WINDOW_MS);       /* the first one is forgotten, the others are not */
	refused("few", start_ms + RESTART_WINDOW_MS + 1);
	for (int i = 0; i < 100; i++)                     /* seldom enough: for ever */
		noted("few", start_ms + (2 + i) * (int64_t)RESTART_WINDOW_MS);
}

/* A clock that was set back must not make room. */
static void a_note_of_the_future_counts(void **state)
{
	(void)state;
	begin("future");
	for (int i = 0; i < RESTARTS_MOST; i++)
		noted("future", start_ms);
	refused("future", start_ms - 10 * (int64_t)RESTART_WINDOW_MS);
}

static void nonsense_counts_as_nothing(void **state)
{
	static const char *const texts[] = { "", "yesterday\n", "-99999999999999999999\n", "12", "\n\n\n", "99999999999999999999999999\n",
					     "1\n2\n3\n4\n5\n6\n7\n8\n" };
	struct err err = ERR_INIT;

	(void)state;
	begin("nonsense");
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		assert_int_equal(file_write_atomic("nonsense/restarts", texts[i], strlen(texts[i]), &err), 0);
		noted("nonsense", start_ms);
	}
	assert_int_equal(restart_note("no/such/folder", start_ms, &err), -1);
}

static void without_memory_it_says_so(void **state)
{
	struct err err = ERR_INIT;
	bool done = false;

	(void)state;
	begin("memory");
	for (int i = 0; i < RESTARTS_MOST - 1; i++)
		noted("memory", start_ms);
	for (uint64_t n = 1; !done && n < 100; n++) {
		mem_fail_after(n);
		done = restart_note("memory", start_ms, &err) == 0 || err.code == ERR_UNAVAILABLE; /* written, but not flushed */
		mem_fail_after(0);
	}
	assert_true(done);
	refused("memory", start_ms); /* nothing was forgotten on the way */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_more_than_a_few_an_hour),
		cmocka_unit_test(a_note_of_the_future_counts),
		cmocka_unit_test(nonsense_counts_as_nothing),
		cmocka_unit_test(without_memory_it_says_so),
	};

	return cmocka_run_group_tests_name("worker restart", tests, NULL, NULL);
}
