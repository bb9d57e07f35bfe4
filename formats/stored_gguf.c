/* stored_gguf.c - a GGUF file as the checkpoint that it was made from: names, shapes, the order of rows, codes of blocks. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/source.h"
#include "common/utf8.h"
#include "formats/gguf_source.h"
#include "formats/stored_parts.h"

enum { TEXT_MAX = 256 << 20 };

struct entry { struct gs_tensor as; const struct gr_tensor *tensor; bool used; };

struct stored_back {
	struct gr_file file;
	char *path;
	int fd;
	struct source *source;  /* the folder, for files beside it */
	struct gs_model model;
	struct entry *entries;  /* sorted by the checkpoint's names */
	size_t count;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->as.name, ((const struct entry *)b)->as.name);
}

static struct entry *entry_of(struct stored_back *b, const char *name)
{
	struct entry wanted = { .used = true };

	if (b->count == 0 || strlen(name) >= sizeof(wanted.as.name))
		return NULL;
	memcpy(wanted.as.name, name, strlen(name) + 1);
	return bsearch(&wanted, b->entries, b->count, sizeof(wanted), by_name);
}

static struct entry *weight_of(struct stored_back *b, const char *module)
{
	char name[MODEL_NAME_MAX + 8];

	snprintf(name, sizeof(name), "%s.weight", module);
	return entry_of(b, name);
}

/* --- plain numbers ------------------------------------------------------------------------------- */

static bool plain_type(uint32_t type, enum st_dtype *out)
{
	const char *name = gr_type_name(type);
	enum st_dtype dtype;

	if (!name || st_dtype_from_name(name, &dtype) != 0 || (dtype != ST_F32 && dtype != ST_F16 && dtype != ST_BF16))
		return false;
	*out = dtype;
	return true;
}

static int find(struct stored_folder *f, const char *name, struct stored_shape *out)
{
	struct entry *e = entry_of(f->back, name);
	enum st_dtype dtype;

	if (!e || !plain_type(e->tensor->type, &dtype))
		return 1;
	e->used = true;
	*out = (struct stored_shape){ dtype, e->as.ndim, e->as.ndim == 2 ? e->as.rows : e->as.cols,
				      e->as.ndim == 2 ? e->as.cols : 1 };
	return 0;
}

/* Where row `row` of the checkpoint stands in the file: gs_row() turned round. */
static uint64_t row_in_file(const struct gs_tensor *t, uint64_t row)
{
	uint64_t size, half, in_head;

	if (t->heads == 0)
		return row;
	size = (t->ndim == 2 ? t->rows : t->cols) / t->heads;
	half = size / 2;
	in_head = row % size;
	return row - in_head + 2 * (in_head % half) + in_head / half;
}

/* Rows of the checkpoint, as many bytes each as the file's rows have. */
static int read_rows(struct stored_back *b, const struct entry *e, uint64_t row, uint64_t rows, void *out, struct err *err)
{
	const uint64_t all = e->as.ndim == 2 ? e->as.rows : e->as.cols, bytes = e->tensor->bytes / all;

	if (row > all || rows > all - row)
		return err_set(err, ERR_INVALID, "gguf tensor %s has %llu rows", e->tensor->name, (unsigned long long)all);
	if (e->as.heads == 0)
		return file_pread(b->fd, out, (size_t)(rows * bytes), e->tensor->begin + row * bytes, b->path, err);
	for (uint64_t r = 0; r < rows; r++)
		if (file_pread(b->fd, (char *)out + r * bytes, (size_t)bytes,
			       e->tensor->begin + row_in_file(&e->as, row + r) * bytes, b->path, err) != 0)
			return -1;
	return 0;
}

static int rows(struct stored_folder *f, const char *name, uint64_t row, uint64_t count, void *out, struct err *err)
{
	const struct entry *e = entry_of(f->back, name);
	enum st_dtype dtype;

	if (!e || !plain_type(e->tensor->type, &dtype))
		return err_set(err, ERR_NOT_FOUND, "there is no plain tensor \"%s\" in %s", name, f->back->path);
	return read_rows(f->back, e, row, count, out, err);
}

/* --- blocks -------------------------------------------------------------------------------------- */

static int module(struct stored_folder *f, const char *name, uint64_t row, uint64_t count, uint64_t all, uint64_t cols,
		  struct stored_module *out, bool *whole, struct err *err)
{
	struct entry *e = weight_of(f->back, name);
	enum st_dtype dtype;
	unsigned char *bytes;
	size_t len;
	int rc;

	*whole = count == all;
	if (!e || plain_type(e->tensor->type, &dtype))
		return 1;
	e->used = true;
	if (e->as.ndim != 2 || e->as.rows != all || e->as.cols != cols)
		return err_set(err, ERR_CORRUPT, "gguf tensor %s has %llu x %llu weights; the model has %llu x %llu", e->tensor->name,
			       (unsigned long long)e->as.rows, (unsigned long long)e->as.cols, (unsigned long long)all,
			       (unsigned long long)cols);
	len = (size_t)(e->tensor->bytes / all * count);
	bytes = mem_alloc(len, 1);
	if (!bytes)
		return err_set_nomem(err, name);
	rc = read_rows(f->back, e, row, count, bytes, err);
	if (rc == 0)
		rc = stored_blocks(e->tensor->type, name, bytes, (size_t)count, (size_t)cols, out, err);
	mem_free(bytes);
	return rc;
}

static int linear(struct stored_folder *f, const char *name, struct module_settings *settings, struct stored_linear *out,
		  struct err *err)
{
	const struct entry *e = weight_of(f->back, name);
	unsigned group = 0;

