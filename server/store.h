/* store.h - one SQLite connection with every statement prepared: the only way to the database.
 *
 * Statements are named in store_sql.h; their text lives in store_jobs.c, store_tasks.c and
 * store_models.c. Values are always bound. A select is walked with query_next(), which resets the
 * statement at the end; leave a walk early with query_done(). One statement runs at most once at a
 * time: collect rows before calling something that runs it again.
 *
 * Errors: a full disk is ERR_NOSPC, an I/O error ERR_IO, a broken constraint ERR_CONFLICT.
 * A connection belongs to one thread at a time.
 */
#ifndef QUARRY_SERVER_STORE_H
#define QUARRY_SERVER_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "server/store_sql.h"

struct store;
struct query;

/* The writing connection: creates the file, sets WAL and synchronous=FULL, applies migrations
 * (migrate.h), then prepares. It alone does checkpoints. */
struct store *store_open_writer(const char *path, struct err *err);
/* A read-only connection to a database that a writer holds open. */
struct store *store_open_reader(const char *path, struct err *err);
void store_close(struct store *s);

/* --- transactions ------------------------------------------------------------- */

int store_begin(struct store *s, struct err *err);      /* write lock taken at once */
int store_begin_read(struct store *s, struct err *err); /* one snapshot for several selects */
int store_commit(struct store *s, struct err *err);
void store_rollback(struct store *s);
/* One level, inside a transaction. */
int store_savepoint(struct store *s, struct err *err);
int store_release(struct store *s, struct err *err);
int store_rollback_to(struct store *s, struct err *err);
/* false after an error that made SQLite give up the whole transaction. */
bool store_in_transaction(struct store *s);
/* Most pages the database may have, 0 = no limit; how tests fill the disk. */
int store_limit_pages(struct store *s, int64_t pages, struct err *err);

/* --- values ------------------------------------------------------------------- */

struct sql_arg {
	enum sql_arg_type { SQL_ARG_END, SQL_ARG_INT, SQL_ARG_REAL, SQL_ARG_TEXT, SQL_ARG_NULL } type;
	int64_t i;
	double d;
	const char *t;
};

static inline struct sql_arg sql_i(int64_t i)
{
	return (struct sql_arg){ .type = SQL_ARG_INT, .i = i };
}

static inline struct sql_arg sql_d(double d)
{
	return (struct sql_arg){ .type = SQL_ARG_REAL, .d = d };
}

/* NULL is SQL NULL. The text must live until the statement ends. */
static inline struct sql_arg sql_t(const char *t)
{
	return (struct sql_arg){ .type = t ? SQL_ARG_TEXT : SQL_ARG_NULL, .t = t };
}

static inline struct sql_arg sql_null(void)
{
	return (struct sql_arg){ .type = SQL_ARG_NULL };
}

#define SQL_ARGS(...) ((const struct sql_arg[]){ __VA_OPT__(__VA_ARGS__,) { .type = SQL_ARG_END } })

/* --- statements --------------------------------------------------------------- */

/* Runs a statement that returns no rows; the number of rows changed, or -1. */
int store_exec_args(struct store *s, enum sql which, const struct sql_arg *args, struct err *err);
#define store_exec(s, which, err, ...) store_exec_args(s, which, SQL_ARGS(__VA_ARGS__), err)

/* Starts a select; NULL with err set. */
struct query *store_select_args(struct store *s, enum sql which, const struct sql_arg *args,
				struct err *err);
#define store_select(s, which, err, ...) store_select_args(s, which, SQL_ARGS(__VA_ARGS__), err)

/* First column of the first row: 1 = found, 0 = no row (out untouched), -1 = error. */
int store_get_int_args(struct store *s, enum sql which, const struct sql_arg *args, int64_t *out,
		       struct err *err);
#define store_get_int(s, which, out, err, ...) \
	store_get_int_args(s, which, SQL_ARGS(__VA_ARGS__), out, err)

/* 1 = a row, 0 = the end, -1 = error. NULL query: -1. */
int query_next(struct query *q, struct err *err);
void query_done(struct query *q); /* NULL is fine */
int64_t query_int(struct query *q, int column);
double query_real(struct query *q, int column);
/* "" for NULL; valid until the next query_next() or query_done(). */
const char *query_text(struct query *q, int column);
bool query_is_null(struct query *q, int column);

#endif
