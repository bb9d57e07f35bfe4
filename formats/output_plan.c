/* output_plan.c - the tensors of a checkpoint in model order, cut into files.
 *
 * A quantized module's tensors stand together and are never divided; everything else is carried over from the source.
 * A file holds at least one module or tensor, and is cut before the one that would make it larger than asked.
 */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_meta.h"
#include "formats/output_parts.h"

struct planning {
	struct output_plan *p;
	size_t cap;
	struct err *err;
};

/* --- one tensor ---------------------------------------------------------------------------------- */

static int set_bytes(struct output_tensor *t, uint64_t unit_bytes, uint64_t units, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (unsigned d = 0; d < t->ndim; d++)
		if (!u64_mul(units, t->shape[d], &units))
			return err_set(err, ERR_TOO_LARGE, "tensor %s is too large", utf8_show(shown, t->name));
	if (!u64_mul(units, unit_bytes, &t->bytes) || t->bytes > INT64_MAX / 2)
		return err_set(err, ERR_TOO_LARGE, "tensor %s is too large", utf8_show(shown, t->name));
	return 0;
}

static int append(struct planning *b, const struct output_tensor *t)
{
	struct output_plan *p = b->p;

	if (p->tensor_count == b->cap) {
		const size_t cap = b->cap ? 2 * b->cap : 64;
		struct output_tensor *grown = mem_realloc(p->tensors, cap, sizeof(*grown));

		if (!grown)
			return err_set_nomem(b->err, "the list of output tensors");
		p->tensors = grown;
		b->cap = cap;
	}
	p->tensors[p->tensor_count++] = *t;
	if (!u64_add(p->bytes, t->bytes, &p->bytes))
		return err_set(b->err, ERR_TOO_LARGE, "a checkpoint of so many bytes cannot be written");
	return 0;
}

/* Whether `tensor` is "<module>.weight". */
static bool is_weight_of(const char *tensor, const struct codec_module *m)
{
	const size_t len = strlen(m->name);

	return strncmp(tensor, m->name, len) == 0 && strcmp(tensor + len, ".weight") == 0;
}

/* The module whose quantized weight this tensor of the source is, or SIZE_MAX. */
static size_t module_of(const struct output_model *m, const struct model_tensor *t)
{
	const size_t first = t->layer < 0 ? 0 : (size_t)t->layer * LIN_COUNT;

	if (t->layer < 0)
		return output_table_of(m, t->name);
	for (size_t i = first; i < first + LIN_COUNT && i < m->count; i++)
		if (!m->modules[i].settings.skip && is_weight_of(t->name, &m->modules[i]))
			return i;
	return SIZE_MAX;
}

static int count_quantized(struct planning *b, size_t module, uint64_t bytes)
{
	const struct codec_module *m = &b->p->model->modules[module];

	if (output_is_table(m))
		return 0;
	b->p->quantized_bytes += bytes; /* bounded by the sum of all bytes */
	if (!u64_add(b->p->quantized_weights, m->rows * m->cols, &b->p->quantized_weights))
		return err_set(b->err, ERR_TOO_LARGE, "the model has too many weights");
	return 0;
}

static int source_dtype(struct planning *b, const char *tensor, enum st_dtype *out)
{
	char shown[UTF8_SHOWN_MAX];

	if (b->p->model->dtype(b->p->model->ctx, tensor, out) == 0)
		return 0;
	return err_set(b->err, ERR_NOT_FOUND, "the model has no tensor %s", utf8_show(shown, tensor));
}

/* --- safetensors --------------------------------------------------------------------------------- */

static int add_module(struct planning *b, size_t module, const struct model_tensor *mt)
{
	const struct codec *codec = b->p->format->codec;
	const struct codec_module *m = &b->p->model->modules[module];
	struct codec_tensor tensors[CODEC_TENSORS_MAX];
	const unsigned count = codec->tensors(m, tensors);
	uint64_t bytes = 0;

	for (unsigned i = 0; i < count; i++) {
		struct output_tensor t = { .module = module, .part = i, .dtype = tensors[i].dtype,
					   .ndim = tensors[i].ndim,
					   .shape = { tensors[i].shape[0], tensors[i].shape[1] } };

		snprintf(t.name, sizeof(t.name), "%s%s", m->name, tensors[i].suffix);
		if (output_is_table(m))
			snprintf(t.source, sizeof(t.source), "%s", mt->name);
		if (set_bytes(&t, st_dtype_bits(t.dtype) / 8, 1, b->err) != 0 || append(b, &t) != 0)
			return -1;
		bytes += t.bytes;
	}
	return count_quantized(b, module, bytes);
}

