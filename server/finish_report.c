/* report.json: what went in, what was done to each module, and what it cost. Everything that differs between two runs of
 * the same job on the same inputs stands under "run". */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/recipe.h"
#include "common/version.h"
#include "server/engine_distill.h"
#include "server/engine_perplexity.h"
#include "server/finish_report.h"

int report_add(struct report *r, const char *key, struct json *value)
{
	if (json_set(r->body, key, value) == 0)
		return 0;
	return r->err->code != ERR_NONE ? -1 : err_set_nomem(r->err, "the report");
}

/* --- what was done ------------------------------------------------------------ */

static struct json *tokens_json(struct report *r)
{
	struct json *list = json_new_array();
	struct query *q = store_select(r->db, SQL_RESULTS_OF_KIND, r->err, sql_i(r->job->first_task),
				       sql_i(report_last_task(r->job)), sql_i(KIND_TOKENIZE));
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, r->err)) != 0) {
		struct json *spec = more == 1 ? json_parse_stored(query_text(q, 0), r->err) : NULL;
		struct json *result = spec ? json_parse_stored(query_text(q, 1), r->err) : NULL;

		rc = result ? json_set_string(result, "role", json_get_string(spec, "role", "?")) |
			      json_set_string(result, "name", json_get_string(spec, "name", "?")) |
			      json_set_int(result, "seq_len", json_get_int(spec, "seq_len", 0)) : -1;
		rc |= json_push(list, result);
		json_free(spec);
	}
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

/* What the worker reported of a module, with its layer and its relative loss. q: layer result loss energy */
static struct json *module_json(struct query *q, struct err *err)
{
	struct json *o = json_parse_stored(query_text(q, 1), err);
	double loss = query_real(q, 2), energy = query_real(q, 3);
	int rc = o ? json_set_int(o, "layer", query_int(q, 0)) : -1;

	if (!query_is_null(q, 2))
		rc |= energy > 0 ? json_set_number(o, "relative_loss", loss / energy)
				 : json_set_null(o, "relative_loss");
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *modules_json(struct report *r)
{
	struct json *list = json_new_array();
	struct query *q = store_select(r->db, SQL_MODULE_RESULTS, r->err, sql_i(r->job->pk));
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, r->err)) != 0)
		rc = more < 0 ? -1 : json_push(list, module_json(q, r->err));
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

/* Sentences about modules that needed more than the ordinary way. */
static struct json *fallbacks_json(const struct json *modules)
{
	struct json *list = json_new_array();
	int rc = 0;

	for (const struct json *m = json_first(modules); m; m = json_next(m)) {
		int64_t retries = json_get_int(m, "damp_retries", 0);
		char text[512];

		if (retries == 0)
			continue;
		snprintf(text, sizeof(text), "%.200s: the factorization failed and the damping was raised %lld time%s, to %g",
			 json_get_string(m, "name", "?"), (long long)retries, retries == 1 ? "" : "s",
			 json_get_number(m, "damp", 0));
		rc |= json_push(list, json_new_string(text));
	}
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

/* Sum of a loss over the quantized modules; NAN when one of them does not tell it. */
static double sum_of(const struct json *modules, const char *key)
{
	double sum = 0;

	for (const struct json *m = json_first(modules); m; m = json_next(m))
		if (!json_get_bool(m, "skip", false))
			sum += json_get_number(m, key, NAN);
	return sum;
}

/* The losses of the steps, relative to the energy: after rounding, and after distillation; null where a module does
 * not tell. */
static int add_steps(struct json *o, const struct json *modules, double energy)
{
	static const char *const keys[][2] = { { "loss_rounded", "relative_loss_rounded" },
					       { "loss_distilled", "relative_loss_distilled" } };
	int rc = 0;

	for (int i = 0; i < 2; i++) {
		double loss = sum_of(modules, keys[i][0]);

		rc |= energy > 0 && isfinite(loss) ? json_set_number(o, keys[i][1], loss / energy)
						   : json_set_null(o, keys[i][1]);
	}
	return rc;
}

/* What scales and zero-points as formats store them cost: the growth of the loss of nearest codes, which nothing has made
 * up for yet; null where a module does not tell. */
static int add_storage_cost(struct json *o, const struct json *modules)
{
	const double exact = sum_of(modules, "loss_exact"), stored = sum_of(modules, "loss_nearest");

	return exact > 0 && isfinite(stored / exact) ? json_set_number(o, "storage_cost", stored / exact - 1)
						     : json_set_null(o, "storage_cost");
}

static struct json *summary_json(const struct json *modules)
{
	double weights = 0, bits = 0, loss = 0, energy = 0, worst = 0;
	const char *worst_name = NULL;
	int64_t quantized = 0, skipped = 0;
	struct json *o = json_new_object();
	int rc;

