/* Results on disk: sealed whole, found again, dropped; damage and interruption are told apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "worker/spool.h"

/* SHA-256 of "first" and of "last". */
#define DIGEST_OF_FIRST "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
#define DIGEST_OF_LAST "3547cb112ac4489af2310c0626cdba6f3097a2ad5a3b42ddd3b59c76c7a079a3"

static void write_text(const char *path, const char *text)
{
	struct err err = ERR_INIT;

	if (file_write_atomic(path, text, strlen(text), &err) != 0)
		fail_msg("%s", err.text);
}

static int fresh(void **state)
{
	(void)state;
	return dir_remove("work", NULL) == 0 && spool_prepare("work", NULL) == 0 ? 0 : -1;
}

static struct spool_entry *begin(const char *task, int64_t epoch)
{
	struct err err = ERR_INIT;
	struct spool_entry *e = spool_begin("work", task, epoch, &err);

	assert_string_equal(err.text, "");
	assert_non_null(e);
	return e;
}

static void seal(const char *task, int64_t epoch)
{
	struct err err = ERR_INIT;
	struct spool_entry *e = begin(task, epoch);
	struct json *result = json_parse("{\"rows\":3}", 10, NULL);
	char path[256];

	snprintf(path, sizeof(path), "%s/out/zz", e->dir);
	write_text(path, "last");
	snprintf(path, sizeof(path), "%s/out/aa", e->dir);
	write_text(path, "first");
	if (spool_seal(e, "work", result, NULL, &err) != 0)
		fail_msg("%s", err.text);
	assert_int_equal(e->count, 2);
	assert_string_equal(e->outputs[0].name, "aa");
	assert_string_equal(e->outputs[0].sha256, DIGEST_OF_FIRST);
	assert_int_equal(e->outputs[0].bytes, 5);
	assert_string_equal(e->outputs[1].sha256, DIGEST_OF_LAST);
	assert_true(file_exists(e->outputs[1].path));
	json_free(result);
	spool_entry_free(e);
}

/* What spool_load() told. */
struct heard {
	size_t found, broken;
	struct spool_entry *entry;      /* the last one found */
	char task[128], why[ERR_TEXT_MAX];
	int64_t epoch;
};

static void found(void *ctx, struct spool_entry *entry)
{
	struct heard *h = ctx;

	h->found++;
	spool_entry_free(h->entry);
	h->entry = entry;
}

static void broken(void *ctx, const char *task, int64_t epoch, const char *why)
{
	struct heard *h = ctx;

	h->broken++;
	h->epoch = epoch;
	snprintf(h->task, sizeof(h->task), "%s", task);
	snprintf(h->why, sizeof(h->why), "%s", why);
}

static struct heard load(void)
{
	struct heard h = { 0 };
	struct err err = ERR_INIT;

	if (spool_load("work", found, broken, &h, &err) != 0)
		fail_msg("%s", err.text);
	return h;
}

static void test_seal_and_load(void **state)
{
	struct heard h;

	(void)state;
	seal("t_1", 3);
	assert_true(dir_is_empty("work/run"));
	h = load();
	assert_int_equal(h.found, 1);
	assert_int_equal(h.broken, 0);
	assert_string_equal(h.entry->task, "t_1");
	assert_int_equal(h.entry->epoch, 3);
	assert_int_equal(h.entry->count, 2);
	assert_string_equal(h.entry->outputs[0].name, "aa");
	assert_string_equal(h.entry->outputs[0].sha256, DIGEST_OF_FIRST);
	assert_int_equal(json_get_int(json_get(h.entry->complete, "result"), "rows", 0), 3);
	assert_int_equal(json_type(json_get(h.entry->complete, "stats")), JSON_OBJECT);
	spool_drop(h.entry);
	assert_true(dir_is_empty("work/done"));
	spool_entry_free(h.entry);
}

static void test_interrupted(void **state)
{
	struct spool_entry *e = begin("t-with-dash", 7);
	struct heard h;

	(void)state;
	assert_true(file_exists("work/run/t-with-dash-7/out"));
	spool_entry_free(e);
	h = load();
	assert_int_equal(h.found, 0);
	assert_int_equal(h.broken, 1);
	assert_string_equal(h.task, "t-with-dash");
	assert_int_equal(h.epoch, 7);
	assert_non_null(strstr(h.why, "process ended"));
	assert_true(dir_is_empty("work/run"));
}

static void test_begin_empties(void **state)
{
	(void)state;
	spool_entry_free(begin("t_1", 1));
	write_text("work/run/t_1-1/out/old", "x");
	spool_entry_free(begin("t_1", 1));
	assert_true(dir_is_empty("work/run/t_1-1/out"));
}

static void test_sealing_replaces(void **state)
{
	struct heard h;

	(void)state;
	seal("t_1", 1);
	seal("t_1", 1);
	h = load();
	assert_int_equal(h.found, 1);
	spool_entry_free(h.entry);
}

static void expect_broken(const char *word)
{
	struct heard h = load();

	assert_int_equal(h.found, 0);
	assert_int_equal(h.broken, 1);
	if (!strstr(h.why, word))
		fail_msg("\"%s\" is not in \"%s\"", word, h.why);
	assert_true(dir_is_empty("work/done"));
}

