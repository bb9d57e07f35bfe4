/* The connection: migrations, durability settings, values, savepoints, a full disk, a newer database. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/states.h"
#include "server/store.h"

static struct store *open_new(const char *path)
{
	struct err err = ERR_INIT;
	struct store *s = store_open_writer(path, &err);

	if (!s)
		fail_msg("%s", err.text);
	return s;
}

static void run_sql(const char *path, const char *sql)
{
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
}

static int64_t pragma(const char *path, const char *sql)
{
	sqlite3_stmt *stmt;
	sqlite3 *db;
	int64_t value;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
	value = sqlite3_column_int64(stmt, 0);
	sqlite3_finalize(stmt);
	sqlite3_close(db);
	return value;
}

static void a_new_database_has_the_newest_schema(void **state)
{
	struct store *s = open_new("new.db");

	(void)state;
	store_close(s);
	assert_true(pragma("new.db", "PRAGMA user_version") >= 1);
	/* Every table is STRICT, and foreign keys lead somewhere. */
	assert_int_equal(pragma("new.db", "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' "
					  "AND sql NOT LIKE '%STRICT%'"), 0);
	s = open_new("new.db"); /* again: nothing to do */
	store_close(s);
}

/* A database as version 1 left it, with a job in it, and nothing of version 2. */
static void make_version_1(const char *path)
{
	const char *root = getenv("QUARRY_ROOT");
	struct err err = ERR_INIT;
	char file[4096], *sql;
	size_t len;

	assert_non_null(root);
	snprintf(file, sizeof(file), "%s/migrations/0001_initial.sql", root);
	sql = file_read_all(file, 1 << 20, &len, &err);
	if (!sql)
		fail_msg("%s", err.text);
	run_sql(path, sql);
	mem_free(sql);
	run_sql(path, "PRAGMA user_version = 1;"
		"INSERT INTO jobs VALUES (1, 'j_1', 's', 0, 2, 1, 1, 1, 0, 1, 1, 0, 5, 5, NULL);"
		"INSERT INTO job_details VALUES (1, 'old', NULL, '{}', '{}', '{}', NULL, NULL, NULL);"
		"INSERT INTO tasks (pk, job, kind, state, rank, layer, shard, epoch, attempts, deps_left, work, accepted, progress) "
		"VALUES (1, 1, 5, 2, 0, 0, -1, 0, 0, 0, 1, 0, 0);");
}

static void an_older_database_is_brought_up(void **state)
{
	struct err err = ERR_INIT;
	struct store *s;
	int64_t count;

	(void)state;
	make_version_1("older.db");
	assert_int_equal(pragma("older.db", "PRAGMA user_version"), 1);
	s = open_new("older.db");
	assert_true(pragma("older.db", "PRAGMA user_version") >= 2);
	assert_int_equal(store_get_int(s, SQL_TASK_LAYER, &count, &err, sql_i(1)), 1); /* what was there is there */
	assert_int_equal(store_get_int(s, SQL_JOB_REFERENCE, &count, &err, sql_i(1)), 0);
	assert_int_equal(store_exec(s, SQL_CHECKPOINT_SET, &err, sql_i(1), sql_t("x"), sql_i(3)), 1);
	assert_int_equal(store_exec(s, SQL_TASKS_REMOVE, &err, sql_i(1), sql_i(1)), 1);
	assert_int_equal(store_get_int(s, SQL_CHECKPOINTS, &count, &err, sql_i(1), sql_i(1)), 0); /* gone with its task */
	store_close(s);
	assert_int_equal(pragma("older.db", "SELECT count(*) FROM job_details WHERE name = 'old' AND reference IS NULL"), 1);
}

/* A database as version 2 left it: two workers, one of which holds a task that failed before. */
static void make_version_2(const char *path)
{
	const char *root = getenv("QUARRY_ROOT");
	struct err err = ERR_INIT;
	char file[4096], *sql;
	size_t len;

	make_version_1(path);
	snprintf(file, sizeof(file), "%s/migrations/0002_checkpoints.sql", root);
	sql = file_read_all(file, 1 << 20, &len, &err);
	if (!sql)
		fail_msg("%s", err.text);
	run_sql(path, sql);
	mem_free(sql);
	run_sql(path, "PRAGMA user_version = 2;"
		"INSERT INTO workers VALUES (1, 'w_1', 's', 'one', 'cpu', 'openblas', '1', 4, 9, 1, 0, 5, 5, 0, 1);"
		"INSERT INTO workers VALUES (2, 'w_2', 's', 'two', 'cpu', 'openblas', '1', 4, 9, 1, 0, 5, 5, 0, 0);"
		"UPDATE tasks SET state = 3, worker = 2, epoch = 2, attempts = 1, accepted = 1 WHERE pk = 1;"
		"INSERT INTO attempts VALUES (1, 1, 1, 'one', 5, 'io', 'a hiccup', '');");
}

