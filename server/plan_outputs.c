/* Which tensors go into which file of each format: model order, cut at max_shard_size. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/safetensors.h"
#include "server/plan_parts.h"

struct out_tensor {
	char name[MODEL_NAME_MAX + 16];
	char dtype[16];
	uint64_t shape[2];
	unsigned ndim;
	uint64_t bytes;
	int64_t layer;                      /* -1: copied from the source */
	const struct plan_module *module;   /* NULL: carried over */
};

/* The source's dtypes by name: a JSON object is searched from its start each time. */
struct dtype_entry { const char *name, *dtype; };

struct out_list {
	struct plan *plan;
	const struct plan_request *request;
	const struct format *format;
	struct dtype_entry *dtypes; size_t dtype_count;
	struct out_tensor *items;
	size_t count, cap;
	struct err *err;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct dtype_entry *)a)->name, ((const struct dtype_entry *)b)->name);
}

static int index_dtypes(struct out_list *o)
{
	o->dtypes = mem_alloc(json_size(o->request->dtypes), sizeof(*o->dtypes));
	if (!o->dtypes)
		return err_set_nomem(o->err, "the source's tensors");
	for (const struct json *t = json_first(o->request->dtypes); t; t = json_next(t))
		o->dtypes[o->dtype_count++] = (struct dtype_entry){ json_key(t), json_string(t, "") };
	qsort(o->dtypes, o->dtype_count, sizeof(*o->dtypes), by_name);
	return 0;
}

static const char *source_dtype(const struct out_list *o, const char *name)
{
	const struct dtype_entry key = { name, NULL };
	const struct dtype_entry *found = bsearch(&key, o->dtypes, o->dtype_count, sizeof(key), by_name);

	return found ? found->dtype : NULL;
}

static int out_add(struct out_list *o, const struct out_tensor *t)
{
	if (o->count == o->cap) {
		size_t cap = o->cap ? 2 * o->cap : 64;
		struct out_tensor *grown = mem_realloc(o->items, cap, sizeof(*grown));

		if (!grown)
			return err_set_nomem(o->err, "the list of output tensors");
		o->items = grown;
		o->cap = cap;
	}
	o->items[o->count++] = *t;
	return 0;
}

static int set_bytes(struct out_tensor *t, struct err *err)
{
	enum st_dtype dtype;
	uint64_t bytes = 1;

	if (st_dtype_from_name(t->dtype, &dtype) != 0)
		return err_set(err, ERR_INTERNAL, "tensor %s has the unknown dtype %s", t->name, t->dtype);
	for (unsigned d = 0; d < t->ndim; d++)
		if (!u64_mul(bytes, t->shape[d], &bytes))
			return err_set(err, ERR_TOO_LARGE, "tensor %s is too large", t->name);
	if (!u64_mul(bytes, st_dtype_bits(dtype) / 8, &t->bytes))
		return err_set(err, ERR_TOO_LARGE, "tensor %s is too large", t->name);
	return 0;
}

/* The quantized module whose weight this tensor is, or NULL. */
static const struct plan_module *quantized_module(const struct plan *plan, const struct model_tensor *t)
{
	if (t->layer < 0)
		return NULL;
	for (size_t i = (size_t)t->layer * LIN_COUNT; i < ((size_t)t->layer + 1) * LIN_COUNT; i++) {
		const struct plan_module *m = &plan->modules[i];
		size_t len = strlen(m->name);

		if (!m->settings.skip && strncmp(t->name, m->name, len) == 0 &&
		    strcmp(t->name + len, ".weight") == 0)
			return m;
	}
	return NULL;
}

static int add_module_tensors(struct out_list *o, const struct plan_module *m)
{
	for (const struct format_tensor *ft = o->format->tensors; ft->suffix; ft++) {
		struct out_tensor t = { .ndim = 2, .layer = m->layer, .module = m };

		snprintf(t.name, sizeof(t.name), "%s%s", m->name, ft->suffix);
		snprintf(t.dtype, sizeof(t.dtype), "%s", ft->dtype);
		format_tensor_shape(ft, &m->settings, m->rows, m->cols, t.shape);
		if (set_bytes(&t, o->err) != 0 || out_add(o, &t) != 0)
			return -1;
	}
	return 0;
}

static int add_model_tensor(void *ctx, const struct model_tensor *mt)
{
	struct out_list *o = ctx;
	const struct plan_module *m = quantized_module(o->plan, mt);
	struct out_tensor t = { .ndim = mt->dim[1] ? 2 : 1, .layer = mt->layer,
				.shape = { mt->dim[0], mt->dim[1] } };
	const char *dtype = source_dtype(o, mt->name);

	if (m)
		return add_module_tensors(o, m);
	if (!dtype)
		return err_set(o->err, ERR_INTERNAL, "the model's record lacks the dtype of %s", mt->name);
	snprintf(t.name, sizeof(t.name), "%s", mt->name);
	snprintf(t.dtype, sizeof(t.dtype), "%s", dtype);
	return set_bytes(&t, o->err) != 0 ? -1 : out_add(o, &t);
}

