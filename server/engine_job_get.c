/* VERB_JOB_GET: everything the command line and the dashboard show of one job, in one reply. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/recipe.h"
#include "server/engine_distill.h"
#include "server/engine_internal.h"
#include "server/engine_perplexity.h"
#include "server/engine_progress.h"

static int set_time(struct json *o, const char *key, int64_t ms)
{
	return ms < 0 ? json_set_null(o, key) : json_set_int(o, key, ms);
}

/* --- counts ------------------------------------------------------------------- */

static struct json *state_counts(const int64_t counts[TASK_STATES])
{
	struct json *o = json_new_object();
	int64_t total = 0;
	int rc = 0;

	for (int s = 1; s < TASK_STATES; s++)
		total += counts[s];
	rc = json_set_int(o, "total", total);
	for (int s = 1; s < TASK_STATES; s++)
		rc |= json_set_int(o, task_state_name(s), counts[s]);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static int add_counts(struct json *body, const struct job_progress *p)
{
	int64_t all[TASK_STATES] = { 0 };
	struct json *kinds = json_new_object();
	int rc = 0;

	for (int i = 0; i < KIND_COUNT - 1; i++) {
		enum task_kind k = task_kinds_in_order[i];
		int64_t sum = 0;

		for (int s = 1; s < TASK_STATES; s++) {
			all[s] += p->counts[k][s];
			sum += p->counts[k][s];
		}
		if (sum > 0)
			rc |= json_set(kinds, task_kind_name(k), state_counts(p->counts[k]));
	}
	rc |= json_set(body, "tasks", state_counts(all));
	rc |= json_set(body, "kinds", kinds);
	return rc;
}

/* --- layers x modules --------------------------------------------------------- */

/* The name below its layer: "self_attn.q_proj". */
static const char *short_name(const char *name)
{
	const char *dots = strstr(name, ".layers.");

	dots = dots ? strchr(dots + 8, '.') : NULL;
	return dots ? dots + 1 : name;
}

/* q: layer name skip bits group_size loss energy state progress worker */
static struct json *module_cell(struct query *q)
{
	struct json *o = json_new_object();
	double loss = query_real(q, 5), energy = query_real(q, 6);
	bool skip = query_int(q, 2) != 0, known = !query_is_null(q, 5);
	int rc = json_set_string(o, "name", short_name(query_text(q, 1))) | json_set_bool(o, "skip", skip);

	rc |= skip ? json_set_null(o, "bits") : json_set_int(o, "bits", query_int(q, 3));
	rc |= skip ? json_set_null(o, "group_size") : json_set_int(o, "group_size", query_int(q, 4));
	rc |= known ? json_set_number(o, "loss", loss) : json_set_null(o, "loss");
	rc |= known ? json_set_number(o, "energy", energy) : json_set_null(o, "energy");
	rc |= known && energy > 0 ? json_set_number(o, "relative_loss", loss / energy)
				  : json_set_null(o, "relative_loss");
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *layer_head(struct query *q)
{
	struct json *o = json_new_object();
	bool done = query_int(q, 7) == TASK_DONE;
	int rc = json_set_int(o, "layer", query_int(q, 0)) |
		 json_set_string(o, "state", task_state_name(query_int(q, 7))) |
		 json_set_number(o, "progress", done ? 1 : query_real(q, 8)) |
		 (query_is_null(q, 9) ? json_set_null(o, "worker") : json_set_string(o, "worker", query_text(q, 9))) |
		 json_set(o, "modules", json_new_array());

	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

/* Member "distill" of each layer: its losses, or null. Both lists go by layer. */
static int add_block_losses(struct tx *tx, const struct job_ref *job, struct json *layers, struct err *err)
{
	struct json *losses = distill_layers_json(tx->db, job, DISTILL_LOSSES, err);
	const struct json *at = json_first(losses);
	int rc = losses ? 0 : -1;

	for (struct json *l = json_first(layers); rc == 0 && l; l = json_next(l)) {
		bool distilled = at && json_get_int(at, "layer", -1) == json_get_int(l, "layer", -2);
		struct json *o = distilled ? json_copy(at) : json_new_null();

		json_remove(o, "layer");
		rc = json_set(l, "distill", o);
		at = distilled ? json_next(at) : at;
	}
	json_free(losses);
	return rc;
}

static struct json *layers_json(struct tx *tx, const struct job_ref *job, struct err *err)
{
	struct json *list = json_new_array(), *layer = NULL;
	struct query *q = store_select(tx->db, SQL_JOB_MODULES, err, sql_i(job->pk));
	int64_t last = -1;
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		if (more < 0) {
			rc = -1;
			break;
		}
		if (query_int(q, 0) != last) {
			last = query_int(q, 0);
			layer = layer_head(q);
			rc = json_push(list, layer);
		}
		if (rc == 0)
			rc = json_push(json_get(layer, "modules"), module_cell(q));
	}
	query_done(q);
	if (rc == 0 && add_block_losses(tx, job, list, err) == 0)
		return list;
	json_free(list);
	return NULL;
}

/* --- failure ------------------------------------------------------------------ */

static struct json *attempts_json(struct tx *tx, int64_t task, struct err *err)
{
	struct json *list = json_new_array();
	struct query *q = store_select(tx->db, SQL_ATTEMPTS, err, sql_i(task));
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		struct json *o = more == 1 ? json_new_object() : NULL;