static void version_2_is_brought_up(void **state)
{
	struct err err = ERR_INIT;
	struct store *s;
	struct query *q;
	int64_t one;

	(void)state;
	make_version_2("version2.db");
	s = open_new("version2.db");
	assert_true(pragma("version2.db", "PRAGMA user_version") >= 3);
	assert_int_equal(store_get_int(s, SQL_ATTEMPT_BY, &one, &err, sql_i(1), sql_i(1)), 1); /* it counts as before */
	q = store_select(s, SQL_ATTEMPTS, &err, sql_i(1));
	assert_int_equal(query_next(q, &err), 1);
	assert_true(query_is_null(q, 5)); /* what computed it was not written down then */
	query_done(q);
	/* The lease under way is known to be of that backend. */
	assert_int_equal(store_exec(s, SQL_ATTEMPT_ADD, &err, sql_i(1), sql_i(2), sql_i(2), sql_i(6), sql_t("io"), sql_t(""),
				    sql_t(""), sql_i(1)), 1);
	store_close(s);
	assert_int_equal(pragma("version2.db", "SELECT count(*) FROM attempts a JOIN backends b ON b.pk = a.computes WHERE "
					       "b.identity = 'openblas'"), 1);
	assert_int_equal(pragma("version2.db", "SELECT count(*) FROM backends"), 1);
	assert_int_equal(pragma("version2.db", "SELECT count(*) FROM workers WHERE computes = 1 AND device IS NULL"), 2);
}

static void a_newer_database_is_refused(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	store_close(open_new("newer.db"));
	run_sql("newer.db", "PRAGMA user_version = 9999");
	assert_null(store_open_writer("newer.db", &err));
	assert_int_equal(err.code, ERR_UNSUPPORTED);
	assert_non_null(strstr(err.text, "newer quarry-server"));
	assert_int_equal(pragma("newer.db", "PRAGMA user_version"), 9999);
}

static void what_is_no_database_is_refused(void **state)
{
	struct err err = ERR_INIT;
	FILE *f = fopen("text.db", "w");

	(void)state;
	assert_non_null(f);
	for (int i = 0; i < 1000; i++)
		fputs("this is not a database\n", f);
	fclose(f);
	assert_null(store_open_writer("text.db", &err));
	assert_null(store_open_writer("no/such/folder/x.db", &err));
	assert_int_equal(err.code, ERR_IO);
}

static int64_t count_tokens(struct store *s)
{
	struct err err = ERR_INIT;
	int64_t count = -1;

	assert_int_equal(store_get_int(s, SQL_TOKEN_COUNT, &count, &err), 1);
	return count;
}

static int add_token(struct store *s, const char *name, struct err *err)
{
	return store_exec(s, SQL_TOKEN_ADD, err, sql_t(name), sql_i(1), sql_t(name), sql_i(5));
}

static void savepoints_undo_one_of_a_batch(void **state)
{
	struct store *s = open_new("savepoint.db");
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(store_begin(s, &err), 0);
	assert_int_equal(store_savepoint(s, &err), 0);
	assert_int_equal(add_token(s, "kept", &err), 1);
	assert_int_equal(store_release(s, &err), 0);
	assert_int_equal(store_savepoint(s, &err), 0);
	assert_int_equal(add_token(s, "undone", &err), 1);
	assert_int_equal(store_rollback_to(s, &err), 0);
	assert_true(store_in_transaction(s));
	assert_int_equal(store_commit(s, &err), 0);
	assert_int_equal(count_tokens(s), 1);
	store_close(s);
}

static void readers_see_commits_and_cannot_write(void **state)
{
	struct store *w = open_new("readers.db"), *r;
	struct err err = ERR_INIT;

	(void)state;
	r = store_open_reader("readers.db", &err);
	assert_non_null(r);
	assert_int_equal(store_begin_read(r, &err), 0);
	assert_int_equal(count_tokens(r), 0);
	assert_int_equal(add_token(w, "one", &err), 1);
	assert_int_equal(count_tokens(r), 0); /* its snapshot */
	store_rollback(r);
	assert_int_equal(count_tokens(r), 1);
	assert_int_equal(add_token(r, "two", &err), -1);
	assert_int_equal(err.code, ERR_IO);
	store_close(r);
	store_close(w);
}

static void a_full_disk_is_no_space(void **state)
{
	struct store *s = open_new("full.db");
	struct err err = ERR_INIT;
	char big[4000];
	int rc = 0;

	(void)state;
	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	assert_int_equal(store_limit_pages(s, 1, &err), 0);
	assert_int_equal(store_begin(s, &err), 0);
	for (int i = 0; i < 100 && rc >= 0; i++) {
		snprintf(big, 8, "%06d", i);
		big[6] = 'x';
		rc = add_token(s, big, &err);
	}
	assert_int_equal(rc, -1);
	assert_int_equal(err.code, ERR_NOSPC);
	store_rollback(s);
	assert_int_equal(count_tokens(s), 0);
	assert_int_equal(store_limit_pages(s, 0, &err), 0);
	assert_int_equal(add_token(s, "fits", &err), 1);
	store_close(s);
}

