/* Lists about jobs: all jobs, one job's tasks, files, events, and its report. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/recipe.h"
#include "server/blobs.h"
#include "server/engine_internal.h"
#include "server/engine_progress.h"

enum { REPORT_BYTES_MAX = 64 << 20 };

static int set_or_null(struct json *o, const char *key, int64_t value)
{
	return value < 0 ? json_set_null(o, key) : json_set_int(o, key, value);
}

static int list_failed(struct engine_reply *reply, struct json *items)
{
	json_free(items);
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a list");
}

/* --- jobs --------------------------------------------------------------------- */

struct job_row { struct job_ref job; struct json *json; };

static int read_job_row(struct query *q, struct job_row *row)
{
	struct json *o = json_new_object();

	row->job = (struct job_ref){ .pk = query_int(q, 0), .state = query_int(q, 3), .kind = query_int(q, 4),
				     .first_task = query_int(q, 8), .task_count = query_int(q, 9) };
	row->json = o;
	return json_set_string(o, "id", query_text(q, 1)) | json_set_string(o, "name", query_text(q, 10)) |
	       json_set_string(o, "kind", query_int(q, 4) == RECIPE_EVALUATE ? "evaluate" : "quantize") |
	       json_set_string(o, "state", job_state_name(query_int(q, 3))) |
	       json_set_string(o, "subject", query_text(q, 2)) |
	       json_set_string(o, "model_name", query_text(q, 11)) |
	       json_set_int(o, "created_ms", query_int(q, 5)) |
	       set_or_null(o, "started_ms", query_is_null(q, 6) ? -1 : query_int(q, 6)) |
	       set_or_null(o, "finished_ms", query_is_null(q, 7) ? -1 : query_int(q, 7));
}

static int add_progress(struct tx *tx, struct job_row *row, struct err *err)
{
	struct job_progress p;

	if (job_progress(tx->db, &row->job, &p, err) != 0)
		return -1;
	return json_set_number(row->json, "progress", p.fraction);
}

int verb_job_list(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct json *items = json_new_array();
	int64_t below, state = r->state[0] ? job_state_from_name(r->state) : 0;
	int limit = list_limit(r), count = 0, more = 0, rc;
	struct job_row *rows = mem_alloc((size_t)limit, sizeof(*rows));
	struct query *q;

	if (r->state[0] && state == 0)
		rc = reply_fail(reply, ERR_INVALID, "there is no job state '%s'", r->state);
	else
		rc = rows ? list_cursor(r, INT64_MAX, &below, &reply->err) : err_set_nomem(&reply->err, "a list");
	q = rc == 0 ? store_select(tx->db, SQL_JOB_LIST, &reply->err, sql_i(state), sql_i(below), sql_i(limit + 1))
		    : NULL;
	while (rc == 0 && (more = query_next(q, &reply->err)) == 1 && count < limit)
		rc = read_job_row(q, &rows[count++]);
	query_done(q);
	rc = more < 0 ? -1 : rc;
	for (int i = 0; i < count; i++) {
		rc |= rc == 0 ? add_progress(tx, &rows[i], &reply->err) : 0;
		rc |= json_push(items, rows[i].json);
	}
	if (rc == 0)
		rc = list_reply(reply, items, more == 1, count > 0 ? rows[count - 1].job.pk : 0);
	else
		rc = list_failed(reply, items);
	mem_free(rows);
	return rc;
}

/* --- tasks -------------------------------------------------------------------- */

static struct json *task_row(struct query *q, const struct job_ref *job)
{
	struct json *o = json_new_object();
	char id[ID_MAX];
	int rc;