/* End of the file that starts at `first`: at least one tensor, at most max_shard_size bytes. */
static size_t file_end(const struct out_list *o, size_t first)
{
	uint64_t bytes = 0;
	size_t i = first;

	for (; i < o->count; i++) {
		uint64_t next;

		if (!u64_add(bytes, o->items[i].bytes, &next) ||
		    (i > first && next > o->request->recipe->max_shard_size))
			break;
		bytes = next;
	}
	return i;
}

static size_t count_files(const struct out_list *o)
{
	size_t files = 0;

	for (size_t first = 0; first < o->count; first = file_end(o, first))
		files++;
	return files;
}

/* --- specs -------------------------------------------------------------------- */

static struct json *tensor_json(const struct out_tensor *t)
{
	struct json *o = json_new_object(), *shape = json_new_array();
	int rc = json_set_string(o, "name", t->name) | json_set_string(o, "dtype", t->dtype);

	for (unsigned d = 0; d < t->ndim; d++)
		rc |= json_push(shape, json_new_number((double)t->shape[d]));
	rc |= json_set(o, "shape", shape);
	rc |= t->layer < 0 ? json_set_string(o, "from", "source") : json_set_int(o, "from", t->layer);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

/* Settings as the metadata of a packed file gives them: with the column count, which the bit stream alone does
 * not tell. */
static int set_module_meta(struct json *meta, const struct plan_module *m)
{
	struct json *o = json_new_object();
	char *text = NULL;
	int rc = -1;

	if (o && module_settings_to_json(&m->settings, o) == 0 &&
	    json_set_int(o, "cols", (int64_t)m->cols) == 0 && (text = json_print(o, false)))
		rc = json_set_string(meta, m->name, text);
	mem_free(text);
	json_free(o);
	return rc;
}

static struct json *metadata(const struct out_list *o, size_t first, size_t end)
{
	struct json *meta = json_new_object();
	int rc = json_set_string(meta, "format", o->format->meta_format);

	for (size_t i = first; o->format->meta_modules && i < end; i++)
		if (o->items[i].module && (i == first || o->items[i].module != o->items[i - 1].module))
			rc |= set_module_meta(meta, o->items[i].module);
	if (rc == 0)
		return meta;
	json_free(meta);
	return NULL;
}

static struct json *file_spec(const struct out_list *o, size_t first, size_t end, const char *file)
{
	struct json *spec = json_new_object(), *tensors = json_new_array();
	int rc = json_set_string(spec, "format", o->format->name) | json_set_string(spec, "file", file);

	for (size_t i = first; i < end; i++)
		rc |= json_push(tensors, tensor_json(&o->items[i]));
	rc |= json_set(spec, "tensors", tensors);
	rc |= json_set(spec, "metadata", metadata(o, first, end));
	if (rc == 0)
		return spec;
	json_free(spec);
	return NULL;
}

static int add_file_inputs(struct out_list *o, int64_t index, size_t first, size_t end)
{
	int64_t last = -1;

	for (size_t i = first; i < end; i++) {
		if (o->items[i].layer < 0 || o->items[i].layer == last)
			continue; /* layers come in order */
		last = o->items[i].layer;
		if (plan_add_layer_input(o->plan, index, last, o->err) != 0)
			return -1;
	}
	return 0;
}

static int add_file(struct out_list *o, size_t first, size_t end, size_t number, size_t files)
{
	char name[64] = "model.safetensors";
	uint64_t bytes = 0;
	int64_t index;

	if (files > 1)
		snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", number, files);
	for (size_t i = first; i < end; i++)
		bytes += o->items[i].bytes;
	index = plan_add_task(o->plan, KIND_ASSEMBLE, -1, (int64_t)number, plan_work_verify(bytes),
			      file_spec(o, first, end, name), o->err);
	if (index < 0)
		return -1;
	o->plan->outputs[o->plan->output_count].bytes += bytes;
	return add_file_inputs(o, index, first, end);
}

static int add_format(struct plan *plan, const struct plan_request *r, const struct format *format,
		      struct err *err)
{
	struct out_list o = { .plan = plan, .request = r, .format = format, .err = err };
	size_t files, number = 1;
	int rc = index_dtypes(&o);

	if (rc == 0)
		rc = model_each_tensor(r->config, add_model_tensor, &o);
	plan->outputs[plan->output_count].format = format;
	plan->outputs[plan->output_count].files = files = count_files(&o);
	for (size_t first = 0; rc == 0 && first < o.count; number++) {
		size_t end = file_end(&o, first);

		rc = add_file(&o, first, end, number, files);
		first = end;
	}
	plan->output_count++;
	mem_free(o.items);
	mem_free(o.dtypes);
	return rc == 0 ? 0 : -1;
}

static bool format_wanted(const struct recipe *recipe, const struct format *f)
{
	bool wanted = f->always;

	for (size_t i = 0; i < recipe->format_count; i++)
		wanted |= strcmp(recipe->formats[i], f->name) == 0;
	return wanted;
}

int plan_outputs(struct plan *plan, const struct plan_request *r, struct err *err)
{
	enum { OUTPUTS_MAX = sizeof(plan->outputs) / sizeof(plan->outputs[0]) };

	if (r->recipe->kind != RECIPE_QUANTIZE)
		return 0;
	for (const struct format *f = formats; f->name && plan->output_count < OUTPUTS_MAX; f++)
		if (format_wanted(r->recipe, f) && add_format(plan, r, f, err) != 0)
			return -1;
	return 0;
}