	for (const struct json *m = json_first(modules); m; m = json_next(m)) {
		double count = json_get_number(m, "rows", 0) * json_get_number(m, "cols", 0);

		if (json_get_bool(m, "skip", false)) {
			skipped++;
			continue;
		}
		quantized++;
		weights += count;
		bits += count * json_get_number(m, "bits_per_weight", 0);
		loss += json_get_number(m, "loss", 0);
		energy += json_get_number(m, "energy", 0);
		if (json_get_number(m, "relative_loss", 0) >= worst) {
			worst = json_get_number(m, "relative_loss", 0);
			worst_name = json_get_string(m, "name", "?");
		}
	}
	rc = json_set_int(o, "quantized_modules", quantized) | json_set_int(o, "skipped_modules", skipped) |
	     json_set_number(o, "quantized_weights", weights) |
	     json_set_number(o, "bits_per_weight", weights > 0 ? bits / weights : 0) |
	     add_storage_cost(o, modules) | add_steps(o, modules, energy) | json_set_number(o, "relative_loss", energy > 0 ? loss / energy : 0) |
	     json_set_number(o, "worst_relative_loss", worst) |
	     (worst_name ? json_set_string(o, "worst_module", worst_name) : json_set_null(o, "worst_module"));
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static int add_modules(struct report *r)
{
	struct json *modules = modules_json(r);

	if (!modules)
		return r->err->code != ERR_NONE ? -1 : err_set_nomem(r->err, "the report");
	if (report_add(r, "summary", summary_json(modules)) != 0 || report_add(r, "fallbacks", fallbacks_json(modules)) != 0) {
		json_free(modules);
		return -1;
	}
	return report_add(r, "modules", modules);
}

/* What distillation brought, layer by layer and end to end. */
static int add_distillation(struct report *r)
{
	const int parts = DISTILL_LOSSES | DISTILL_CURVE;

	if (report_add(r, "layers", distill_layers_json(r->db, r->job, parts, r->err)) != 0)
		return -1;
	return report_add(r, "distillation", distill_end_json(r->db, r->job, parts, r->err));
}

/* --- sizes -------------------------------------------------------------------- */

static double source_bytes(const struct json *files)
{
	double sum = 0;

	for (const struct json *f = json_first(files); f; f = json_next(f)) {
		const char *dot = strrchr(json_get_string(f, "name", ""), '.');

		if (dot && strcmp(dot, ".safetensors") == 0)
			sum += json_get_number(f, "bytes", 0);
	}
	return sum;
}

/* Bytes of each format's files, and the largest rounding where a format rounds. */
static int add_outputs(struct report *r, struct json *outputs, struct json *rounding)
{
	struct query *q = store_select(r->db, SQL_RESULTS_OF_KIND, r->err, sql_i(r->job->first_task),
				       sql_i(report_last_task(r->job)), sql_i(KIND_ASSEMBLE));
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, r->err)) != 0) {
		struct json *spec = more == 1 ? json_parse_stored(query_text(q, 0), r->err) : NULL;
		struct json *result = spec ? json_parse_stored(query_text(q, 1), r->err) : NULL;
		const char *format = json_get_string(spec, "format", "?");
		double bytes = json_get_number(outputs, format, 0) + query_real(q, 2);
		double largest = fmax(json_get_number(rounding, format, 0), json_get_number(result, "rounding", 0));

		rc = result ? 0 : -1;
		json_remove(outputs, format);
		json_remove(rounding, format);
		rc |= json_set_number(outputs, format, bytes);
		if (json_get(result, "rounding"))
			rc |= json_set_number(rounding, format, largest);
		json_free(spec);
		json_free(result);
	}
	query_done(q);
	return rc;
}

static int add_sizes(struct report *r)
{
	struct json *sizes = json_new_object(), *outputs = json_new_object(), *rounding = json_new_object();
	int rc = sizes && outputs && rounding ? add_outputs(r, outputs, rounding) : -1;

	if (rc == 0 && r->outputs->count > 0)
		rc = report_add(r, "outputs", finish_outputs_json(r->outputs, outputs));
	rc |= json_set_number(sizes, "source_bytes", source_bytes(json_get(json_get(r->body, "model"), "files")));
	rc |= json_set(sizes, "outputs", outputs);
	rc |= json_set(sizes, "largest_rounding", rounding);
	rc |= report_add(r, "sizes", sizes);
	return rc == 0 ? 0 : r->err->code != ERR_NONE ? -1 : err_set_nomem(r->err, "the report");
}

struct json *finish_report(struct engine *e, struct store *db, const struct job_ref *job,
			   const struct finish_outputs *outputs, struct err *err)
{
	struct report r = { .db = db, .job = job, .outputs = outputs, .err = err, .body = json_new_object() };
	bool quantize = job->kind == RECIPE_QUANTIZE;

	if (json_set_int(r.body, "version", 1) == 0 &&
	    json_set_string(r.body, "kind", quantize ? "quantize" : "evaluate") == 0 &&
	    json_set_string(r.body, "quarry", QUARRY_VERSION) == 0 && report_add_inputs(&r) == 0 &&
	    report_add(&r, "tokens", tokens_json(&r)) == 0 && report_add(&r, "perplexity", perplexity_json(db, job, true, err)) == 0 &&
	    add_sizes(&r) == 0 && (!quantize || (add_modules(&r) == 0 && add_distillation(&r) == 0)) &&
	    report_add(&r, "run", finish_run(db, job, engine_now(e), err)) == 0)
		return r.body;
	json_free(r.body);
	if (err->code == ERR_NONE)
		err_set_nomem(err, "the report");
	return NULL;
}
