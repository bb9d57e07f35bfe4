/* VERB_JOB_SUBMIT: from a request to a stored task graph, or to the list of everything that is wrong.
 *
 * Runs in the writer, in one savepoint: a job exists whole or not at all. Planning itself is pure (plan.h) and
 * works on what VERB_MODEL_ADD recorded; of the model's folder only the file sizes are looked at again.
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/engine_model_source.h"
#include "server/engine_submit.h"

enum { SHARDS_MAX = 65536 };


static void submit_deinit(struct submit *s)
{
	problems_deinit(&s->problems);
	mem_free(s->model_name);
	mem_free(s->model_path);
	mem_free(s->reference_name);
	mem_free(s->config_text);
	json_free(s->tensors);
	json_free(s->files);
	mem_free(s->shards);
	mem_free(s->shard_bytes);
	if (s->has_recipe)
		recipe_deinit(&s->recipe);
	if (s->has_plan)
		plan_deinit(&s->plan);
}

/* Ends a submission that cannot work: 422 with every sentence. */
static int refuse(struct submit *s)
{
	if (s->problems.count == 0)
		return s->err->code != ERR_NONE ? -1 : err_set(s->err, ERR_INTERNAL, "the job was refused without a reason");
	err_set(s->err, ERR_REFUSED, "%s", s->problems.items[0]);
	s->reply->problems = json_new_array();
	for (size_t i = 0; i < s->problems.count; i++)
		if (json_push(s->reply->problems, json_new_string(s->problems.items[i])) != 0)
			return err_set_nomem(s->err, "the list of problems");
	return -1;
}

/* A called function failed: what the user can mend joins the list (0), the machine's failures end it (-1). */
static int note_problem(struct submit *s, const struct err *why, size_t listed_before)
{
	if (err_retryable(why->code)) {
		*s->err = *why;
		return -1;
	}
	if (s->problems.count > listed_before)
		return 0; /* the callee listed its sentences itself */
	return problems_add(&s->problems, "%s", why->text) == 0 ? 0 : err_set_nomem(s->err, "the list of problems");
}

/* --- the model ---------------------------------------------------------------- */

static int load_model_row(struct submit *s, const char *id)
{
	struct query *q = store_select(s->tx->db, SQL_MODEL_PLAN, s->err, sql_t(id));
	int found = query_next(q, s->err);
	bool nomem = false;

	if (found == 1) {
		s->model_pk = query_int(q, 0);
		snprintf(s->model_id, sizeof(s->model_id), "%s", query_text(q, 1));
		s->model_name = mem_strdup(query_text(q, 2));
		s->model_path = query_is_null(q, 3) ? NULL : mem_strdup(query_text(q, 3));
		nomem = !s->model_path && !query_is_null(q, 3);
		s->plan_request.model_bytes = (uint64_t)query_int(q, 4);
		s->config_text = mem_strdup(query_text(q, 5));
		s->tensors = json_parse_stored(query_text(q, 6), s->err);
	}
	query_done(q);
	if (found == 0)
		return err_set(s->err, ERR_NOT_FOUND, "there is no model '%.80s'", id);
	if (found < 0 || !s->tensors)
		return -1;
	if (!s->model_name || !s->config_text || nomem)
		return err_set_nomem(s->err, "the model");
	return model_config_parse(&s->config, s->config_text, strlen(s->config_text), NULL, s->err);
}

int submit_check_size(struct submit *s, const char *folder, const char *name, int64_t bytes)
{
	char *path = path_join(folder, name);
	struct stat st;
	int rc = 0;

	if (!path)
		return err_set_nomem(s->err, "a path");
	if (stat(path, &st) != 0 || st.st_size != bytes)
		rc = problems_add(&s->problems,
				  "%s is gone or changed since the model was registered; register the folder again", path);
	mem_free(path);
	return rc == 0 ? 0 : err_set_nomem(s->err, "the list of problems");
}