static void values_come_back(void **state)
{
	struct store *s = open_new("values.db");
	struct err err = ERR_INIT;
	struct query *q;

	(void)state;
	assert_int_equal(store_exec(s, SQL_TOKEN_ADD, &err, sql_t("n\xc3\xa9" "e"), sql_i(INT64_MIN), sql_t("x'; DROP TABLE"),
				    sql_i(1)), 1);
	q = store_select(s, SQL_TOKEN_LIST, &err);
	assert_int_equal(query_next(q, &err), 1);
	assert_string_equal(query_text(q, 0), "n\xc3\xa9" "e");
	assert_true(query_int(q, 1) == INT64_MIN);
	assert_string_equal(query_text(q, 2), "x'; DROP TABLE");
	assert_int_equal(query_next(q, &err), 0);
	/* NOT NULL and the number of values are checked. */
	assert_int_equal(store_exec(s, SQL_TOKEN_ADD, &err, sql_t(NULL), sql_i(1), sql_t("y"), sql_i(1)), -1);
	assert_int_equal(err.code, ERR_CONFLICT);
	assert_int_equal(store_exec(s, SQL_TOKEN_ADD, &err, sql_t("a")), -1);
	assert_int_equal(store_exec(s, SQL_EVENT_ADD, &err, sql_i(77), sql_i(1), sql_t("job"), sql_t("no such job")), -1);
	assert_int_equal(err.code, ERR_CONFLICT); /* foreign keys are on */
	store_close(s);
}

/* --- the state tables --------------------------------------------------------- */

static void moves_are_those_of_the_protocol(void **state)
{
	static const char *const jobs[] = { "PLANNING=>RUNNING", "RUNNING=>ASSEMBLING", "RUNNING=>FAILED", "RUNNING=>CANCELLED",
					    "ASSEMBLING=>DONE", "ASSEMBLING=>FAILED", "ASSEMBLING=>CANCELLED", "FAILED=>RUNNING" };
	int allowed = 0;

	(void)state;
	for (int from = -1; from <= JOB_STATES; from++)
		for (int to = -1; to <= JOB_STATES; to++) {
			char text[64];
			bool listed = false;

			snprintf(text, sizeof(text), "%s=>%s", job_state_name(from), job_state_name(to));
			for (size_t i = 0; i < sizeof(jobs) / sizeof(jobs[0]); i++)
				listed |= strcmp(text, jobs[i]) == 0;
			assert_int_equal(job_move_allowed(from, to), listed);
			allowed += listed;
		}
	assert_int_equal(allowed, 8);
	assert_true(task_move_allowed(TASK_LEASED, TASK_DONE));
	assert_false(task_move_allowed(TASK_READY, TASK_DONE));
	assert_false(task_move_allowed(TASK_DONE, TASK_READY));
	assert_false(task_move_allowed(0, TASK_READY));
	assert_int_equal(job_state_from_name("DONE"), JOB_DONE);
	assert_int_equal(job_state_from_name("done"), 0);
}

static void an_illegal_or_late_move_is_an_error(void **state)
{
	struct store *s = open_new("moves.db");
	struct err err = ERR_INIT;
	struct task_ref t = { .pk = 1, .job = 1, .kind = KIND_VERIFY, .state = TASK_DONE };
	struct task_change c = { .to = TASK_READY };

	(void)state;
	assert_int_equal(task_move(s, &t, &c, &err), -1);
	assert_int_equal(err.code, ERR_INTERNAL);
	t.state = TASK_READY;
	c.to = TASK_LEASED;
	assert_int_equal(task_move(s, &t, &c, &err), -1); /* there is no such row */
	assert_int_equal(err.code, ERR_CONFLICT);
	assert_int_equal(job_move(s, 1, "j_1", JOB_DONE, JOB_RUNNING, 0, &err), -1);
	assert_int_equal(err.code, ERR_INTERNAL);
	assert_int_equal(job_move(s, 1, "j_1", JOB_RUNNING, JOB_FAILED, 0, &err), -1);
	assert_int_equal(err.code, ERR_CONFLICT);
	store_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_database_has_the_newest_schema),
		cmocka_unit_test(an_older_database_is_brought_up),
		cmocka_unit_test(version_2_is_brought_up),
		cmocka_unit_test(a_newer_database_is_refused),
		cmocka_unit_test(what_is_no_database_is_refused),
		cmocka_unit_test(savepoints_undo_one_of_a_batch),
		cmocka_unit_test(readers_see_commits_and_cannot_write),
		cmocka_unit_test(a_full_disk_is_no_space),
		cmocka_unit_test(values_come_back),
		cmocka_unit_test(moves_are_those_of_the_protocol),
		cmocka_unit_test(an_illegal_or_late_move_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