	(void)err;
	*out = (struct stored_linear){ .bytes = e ? e->tensor->bytes : 0, .type = e ? gr_type_name(e->tensor->type) : NULL };
	out->quantized = e && stored_block_settings(e->tensor->type, &settings->bits, &group);
	settings->skip = !out->quantized;
	settings->group_size = group ? (int64_t)group : -1;
	settings->zero_point = ZERO_FLOAT;
	return 0;
}

/* --- the rest ------------------------------------------------------------------------------------ */

static void left_over(struct stored_folder *f, struct findings *faults)
{
	for (size_t i = 0; i < f->back->count; i++) {
		const struct entry *e = &f->back->entries[i];
		char shown[UTF8_SHOWN_MAX];

		if (!e->used && !(f->config.tied_embeddings && strcmp(e->as.name, MODEL_HEAD_NAME) == 0))
			findings_add(faults, ERR_CORRUPT, "%s holds tensor \"%s\", which is no part of a %s model of this configuration",
				     f->gguf_file, utf8_show(shown, e->tensor->name), f->config.family);
	}
}

/* What the file carries itself comes first. */
static char *text(struct stored_folder *f, const char *file, size_t *len, struct err *err)
{
	struct gr_text carried;
	char *copy;

	if (gs_text(&f->back->file, file, &carried)) {
		copy = mem_alloc(carried.len + 1, 1);
		if (!copy) {
			err_set_nomem(err, file);
			return NULL;
		}
		memcpy(copy, carried.at, carried.len);
		*len = carried.len;
		return copy;
	}
	return source_read_optional(f->back->source, file, TEXT_MAX, len, err);
}

static int files(const struct stored_folder *f, int (*each)(void *ctx, const char *name), void *ctx)
{
	return each(ctx, f->gguf_file);
}

static void close_back(struct stored_folder *f)
{
	if (!f->back)
		return;
	gr_close(&f->back->file);
	if (f->back->fd >= 0)
		close(f->back->fd);
	if (f->back->source)
		f->back->source->close(f->back->source);
	mem_free(f->back->path);
	mem_free(f->back->entries);
	mem_free(f->back);
	f->back = NULL;
}

/* --- opening ------------------------------------------------------------------------------------- */

static int open_files(struct stored_folder *f, struct err *err)
{
	struct stored_back *b = mem_alloc(1, sizeof(*b));

	f->back = b;
	if (!b)
		return err_set_nomem(err, "a gguf file");
	b->fd = -1;
	b->path = path_join(f->dir, f->gguf_file);
	if (!b->path)
		return err_set_nomem(err, "a path");
	if (gr_open_path(&b->file, b->path, err) != 0)
		return -1;
	b->fd = file_open(b->path, O_RDONLY, 0, err);
	b->source = b->fd >= 0 ? source_dir_open(f->dir, err) : NULL;
	if (!b->source || gs_model(&b->file, &b->model, err) != 0)
		return -1;
	return gs_check_texts(&b->file, err);
}

static int name_tensors(struct stored_folder *f, struct findings *faults)
{
	struct stored_back *b = f->back;
	struct err reason = ERR_INIT;

	b->entries = mem_alloc(b->file.tensor_count, sizeof(*b->entries));
	if (!b->entries) {
		err_set_nomem(&reason, "the tensors of a gguf file");
		return findings_add_err(faults, &reason);
	}
	for (size_t i = 0; i < b->file.tensor_count; i++) {
		struct entry *e = &b->entries[b->count];
		const int rc = gs_tensor(&b->model, &b->file.tensors[i], &e->as, &reason);

		e->tensor = &b->file.tensors[i];
		if (rc < 0)
			findings_add_err(faults, &reason);
		else if (rc == 0)
			b->count++;
	}
	if (b->count > 1)
		qsort(b->entries, b->count, sizeof(*b->entries), by_name);
	return findings_result(faults);
}

static int make_config(struct stored_folder *f, struct findings *faults)
{
	struct stored_back *b = f->back;
	const struct entry *embedding = entry_of(b, MODEL_EMBED_NAME);
	struct gr_text carried;
	struct err reason = ERR_INIT;
	struct buf made;
	int rc;

	if (gs_config(&b->file, &carried))
		return carried.len <= STORED_CONFIG_MAX ? stored_take_config(f, carried.at, carried.len, faults) :
			findings_add(faults, ERR_TOO_LARGE, "the config.json in %s has %zu bytes; at most %d are accepted",
				     f->gguf_file, carried.len, STORED_CONFIG_MAX);
	buf_init(&made, STORED_CONFIG_MAX);
	rc = stored_gguf_config(&b->file, entry_of(b, "model.layers.0.self_attn.q_proj.bias") != NULL,
				!entry_of(b, MODEL_HEAD_NAME), embedding ? embedding->as.rows : 0, &made, &reason);
	rc = rc == 0 ? stored_take_config(f, buf_text(&made), made.len, faults) : findings_add_err(faults, &reason);
	buf_deinit(&made);
	return rc;
}

int stored_gguf_open(struct stored_folder *f, struct findings *faults)
{
	struct err reason = ERR_INIT;

	f->ops = &stored_gguf;
	f->format = "gguf";
	if (open_files(f, &reason) != 0)
		return findings_add_err(faults, &reason);
	if (name_tensors(f, faults) != 0)
		return -1;
	return make_config(f, faults);
}

const struct stored_ops stored_gguf = {
	.find = find, .rows = rows, .linear = linear, .module = module, .left_over = left_over, .text = text, .files = files,
	.close = close_back,
};
