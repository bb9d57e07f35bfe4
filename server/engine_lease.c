/* Leases: handing out a task, hearing of it, and giving it back. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "server/blobs.h"
#include "server/engine_internal.h"
#include "server/schedule.h"

enum {
	HAVE_MAX = 64, NOTE_MAX = 200, LOG_MAX = 16 * 1024,
	LOSSES_FREE = 2,        /* devices lost over a task before that is held against the task */
};

/* --- handing out -------------------------------------------------------------- */

static int read_have(const struct json *body, const char *have[HAVE_MAX], size_t *count, struct err *err)
{
	const struct json *list = json_get(body, "have");

	*count = 0;
	for (const struct json *v = json_first(list); v; v = json_next(v)) {
		const char *sha256 = json_string(v, "");

		if (!digest_is_hex(sha256) || *count == HAVE_MAX)
			return err_set(err, ERR_INVALID, "\"have\" must be at most %d digests of 64 hex characters",
				       HAVE_MAX);
		have[(*count)++] = sha256;
	}
	return 0;
}

/* Where the files of the inputs are, for a worker that sees our folders. */
static int tell_paths(const struct blobs *blobs, struct json *inputs)
{
	char path[PATH_MAX];

	for (struct json *o = json_first(inputs); o; o = json_next(o))
		if (blobs_seen_path(blobs, json_get_string(o, "sha256", ""), path) && json_set_string(o, "path", path) != 0)
			return -1;
	return 0;
}

static struct json *inputs_json(struct store *db, int64_t task, const struct blobs *seen, struct err *err)
{
	struct json *list = json_new_array();
	struct query *q = store_select(db, SQL_TASK_INPUTS, err, sql_i(task));
	int more, rc = list ? 0 : err_set_nomem(err, "a lease");

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		struct json *o;

		if (more < 0 || query_is_null(q, 1)) {
			rc = more < 0 ? -1 : err_set(err, ERR_INTERNAL, "input '%s' of a ready task is missing",
						     query_text(q, 0));
			break;
		}
		o = json_new_object();
		rc = json_set_string(o, "name", query_text(q, 0)) | json_set_string(o, "sha256", query_text(q, 1)) |
		     json_set_int(o, "bytes", query_int(q, 2));
		rc |= json_push(list, o);
		if (rc != 0)
			err_set_nomem(err, "a lease");
	}
	query_done(q);
	rc = rc != 0 ? rc : checkpoint_add_input(db, task, list, err);
	if (rc == 0 && seen && (rc = tell_paths(seen, list)) != 0)
		err_set_nomem(err, "a lease");
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

/* which: SQL_JOB_MODEL or SQL_JOB_REFERENCE */
static struct json *model_json(struct store *db, enum sql which, int64_t job, struct err *err)
{
	struct query *q = store_select(db, which, err, sql_i(job));
	struct json *o = NULL;
	int found = query_next(q, err);
	int64_t model = 0;
	int rc = 0;

	if (found == 1) {
		o = json_new_object();
		model = query_int(q, 0);
		rc = json_set_string(o, "id", query_text(q, 1));
		rc |= query_is_null(q, 2) ? json_set_null(o, "path") : json_set_string(o, "path", query_text(q, 2));
	}
	query_done(q);
	if (found == 1)
		rc |= json_set(o, "files", model_files_json(db, model, err));
	if (found == 1 && rc == 0)
		return o;
	json_free(o);
	if (found == 0)
		err_set(err, ERR_INTERNAL, "the job's model is missing");
	else if (found == 1)
		err_set_nomem(err, "a lease");
	return NULL;
}

static struct json *spec_json(struct store *db, int64_t task, struct err *err)
{
	struct query *q = store_select(db, SQL_TASK_SPEC, err, sql_i(task));
	struct json *spec = query_next(q, err) == 1 ? json_parse_stored(query_text(q, 0), err) : NULL;

