/* output_index.c - model.safetensors.index.json: which file holds each tensor, sorted by name. */
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "formats/output_parts.h"

struct entry { const char *tensor, *file; };

static int by_tensor(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->tensor, ((const struct entry *)b)->tensor);
}

static void fill(const struct output_plan *p, struct entry *entries)
{
	for (size_t i = 0; i < p->file_count; i++)
		for (size_t k = p->files[i].first; k < p->files[i].end; k++)
			entries[k] = (struct entry){ p->tensors[k].name, p->files[i].name };
	qsort(entries, p->tensor_count, sizeof(*entries), by_tensor);
}

/* Written as text: an object of a JSON library would search each name among those before it. */
static int put(const struct output_plan *p, const struct entry *entries, struct buf *out, struct err *err)
{
	buf_printf(out, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
		   (unsigned long long)p->bytes);
	for (size_t i = 0; i < p->tensor_count; i++) {
		buf_puts(out, i == 0 ? "\n    " : ",\n    ");
		json_append_string(out, entries[i].tensor);
		buf_puts(out, ": ");
		json_append_string(out, entries[i].file);
	}
	buf_puts(out, "\n  }\n}\n");
	return buf_failed(out) ? err_set_nomem(err, "the index") : 0;
}

int output_index(const struct output_plan *p, struct buf *out, struct err *err)
{
	struct entry *entries;
	int rc;

	if (!p->format->codec || (p->file_count == 1 && !p->format->codec->always_index))
		return 0;
	entries = mem_alloc(p->tensor_count, sizeof(*entries));
	if (!entries)
		return err_set_nomem(err, "the index");
	fill(p, entries);
	rc = put(p, entries, out, err);
	mem_free(entries);
	return rc;
}