	task_id_text(id, job->id, job->first_task, query_int(q, 0));
	rc = json_set_string(o, "id", id) | json_set_string(o, "kind", task_kind_name(query_int(q, 1))) |
	     json_set_string(o, "state", task_state_name(query_int(q, 2))) |
	     set_or_null(o, "layer", query_int(q, 3)) | set_or_null(o, "shard", query_int(q, 4)) |
	     json_set_int(o, "epoch", query_int(q, 5)) | json_set_int(o, "attempts", query_int(q, 6)) |
	     (query_is_null(q, 7) ? json_set_null(o, "worker") : json_set_string(o, "worker", query_text(q, 7))) |
	     json_set_number(o, "progress", query_real(q, 8)) | json_set_string(o, "note", query_text(q, 9)) |
	     set_or_null(o, "wall_ms", query_is_null(q, 10) ? -1 : query_int(q, 10)) |
	     json_set_int(o, "work", query_int(q, 11));
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

int verb_job_tasks(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct json *items = json_new_array();
	int limit = list_limit(r), count = 0, more = 0, rc;
	int64_t above = 0, last = 0;
	struct job_ref job;
	struct query *q;

	rc = job_find(tx->db, r->id, &job, &reply->err);
	if (rc == 0)
		rc = list_cursor(r, 0, &above, &reply->err);
	q = rc == 0 ? store_select(tx->db, SQL_JOB_TASKS, &reply->err,
				   sql_i(above >= job.first_task ? above + 1 : job.first_task),
				   sql_i(job.first_task + job.task_count - 1), sql_i(limit + 1)) : NULL;
	while (rc == 0 && (more = query_next(q, &reply->err)) == 1 && count++ < limit) {
		last = query_int(q, 0);
		rc = json_push(items, task_row(q, &job));
	}
	query_done(q);
	if (rc != 0 || more < 0)
		return list_failed(reply, items);
	return list_reply(reply, items, more == 1, last);
}

/* --- events ------------------------------------------------------------------- */

int verb_job_events(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct json *items = json_new_array();
	int more = 0, rc;
	struct job_ref job;
	struct query *q;

	rc = job_find(tx->db, r->id, &job, &reply->err);
	q = rc == 0 ? store_select(tx->db, SQL_EVENTS, &reply->err, sql_i(job.pk), sql_i(r->after), sql_i(LIST_MAX))
		    : NULL;
	while (rc == 0 && (more = query_next(q, &reply->err)) == 1) {
		struct json *o = json_new_object();

		rc = json_set_int(o, "seq", query_int(q, 0)) | json_set_int(o, "at_ms", query_int(q, 1)) |
		     json_set_string(o, "kind", query_text(q, 2)) | json_set_string(o, "text", query_text(q, 3));
		rc |= json_push(items, o);
	}
	query_done(q);
	if (rc != 0 || more < 0)
		return list_failed(reply, items);
	snprintf(reply->etag, sizeof(reply->etag), "%s-%" PRId64, job.id, job.change);
	reply->status = 200;
	reply->body = json_new_object();
	if ((json_set(reply->body, "items", items) |
	     json_set_string(reply->body, "state", job_state_name(job.state))) == 0)
		return 0;
	return err_set_nomem(&reply->err, "a list");
}

/* --- files -------------------------------------------------------------------- */

static struct json *file_row(struct query *q)
{
	struct json *o = json_new_object();

	if ((json_set_string(o, "path", query_text(q, 0)) | json_set_string(o, "sha256", query_text(q, 1)) |
	     json_set_int(o, "bytes", query_int(q, 2))) == 0)
		return o;
	json_free(o);
	return NULL;
}

static int one_file(struct tx *tx, const struct engine_request *r, const struct job_ref *job,
		    struct engine_reply *reply)
{
	struct query *q = store_select(tx->db, SQL_FILE_GET, &reply->err, sql_i(job->pk), sql_t(r->path));
	int found = query_next(q, &reply->err);

	if (found == 1) {
		reply->body = file_row(q);
		snprintf(reply->etag, sizeof(reply->etag), "%.64s", query_text(q, 1));
	}
	query_done(q);
	reply->status = 200;
	if (found == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "job %s has no file '%.300s'", job->id, r->path);
	if (found < 0)
		return -1;
	return reply->body ? 0 : err_set_nomem(&reply->err, "a file");
}

/* The cursor of this list is the last path. */
int verb_job_files(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct json *items;
	int more = 0, rc = 0, count = 0;
	struct job_ref job;
	struct query *q;

	if (job_find(tx->db, r->id, &job, &reply->err) != 0)
		return -1;
	if (r->path[0])
		return one_file(tx, r, &job, reply);
	items = json_new_array();
	q = store_select(tx->db, SQL_FILES, &reply->err, sql_i(job.pk), sql_t(""), sql_i(1 << 20));
	while (rc == 0 && (more = query_next(q, &reply->err)) == 1 && ++count)
		rc = json_push(items, file_row(q));
	query_done(q);
	if (rc != 0 || more < 0)
		return list_failed(reply, items);
	return list_reply(reply, items, false, 0);
}

int verb_job_report(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	char sha256[DIGEST_HEX] = "";
	struct job_ref job;
	struct query *q;
	uint64_t bytes = 0;
	char *text;
	int found, fd;

	if (job_find(tx->db, r->id, &job, &reply->err) != 0)
		return -1;
	q = store_select(tx->db, SQL_FILE_GET, &reply->err, sql_i(job.pk), sql_t("report.json"));
	found = query_next(q, &reply->err);
	if (found == 1)
		snprintf(sha256, sizeof(sha256), "%s", query_text(q, 1));
	query_done(q);
	if (found == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "job %s is %s; its report is there when it is DONE", job.id,
				  job_state_name(job.state));
	fd = found == 1 ? blobs_open_fd(tx->e->config.blobs, sha256, &bytes, &reply->err) : -1;
	if (fd < 0)
		return -1;
	text = bytes <= REPORT_BYTES_MAX ? mem_alloc((size_t)bytes + 1, 1) : NULL;
	if (!text)
		err_set_nomem(&reply->err, "the report");
	else if (file_pread(fd, text, (size_t)bytes, 0, "report.json", &reply->err) == 0)
		reply->body = json_parse(text, (size_t)bytes, &reply->err);
	close(fd);
	mem_free(text);
	snprintf(reply->etag, sizeof(reply->etag), "%.64s", sha256);
	reply->status = 200;
	return reply->body ? 0 : -1;
}
