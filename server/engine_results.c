/* What a task reports, checked by kind: a number that is not finite or a module that is missing never becomes part of
 * a job. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/engine_complete.h"
#include "server/engine_distill.h"

/* Sums over the predictions, held against another model. A KL divergence is never below 0 but for rounding. */
static int check_comparison(const struct json *result, struct err *err)
{
	int64_t predictions = json_get_int(result, "predictions", 0), top1 = json_get_int(result, "top1", -1);
	double kl = json_get_number(result, "kl", NAN);

	if (!isfinite(kl) || kl < -1e-3 * (double)predictions)
		return err_set(err, ERR_NUMERIC, "\"kl\" of an evaluate result must be a finite sum that is not negative");
	if (top1 < 0 || top1 > predictions)
		return err_set(err, ERR_INVALID, "\"top1\" of an evaluate result must be from 0 to \"predictions\"");
	return 0;
}

static int check_evaluate(const struct json *result, struct err *err)
{
	double nll = json_get_number(result, "nll", NAN);

	if (!isfinite(nll))
		return err_set(err, ERR_NUMERIC, "\"nll\" of an evaluate result must be a finite number");
	if (json_get_int(result, "predictions", -1) < 0 || json_get_int(result, "windows", -1) < 0)
		return err_set(err, ERR_INVALID, "an evaluate result needs \"predictions\" and \"windows\"");
	return json_get(result, "kl") || json_get(result, "top1") ? check_comparison(result, err) : 0;
}

static int check_verify(const struct json *result, struct err *err)
{
	if (!digest_is_hex(json_get_string(result, "sha256", "")) || json_get_int(result, "bytes", -1) < 0)
		return err_set(err, ERR_INVALID, "a verify result needs \"sha256\" and \"bytes\"");
	return 0;
}

static int check_tokenize(const struct json *result, struct err *err)
{
	if (json_get_int(result, "sequences", 0) < 1 || json_get_int(result, "tokens", 0) < 1)
		return err_set(err, ERR_INVALID, "a tokenize result needs \"sequences\" and \"tokens\" above 0");
	return 0;
}

static int store_module(struct tx *tx, const struct task_ref *t, int64_t layer, const struct json *m,
			struct err *err)
{
	const char *name = json_get_string(m, "name", "");
	char *text = json_print(m, false);
	bool skip = json_get_bool(m, "skip", false);
	int changed;

	if (!text)
		return err_set_nomem(err, "a result");
	changed = store_exec(tx->db, SQL_MODULE_RESULT, err, sql_i(t->job), sql_i(layer), sql_t(name),
			     skip ? sql_null() : sql_d(json_get_number(m, "loss", 0)),
			     skip ? sql_null() : sql_d(json_get_number(m, "energy", 0)), sql_t(text));
	mem_free(text);
	if (changed == 0)
		return err_set(err, ERR_INVALID, "the result names module '%.100s', which layer %" PRId64
			       " does not have", name, layer);
	return changed < 0 ? -1 : 0;
}

static int store_modules(struct tx *tx, const struct task_ref *t, const struct json *result, struct err *err)
{
	const struct json *list = json_get(result, "modules");
	int64_t layer = -1, missing = 0;

	if (distill_check_block(result, err) != 0)
		return -1;
	if (store_get_int(tx->db, SQL_TASK_LAYER, &layer, err, sql_i(t->pk)) < 0)
		return -1;
	for (const struct json *m = json_first(list); m; m = json_next(m)) {
		if (!json_get_bool(m, "skip", false) && (!isfinite(json_get_number(m, "loss", NAN)) ||
							 !isfinite(json_get_number(m, "energy", NAN))))
			return err_set(err, ERR_NUMERIC, "\"loss\" and \"energy\" of %.100s must be finite numbers",
				       json_get_string(m, "name", "a module"));
		if (store_module(tx, t, layer, m, err) != 0)
			return -1;
	}
	if (store_get_int(tx->db, SQL_MODULES_MISSING, &missing, err, sql_i(t->job), sql_i(layer)) < 0)
		return -1;
	return missing == 0 ? 0 : err_set(err, ERR_INVALID, "the result lacks %" PRId64 " modules of layer %" PRId64,
					  missing, layer);
}

/* The finished file of a format joins the job's results. */
static int store_file(struct tx *tx, const struct task_ref *t, const char *sha256,
		      int64_t bytes, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_TASK_SPEC, err, sql_i(t->pk));
	struct json *spec = query_next(q, err) == 1 ? json_parse_stored(query_text(q, 0), err) : NULL;
	char path[256];
	int rc;

	query_done(q);
	if (!spec)
		return -1;
	snprintf(path, sizeof(path), "%s/%s", json_get_string(spec, "format", "?"),
		 json_get_string(spec, "name", "?"));
	json_free(spec);
	rc = store_exec(tx->db, SQL_FILE_ADD, err, sql_i(t->job), sql_t(path), sql_t(sha256), sql_i(bytes));
	return rc < 0 ? -1 : 0;
}

int result_store(struct tx *tx, const struct task_ref *t, const struct json *result, const char *sha256,
		 int64_t bytes, struct err *err)
{
	switch ((enum task_kind)t->kind) {
	case KIND_VERIFY: return check_verify(result, err);
	case KIND_TOKENIZE: return check_tokenize(result, err);
	case KIND_EVALUATE: return check_evaluate(result, err);
	case KIND_QUANTIZE: return store_modules(tx, t, result, err);
	case KIND_DISTILL: return distill_check_end(result, err);
	case KIND_ASSEMBLE: return store_file(tx, t, sha256, bytes, err);
	case KIND_EMBED:
	case KIND_CAPTURE:
	case KIND_COUNT: break;
	}
	return 0;
}