static int load_files(struct submit *s, const char *folder)
{
	struct query *q = store_select(s->tx->db, SQL_MODEL_FILES, s->err, sql_i(s->model_pk));
	int more = 0, rc = 0;

	s->files = json_new_array();
	s->shards = mem_alloc(SHARDS_MAX, sizeof(*s->shards));
	s->shard_bytes = mem_alloc(SHARDS_MAX, sizeof(*s->shard_bytes));
	if (!s->files || !s->shards || !s->shard_bytes)
		rc = err_set_nomem(s->err, "the model's files");
	while (rc == 0 && (more = query_next(q, s->err)) == 1 && s->shard_count < SHARDS_MAX) {
		if (folder)
			rc = submit_check_size(s, folder, query_text(q, 0), query_int(q, 2));
		if (rc != 0 || query_int(q, 1) != MODEL_FILE_SHARD)
			continue;
		rc = json_push(s->files, json_new_string(query_text(q, 0))) == 0
			? 0 : err_set_nomem(s->err, "the model's files");
		s->shard_bytes[s->shard_count++] = (uint64_t)query_int(q, 2);
	}
	query_done(q);
	s->shard_count = 0;
	for (const struct json *f = json_first(s->files); f; f = json_next(f))
		s->shards[s->shard_count++] = json_string(f, "");
	return more < 0 ? -1 : rc;
}

static int load_model(struct submit *s)
{
	const char *id;

	if (json_require_string(s->request->body, "model", &id, s->err) != 0 || load_model_row(s, id) != 0)
		return -1;
	return load_files(s, s->model_path);
}

/* --- recipe and texts --------------------------------------------------------- */

static int load_recipe(struct submit *s)
{
	const struct json *given = json_get(s->request->body, "recipe");
	struct json *empty = given ? NULL : json_new_object();
	struct err why = ERR_INIT;
	size_t before = s->problems.count;
	bool shorter;
	int rc;

	if (!given && !empty)
		return err_set_nomem(s->err, "the recipe");
	rc = recipe_from_json(&s->recipe, given ? given : empty, &s->problems, &why);
	json_free(empty);
	if (rc != 0)
		return note_problem(s, &why, before);
	s->has_recipe = true;
	if (s->recipe.reference && submit_load_reference(s) != 0)
		return -1;
	shorter = s->reference_pk && s->reference_config.max_position < s->config.max_position;
	plan_resolve(&s->recipe, shorter ? &s->reference_config : &s->config);
	return 0;
}

static int load_text(struct submit *s, size_t slot, const char *id, const char *role, struct plan_text *text)
{
	struct dataset_ref *d = &s->datasets[slot];
	struct err why = ERR_INIT;

	if (dataset_resolve(s->tx, id, role, !s->request->dry_run, d, &why) != 0)
		return note_problem(s, &why, s->problems.count);
	*text = (struct plan_text){ .id = d->id, .name = d->name, .format = d->format, .sha256 = d->sha256,
				    .bytes = (uint64_t)d->bytes, .pk = d->pk,
				    .max_windows = slot > 0 ? s->recipe.eval_windows : 0 };
	return 0;
}

static int load_texts(struct submit *s)
{
	struct plan_request *p = &s->plan_request;

	if (s->problems.count > 0)
		return 0; /* a recipe that is no recipe names no texts */
	if (s->recipe.kind == RECIPE_QUANTIZE &&
	    load_text(s, 0, s->recipe.calibration, "calibration", &p->calibration) != 0)
		return -1;
	for (size_t i = 0; i < s->recipe.eval_count; i++)
		if (load_text(s, i + 1, s->recipe.evals[i], "eval", &p->evals[i]) != 0)
			return -1;
	return 0;
}

/* --- the plan ----------------------------------------------------------------- */

static int make_plan(struct submit *s)
{
	struct plan_request *p = &s->plan_request;
	struct err why = ERR_INIT;
	size_t before = s->problems.count;

	p->recipe = &s->recipe;
	p->config = &s->config;
	p->model_name = s->model_name;
	p->dtypes = s->tensors;
	p->shards = s->shards;
	p->shard_bytes = s->shard_bytes;
	p->shard_count = s->shard_count;
	if (disk_free(s->tx->e->config.data_dir, &p->disk_free_bytes, s->err) != 0)
		return -1;
	s->has_plan = true;
	if (plan_make(&s->plan, p, &s->problems, &why) != 0)
		return note_problem(s, &why, before);
	if (s->recipe.kind == RECIPE_QUANTIZE && strcmp(s->recipe.calibration, "builtin") == 0 &&
	    problems_add(&s->plan.warnings, "no calibration text was given: the shipped sample %s was used",
			 s->datasets[0].name) != 0)
		return err_set_nomem(s->err, "the plan");
	return 0;
}