	query_done(q);
	return spec;
}

static int fill_lease(struct tx *tx, const struct task_ref *t, const struct job_ref *job, const struct worker_ref *w,
		      struct engine_reply *reply)
{
	const struct engine_config *config = &tx->e->config;
	const struct blobs *seen = w->sees_paths ? config->blobs : NULL;
	struct json *spec = spec_json(tx->db, t->pk, &reply->err);
	bool reference = strcmp(json_get_string(spec, "model", ""), "reference") == 0;
	char id[ID_MAX];
	int rc;

	task_id_text(id, job->id, job->first_task, t->pk);
	reply->status = 200;
	reply->body = json_new_object();
	rc = json_set_string(reply->body, "task", id) | json_set_int(reply->body, "epoch", t->epoch) |
	     json_set_string(reply->body, "job", job->id) |
	     json_set_string(reply->body, "kind", task_kind_name(t->kind)) |
	     json_set_number(reply->body, "lease_seconds", (double)config->lease_ms / 1000) |
	     json_set_number(reply->body, "accept_seconds", (double)config->accept_ms / 1000);
	rc |= json_set(reply->body, "spec", spec);
	if (rc == 0 && json_set(reply->body, "inputs", inputs_json(tx->db, t->pk, seen, &reply->err)) == 0 &&
	    json_set(reply->body, "model", model_json(tx->db, reference ? SQL_JOB_REFERENCE : SQL_JOB_MODEL, job->pk,
						      &reply->err)) == 0)
		return 0;
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a lease");
}

static int nothing_to_lease(struct engine_reply *reply, bool drain)
{
	reply->status = 204;
	reply->wait = !drain;
	reply->drain = drain;
	return 0;
}

int verb_lease(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	const struct engine_config *config = &tx->e->config;
	struct schedule_request want = { .live_since_ms = tx->now_ms - config->lease_ms, .now_ms = tx->now_ms };
	struct task_change change = { .to = TASK_LEASED, .now_ms = tx->now_ms,
				      .deadline_ms = tx->now_ms + config->accept_ms };
	const char *have[HAVE_MAX];
	struct worker_ref w;
	struct task_ref t;
	struct job_ref job;
	int found;

	if (worker_of_request(tx, r, &w, &reply->err) != 0 ||
	    read_have(r->body, have, &want.have_count, &reply->err) != 0 ||
	    leases_unheard(tx, &w, json_get(r->body, "holds"), &reply->err) != 0)
		return -1;
	if (w.draining)
		return nothing_to_lease(reply, true);
	want.worker = change.worker = w.pk;
	want.have = have;
	found = schedule_pick(tx->db, &want, &t, &reply->left, &reply->err);
	if (found < 0)
		return -1;
	if (found == 0)
		return nothing_to_lease(reply, false);
	change.attempts = t.attempts;
	if (task_move(tx->db, &t, &change, &reply->err) != 0 ||
	    job_load(tx->db, t.job, &job, &reply->err) != 0 || fill_lease(tx, &t, &job, &w, reply) != 0 ||
	    effects_wake(tx->fx, WAKE_JOB, job.id, &reply->err) != 0 ||
	    effects_wake(tx->fx, WAKE_WORKER, w.id, &reply->err) != 0)
		return -1;
	/* A capture may have waited for this quantize to be taken. */
	return t.kind == KIND_QUANTIZE ? effects_wake(tx->fx, WAKE_LEASE, "", &reply->err) : 0;
}

/* --- the holder speaks -------------------------------------------------------- */

int lease_held(struct tx *tx, const struct engine_request *r, struct worker_ref *w, struct task_ref *t,
	       struct job_ref *job, struct err *err)
{
	int64_t epoch;