static int add_carried(struct planning *b, const struct model_tensor *mt)
{
	const char *dtype = b->p->format->codec->other_dtype;
	struct output_tensor t = { .module = SIZE_MAX, .ndim = mt->dim[1] ? 2 : 1, .shape = { mt->dim[0], mt->dim[1] } };

	if (source_dtype(b, mt->name, &t.dtype) != 0)
		return -1;
	if (dtype && st_dtype_from_name(dtype, &t.dtype) != 0)
		return err_set(b->err, ERR_INTERNAL, "format %s has the unknown dtype %s", b->p->format->name, dtype);
	snprintf(t.name, sizeof(t.name), "%s", mt->name);
	snprintf(t.source, sizeof(t.source), "%s", mt->name);
	return set_bytes(&t, st_dtype_bits(t.dtype) / 8, 1, b->err) != 0 ? -1 : append(b, &t);
}

static int add_tensor(void *ctx, const struct model_tensor *mt)
{
	struct planning *b = ctx;
	const size_t module = module_of(b->p->model, mt);

	if (module == SIZE_MAX || (mt->layer < 0 && output_tables(b->p->format) == CODEC_TABLES_CARRIED))
		return add_carried(b, mt);
	return add_module(b, module, mt);
}

/* --- gguf ---------------------------------------------------------------------------------------- */

static int gguf_type_of(struct planning *b, const struct gguf_place *place, struct output_tensor *t)
{
	const struct codec_module *m = t->module == SIZE_MAX ? NULL : &b->p->model->modules[t->module];
	enum st_dtype dtype;

	t->gguf = GGUF_F32;
	if (place->plain)
		return 0;
	if (m && output_is_table(m)) {
		t->gguf = output_table_type(m);
		return 0;
	}
	if (m)
		return gguf_choose(m, &t->gguf, NULL) == 0 ? 0
			: err_set(b->err, ERR_REFUSED, "%s: gguf cannot hold this module", m->name);
	if (source_dtype(b, t->source, &dtype) != 0)
		return -1;
	t->gguf = dtype == ST_BF16 ? GGUF_BF16 : dtype == ST_F16 ? GGUF_F16 : GGUF_F32;
	return 0;
}

/* Bytes of a tensor of whole blocks. */
static int set_block_bytes(struct output_tensor *t, struct err *err)
{
	const uint64_t cols = t->shape[t->ndim - 1], block = gguf_block_elements(t->gguf);
	struct output_tensor blocks = *t;
	char shown[UTF8_SHOWN_MAX];

	if (cols % block != 0)
		return err_set(err, ERR_REFUSED, "tensor %s: gguf type %s needs a multiple of %llu columns, not %llu",
			       utf8_show(shown, t->name), gguf_type_name(t->gguf), (unsigned long long)block,
			       (unsigned long long)cols);
	blocks.shape[t->ndim - 1] = cols / block;
	if (set_bytes(&blocks, gguf_block_bytes(t->gguf), 1, err) != 0)
		return -1;
	t->bytes = blocks.bytes;
	return 0;
}

static int add_to_gguf(void *ctx, const struct model_tensor *mt)
{
	struct planning *b = ctx;
	struct output_tensor t = { .module = module_of(b->p->model, mt), .ndim = mt->dim[1] ? 2 : 1,
				   .shape = { mt->dim[0], mt->dim[1] } };
	struct gguf_place place;

	if (gguf_place_of(b->p->model->config, mt->name, &place) != 0)
		return err_set(b->err, ERR_REFUSED, "gguf has no place for the tensor %s", mt->name);
	snprintf(t.name, sizeof(t.name), "%s", place.name);
	snprintf(t.source, sizeof(t.source), "%s", mt->name);
	if (gguf_type_of(b, &place, &t) != 0 || set_block_bytes(&t, b->err) != 0 || append(b, &t) != 0)
		return -1;
	return t.module == SIZE_MAX ? 0 : count_quantized(b, t.module, t.bytes);
}

