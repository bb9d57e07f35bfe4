/* Steps that several handlers take: finding jobs and tasks, events, moving a job on. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "server/engine_internal.h"

/* --- replies and lists -------------------------------------------------------- */

int reply_fail(struct engine_reply *reply, enum err_code code, const char *fmt, ...)
{
	char text[ERR_TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	return err_set(&reply->err, code, "%s", text);
}

int list_limit(const struct engine_request *r)
{
	if (r->limit <= 0)
		return LIST_DEFAULT;
	return r->limit > LIST_MAX ? LIST_MAX : (int)r->limit;
}

int list_cursor(const struct engine_request *r, int64_t otherwise, int64_t *out, struct err *err)
{
	char *end;

	*out = otherwise;
	if (r->cursor[0] == '\0')
		return 0;
	*out = strtoll(r->cursor + 1, &end, 16);
	if (r->cursor[0] != 'c' || end == r->cursor + 1 || *end != '\0')
		return err_set(err, ERR_INVALID, "the cursor is not one that this server gave");
	return 0;
}

int list_reply(struct engine_reply *reply, struct json *items, bool more, int64_t next)
{
	char cursor[32];
	int rc;

	reply->status = 200;
	reply->body = json_new_object();
	snprintf(cursor, sizeof(cursor), "c%" PRIx64, next);
	rc = json_set(reply->body, "items", items);
	rc |= more ? json_set_string(reply->body, "next", cursor) : json_set_null(reply->body, "next");
	return rc == 0 ? 0 : err_set_nomem(&reply->err, "a list");
}

struct json *json_parse_stored(const char *text, struct err *err)
{
	struct json *value = json_parse(text, strlen(text), err);

	if (!value)
		err_prefix(err, "a stored JSON text");
	return value;
}

/* --- jobs --------------------------------------------------------------------- */

static int read_job(struct query *q, struct job_ref *job, struct err *err)
{
	int found = query_next(q, err);

	if (found == 1) {
		*job = (struct job_ref){
			.pk = query_int(q, 0), .state = query_int(q, 3), .change = query_int(q, 4),
			.kind = query_int(q, 5), .first_task = query_int(q, 6), .task_count = query_int(q, 7),
			.first_quantize = query_int(q, 8), .unfinished = query_int(q, 9),
			.unfinished_main = query_int(q, 10), .created_ms = query_int(q, 11),
			.started_ms = query_is_null(q, 12) ? -1 : query_int(q, 12),
			.finished_ms = query_is_null(q, 13) ? -1 : query_int(q, 13),
		};
		snprintf(job->id, sizeof(job->id), "%s", query_text(q, 1));
		snprintf(job->subject, sizeof(job->subject), "%s", query_text(q, 2));
	}
	query_done(q);
	return found;
}

int job_find(struct store *db, const char *id, struct job_ref *job, struct err *err)
{
	int found = read_job(store_select(db, SQL_JOB_BY_ID, err, sql_t(id)), job, err);

	if (found == 0)
		err_set(err, ERR_NOT_FOUND, "there is no job '%s'", id);
	return found == 1 ? 0 : -1;
}

int job_load(struct store *db, int64_t pk, struct job_ref *job, struct err *err)
{
	int found = read_job(store_select(db, SQL_JOB_BY_PK, err, sql_i(pk)), job, err);

	if (found == 0)
		err_set(err, ERR_INTERNAL, "a task's job is missing");
	return found == 1 ? 0 : -1;
}

int job_touch(struct tx *tx, int64_t pk, const char *id, struct err *err)
{
	if (store_exec(tx->db, SQL_JOB_TOUCH, err, sql_i(pk)) < 0)
		return -1;
	return effects_wake(tx->fx, WAKE_JOB, id, err);
}

int job_event(struct tx *tx, int64_t pk, const char *kind, struct err *err, const char *fmt, ...)
{
	char text[ERR_TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	return store_exec(tx->db, SQL_EVENT_ADD, err, sql_i(pk), sql_i(tx->now_ms), sql_t(kind), sql_t(text)) < 0
		? -1 : 0;
}

/* Open tasks of a job, collected first: moving them runs other statements. */
static struct task_ref *open_tasks(struct tx *tx, const struct job_ref *job, size_t *count, struct err *err)
{
	struct task_ref *list = mem_alloc((size_t)job->task_count, sizeof(*list));
	struct query *q;
	int more = 0;

	*count = 0;
	if (!list) {
		err_set_nomem(err, "the tasks of a job");
		return NULL;
	}
	q = store_select(tx->db, SQL_TASKS_OPEN, err, sql_i(job->first_task),
			 sql_i(job->first_task + job->task_count - 1));
	while ((more = query_next(q, err)) == 1 && *count < (size_t)job->task_count)
		list[(*count)++] = (struct task_ref){
			.pk = query_int(q, 0), .job = job->pk, .kind = query_int(q, 1), .state = query_int(q, 2),
			.epoch = query_int(q, 3), .attempts = query_int(q, 4) };
	query_done(q);
	if (more < 0) {
		mem_free(list);
		return NULL;
	}
	return list;
}

int job_cancel_tasks(struct tx *tx, const struct job_ref *job, struct err *err)
{
	size_t count;
	struct task_ref *list = open_tasks(tx, job, &count, err);
	int rc = list ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < count; i++) {
		struct task_change c = { .to = TASK_CANCELLED, .now_ms = tx->now_ms,
					 .attempts = list[i].attempts };

		rc = task_move(tx->db, &list[i], &c, err);
	}
	mem_free(list);
	if (rc != 0)
		return -1;
	return checkpoints_drop(tx, job->first_task, job->first_task + job->task_count - 1, err);
}

int job_fail(struct tx *tx, const struct job_ref *job, int64_t task, const char *detail, struct err *err)
{
	if (job_state_final(job->state))
		return 0;
	if (store_exec(tx->db, SQL_JOB_SET_FAILURE, err, sql_i(job->pk), sql_t(detail),
		       task ? sql_i(task) : sql_null()) < 0 ||
	    job_event(tx, job->pk, "failure", err, "%s", detail) != 0 ||
	    job_move(tx->db, job->pk, job->id, (enum job_state)job->state, JOB_FAILED, tx->now_ms, err) != 0 ||
	    job_cancel_tasks(tx, job, err) != 0)
		return -1;
	return job_touch(tx, job->pk, job->id, err);
}

int job_advance(struct tx *tx, int64_t pk, struct err *err)
{
	struct job_ref job;

	if (job_load(tx->db, pk, &job, err) != 0)
		return -1;
	if (job.state == JOB_RUNNING && job.unfinished_main == 0) {
		if (job_move(tx->db, pk, job.id, JOB_RUNNING, JOB_ASSEMBLING, tx->now_ms, err) != 0)
			return -1;
		job.state = JOB_ASSEMBLING;
	}
	if (job.state == JOB_ASSEMBLING && job.unfinished == 0 &&
	    effects_wake(tx->fx, WAKE_FINISH, job.id, err) != 0)
		return -1;
	return job_touch(tx, pk, job.id, err);
}

/* --- tasks -------------------------------------------------------------------- */

void task_id_text(char out[ID_MAX], const char *job_id, int64_t first_task, int64_t pk)
{
	snprintf(out, ID_MAX, "t_%.40s-%" PRId64, job_id + 2, pk - first_task);
}

int task_load(struct store *db, int64_t pk, struct task_ref *t, struct err *err)
{
	struct query *q = store_select(db, SQL_TASK_GET, err, sql_i(pk));
	int found = query_next(q, err);

	if (found == 1)
		*t = (struct task_ref){ .pk = pk, .job = query_int(q, 0), .kind = query_int(q, 1),
					.state = query_int(q, 2), .epoch = query_int(q, 3),
					.attempts = query_int(q, 4), .leased_ms = query_int(q, 5),
					.worker = query_int(q, 6) };
	query_done(q);
	if (found == 0)
		err_set(err, ERR_NOT_FOUND, "there is no such task");
	return found == 1 ? 0 : -1;
}

int task_find(struct store *db, const char *id, struct task_ref *t, struct job_ref *job, struct err *err)
{
	const char *dash = strchr(id, '-');
	char job_id[ID_MAX], *end = NULL;
	long long index = dash ? strtoll(dash + 1, &end, 10) : -1;
	struct err ignored;

	if (strncmp(id, "t_", 2) == 0 && dash && dash - id < 40 && end && *end == '\0' && end != dash + 1) {
		snprintf(job_id, sizeof(job_id), "j_%.*s", (int)(dash - id - 2), id + 2);
		if (job_find(db, job_id, job, &ignored) == 0 && index >= 0 && index < job->task_count)
			return task_load(db, job->first_task + index, t, err);
	}
	return err_set(err, ERR_NOT_FOUND, "there is no task '%.80s'", id);
}