	if (worker_of_request(tx, r, w, err) != 0 ||
	    json_require_int(r->body, "epoch", 0, INT64_C(1) << 53, &epoch, err) != 0 ||
	    task_find(tx->db, r->id, t, job, err) != 0)
		return -1;
	if (t->state == TASK_LEASED && t->epoch == epoch && t->worker == w->pk)
		return 0;
	if (t->state == TASK_CANCELLED && t->epoch == epoch)
		return err_set(err, ERR_CANCELLED, "job %s is %s; drop the work", job->id,
			       job_state_name(job->state));
	return err_set(err, ERR_CONFLICT, "task %s is not leased to %s at epoch %" PRId64 "; drop the work", r->id,
		       w->id, epoch);
}

static int reply_object(struct engine_reply *reply)
{
	reply->status = 200;
	reply->body = json_new_object();
	return reply->body ? 0 : err_set_nomem(&reply->err, "a reply");
}

/* At most `cap` - 1 bytes of `text` without cutting a character. */
static void copy_text(char *out, size_t cap, const char *text)
{
	size_t len = utf8_cut(text, strlen(text), cap - 1);

	memcpy(out, text, len);
	out[len] = '\0';
}

int verb_heartbeat(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	double progress = json_get_number(r->body, "progress", 0);
	char note[NOTE_MAX];
	struct worker_ref w;
	struct task_ref t;
	struct job_ref job;
	int changed;

	if (lease_held(tx, r, &w, &t, &job, &reply->err) != 0)
		return -1;
	progress = progress > 0 ? progress < 1 ? progress : 1 : 0;
	copy_text(note, sizeof(note), json_get_string(r->body, "note", ""));
	changed = store_exec(tx->db, SQL_TASK_HEARTBEAT, &reply->err, sql_i(t.pk), sql_i(t.epoch),
			     sql_i(tx->now_ms + tx->e->config.lease_ms), sql_d(progress), sql_t(note));
	if (changed < 0 || job_touch(tx, job.pk, job.id, &reply->err) != 0 || reply_object(reply) != 0)
		return -1;
	if (changed != 1)
		return reply_fail(reply, ERR_CONFLICT, "the lease is lost");
	if (json_set_bool(reply->body, "cancel", false) != 0 ||
	    json_set_bool(reply->body, "drain", w.draining != 0) != 0)
		return err_set_nomem(&reply->err, "a reply");
	return 0;
}

/* --- the lease ends without a result ------------------------------------------ */

static int fail_for_good(struct tx *tx, const struct task_ref *t, const char *detail, struct err *err)
{
	char text[ERR_TEXT_MAX], id[ID_MAX];
	struct job_ref job;
	int64_t layer = -1;

	if (job_load(tx->db, t->job, &job, err) != 0 ||
	    store_get_int(tx->db, SQL_TASK_LAYER, &layer, err, sql_i(t->pk)) < 0)
		return -1;
	task_id_text(id, job.id, job.first_task, t->pk);
	if (layer >= 0)
		snprintf(text, sizeof(text), "%s of layer %" PRId64 " (%s) failed after %" PRId64 " attempt%s: %.700s",
			 task_kind_name(t->kind), layer, id, t->attempts, t->attempts == 1 ? "" : "s", detail);
	else
		snprintf(text, sizeof(text), "%s (%s) failed after %" PRId64 " attempt%s: %.700s",
			 task_kind_name(t->kind), id, t->attempts, t->attempts == 1 ? "" : "s", detail);
	return job_fail(tx, &job, t->pk, text, err);
}