static int add_rope(struct planning *b)
{
	struct output_tensor t = { .name = GGUF_ROPE_NAME, .module = SIZE_MAX, .gguf = GGUF_F32, .ndim = 1,
				   .shape = { gguf_rope_count(b->p->model->config), 0 } };

	if (t.shape[0] == 0)
		return 0;
	return set_block_bytes(&t, b->err) != 0 ? -1 : append(b, &t);
}

/* --- files --------------------------------------------------------------------------------------- */

/* End of the tensors that must stay with `first`. */
static size_t unit_end(const struct output_plan *p, size_t first)
{
	size_t end = first + 1;

	while (p->tensors[first].module != SIZE_MAX && end < p->tensor_count &&
	       p->tensors[end].module == p->tensors[first].module)
		end++;
	return end;
}

/* End of the file that starts at `first`, and its bytes. */
static size_t file_end(const struct output_plan *p, size_t first, uint64_t limit, uint64_t *bytes)
{
	size_t i = first;

	*bytes = 0;
	while (i < p->tensor_count) {
		const size_t end = unit_end(p, i);
		uint64_t more = 0;

		for (size_t k = i; k < end; k++)
			more += p->tensors[k].bytes; /* bounded by the sum of all bytes */
		if (i > first && (more > limit || *bytes > limit - more))
			break;
		*bytes += more;
		i = end;
	}
	return i;
}

static void name_files(struct output_plan *p)
{
	const char *only = p->format->codec ? "model.safetensors" : "model.gguf";

	for (size_t i = 0; i < p->file_count; i++)
		if (p->file_count == 1)
			snprintf(p->files[i].name, sizeof(p->files[i].name), "%s", only);
		else
			snprintf(p->files[i].name, sizeof(p->files[i].name), "model-%05zu-of-%05zu.safetensors", i + 1,
				 p->file_count);
}

static int cut_files(struct output_plan *p, uint64_t limit, struct err *err)
{
	uint64_t bytes;
	size_t count = 0;

	for (size_t first = 0; first < p->tensor_count; count++)
		first = file_end(p, first, limit, &bytes);
	p->files = mem_alloc(count, sizeof(*p->files));
	if (!p->files)
		return err_set_nomem(err, "the list of output files");
	for (size_t first = 0; first < p->tensor_count; p->file_count++) {
		struct output_file *f = &p->files[p->file_count];

		f->first = first;
		f->end = first = file_end(p, first, limit, &f->bytes);
	}
	name_files(p);
	return 0;
}

int output_plan_make(struct output_plan *p, const struct output_format *f, const struct output_model *m,
		     uint64_t max_shard_size, struct err *err)
{
	struct planning b = { .p = p, .err = err };
	int rc;

	*p = (struct output_plan){ .format = f, .model = m };
	rc = model_each_tensor(m->config, f->codec ? add_tensor : add_to_gguf, &b);
	if (rc == 0 && !f->codec)
		rc = add_rope(&b);
	if (rc == 0)
		rc = cut_files(p, f->codec ? max_shard_size : UINT64_MAX, err);
	if (rc == 0)
		return 0;
	output_plan_deinit(p);
	return -1;
}

void output_plan_deinit(struct output_plan *p)
{
	mem_free(p->tensors);
	mem_free(p->files);
	*p = (struct output_plan){ 0 };
}

/* --- layers -------------------------------------------------------------------------------------- */

static int64_t layer_of(const struct output_plan *p, const struct output_tensor *t)
{
	long layer;

	if (t->module != SIZE_MAX)
		return p->model->modules[t->module].layer;
	return sscanf(t->source, "model.layers.%9ld.", &layer) == 1 ? layer : -1;
}

int output_file_layers(const struct output_plan *p, size_t i, int (*each)(void *ctx, int64_t layer), void *ctx)
{
	const struct output_file *f = &p->files[i];
	int64_t last = -1;
	int rc = 0;

	for (size_t k = f->first; rc == 0 && k < f->end; k++) {
		const int64_t layer = layer_of(p, &p->tensors[k]);

		if (layer > last) /* they come in order */
			rc = each(ctx, last = layer);
	}
	return rc;
}
