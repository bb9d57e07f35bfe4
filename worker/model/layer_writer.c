#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/packed.h"
#include "worker/model/layer_blob.h"

/* A block has at most 7 linears x 3 parts, 7 biases and 4 norms; twice that leaves room. */
enum { ITEMS_MAX = 64, META_MAX = 16 };

struct layer_writer {
	struct st_item items[ITEMS_MAX];        /* names and data owned */
	size_t item_count;
	char *meta_keys[META_MAX], *meta_values[META_MAX];
	size_t meta_count;
};

struct layer_writer *layer_writer_new(void)
{
	return mem_alloc(1, sizeof(struct layer_writer));
}

void layer_writer_free(struct layer_writer *w)
{
	if (!w)
		return;
	for (size_t i = 0; i < w->item_count; i++) {
		mem_free(w->items[i].tensor.name);
		mem_free((void *)w->items[i].data);
	}
	for (size_t i = 0; i < w->meta_count; i++) {
		mem_free(w->meta_keys[i]);
		mem_free(w->meta_values[i]);
	}
	mem_free(w);
}

/* Takes ownership of data (freed on failure too). */
static int add_owned(struct layer_writer *w, const char *name, enum st_dtype dtype, unsigned ndim,
		     const uint64_t *shape, void *data, struct err *err)
{
	struct st_item *item = &w->items[w->item_count];
	char *copy = data ? mem_strdup(name) : NULL;

	if (!copy || w->item_count == ITEMS_MAX) {
		mem_free(copy);
		mem_free(data);
		return err_set_nomem(err, name);
	}
	*item = (struct st_item){ .tensor = { .name = copy, .dtype = dtype, .ndim = ndim }, .data = data };
	memcpy(item->tensor.shape, shape, ndim * sizeof(*shape));
	w->item_count++;
	return 0;
}

static void *copy_bytes(const void *bytes, size_t len)
{
	void *copy = mem_alloc(len, 1);

	if (copy && len)
		memcpy(copy, bytes, len);
	return copy;
}

int layer_writer_add(struct layer_writer *w, const struct st_tensor *tensor, const void *bytes,
		     struct err *err)
{
	return add_owned(w, tensor->name, tensor->dtype, tensor->ndim, tensor->shape,
			 copy_bytes(bytes, (size_t)(tensor->end - tensor->begin)), err);
}

static int add_meta(struct layer_writer *w, const char *key, const char *value, struct err *err)
{
	char *k = mem_strdup(key), *v = mem_strdup(value);

	if (!k || !v || w->meta_count == META_MAX) {
		mem_free(k);
		mem_free(v);
		return err_set_nomem(err, key);
	}
	w->meta_keys[w->meta_count] = k;
	w->meta_values[w->meta_count++] = v;
	return 0;
}

static uint32_t *pack_rows(const uint8_t *codes, size_t rows, size_t cols, int bits)
{
	size_t words = packed_row_words(cols, bits);
	uint32_t *packed = mem_alloc(rows * words, sizeof(*packed));

	for (size_t r = 0; packed && r < rows; r++)
		packed_pack_row(codes + r * cols, cols, bits, packed + r * words);
	return packed;
}

static int add_part(struct layer_writer *w, const char *module, const char *part, enum st_dtype dtype,
		    size_t rows, size_t cols, void *data, struct err *err)
{
	char name[256];
	uint64_t shape[2] = { rows, cols };

	snprintf(name, sizeof(name), "%s.%s", module, part);
	return add_owned(w, name, dtype, 2, shape, data, err);
}

int layer_writer_add_module(struct layer_writer *w, const char *module, int bits, size_t rows, size_t cols,
			    size_t group, const uint8_t *codes, const float *scales, const float *zeros,
			    const char *settings_json, struct err *err)
{
	size_t groups = cols / group, bytes = rows * groups * sizeof(float);

	if (add_part(w, module, "codes", ST_U32, rows, packed_row_words(cols, bits),
		     pack_rows(codes, rows, cols, bits), err) != 0 ||
	    add_part(w, module, "scales", ST_F32, rows, groups, copy_bytes(scales, bytes), err) != 0 ||
	    add_part(w, module, "zeros", ST_F32, rows, groups, copy_bytes(zeros, bytes), err) != 0)
		return -1;
	return add_meta(w, module, settings_json, err);
}

int layer_writer_write(struct layer_writer *w, const char *path, struct err *err)
{
	return st_write_file(path, w->items, w->item_count, (const char *const *)w->meta_keys,
			     (const char *const *)w->meta_values, w->meta_count, err);
}
