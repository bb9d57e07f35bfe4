/* A task's result arrives: the one place where work becomes durable.
 *
 * Guarded by (LEASED, epoch, worker), idempotent by the digest of what was handed in. In the same transaction the
 * outputs get their rows, consumers that miss nothing more become READY, and inputs whose last reader this
 * was are dropped.
 */
#include <inttypes.h>
#include <string.h>

#include "common/alloc.h"
#include "server/engine_complete.h"

/* --- what was handed in ------------------------------------------------------- */

struct handed_in {
	const struct json *outputs, *result;
	const char *output_sha256; int64_t output_bytes; /* the kind's one output; NULL when it has none */
	char *result_text, *stats_text;
	char digest[DIGEST_HEX];
};

static void handed_in_deinit(struct handed_in *h)
{
	mem_free(h->result_text);
	mem_free(h->stats_text);
}

static int digest_work(struct handed_in *h, struct err *err)
{
	char *outputs = json_print(h->outputs, false);
	struct digest *d = digest_new();
	int rc = outputs && d ? 0 : err_set_nomem(err, "a digest");

	if (rc == 0) {
		digest_add(d, outputs, strlen(outputs));
		digest_add(d, "\n", 1);
		digest_add(d, h->result_text, strlen(h->result_text));
		digest_finish(d, h->digest);
	}
	digest_free(d);
	mem_free(outputs);
	return rc;
}

static int read_handed_in(struct handed_in *h, const struct json *body, struct err *err)
{
	const struct json *stats = json_get(body, "stats");

	h->outputs = json_get(body, "outputs");
	h->result = json_get(body, "result");
	if (json_type(h->outputs) != JSON_ARRAY || json_type(h->result) != JSON_OBJECT ||
	    (stats && json_type(stats) != JSON_OBJECT))
		return err_set(err, ERR_INVALID,
			       "a complete request needs \"outputs\" (an array), \"result\" and \"stats\" (objects)");
	h->result_text = json_print(h->result, false);
	h->stats_text = stats ? json_print(stats, false) : mem_strdup("{}");
	if (!h->result_text || !h->stats_text)
		return err_set_nomem(err, "a result");
	return digest_work(h, err);
}

/* Exactly the outputs of the kind, each stored. */
static int check_outputs(struct store *db, int64_t kind, struct handed_in *h, struct err *err)
{
	const char *name = task_kind_output(kind);
	const struct json *o = json_first(h->outputs);
	int64_t stored;

	if (json_size(h->outputs) != (name ? 1 : 0))
		return err_set(err, ERR_INVALID, "a %s task hands in %s", task_kind_name(kind),
			       name ? "one output" : "no outputs");
	if (!name)
		return 0;
	h->output_sha256 = json_get_string(o, "sha256", "");
	h->output_bytes = json_get_int(o, "bytes", -1);
	if (strcmp(json_get_string(o, "name", ""), name) != 0 || !digest_is_hex(h->output_sha256))
		return err_set(err, ERR_INVALID, "the output of a %s task is {\"name\":\"%s\",\"sha256\",\"bytes\"}",
			       task_kind_name(kind), name);
	if (blob_require(db, h->output_sha256, &stored, err) != 0)
		return -1;
	if (stored != h->output_bytes)
		return err_set(err, ERR_INVALID, "output %s: \"bytes\" is %" PRId64 ", the stored blob has %" PRId64,
			       name, h->output_bytes, stored);
	return 0;
}

/* --- the request -------------------------------------------------------------- */

static int reply_empty(struct engine_reply *reply)
{
	reply->status = 200;
	reply->body = json_new_object();
	return reply->body ? 0 : err_set_nomem(&reply->err, "a reply");
}

/* Done before: the same content is welcome again, anything else is not. */
static int repeat(struct tx *tx, const struct task_ref *t, const struct handed_in *h, struct engine_reply *reply)
{
	struct query *q = store_select(tx->db, SQL_RESULT_DIGEST, &reply->err, sql_i(t->pk));
	int found = query_next(q, &reply->err);
	bool same = found == 1 && strcmp(query_text(q, 0), h->digest) == 0;

	query_done(q);
	if (found < 0)
		return -1;
	return same ? reply_empty(reply)
		    : reply_fail(reply, ERR_CONFLICT, "the task is done already, with another result; drop the work");
}

static int finish_task(struct tx *tx, struct task_ref *t, const struct job_ref *job, const struct worker_ref *w,
		       struct handed_in *h, struct err *err)
{
	struct task_change c = { .to = TASK_DONE, .now_ms = tx->now_ms, .attempts = t->attempts };

	if (check_outputs(tx->db, t->kind, h, err) != 0 || task_move(tx->db, t, &c, err) != 0 ||
	    store_exec(tx->db, SQL_RESULT_ADD, err, sql_i(t->pk), sql_t(h->digest), sql_t(h->result_text),
		       sql_t(h->stats_text), sql_t(w->name)) < 0 ||
	    result_store(tx, t, h->result, h->output_sha256, h->output_bytes, err) != 0)
		return -1;
	if (h->output_sha256 &&
	    store_exec(tx->db, SQL_OUTPUT_ADD, err, sql_i(t->pk), sql_t(task_kind_output(t->kind)),
		       sql_t(h->output_sha256), sql_i(h->output_bytes)) < 0)
		return -1;
	if (graph_unblock(tx, t, err) != 0 || graph_release_inputs(tx, t, err) != 0 ||
	    store_exec(tx->db, SQL_WORKER_DONE, err, sql_i(w->pk)) < 0)
		return -1;
	if ((t->kind == KIND_QUANTIZE || t->kind == KIND_EVALUATE || t->kind == KIND_ASSEMBLE) &&
	    job_event(tx, t->job, "task", err, "%s %" PRId64 " done by %s", task_kind_name(t->kind),
		      t->pk - job->first_task, w->name) != 0)
		return -1;
	return effects_wake(tx->fx, WAKE_WORKER, w->id, err);
}

static int complete(struct tx *tx, const struct engine_request *r, struct handed_in *h,
		    struct engine_reply *reply)
{
	struct worker_ref w;
	struct task_ref t;
	struct job_ref job;
	int64_t epoch;

	if (worker_of_request(tx, r, &w, &reply->err) != 0 ||
	    json_require_int(r->body, "epoch", 0, INT64_C(1) << 53, &epoch, &reply->err) != 0 ||
	    task_find(tx->db, r->id, &t, &job, &reply->err) != 0 ||
	    read_handed_in(h, r->body, &reply->err) != 0)
		return -1;
	if (t.state == TASK_DONE && t.epoch == epoch && t.worker == w.pk)
		return repeat(tx, &t, h, reply);
	if (t.state == TASK_CANCELLED && t.epoch == epoch)
		return reply_fail(reply, ERR_CANCELLED, "job %s is %s; drop the work", job.id,
				  job_state_name(job.state));
	if (t.state != TASK_LEASED || t.epoch != epoch || t.worker != w.pk)
		return reply_fail(reply, ERR_CONFLICT, "task %s is not leased to %s at epoch %" PRId64
				  "; drop the work", r->id, w.id, epoch);
	if (finish_task(tx, &t, &job, &w, h, &reply->err) != 0 || job_advance(tx, job.pk, &reply->err) != 0)
		return -1;
	return reply_empty(reply);
}

int verb_complete(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct handed_in h = { 0 };
	int rc = complete(tx, r, &h, reply);

	handed_in_deinit(&h);
	return rc;
}