static void test_damage(void **state)
{
	(void)state;
	seal("t_1", 1);
	write_text("work/done/t_1-1/out/aa", "fIrst");
	expect_broken("changed on disk");
	seal("t_1", 1);
	unlink("work/done/t_1-1/out/zz");
	expect_broken("zz");
	seal("t_1", 1);
	unlink("work/done/t_1-1/complete.json");
	expect_broken("complete.json");
	seal("t_1", 1);
	write_text("work/done/t_1-1/complete.json", "{\"task\":");
	expect_broken("complete.json");
	seal("t_1", 1);
	write_text("work/done/t_1-1/complete.json", "{\"task\":\"t_2\",\"epoch\":1}");
	expect_broken("another task's");
	seal("t_1", 1);
	write_text("work/done/t_1-1/complete.json",
		   "{\"task\":\"t_1\",\"epoch\":1,\"outputs\":[{\"name\":\"../x\",\"sha256\":\"\",\"bytes\":1}]}");
	expect_broken("plain name");
}

static void test_strangers_are_left_alone(void **state)
{
	struct heard h;

	(void)state;
	assert_int_equal(dir_make("work/done/readme", NULL), 0);
	assert_int_equal(dir_make("work/run/t-x", NULL), 0);
	h = load();
	assert_int_equal(h.found + h.broken, 0);
	assert_true(file_exists("work/done/readme"));
	assert_true(file_exists("work/run/t-x"));
}

static void test_names(void **state)
{
	static const char *const bad[] = { "", "../t", ".t", "a/b", "t\n" };
	struct err err = ERR_INIT;
	char longest[200];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_null(spool_begin("work", bad[i], 1, &err));
	memset(longest, 't', sizeof(longest));
	longest[SPOOL_TASK_MAX + 1] = '\0';
	assert_null(spool_begin("work", longest, 1, &err));
	assert_null(spool_begin("work", "t", -1, &err));
	assert_int_equal(err.code, ERR_INVALID);
}

static void test_odd_output_is_refused(void **state)
{
	struct spool_entry *e = begin("t_1", 1);
	struct err err = ERR_INIT;

	(void)state;
	write_text("work/run/t_1-1/out/a b", "x");
	assert_int_equal(spool_seal(e, "work", NULL, NULL, &err), -1);
	assert_non_null(strstr(err.text, "plain name"));
	spool_entry_free(e);
}

/* Sealing under a failure leaves nothing in done/, and works the next time. */
static void check_failed_seal(struct spool_entry *e, int rc, const struct err *err)
{
	if (rc != 0) {
		assert_int_not_equal(err->code, ERR_NONE);
		/* only a flush of the folder can fail after the rename; then the result is whole */
		assert_true(dir_is_empty("work/done") || file_exists("work/done/t_1-1/complete.json"));
	}
	spool_entry_free(e);
}

static void test_io_errors(void **state)
{
	static const enum file_op ops[] = { FILE_OPEN, FILE_READ, FILE_WRITE, FILE_FSYNC, FILE_RENAME };
	size_t failures = 0;

	(void)state;
	for (size_t i = 0; i < 5; i++)
		for (uint64_t n = 1; n <= 6; n++) {
			struct spool_entry *e;
			struct err err = ERR_INIT;
			int rc;

			assert_int_equal(fresh(NULL), 0);
			e = begin("t_1", 1);
			write_text("work/run/t_1-1/out/aa", "first");
			file_fail_after(ops[i], n);
			rc = spool_seal(e, "work", NULL, NULL, &err);
			file_fail_after(ops[i], 0);
			failures += rc != 0;
			if (rc != 0 && ops[i] == FILE_WRITE)
				assert_int_equal(err.code, ERR_NOSPC);
			check_failed_seal(e, rc, &err);
		}
	assert_in_range(failures, 5, 30);
}

static void test_without_memory(void **state)
{
	bool done = false;
	uint64_t n;

	(void)state;
	for (n = 1; !done && n < 500; n++) {
		struct spool_entry *e;
		struct err err = ERR_INIT;
		int rc;

		assert_int_equal(fresh(NULL), 0);
		mem_fail_after(n);
		e = spool_begin("work", "t_1", 1, &err);
		rc = e ? spool_seal(e, "work", NULL, NULL, &err) : -1;
		mem_fail_after(0);
		done = rc == 0;
		check_failed_seal(e, rc, &err);
	}
	assert_true(done);
	assert_in_range(n, 5, 499);
}

/* Too little memory to read a result back is no verdict on the result. */
static void test_load_without_memory(void **state)
{
	struct heard h = { 0 };
	uint64_t n;

	(void)state;
	seal("t_1", 1);
	for (n = 1; h.found == 0 && n < 500; n++) {
		struct err err = ERR_INIT;
		int rc;

		mem_fail_after(n);
		rc = spool_load("work", found, broken, &h, &err);
		mem_fail_after(0);
		if (rc != 0)
			assert_int_equal(err.code, ERR_NOMEM);
		assert_int_equal(h.broken, 0);
	}
	assert_int_equal(h.found, 1);
	assert_in_range(n, 5, 499);
	spool_entry_free(h.entry);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_seal_and_load, fresh),
		cmocka_unit_test_setup(test_interrupted, fresh),
		cmocka_unit_test_setup(test_begin_empties, fresh),
		cmocka_unit_test_setup(test_sealing_replaces, fresh),
		cmocka_unit_test_setup(test_damage, fresh),
		cmocka_unit_test_setup(test_strangers_are_left_alone, fresh),
		cmocka_unit_test_setup(test_names, fresh),
		cmocka_unit_test_setup(test_odd_output_is_refused, fresh),
		cmocka_unit_test_setup(test_io_errors, fresh),
		cmocka_unit_test_setup(test_without_memory, fresh),
		cmocka_unit_test_setup(test_load_without_memory, fresh),
	};

	return cmocka_run_group_tests_name("worker spool", tests, NULL, NULL);
}
