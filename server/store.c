/* The SQLite connection. Invariants:
 *  1. The writer runs WAL with synchronous=FULL: a COMMIT that returned is on disk.
 *  2. Only the writer checkpoints (SQLite before 3.51.3 can corrupt a WAL that two connections write and
 *     checkpoint); readers are opened read-only with wal_autocheckpoint = 0.
 *  3. Every statement is prepared before the first request; a text missing from the tables fails the start.
 */
#include "server/store.h"

#include <string.h>

#include <sqlite3.h>

#include "common/alloc.h"
#include "server/migrate.h"

enum { BUSY_MS = 10000 };

struct store {
	sqlite3 *db;
	sqlite3_stmt *stmts[SQL_COUNT];
};

static const char writer_setup[] =
	"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
	"PRAGMA wal_autocheckpoint = 1000; PRAGMA journal_size_limit = 67108864;"
	"PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY;";
static const char reader_setup[] =
	"PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -4096;"
	"PRAGMA temp_store = MEMORY;";

static enum err_code code_of(int rc)
{
	switch (rc & 0xff) {
	case SQLITE_FULL: return ERR_NOSPC;
	case SQLITE_NOMEM: return ERR_NOMEM;
	case SQLITE_CONSTRAINT: return ERR_CONFLICT;
	case SQLITE_BUSY:
	case SQLITE_LOCKED: return ERR_BUSY;
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN:
	case SQLITE_READONLY: return ERR_IO;
	}
	return ERR_INTERNAL;
}

static int store_fail(sqlite3 *db, int rc, const char *doing, struct err *err)
{
	if (code_of(rc) == ERR_NOSPC)
		return err_set(err, ERR_NOSPC, "the disk that holds the database is full (%s); nothing was stored",
			       doing);
	return err_set(err, code_of(rc), "database: %s: %s", doing, sqlite3_errmsg(db));
}

/* --- opening ------------------------------------------------------------------ */

static int prepare_table(struct store *s, const struct sql_text *table, struct err *err)
{
	for (; table->text; table++) {
		int rc = sqlite3_prepare_v3(s->db, table->text, -1, SQLITE_PREPARE_PERSISTENT,
					    &s->stmts[table->which], NULL);

		if (rc != SQLITE_OK)
			return store_fail(s->db, rc, table->text, err);
	}
	return 0;
}

static int prepare_all(struct store *s, struct err *err)
{
	if (prepare_table(s, store_sql_base, err) != 0 || prepare_table(s, store_sql_jobs, err) != 0 ||
	    prepare_table(s, store_sql_tasks, err) != 0 || prepare_table(s, store_sql_models, err) != 0)
		return -1;
	for (int i = 0; i < SQL_COUNT; i++)
		if (!s->stmts[i])
			return err_set(err, ERR_INTERNAL, "statement %d has no text in store_*.c", i);
	return 0;
}

static struct store *open_connection(const char *path, int flags, const char *setup, struct err *err)
{
	struct store *s = mem_alloc(1, sizeof(*s));
	int rc;

	if (!s) {
		err_set_nomem(err, "a database connection");
		return NULL;
	}
	rc = sqlite3_open_v2(path, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
	if (rc == SQLITE_OK)
		sqlite3_busy_timeout(s->db, BUSY_MS);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(s->db, setup, NULL, NULL, NULL);
	if (rc != SQLITE_OK) {
		store_fail(s->db, rc, path, err);
		store_close(s);
		return NULL;
	}
	return s;
}

struct store *store_open_writer(const char *path, struct err *err)
{
	struct store *s = open_connection(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, writer_setup, err);

	if (s && (migrate(s->db, path, err) != 0 || prepare_all(s, err) != 0)) {
		store_close(s);
		return NULL;
	}
	return s;
}

struct store *store_open_reader(const char *path, struct err *err)
{
	struct store *s = open_connection(path, SQLITE_OPEN_READONLY, reader_setup, err);

