/* finish_outputs.c - the formats of a finished job: their plans are made once more, from the specs of the assemble tasks and
 * the model's record, for config.json, index and sizes. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/finish.h"

/* --- what there is ---------------------------------------------------------------- */

static int note_format(struct finish_outputs *o, const char *name, struct err *err)
{
	const struct output_format *f = output_format_find(name);

	if (!f)
		return err_set(err, ERR_INTERNAL, "a task wrote the format %.80s, which is not known", name);
	for (size_t i = 0; i < o->count; i++)
		if (o->items[i].format == f)
			return 0;
	if (o->count == PLAN_OUTPUTS_MAX)
		return err_set(err, ERR_INTERNAL, "a job has more than %d formats", PLAN_OUTPUTS_MAX);
	o->items[o->count++] = (struct finish_output){ .format = f };
	return 0;
}

/* The modules are the same in every spec. */
static int read_spec(struct finish_outputs *o, const struct json *spec, struct err *err)
{
	if (o->modules.count == 0) {
		if (output_modules_read(&o->modules, &o->config, json_get(spec, "modules"), err) != 0)
			return -1;
		o->max_shard_size = (uint64_t)json_get_int(spec, "max_shard_size", 0);
	}
	return note_format(o, json_get_string(spec, "format", "?"), err);
}

static int read_specs(struct finish_outputs *o, struct store *db, const struct job_ref *job, struct err *err)
{
	struct query *q = store_select(db, SQL_SPECS_OF_KIND, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1), sql_i(KIND_ASSEMBLE));
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		struct json *spec = more == 1 ? json_parse_stored(query_text(q, 0), err) : NULL;

		rc = spec ? read_spec(o, spec, err) : -1;
		json_free(spec);
	}
	query_done(q);
	return rc;
}

static int read_tensors(struct finish_outputs *o, struct store *db, const char *model, struct err *err)
{
	struct query *q = store_select(db, SQL_MODEL_PLAN, err, sql_t(model));

	if (query_next(q, err) == 1)
		o->tensors = json_parse_stored(query_text(q, 6), err);
	query_done(q);
	if (!o->tensors)
		return err->code != ERR_NONE ? -1 : err_set(err, ERR_REFUSED, "the model of the job was deleted");
	return dtypes_init(&o->dtypes, o->tensors, err);
}

static int read_model(struct finish_outputs *o, struct store *db, const struct job_ref *job, struct err *err)
{
	struct query *q = store_select(db, SQL_JOB_MODEL, err, sql_i(job->pk));
	char model[ID_MAX] = "";
	int found = query_next(q, err), rc = found == 1 ? 0 : -1;

	if (rc == 0) {
		const char *text = query_text(q, 3);

		snprintf(model, sizeof(model), "%s", query_text(q, 1));
		o->path = query_is_null(q, 2) ? NULL : mem_strdup(query_text(q, 2));
		o->config_text = mem_strdup(text);
		if ((!o->path && !query_is_null(q, 2)) || !o->config_text ||
		    !(o->config_json = json_parse_stored(text, err)) ||
		    model_config_parse(&o->config, text, strlen(text), NULL, err) != 0)
			rc = -1;
	}
	query_done(q);
	if (found == 0)
		return err_set(err, ERR_REFUSED, "the model of the job was deleted");
	if (rc != 0)
		return err->code != ERR_NONE ? -1 : err_set_nomem(err, "the model");
	return read_tensors(o, db, model, err);
}

static int make_plans(struct finish_outputs *o, struct err *err)
{
	o->model = (struct output_model){ .config = &o->config, .source_config = o->config_json,
					  .modules = o->modules.items, .count = o->modules.count,
					  .dtype = dtypes_find, .ctx = &o->dtypes };
	for (size_t i = 0; i < o->count; i++)
		if (output_plan_make(&o->items[i].plan, o->items[i].format, &o->model, o->max_shard_size, err) != 0)
			return -1;
	return 0;
}

int finish_outputs_read(struct finish_outputs *o, struct store *db, const struct job_ref *job, struct err *err)
{
	if (read_model(o, db, job, err) != 0 || read_specs(o, db, job, err) != 0)
		return -1;
	return make_plans(o, err);
}

void finish_outputs_deinit(struct finish_outputs *o)
{
	for (size_t i = 0; i < o->count; i++)
		output_plan_deinit(&o->items[i].plan);
	output_modules_deinit(&o->modules);
	dtypes_deinit(&o->dtypes);
	json_free(o->tensors);
	json_free(o->config_json);
	mem_free(o->config_text);
	mem_free(o->path);
	*o = (struct finish_outputs){ 0 };
}

/* --- what the report says --------------------------------------------------------- */

/* How many modules of the blocks have which block type, in a gguf file. */
static struct json *types_json(const struct output_plan *p)
{
	struct json *o = json_new_object();
	int rc = o ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < p->tensor_count; i++) {
		const struct output_tensor *t = &p->tensors[i];
		const char *type = gguf_type_name(t->gguf);
		const int64_t count = json_get_int(o, type, 0);

		if (t->module == SIZE_MAX || p->model->modules[t->module].layer < 0)
			continue;
		json_remove(o, type);
		rc = json_set_int(o, type, count + 1);
	}
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *output_json(const struct output_plan *p, double bytes)
{
	struct json *o = json_new_object();
	const double weights = (double)p->quantized_weights;
	int rc = json_set_number(o, "bytes", bytes) | json_set_int(o, "files", (int64_t)p->file_count) |
		 json_set_number(o, "bits_per_weight", weights > 0 ? 8.0 * (double)p->quantized_bytes / weights : 0);

	if (!p->format->codec)
		rc |= json_set(o, "types", types_json(p));
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

struct json *finish_outputs_json(const struct finish_outputs *o, const struct json *bytes)
{
	struct json *all = json_new_object();
	int rc = all ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < o->count; i++) {
		const char *name = o->items[i].format->name;

		rc = json_set(all, name, output_json(&o->items[i].plan, json_get_number(bytes, name, 0)));
	}
	if (rc == 0)
		return all;
	json_free(all);
	return NULL;
}
