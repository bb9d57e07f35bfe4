/* The part of report.json about what went in: model, recipe, texts, and the digest of every file. */
#include <string.h>

#include "server/finish_report.h"

static struct json *datasets_json(struct report *r)
{
	struct json *list = json_new_array();
	struct query *q = store_select(r->db, SQL_JOB_DATASETS, r->err, sql_i(r->job->pk));
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, r->err)) != 0) {
		struct json *o = more == 1 ? json_new_object() : NULL;

		rc = more < 0 ? -1 : json_set_string(o, "role", query_text(q, 1)) |
				     json_set_string(o, "name", query_text(q, 2)) |
				     json_set_string(o, "sha256", query_text(q, 3)) |
				     json_set_int(o, "bytes", query_int(q, 4));
		rc |= json_push(list, o);
	}
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

/* Whole-file digests come from the verify tasks: {"<file>": result}. */
static struct json *verified(struct report *r)
{
	struct json *o = json_new_object();
	struct query *q = store_select(r->db, SQL_RESULTS_OF_KIND, r->err, sql_i(r->job->first_task),
				       sql_i(report_last_task(r->job)), sql_i(KIND_VERIFY));
	int more, rc = o ? 0 : -1;

	while (rc == 0 && (more = query_next(q, r->err)) != 0) {
		struct json *spec = more == 1 ? json_parse_stored(query_text(q, 0), r->err) : NULL;
		struct json *result = spec ? json_parse_stored(query_text(q, 1), r->err) : NULL;

		rc = spec ? json_set(o, json_get_string(spec, "file", "?"), result) : -1;
		json_free(spec);
	}
	query_done(q);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *model_file(struct query *q, const struct json *checked)
{
	const struct json *found = json_get(checked, query_text(q, 0));
	const char *sha256 = json_get_string(found, "sha256", query_is_null(q, 3) ? NULL : query_text(q, 3));
	struct json *o = json_new_object();
	int rc = json_set_string(o, "name", query_text(q, 0)) | json_set_int(o, "bytes", query_int(q, 2)) |
		 json_set_string(o, "header_sha256", query_text(q, 4)) |
		 (sha256 ? json_set_string(o, "sha256", sha256) : json_set_null(o, "sha256"));

	if (found)
		rc |= json_set_int(o, "tensors", json_get_int(found, "tensors", 0));
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *model_files(struct report *r)
{
	struct json *list = json_new_array(), *checked = verified(r);
	struct query *q = store_select(r->db, SQL_JOB_MODEL_FILES, r->err, sql_i(r->job->pk));
	int more, rc = list && checked ? 0 : -1;

	while (rc == 0 && (more = query_next(q, r->err)) != 0)
		rc = more < 0 ? -1 : json_push(list, model_file(q, checked));
	query_done(q);
	json_free(checked);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

/* The reference model: name, config, and its files as they were registered. */
static struct json *reference_json(struct report *r)
{
	struct query *q = store_select(r->db, SQL_JOB_REFERENCE, r->err, sql_i(r->job->pk));
	struct json *o = query_next(q, r->err) == 1 ? json_new_object() : NULL;
	int64_t model = o ? query_int(q, 0) : 0;
	int rc = o ? json_set_string(o, "name", query_text(q, 4)) |
		     json_set(o, "config", model_config_json(query_text(q, 3), r->err)) : -1;

	query_done(q);
	if (rc == 0 && json_set(o, "files", model_files_json(r->db, model, r->err)) == 0)
		return o;
	json_free(o);
	return NULL;
}

/* The name in place of the id, as for the texts; and what stands behind it. */
static int add_reference(struct report *r, struct json *recipe)
{
	struct json *reference;

	if (json_type(json_get(recipe, "reference")) != JSON_STRING)
		return 0;
	reference = reference_json(r);
	json_remove(recipe, "reference");
	if (json_set_string(recipe, "reference", json_get_string(reference, "name", "?")) != 0) {
		json_free(reference);
		return -1;
	}
	return report_add(r, "reference", reference);
}

/* In place of ids, which differ from server to server, the names; the digests stand beside. */
static int name_texts(struct json *recipe, const struct json *datasets)
{
	struct json *evals = json_new_array();
	int rc = 0;

	for (const struct json *d = json_first(datasets); d; d = json_next(d)) {
		const char *name = json_get_string(d, "name", "?");

		if (strcmp(json_get_string(d, "role", ""), "calibration") == 0) {
			json_remove(recipe, "calibration");
			rc |= json_set_string(recipe, "calibration", name);
		} else {
			rc |= json_push(evals, json_new_string(name));
		}
	}
	json_remove(recipe, "eval");
	return rc | json_set(recipe, "eval", evals);
}

int report_add_inputs(struct report *r)
{
	struct query *q = store_select(r->db, SQL_JOB_DETAILS, r->err, sql_i(r->job->pk));
	struct json *model = NULL, *recipe = NULL, *plan = NULL, *datasets = datasets_json(r);
	int rc = query_next(q, r->err) == 1 && datasets ? 0 : -1;

	if (rc == 0) {
		model = json_parse_stored(query_text(q, 1), r->err);
		recipe = json_parse_stored(query_text(q, 2), r->err);
		plan = json_parse_stored(query_text(q, 3), r->err);
		rc = model && recipe && plan ? 0 : -1;
	}
	query_done(q);
	json_remove(model, "model"); /* the id */
	if (rc == 0)
		rc = json_set(model, "files", model_files(r)) | name_texts(recipe, datasets);
	if (rc == 0)
		rc = add_reference(r, recipe);
	rc |= report_add(r, "model", model);
	rc |= report_add(r, "recipe", recipe);
	rc |= report_add(r, "datasets", datasets);
	rc |= json_set(r->body, "warnings", json_copy(json_get(plan, "warnings")));
	rc |= json_set_int(r->body, "shards", json_get_int(plan, "shards", 0));
	json_free(plan);
	return rc == 0 ? 0 : r->err->code != ERR_NONE ? -1 : err_set_nomem(r->err, "the report");
}