	if (s && prepare_all(s, err) != 0) {
		store_close(s);
		return NULL;
	}
	return s;
}

void store_close(struct store *s)
{
	if (!s)
		return;
	for (int i = 0; i < SQL_COUNT; i++)
		sqlite3_finalize(s->stmts[i]);
	sqlite3_close(s->db);
	mem_free(s);
}

int store_limit_pages(struct store *s, int64_t pages, struct err *err)
{
	char text[64];
	int rc;

	sqlite3_snprintf(sizeof(text), text, "PRAGMA max_page_count = %lld",
			 (long long)(pages > 0 ? pages : 1073741823));
	rc = sqlite3_exec(s->db, text, NULL, NULL, NULL);
	return rc == SQLITE_OK ? 0 : store_fail(s->db, rc, "limiting the size", err);
}

/* --- transactions ------------------------------------------------------------- */

int store_begin(struct store *s, struct err *err)
{
	return store_exec(s, SQL_BEGIN, err) < 0 ? -1 : 0;
}

int store_begin_read(struct store *s, struct err *err)
{
	return store_exec(s, SQL_BEGIN_READ, err) < 0 ? -1 : 0;
}

int store_commit(struct store *s, struct err *err)
{
	return store_exec(s, SQL_COMMIT, err) < 0 ? -1 : 0;
}

void store_rollback(struct store *s)
{
	if (store_in_transaction(s))
		store_exec(s, SQL_ROLLBACK, NULL);
}

int store_savepoint(struct store *s, struct err *err)
{
	return store_exec(s, SQL_SAVEPOINT, err) < 0 ? -1 : 0;
}

int store_release(struct store *s, struct err *err)
{
	return store_exec(s, SQL_RELEASE, err) < 0 ? -1 : 0;
}

int store_rollback_to(struct store *s, struct err *err)
{
	return store_exec(s, SQL_ROLLBACK_TO, err) < 0 ? -1 : store_release(s, err);
}

bool store_in_transaction(struct store *s)
{
	return !sqlite3_get_autocommit(s->db);
}

/* --- statements --------------------------------------------------------------- */

static int bind_one(sqlite3_stmt *stmt, int index, const struct sql_arg *a)
{
	switch (a->type) {
	case SQL_ARG_INT: return sqlite3_bind_int64(stmt, index, a->i);
	case SQL_ARG_REAL: return sqlite3_bind_double(stmt, index, a->d);
	case SQL_ARG_TEXT: return sqlite3_bind_text(stmt, index, a->t, -1, SQLITE_STATIC);
	case SQL_ARG_NULL: return sqlite3_bind_null(stmt, index);
	case SQL_ARG_END: break;
	}
	return SQLITE_MISUSE;
}

static sqlite3_stmt *bind_all(struct store *s, enum sql which, const struct sql_arg *args, struct err *err)
{
	sqlite3_stmt *stmt = s->stmts[which];
	int index = 1, rc = SQLITE_OK;

	sqlite3_reset(stmt);
	for (; rc == SQLITE_OK && args->type != SQL_ARG_END; args++, index++)
		rc = bind_one(stmt, index, args);
	if (rc == SQLITE_OK && index != sqlite3_bind_parameter_count(stmt) + 1)
		rc = SQLITE_MISUSE;
	if (rc == SQLITE_OK)
		return stmt;
	store_fail(s->db, rc, sqlite3_sql(stmt), err);
	return NULL;
}

int store_exec_args(struct store *s, enum sql which, const struct sql_arg *args, struct err *err)
{
	sqlite3_stmt *stmt = bind_all(s, which, args, err);
	int rc;

	if (!stmt)
		return -1;
	rc = sqlite3_step(stmt);
	if (rc != SQLITE_DONE && rc != SQLITE_ROW) {
		store_fail(s->db, rc, sqlite3_sql(stmt), err);
		sqlite3_reset(stmt);
		return -1;
	}
	sqlite3_reset(stmt);
	return sqlite3_changes(s->db);
}

struct query *store_select_args(struct store *s, enum sql which, const struct sql_arg *args, struct err *err)
{
	return (struct query *)bind_all(s, which, args, err);
}

int store_get_int_args(struct store *s, enum sql which, const struct sql_arg *args, int64_t *out,
		       struct err *err)
{
	struct query *q = store_select_args(s, which, args, err);
	int found = query_next(q, err);

	if (found == 1)
		*out = query_int(q, 0);
	query_done(q);
	return found;
}

int query_next(struct query *q, struct err *err)
{
	sqlite3_stmt *stmt = (sqlite3_stmt *)q;
	int rc;

	if (!stmt)
		return -1;
	rc = sqlite3_step(stmt);
	if (rc == SQLITE_ROW)
		return 1;
	if (rc != SQLITE_DONE)
		store_fail(sqlite3_db_handle(stmt), rc, sqlite3_sql(stmt), err);
	sqlite3_reset(stmt);
	return rc == SQLITE_DONE ? 0 : -1;
}

void query_done(struct query *q)
{
	sqlite3_reset((sqlite3_stmt *)q);
}

int64_t query_int(struct query *q, int column)
{
	return sqlite3_column_int64((sqlite3_stmt *)q, column);
}

double query_real(struct query *q, int column)
{
	return sqlite3_column_double((sqlite3_stmt *)q, column);
}

const char *query_text(struct query *q, int column)
{
	const unsigned char *text = sqlite3_column_text((sqlite3_stmt *)q, column);

	return text ? (const char *)text : "";
}

bool query_is_null(struct query *q, int column)
{
	return sqlite3_column_type((sqlite3_stmt *)q, column) == SQLITE_NULL;
}