		if (more < 0) {
			rc = -1;
			break;
		}
		rc = json_set_string(o, "worker", query_text(q, 0)) | json_set_string(o, "error", query_text(q, 1)) |
		     json_set_string(o, "detail", query_text(q, 2)) | json_set_string(o, "log", query_text(q, 3)) |
		     json_set_int(o, "ended_ms", query_int(q, 4));
		if (!query_is_null(q, 5))
			rc |= json_set_string(o, "backend", query_text(q, 5)) |
			      json_set_string(o, "identity", query_text(q, 6));
		rc |= json_push(list, o);
	}
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

static int add_failure(struct tx *tx, const struct job_ref *job, const char *detail, int64_t task,
		       struct json *body, struct err *err)
{
	struct json *o = json_new_object();
	char id[ID_MAX];
	int rc;

	task_id_text(id, job->id, job->first_task, task);
	rc = json_set_string(o, "detail", detail) |
	     (task ? json_set_string(o, "task", id) : json_set_null(o, "task"));
	rc |= json_set(o, "attempts", attempts_json(tx, task, err));
	return rc | json_set(body, "failure", o);
}

/* --- the job ------------------------------------------------------------------ */

static struct json *all_warnings(const struct json *plan)
{
	static const char *const keys[] = { "warnings", "run_warnings" };
	struct json *list = json_new_array();

	for (int k = 0; k < 2; k++)
		for (const struct json *w = json_first(json_get(plan, keys[k])); w; w = json_next(w))
			if (json_push(list, json_copy(w)) != 0) {
				json_free(list);
				return NULL;
			}
	return list;
}

/* What the job_details row holds; failure and its task go to the caller. */
static int add_details(struct tx *tx, const struct job_ref *job, struct json *body, char detail[ERR_TEXT_MAX],
		       int64_t *failed_task, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_JOB_DETAILS, err, sql_i(job->pk));
	struct json *plan;
	int rc = query_next(q, err) == 1 ? 0 : -1;

	if (rc == 0) {
		rc = json_set_string(body, "name", query_text(q, 0));
		rc |= json_set(body, "model", json_parse_stored(query_text(q, 1), err));
		rc |= json_set(body, "recipe", json_parse_stored(query_text(q, 2), err));
		plan = json_parse_stored(query_text(q, 3), err);
		rc |= json_set(body, "warnings", all_warnings(plan));
		json_free(plan);
		snprintf(detail, ERR_TEXT_MAX, "%s", query_text(q, 4));
		*failed_task = query_int(q, 5);
	}
	query_done(q);
	return rc;
}

/* Name and id of the model that the job compares with, or null. */
static struct json *reference_json(struct tx *tx, const struct job_ref *job, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_JOB_REFERENCE, err, sql_i(job->pk));
	int found = query_next(q, err);
	struct json *o = found == 1 ? json_new_object() : found == 0 ? json_new_null() : NULL;

	if (found == 1 && (json_set_string(o, "model", query_text(q, 1)) |
			   json_set_string(o, "name", query_text(q, 4))) != 0) {
		json_free(o);
		o = NULL;
	}
	query_done(q);
	return o;
}

static int add_head(struct json *body, const struct job_ref *job, const struct job_progress *p, double seconds_left)
{
	bool ended = job->state == JOB_DONE;

	return json_set_string(body, "id", job->id) |
	       json_set_string(body, "kind", job->kind == RECIPE_EVALUATE ? "evaluate" : "quantize") |
	       json_set_string(body, "state", job_state_name(job->state)) |
	       json_set_string(body, "subject", job->subject) | json_set_int(body, "created_ms", job->created_ms) |
	       set_time(body, "started_ms", job->started_ms) | set_time(body, "finished_ms", job->finished_ms) |
	       json_set_number(body, "progress", ended ? 1 : p->fraction) |
	       (seconds_left < 0 ? json_set_null(body, "eta_seconds")
				 : json_set_number(body, "eta_seconds", ceil(seconds_left)));
}

int verb_job_get(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	char detail[ERR_TEXT_MAX] = "";
	struct job_progress p;
	struct job_ref job;
	int64_t failed_task = 0;
	double seconds_left;
	int rc;

	if (job_find(tx->db, r->id, &job, &reply->err) != 0 ||
	    job_progress(tx->db, &job, &p, &reply->err) != 0 ||
	    job_time_left(tx, &job, &p, &seconds_left, &reply->err) != 0)
		return -1;
	snprintf(reply->etag, sizeof(reply->etag), "%s-%" PRId64, job.id, job.change);
	reply->status = 200;
	reply->body = json_new_object();
	rc = add_head(reply->body, &job, &p, seconds_left);
	rc |= add_details(tx, &job, reply->body, detail, &failed_task, &reply->err);
	rc |= add_counts(reply->body, &p);
	rc |= json_set(reply->body, "layers", layers_json(tx, &job, &reply->err));
	rc |= json_set(reply->body, "reference", reference_json(tx, &job, &reply->err));
	rc |= json_set(reply->body, "perplexity", perplexity_json(tx->db, &job, false, &reply->err));
	rc |= json_set(reply->body, "distillation",
		       distill_end_json(tx->db, &job, DISTILL_LOSSES | DISTILL_RUN, &reply->err));
	if (job.state == JOB_FAILED)
		rc |= add_failure(tx, &job, detail, failed_task, reply->body, &reply->err);
	else
		rc |= json_set_null(reply->body, "failure");
	if (rc == 0)
		return 0;
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a job");
}
