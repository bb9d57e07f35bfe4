/* A task's result arrives: the one place where work becomes durable.
 *
 * Guarded by (LEASED, epoch, worker), idempotent by the digest of what was handed in. In the same transaction the
 * outputs get their rows, consumers that miss nothing more become READY, and inputs whose last reader this
 * was are dropped.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/engine_complete.h"
#include "server/plan_time.h"

/* --- what was handed in ------------------------------------------------------- */

/* One blob that the task must hand in. sha256 is borrowed from the request. */
struct output { char name[16]; int64_t readers; const char *sha256; int64_t bytes; };

struct handed_in {
	const struct json *outputs, *result;
	struct output *wanted; size_t wanted_count, wanted_cap;
	char *result_text, *stats_text;
	char digest[DIGEST_HEX];
};

static void handed_in_deinit(struct handed_in *h)
{
	mem_free(h->wanted);
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

static int want(struct handed_in *h, const char *name, int64_t readers, struct err *err)
{
	struct output *o;

	if (h->wanted_count == h->wanted_cap) {
		size_t cap = h->wanted_cap ? 2 * h->wanted_cap : 1;
		struct output *grown = mem_realloc(h->wanted, cap, sizeof(*grown));

		if (!grown)
			return err_set_nomem(err, "the outputs of a task");
		h->wanted = grown;
		h->wanted_cap = cap;
	}
	o = &h->wanted[h->wanted_count++];
	*o = (struct output){ .readers = readers };
	snprintf(o->name, sizeof(o->name), "%s", name);
	return 0;
}

/* Every blob that an input of another task names; what nobody reads is the kind's own. */
static int read_wanted(struct store *db, const struct task_ref *t, struct handed_in *h, struct err *err)
{
	struct query *q = store_select(db, SQL_OUTPUTS_WANTED, err, sql_i(t->pk));
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) != 0)
		rc = more < 0 ? -1 : want(h, query_text(q, 0), query_int(q, 1), err);
	query_done(q);
	if (rc != 0 || h->wanted_count > 0 || !task_kind_output(t->kind))
		return rc;
	return want(h, task_kind_output(t->kind), 0, err);
}

static const struct json *find_output(const struct json *outputs, const char *name)
{
	for (const struct json *o = json_first(outputs); o; o = json_next(o))
		if (strcmp(json_get_string(o, "name", ""), name) == 0)
			return o;
	return NULL;
}

static int check_output(struct store *db, int64_t kind, struct handed_in *h, struct output *want, struct err *err)
{
	const struct json *o = find_output(h->outputs, want->name);
	int64_t stored;

	want->sha256 = json_get_string(o, "sha256", "");
	want->bytes = json_get_int(o, "bytes", -1);
	if (!o || !digest_is_hex(want->sha256))
		return err_set(err, ERR_INVALID, "an output of this %s task is {\"name\":\"%s\",\"sha256\",\"bytes\"}",
			       task_kind_name(kind), want->name);
	if (blob_require(db, want->sha256, &stored, err) != 0)
		return -1;
	if (stored != want->bytes)
		return err_set(err, ERR_INVALID, "output %s: \"bytes\" is %" PRId64 ", the stored blob has %" PRId64,
			       want->name, want->bytes, stored);
	return 0;
}

/* Exactly the outputs that are wanted, each stored. */
static int check_outputs(struct store *db, const struct task_ref *t, struct handed_in *h, struct err *err)
{
	if (read_wanted(db, t, h, err) != 0)
		return -1;
	if (json_size(h->outputs) != h->wanted_count)
		return err_set(err, ERR_INVALID, "this %s task hands in %zu output%s, not %zu", task_kind_name(t->kind),
			       h->wanted_count, h->wanted_count == 1 ? "" : "s", json_size(h->outputs));
	for (size_t i = 0; i < h->wanted_count; i++)
		if (check_output(db, t->kind, h, &h->wanted[i], err) != 0)
			return -1;
	return 0;
}

static int store_outputs(struct store *db, int64_t task, const struct handed_in *h, struct err *err)
{
	for (size_t i = 0; i < h->wanted_count; i++) {
		const struct output *o = &h->wanted[i];

		if (store_exec(db, SQL_OUTPUT_ADD, err, sql_i(task), sql_t(o->name), sql_t(o->sha256),
			       sql_i(o->bytes), sql_i(o->readers)) < 0)
			return -1;
	}
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

	if (check_outputs(tx->db, t, h, err) != 0 || task_move(tx->db, t, &c, err) != 0 ||
	    store_exec(tx->db, SQL_RESULT_ADD, err, sql_i(t->pk), sql_t(h->digest), sql_t(h->result_text),
		       sql_t(h->stats_text), sql_t(w->name)) < 0 ||
	    result_store(tx, t, h->result, h->wanted ? h->wanted[0].sha256 : NULL,
			 h->wanted ? h->wanted[0].bytes : 0, err) != 0 ||
	    store_outputs(tx->db, t->pk, h, err) != 0)
		return -1;
	if (checkpoints_drop(tx, t->pk, t->pk, err) != 0)
		return -1;
	if (graph_unblock(tx, t, err) != 0 || graph_release_inputs(tx, t, err) != 0 ||
	    store_exec(tx->db, SQL_WORKER_DONE, err, sql_i(w->pk)) < 0 ||
	    store_exec(tx->db, SQL_RATE_ADD, err, sql_i(w->pk), sql_i(t->pk), sql_i(PLAN_WORK_LEAST)) < 0)
		return -1;
	if ((t->kind == KIND_QUANTIZE || t->kind == KIND_DISTILL || t->kind == KIND_EVALUATE ||
	     t->kind == KIND_ASSEMBLE) &&
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
