/* Sealing in the background: done, failed, abandoned by those who do not want the result and by those who leave it to the
 * next process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "worker/seal_job.h"

#define DIGEST_OF_HELLO "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

static struct { int count; struct spool_entry *entry; struct err err; struct loop *loop; } seen;

static void sealed(void *ctx, struct spool_entry *entry, const struct err *err)
{
	assert_ptr_equal(ctx, &seen);
	seen.count++;
	seen.entry = entry;
	seen.err = *err;
	loop_stop(seen.loop);
}

static int setup(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	memset(&seen, 0, sizeof(seen));
	seen.loop = loop_new(&err);
	assert_non_null(seen.loop);
	return spool_prepare("work", &err);
}

static int teardown(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	return dir_remove("work", &err);
}

/* A result of one output, "hello". */
static struct spool_entry *result(void)
{
	struct err err = ERR_INIT;
	struct spool_entry *entry = spool_begin("work", "t_1", 2, &err);
	char *out = entry ? spool_out_dir(entry) : NULL;
	char *path = out ? path_join(out, "hidden") : NULL;

	assert_non_null(path);
	assert_int_equal(file_write_atomic(path, "hello", 5, &err), 0);
	mem_free(out);
	mem_free(path);
	return entry;
}

static struct json *number(const char *key, int value)
{
	struct json *o = json_new_object();

	assert_int_equal(json_set_int(o, key, value), 0);
	return o;
}

static struct seal_job *start(struct spool_entry *entry)
{
	struct seal_job *job = seal_start(seen.loop, "work", entry, number("tokens", 7), number("wall_ms", 9), sealed, &seen);

	assert_non_null(job);
	return job;
}

static void test_sealed(void **state)
{
	(void)state;
	start(result());
	assert_int_equal(seen.count, 0); /* not before the loop runs */
	loop_run(seen.loop);
	assert_int_equal(seen.count, 1);
	assert_int_equal(seen.err.code, ERR_NONE);
	assert_int_equal(seen.entry->count, 1);
	assert_string_equal(seen.entry->outputs[0].sha256, DIGEST_OF_HELLO);
	assert_int_equal(json_get_int(json_get(seen.entry->complete, "result"), "tokens", 0), 7);
	assert_int_equal(json_get_int(json_get(seen.entry->complete, "stats"), "wall_ms", 0), 9);
	assert_true(file_exists("work/done/t_1-2/complete.json"));
	assert_false(file_exists("work/run/t_1-2"));
	spool_entry_free(seen.entry);
	loop_free(seen.loop);
}

static void test_failed(void **state)
{
	struct spool_entry *entry = result();
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(dir_remove("work/run/t_1-2/out", &err), 0);
	start(entry);
	loop_run(seen.loop);
	assert_int_equal(seen.count, 1);
	assert_ptr_equal(seen.entry, entry);
	assert_int_not_equal(seen.err.code, ERR_NONE);
	assert_non_null(strstr(seen.err.text, "t_1-2/out"));
	assert_false(file_exists("work/done/t_1-2"));
	spool_entry_free(entry);
	loop_free(seen.loop);
}

/* loop_free() waits for the thread; nobody is told. */
static void abandon(bool drop)
{
	seal_abandon(start(result()), drop);
	loop_free(seen.loop);
	assert_int_equal(seen.count, 0);
	assert_false(file_exists("work/run/t_1-2"));
	assert_int_equal(file_exists("work/done/t_1-2/complete.json"), !drop);
}

static void test_unwanted(void **state)
{
	(void)state;
	abandon(true);
}

static void test_left_for_the_next_process(void **state)
{
	(void)state;
	abandon(false);
}

static void test_nothing_to_abandon(void **state)
{
	(void)state;
	seal_abandon(NULL, true);
	loop_free(seen.loop);
}

/* Whoever could not start it keeps what was to be handed over. */
static void test_no_memory(void **state)
{
	struct spool_entry *entry = result();
	struct json *numbers = number("tokens", 7);
	uint64_t fail_at = 1;

	(void)state;
	for (;; fail_at++) {
		struct seal_job *job;

		mem_fail_after(fail_at);
		job = seal_start(seen.loop, "work", entry, numbers, NULL, sealed, &seen);
		mem_fail_after(0);
		if (job)
			break;
		assert_string_equal(entry->task, "t_1");
		assert_int_equal(json_get_int(numbers, "tokens", 0), 7);
	}
	assert_true(fail_at > 1);
	loop_run(seen.loop);
	assert_int_equal(seen.err.code, ERR_NONE);
	spool_entry_free(seen.entry);
	loop_free(seen.loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_sealed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unwanted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_left_for_the_next_process, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_to_abandon, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_memory, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
