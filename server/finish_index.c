/* model.safetensors.index.json, from the specs of the assemble tasks. */
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/safetensors.h"
#include "server/finish.h"

struct entry { const char *tensor, *file; };

struct entries { struct entry *items; size_t count, cap; double bytes; };

static int by_tensor(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->tensor, ((const struct entry *)b)->tensor);
}

static double tensor_bytes(const struct json *t)
{
	enum st_dtype dtype;
	double bytes;

	if (st_dtype_from_name(json_get_string(t, "dtype", ""), &dtype) != 0)
		return 0;
	bytes = st_dtype_bits(dtype) / 8.0;
	for (const struct json *d = json_first(json_get(t, "shape")); d; d = json_next(d))
		bytes *= json_number(d, 0);
	return bytes;
}

static int add_entry(struct entries *e, const struct json *tensor, const char *file)
{
	if (e->count == e->cap) {
		size_t cap = e->cap ? 2 * e->cap : 256;
		struct entry *grown = mem_realloc(e->items, cap, sizeof(*grown));

		if (!grown)
			return -1;
		e->items = grown;
		e->cap = cap;
	}
	e->items[e->count++] = (struct entry){ json_get_string(tensor, "name", "?"), file };
	e->bytes += tensor_bytes(tensor);
	return 0;
}

/* Parsed specs of the format's files, kept by the caller: entries point into them. */
static struct json *read_specs(struct store *db, const struct job_ref *job, const struct format *format,
			       struct err *err)
{
	struct json *list = json_new_array();
	struct query *q = store_select(db, SQL_SPECS_OF_KIND, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1), sql_i(KIND_ASSEMBLE));
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		struct json *spec = more == 1 ? json_parse_stored(query_text(q, 0), err) : NULL;

		rc = spec ? 0 : -1;
		if (rc == 0 && strcmp(json_get_string(spec, "format", ""), format->name) == 0)
			rc = json_push(list, spec);
		else
			json_free(spec);
	}
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

static struct json *index_json(const struct entries *e)
{
	struct json *o = json_new_object(), *meta = json_new_object(), *map = json_new_object();
	int rc = json_set_number(meta, "total_size", e->bytes);

	for (size_t i = 0; i < e->count; i++)
		rc |= json_set_string(map, e->items[i].tensor, e->items[i].file);
	rc |= json_set(o, "metadata", meta);
	rc |= json_set(o, "weight_map", map);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

int finish_index(struct store *db, const struct job_ref *job, const struct format *format, struct buf *out,
		 size_t *files, struct err *err)
{
	struct json *specs = read_specs(db, job, format, err), *index = NULL;
	struct entries e = { 0 };
	char *text = NULL;
	int rc = specs ? 0 : -1;

	*files = json_size(specs);
	for (const struct json *s = json_first(specs); rc == 0 && s; s = json_next(s))
		for (const struct json *t = json_first(json_get(s, "tensors")); rc == 0 && t; t = json_next(t))
			rc = add_entry(&e, t, json_get_string(s, "file", "?"));
	if (rc == 0 && e.count > 0) {
		qsort(e.items, e.count, sizeof(*e.items), by_tensor);
		index = index_json(&e);
		text = index ? json_print(index, true) : NULL;
		rc = text ? buf_puts(out, text) | buf_puts(out, "\n") : -1;
	}
	mem_free(text);
	json_free(index);
	mem_free(e.items);
	json_free(specs);
	if (rc != 0 && err->code == ERR_NONE)
		err_set_nomem(err, "the index");
	return rc;
}