int lease_end(struct tx *tx, struct task_ref *t, const char *error, const char *detail, const char *log,
	      bool counted, bool fatal, struct err *err)
{
	int64_t attempts = t->attempts + counted;
	bool dead = fatal || (counted && attempts >= tx->e->config.max_attempts);
	struct task_change c = { .to = dead ? TASK_FAILED : TASK_READY, .now_ms = tx->now_ms,
				 .attempts = attempts };
	struct job_ref job;

	if (job_load(tx->db, t->job, &job, err) != 0)
		return -1;
	if (store_exec(tx->db, SQL_ATTEMPT_ADD, err, sql_i(t->pk), sql_i(t->epoch), sql_i(t->worker), sql_i(tx->now_ms),
		       sql_t(error), sql_t(detail), sql_t(log), sql_i(counted)) < 0 ||
	    (counted && store_exec(tx->db, SQL_WORKER_FAILED, err, sql_i(t->worker)) < 0))
		return -1;
	if (job_event(tx, t->job, "task", err, "%s %" PRId64 ": %s: %s", task_kind_name(t->kind),
		      t->pk - job.first_task, error, detail) != 0 ||
	    task_move(tx->db, t, &c, err) != 0)
		return -1;
	if (dead)
		return fail_for_good(tx, t, detail, err);
	if (effects_wake(tx->fx, WAKE_LEASE, "", err) != 0)
		return -1;
	return effects_wake(tx->fx, WAKE_JOB, job.id, err);
}

/* These cannot get better on another worker. */
static bool is_fatal(enum err_code code)
{
	return code == ERR_CORRUPT || code == ERR_UNSUPPORTED || code == ERR_REFUSED || code == ERR_INVALID ||
	       code == ERR_NUMERIC;
}

/* What the worker says of an error: *name is one of ours. `log` ends at most LOG_MAX before its end, which says most. */
static void read_error(const struct json *body, const char **name, char detail[ERR_TEXT_MAX], const char **log)
{
	const struct json *error = json_get(body, "error");

	*name = err_name(err_from_name(json_get_string(error, "name", "internal")));
	copy_text(detail, ERR_TEXT_MAX, json_get_string(error, "detail", "the worker gave no reason"));
	*log = json_get_string(body, "log", "");
	if (strlen(*log) > LOG_MAX) {
		*log += strlen(*log) - LOG_MAX;
		while (((unsigned char)**log & 0xc0) == 0x80)
			(*log)++;
	}
}

int verb_fail(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	const char *name, *log;
	char detail[ERR_TEXT_MAX];
	struct worker_ref w;
	struct task_ref t;
	struct job_ref job;

	if (lease_held(tx, r, &w, &t, &job, &reply->err) != 0)
		return -1;
	read_error(r->body, &name, detail, &log);
	if (lease_end(tx, &t, name, detail, log, true, is_fatal(err_from_name(name)), &reply->err) != 0 ||
	    effects_wake(tx->fx, WAKE_WORKER, w.id, &reply->err) != 0)
		return -1;
	return reply_object(reply);
}

/* Given back with an error: something happened to the worker, its device was lost. Once or twice that is no fault of the
 * task; then it is the task that breaks devices, and it counts. */
static int end_broken(struct tx *tx, struct task_ref *t, const struct json *body, struct err *err)
{
	const char *name, *log;
	char detail[ERR_TEXT_MAX];
	int64_t before = 0;

	read_error(body, &name, detail, &log);
	if (store_get_int(tx->db, SQL_ATTEMPTS_LOST, &before, err, sql_i(t->pk), sql_t(name)) < 0)
		return -1;
	return lease_end(tx, t, name, detail, log, before >= LOSSES_FREE, false, err);
}

int verb_release(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct worker_ref w;
	struct task_ref t;
	struct job_ref job;
	char reason[NOTE_MAX];
	int rc;

	if (lease_held(tx, r, &w, &t, &job, &reply->err) != 0)
		return -1;
	copy_text(reason, sizeof(reason), json_get_string(r->body, "reason", "given back"));
	rc = json_get(r->body, "error") ? end_broken(tx, &t, r->body, &reply->err)
					: lease_end(tx, &t, "released", reason, "", false, false, &reply->err);
	if (rc != 0 || effects_wake(tx->fx, WAKE_WORKER, w.id, &reply->err) != 0)
		return -1;
	return reply_object(reply);
}
