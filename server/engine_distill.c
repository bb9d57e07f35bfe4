#include "server/engine_distill.h"

#include <math.h>

enum { BLOCK_POINTS_MAX = 64, END_POINTS_MAX = 128 };

/* --- checking ----------------------------------------------------------------- */

static bool is_number(const struct json *value)
{
	return json_type(value) == JSON_NUMBER && isfinite(json_number(value, NAN));
}

static int check_point(const struct json *point, size_t values, struct err *err)
{
	bool good = json_type(point) == JSON_ARRAY && json_size(point) == values;

	for (const struct json *v = good ? json_first(point) : NULL; v; v = json_next(v))
		good = good && is_number(v);
	return good ? 0 : err_set(err, ERR_INVALID, "a point of a loss curve must be %zu finite numbers", values);
}

static int check_curve(const struct json *curve, size_t points_max, size_t values, struct err *err)
{
	if (json_type(curve) != JSON_ARRAY || json_size(curve) > points_max)
		return err_set(err, ERR_INVALID, "\"curve\" of a distillation must be an array of at most %zu points",
			       points_max);
	for (const struct json *p = json_first(curve); p; p = json_next(p))
		if (check_point(p, values, err) != 0)
			return -1;
	return 0;
}

static int check_common(const struct json *d, struct err *err)
{
	if (json_type(json_get(d, "kept")) != JSON_BOOL || json_get_int(d, "steps", -1) < 0)
		return err_set(err, ERR_INVALID, "a distillation needs \"kept\" (true or false) and \"steps\"");
	return 0;
}

int distill_check_block(const struct json *result, struct err *err)
{
	const struct json *d = json_get(result, "distill");

	if (!d || json_type(d) == JSON_NULL)
		return 0;
	if (!is_number(json_get(d, "before")) || !is_number(json_get(d, "after")))
		return err_set(err, ERR_INVALID, "\"before\" and \"after\" of a block's distillation must be finite numbers");
	return check_common(d, err) != 0 ? -1 : check_curve(json_get(d, "curve"), BLOCK_POINTS_MAX, 2, err);
}

int distill_check_end(const struct json *result, struct err *err)
{
	static const char *const ends[] = { "before", "after" };

	for (int i = 0; i < 2; i++) {
		const struct json *loss = json_get(result, ends[i]);

		if (!is_number(json_get(loss, "kl")) || !is_number(json_get(loss, "hidden")))
			return err_set(err, ERR_INVALID, "\"%s\" of a distill result must hold \"kl\" and \"hidden\", "
				       "finite numbers", ends[i]);
	}
	return check_common(result, err) != 0 ? -1 : check_curve(json_get(result, "curve"), END_POINTS_MAX, 3, err);
}

/* --- views -------------------------------------------------------------------- */

/* Copies the members of `d` that the view asks for into `o`. */
static int copy_parts(struct json *o, const struct json *d, int parts)
{
	static const struct { const char *key; int part; } members[] = {
		{ "before", DISTILL_LOSSES }, { "after", DISTILL_LOSSES }, { "kept", DISTILL_LOSSES },
		{ "steps", DISTILL_LOSSES }, { "curve", DISTILL_CURVE }, { "resumed_at", DISTILL_RUN },
	};
	int rc = o ? 0 : -1;

	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
		if ((parts & members[i].part) && json_get(d, members[i].key))
			rc |= json_set(o, members[i].key, json_copy(json_get(d, members[i].key)));
	return rc;
}

/* q: layer, distill */
static struct json *layer_json(struct query *q, int parts, struct err *err)
{
	struct json *d = json_parse_stored(query_text(q, 1), err), *o = json_new_object();
	int rc = d ? json_set_int(o, "layer", query_int(q, 0)) | copy_parts(o, d, parts) : -1;

	json_free(d);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

struct json *distill_layers_json(struct store *db, const struct job_ref *job, int parts, struct err *err)
{
	struct json *list = json_new_array();
	struct query *q = store_select(db, SQL_DISTILL_LAYERS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1));
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, err)) != 0)
		rc = more < 0 ? -1 : json_push(list, layer_json(q, parts, err));
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	if (err->code == ERR_NONE)
		err_set_nomem(err, "the losses of the layers");
	return NULL;
}

struct json *distill_end_json(struct store *db, const struct job_ref *job, int parts, struct err *err)
{
	struct query *q = store_select(db, SQL_TASK_RESULTS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1), sql_i(KIND_DISTILL));
	int found = query_next(q, err);
	struct json *result = NULL, *o = NULL;

	if (found == 1 && !query_is_null(q, 1)) {
		result = json_parse_stored(query_text(q, 1), err);
		o = result ? json_new_object() : NULL;
		if (o && copy_parts(o, result, parts) != 0) {
			json_free(o);
			o = NULL;
		}
		json_free(result);
	} else if (found >= 0) {
		o = json_new_null();
	}
	query_done(q);
	if (!o && err->code == ERR_NONE)
		err_set_nomem(err, "the losses of the model");
	return o;
}
