/* What is done to jobs after submission: cancel, retry, delete. */
#include <string.h>

#include "common/alloc.h"
#include "server/engine_internal.h"

/* --- cancel ------------------------------------------------------------------- */

static int reply_state(struct engine_reply *reply, const char *id, enum job_state state)
{
	reply->status = 200;
	reply->body = json_new_object();
	if (json_set_string(reply->body, "job", id) != 0 ||
	    json_set_string(reply->body, "state", job_state_name(state)) != 0)
		return err_set_nomem(&reply->err, "a reply");
	return 0;
}

struct digest_list { char (*items)[DIGEST_HEX]; size_t count; };

static int collect_files(struct tx *tx, int64_t job, struct digest_list *list, struct err *err)
{
	int64_t count = 0;
	struct query *q;
	int more;

	if (store_get_int(tx->db, SQL_FILE_COUNT, &count, err, sql_i(job)) < 0)
		return -1;
	list->items = mem_alloc((size_t)count, sizeof(*list->items));
	if (!list->items)
		return err_set_nomem(err, "the files of a job");
	q = store_select(tx->db, SQL_FILES, err, sql_i(job), sql_t(""), sql_i(count));
	while ((more = query_next(q, err)) == 1 && list->count < (size_t)count)
		memcpy(list->items[list->count++], query_text(q, 1), DIGEST_HEX);
	query_done(q);
	return more < 0 ? -1 : 0;
}

/* The files that the job has so far, rows and blobs. */
static int drop_files(struct tx *tx, const struct job_ref *job, struct err *err)
{
	struct digest_list files = { 0 };
	int rc = collect_files(tx, job->pk, &files, err);

	if (rc == 0 && store_exec(tx->db, SQL_FILES_REMOVE, err, sql_i(job->pk)) < 0)
		rc = -1;
	for (size_t i = 0; rc == 0 && i < files.count; i++)
		rc = blob_drop_if_unused(tx, files.items[i], err);
	mem_free(files.items);
	return rc;
}

int verb_job_cancel(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct job_ref job;

	if (job_find(tx->db, r->id, &job, &reply->err) != 0)
		return -1;
	if (job.state == JOB_CANCELLED)
		return reply_state(reply, job.id, JOB_CANCELLED);
	if (job_state_final(job.state))
		return reply_fail(reply, ERR_CONFLICT, "job %s is %s already", job.id, job_state_name(job.state));
	if (job_cancel_tasks(tx, &job, &reply->err) != 0 ||
	    job_drop_outputs(tx, &job, &reply->err) != 0 || drop_files(tx, &job, &reply->err) != 0 ||
	    job_move(tx->db, job.pk, job.id, (enum job_state)job.state, JOB_CANCELLED, tx->now_ms,
		     &reply->err) != 0 ||
	    job_touch(tx, job.pk, job.id, &reply->err) != 0)
		return -1;
	return reply_state(reply, job.id, JOB_CANCELLED);
}

/* --- retry -------------------------------------------------------------------- */

/* FAILED and CANCELLED tasks go back with fresh attempts; what is done stays done. */
static int reopen_tasks(struct tx *tx, const struct job_ref *job, struct err *err)
{
	int64_t end = job->first_task + job->task_count - 1;
	struct reopen { struct task_ref task; int64_t deps; } *list = mem_alloc((size_t)job->task_count, sizeof(*list));
	struct query *q;
	size_t count = 0;
	int more, rc;

	if (!list)
		return err_set_nomem(err, "the tasks of a job");
	q = store_select(tx->db, SQL_TASKS_STOPPED, err, sql_i(job->first_task), sql_i(end));
	while ((more = query_next(q, err)) == 1 && count < (size_t)job->task_count)
		list[count++] = (struct reopen){
			.task = { .pk = query_int(q, 0), .job = job->pk, .kind = query_int(q, 1),
				  .state = query_int(q, 2), .epoch = query_int(q, 3) },
			.deps = query_int(q, 4) };
	query_done(q);
	rc = more < 0 || store_exec(tx->db, SQL_ATTEMPTS_FORGET, err, sql_i(job->first_task), sql_i(end)) < 0 ? -1 : 0;
	for (size_t i = 0; rc == 0 && i < count; i++) {
		struct task_change c = { .to = list[i].deps == 0 ? TASK_READY : TASK_BLOCKED, .now_ms = tx->now_ms };

		rc = task_move(tx->db, &list[i].task, &c, err);
	}
	mem_free(list);
	return rc;
}

int verb_job_retry(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct job_ref job;
	int64_t model;
	int found;

	if (job_find(tx->db, r->id, &job, &reply->err) != 0)
		return -1;
	if (job.state != JOB_FAILED)
		return reply_fail(reply, ERR_CONFLICT, "job %s is %s; only a FAILED job can be retried", job.id,
				  job_state_name(job.state));
	found = store_get_int(tx->db, SQL_JOB_MODEL, &model, &reply->err, sql_i(job.pk));
	if (found == 0)
		return reply_fail(reply, ERR_CONFLICT, "the model of job %s was deleted; submit a new job", job.id);
	if (found < 0 || reopen_tasks(tx, &job, &reply->err) != 0 ||
	    store_exec(tx->db, SQL_JOB_SET_FAILURE, &reply->err, sql_i(job.pk), sql_null(), sql_null()) < 0 ||
	    job_move(tx->db, job.pk, job.id, JOB_FAILED, JOB_RUNNING, tx->now_ms, &reply->err) != 0 ||
	    effects_wake(tx->fx, WAKE_LEASE, "", &reply->err) != 0 ||
	    job_advance(tx, job.pk, &reply->err) != 0)
		return -1;
	return reply_state(reply, job.id, JOB_RUNNING);
}

/* --- delete ------------------------------------------------------------------- */

int verb_job_delete(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct job_ref job;

	if (job_find(tx->db, r->id, &job, &reply->err) != 0)
		return -1;
	if (!job_state_final(job.state))
		return reply_fail(reply, ERR_CONFLICT, "job %s is %s; cancel it first", job.id,
				  job_state_name(job.state));
	if (job_drop_outputs(tx, &job, &reply->err) != 0 || drop_files(tx, &job, &reply->err) != 0 ||
	    store_exec(tx->db, SQL_TASKS_REMOVE, &reply->err, sql_i(job.first_task),
		       sql_i(job.first_task + job.task_count - 1)) < 0 ||
	    store_exec(tx->db, SQL_JOB_REMOVE, &reply->err, sql_i(job.pk)) < 0)
		return -1;
	reply->status = 204;
	return effects_wake(tx->fx, WAKE_JOB, job.id, &reply->err);
}