static int plan_submission(struct submit *s)
{
	if (load_model(s) != 0 || load_recipe(s) != 0 || load_texts(s) != 0)
		return -1;
	if (s->problems.count == 0 && (make_plan(s) != 0 || submit_check_texts(s) != 0))
		return -1;
	return s->problems.count > 0 ? refuse(s) : 0;
}

/* --- the request -------------------------------------------------------------- */

static int reply_job(struct engine_reply *reply, const char *id, int64_t state, int status)
{
	reply->status = status;
	reply->body = json_new_object();
	if (json_set_string(reply->body, "job", id) != 0 ||
	    json_set_string(reply->body, "state", job_state_name(state)) != 0)
		return err_set_nomem(&reply->err, "a reply");
	return 0;
}

/* 1 = the key was used before (the reply is filled, or refused with -1), 0 = it is new. */
static int replay(struct tx *tx, const struct engine_request *r, char digest[DIGEST_HEX],
		  struct engine_reply *reply)
{
	char *text, id[ID_MAX] = "";
	struct query *q;
	int64_t state = 0;
	bool same = false;
	int found;

	if (r->idempotency_key[0] == '\0' || r->dry_run)
		return 0;
	text = json_print(r->body, false);
	if (!text || digest_of(text, strlen(text), digest) != 0) {
		mem_free(text);
		return err_set_nomem(&reply->err, "a digest");
	}
	mem_free(text);
	q = store_select(tx->db, SQL_IDEMPOTENCY_GET, &reply->err, sql_t(r->subject), sql_t(r->idempotency_key));
	found = query_next(q, &reply->err);
	if (found == 1) {
		same = strcmp(query_text(q, 0), digest) == 0;
		snprintf(id, sizeof(id), "%s", query_text(q, 1));
		state = query_int(q, 2);
	}
	query_done(q);
	if (found != 1)
		return found;
	if (!same)
		return reply_fail(reply, ERR_CONFLICT,
				  "this Idempotency-Key was used for a different request (job %s); use a new key", id);
	return reply_job(reply, id, state, 200) == 0 ? 1 : -1;
}

static int submit(struct submit *s, const char *body_digest)
{
	struct plan_forecast forecast;
	char id[ID_MAX];
	int64_t job;

	if (strlen(json_get_string(s->request->body, "name", "")) > JOB_NAME_MAX)
		return err_set(s->err, ERR_INVALID, "\"name\" of a job must have at most %d bytes", JOB_NAME_MAX);
	if (plan_submission(s) != 0)
		return -1;
	if (s->request->dry_run) {
		if (submit_forecast(s, true, &forecast) != 0)
			return -1;
		s->reply->status = 200;
		s->reply->body = plan_to_json(&s->plan, &s->plan_request, &forecast);
		return s->reply->body ? 0 : err_set_nomem(s->err, "the plan");
	}
	if (submit_store(s, id, &job) != 0)
		return -1;
	if (s->request->idempotency_key[0] != '\0' &&
	    store_exec(s->tx->db, SQL_IDEMPOTENCY_ADD, s->err, sql_t(s->request->subject),
		       sql_t(s->request->idempotency_key), sql_t(body_digest), sql_i(job)) < 0)
		return -1;
	return reply_job(s->reply, id, JOB_RUNNING, 201);
}

int verb_job_submit(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct submit s = { .tx = tx, .request = r, .reply = reply, .err = &reply->err };
	char digest[DIGEST_HEX] = "";
	int rc = replay(tx, r, digest, reply);

	if (rc != 0)
		return rc == 1 ? 0 : -1;
	rc = submit(&s, digest);
	submit_deinit(&s);
	return rc;
}
