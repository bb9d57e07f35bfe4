/* task_assemble.c - one safetensors file of the result, streamed tensor by tensor.
 *
 * A tensor comes from the source checkpoint or from a quantized layer. Where the layer stores the name
 * itself its bytes are copied; "<module>.weight" of a packed module is dequantized in float32 and
 * rounded once to the dtype asked for. Memory is a few rows.
 */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "common/half.h"
#include "worker/model/layer_blob.h"
#include "worker/task_kinds.h"

enum { PIECE_BYTES = 4 << 20, META_MAX = 32, HEAD_BYTES_MAX = 64 << 20 };

struct part {                   /* where one tensor comes from */
	const char *name;
	long layer;             /* -1: the source checkpoint */
};

struct assembly {
	struct task_env *env;
	struct checkpoint ck;
	struct st_tensor *tensors;      /* names borrowed from the spec; in file order after layout */
	struct part *parts;             /* in spec order */
	size_t count;
	int fd;
	char *path;
	uint64_t data_start;
	struct layer_blob blob;         /* the layer open now */
	long open_layer;                /* -1: none */
	double rounding;                /* largest relative rounding error so far */
};

/* --- the spec ------------------------------------------------------------------------------------ */

static int read_shape(const struct json *row, struct st_tensor *t, struct err *err)
{
	const struct json *shape = json_get(row, "shape");
	int64_t dim;

	t->ndim = (unsigned)json_size(shape);
	if (json_type(shape) != JSON_ARRAY || t->ndim > 2)
		return err_set(err, ERR_INVALID, "tensor %s needs a shape of at most 2 dimensions", t->name);
	for (unsigned d = 0; d < t->ndim; d++) {
		if (!json_int(json_at(shape, d), &dim) || dim < 0)
			return err_set(err, ERR_INVALID, "tensor %s has a shape that is not made of integers", t->name);
		t->shape[d] = (uint64_t)dim;
	}
	return 0;
}

static int read_row(struct assembly *a, const struct json *row, size_t i, struct err *err)
{
	struct st_tensor *t = &a->tensors[i];
	const struct json *from = json_get(row, "from");
	const char *name, *dtype;
	int64_t layer = -1;

	if (json_require_string(row, "name", &name, err) != 0 ||
	    json_require_string(row, "dtype", &dtype, err) != 0)
		return -1;
	t->name = (char *)name;
	if (st_dtype_from_name(dtype, &t->dtype) != 0)
		return err_set(err, ERR_INVALID, "tensor %s has unknown dtype '%s'", name, dtype);
	if (json_type(from) == JSON_NUMBER && (!json_int(from, &layer) || layer < 0))
		return err_set(err, ERR_INVALID, "tensor %s comes from no layer", name);
	a->parts[i] = (struct part){ .name = name, .layer = (long)layer };
	return read_shape(row, t, err);
}

static int read_tensors(struct assembly *a, const struct json *spec, struct err *err)
{
	const struct json *list = json_get(spec, "tensors");
	size_t i = 0;

	a->count = json_size(list);
	a->tensors = mem_alloc(a->count, sizeof(*a->tensors));
	a->parts = mem_alloc(a->count, sizeof(*a->parts));
	if (!a->tensors || !a->parts)
		return err_set_nomem(err, "the tensor list");
	for (const struct json *row = json_first(list); row; row = json_next(row), i++)
		if (read_row(a, row, i, err) != 0)
			return -1;
	return 0;
}

static int write_head(struct assembly *a, const struct json *metadata, struct err *err)
{
	const char *keys[META_MAX], *values[META_MAX];
	struct buf head;
	size_t n = 0;
	int rc = -1;

	for (const struct json *m = json_first(metadata); m && n < META_MAX; m = json_next(m), n++) {
		keys[n] = json_key(m);
		values[n] = json_string(m, "");
	}
	buf_init(&head, HEAD_BYTES_MAX);
	if (st_layout(a->tensors, a->count, keys, values, n, &head, err) == 0)
		rc = file_pwrite(a->fd, head.data, head.len, 0, a->path, err);
	a->data_start = head.len;
	buf_deinit(&head);
	return rc;
}

/* --- tensors ------------------------------------------------------------------------------------- */

static int open_layer(struct assembly *a, long layer, struct err *err)
{
	char name[32];
	const struct task_input *input;

	if (a->open_layer == layer)
		return 0;
	if (a->open_layer >= 0)
		layer_blob_close(&a->blob);
	a->open_layer = -1;
	snprintf(name, sizeof(name), "layer-%ld", layer);
	input = task_input_find(a->env, name, err);
	if (!input || layer_blob_open(&a->blob, input->path, err) != 0)
		return -1;
	a->open_layer = layer;
	return 0;
}

static int put(struct assembly *a, const struct st_tensor *t, uint64_t offset, const void *bytes,
	       size_t len, struct err *err)
{
	return file_pwrite(a->fd, bytes, len, a->data_start + t->begin + offset, a->path, err);
}

static bool same_layout(const struct st_tensor *a, const struct st_tensor *b)
{
	return a->dtype == b->dtype && a->ndim == b->ndim &&
	       memcmp(a->shape, b->shape, a->ndim * sizeof(a->shape[0])) == 0;
}

static int mismatch(const struct st_tensor *t, struct err *err)
{
	return err_set(err, ERR_CORRUPT, "tensor %s is not stored with the type and shape the plan says", t->name);
}

static int copy_from_layer(struct assembly *a, const struct st_tensor *t, const struct st_tensor *stored,
			   void *piece, struct err *err)
{
	uint64_t bytes = stored->end - stored->begin;

	if (!same_layout(t, stored))
		return mismatch(t, err);
	for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) {
		size_t now = bytes - at < PIECE_BYTES ? (size_t)(bytes - at) : PIECE_BYTES;

		if (layer_blob_read_raw(&a->blob, stored, at, piece, now, err) != 0 ||
		    put(a, t, at, piece, now, err) != 0)
			return -1;
	}
	return 0;
}

/* Rows that fit the piece buffer, at least one. */
static uint64_t rows_per_piece(const struct st_tensor *t, size_t element)
{
	uint64_t row = (t->ndim == 2 ? t->shape[1] : 1) * element;
	uint64_t rows = row ? PIECE_BYTES / row : 1;

	return rows ? rows : 1;
}

static int copy_from_source(struct assembly *a, const struct st_tensor *t, struct err *err)
{
	const struct st_tensor *stored = checkpoint_find(&a->ck, t->name, NULL);
	size_t element = st_dtype_bits(t->dtype) / 8;
	uint64_t cols = t->ndim == 2 ? t->shape[1] : 1, rows = rows_per_piece(t, element);
	void *piece;
	int rc = 0;

	if (!stored || !same_layout(t, stored))
		return mismatch(t, err);
	piece = mem_alloc((size_t)(rows * cols), element);
	if (!piece)
		return err_set_nomem(err, t->name);
	for (uint64_t row = 0; rc == 0 && row < t->shape[0]; row += rows) {
		uint64_t now = t->shape[0] - row < rows ? t->shape[0] - row : rows;

		rc = checkpoint_read_raw(&a->ck, t->name, row, now, piece, err);
		if (rc == 0)
			rc = put(a, t, row * cols * element, piece, (size_t)(now * cols) * element, err);
	}
	mem_free(piece);
	return rc;
}

static void note_rounding(struct assembly *a, float exact, float stored)
{
	double error = exact == 0 ? 0 : fabs(((double)stored - (double)exact) / (double)exact);

	if (error > a->rounding)
		a->rounding = error;
}

/* Rounds n values to the 16-bit type of t in place of `half`. */
static void round_values(struct assembly *a, const struct st_tensor *t, const float *values, uint16_t *half,
			 size_t n)
{
	for (size_t i = 0; i < n; i++) {
		half[i] = t->dtype == ST_F16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
		note_rounding(a, values[i], t->dtype == ST_F16 ? f16_to_f32(half[i]) : bf16_to_f32(half[i]));
	}
}

static int check_f16_range(const struct st_tensor *t, const float *values, size_t n, struct err *err)
{
	for (size_t i = 0; t->dtype == ST_F16 && i < n; i++)
		if (fabsf(values[i]) > 65504.0f)
			return err_set(err, ERR_NUMERIC, "tensor %s holds %g, which F16 cannot; use BF16", t->name,
				       (double)values[i]);
	return 0;
}

static int dequantize_rows(struct assembly *a, const struct st_tensor *t, float *values, uint16_t *half,
			   uint64_t row, uint64_t rows, struct err *err)
{
	size_t n = (size_t)(rows * t->shape[1]);

	if (layer_blob_read_f32(&a->blob, t->name, row, rows, values, err) != 0)
		return -1;
	if (t->dtype == ST_F32)
		return put(a, t, row * t->shape[1] * 4, values, n * 4, err);
	if (check_f16_range(t, values, n, err) != 0)
		return -1;
	round_values(a, t, values, half, n);
	return put(a, t, row * t->shape[1] * 2, half, n * 2, err);
}

static int dequantize(struct assembly *a, const struct st_tensor *t, struct err *err)
{
	uint64_t rows = rows_per_piece(t, sizeof(float));
	float *values = mem_alloc((size_t)(rows * t->shape[1]), sizeof(*values));
	uint16_t *half = mem_alloc((size_t)(rows * t->shape[1]), sizeof(*half));
	int rc = 0;

	if (t->ndim != 2 || (t->dtype != ST_F32 && t->dtype != ST_BF16 && t->dtype != ST_F16))
		rc = mismatch(t, err);
	else if (!values || !half)
		rc = err_set_nomem(err, t->name);
	for (uint64_t row = 0; rc == 0 && row < t->shape[0]; row += rows)
		rc = dequantize_rows(a, t, values, half, row, t->shape[0] - row < rows ? t->shape[0] - row : rows, err);
	mem_free(values);
	mem_free(half);
	return rc;
}

static int write_tensor(struct assembly *a, const struct st_tensor *t, long layer, void *piece,
			struct err *err)
{
	const struct st_tensor *stored;

	if (layer < 0)
		return copy_from_source(a, t, err);
	if (open_layer(a, layer, err) != 0)
		return -1;
	stored = st_find(&a->blob.header, t->name);
	return stored ? copy_from_layer(a, t, stored, piece, err) : dequantize(a, t, err);
}

static const struct st_tensor *laid_out(const struct assembly *a, const char *name)
{
	for (size_t i = 0; i < a->count; i++)
		if (strcmp(a->tensors[i].name, name) == 0)
			return &a->tensors[i];
	return NULL;
}

static int write_tensors(struct assembly *a, struct err *err)
{
	void *piece = mem_alloc(PIECE_BYTES, 1);
	int rc = piece ? 0 : err_set_nomem(err, "a piece of a tensor");

	for (size_t i = 0; rc == 0 && i < a->count; i++) {
		rc = task_step(a->env, (double)i / (double)a->count, "assembling", err);
		if (rc == 0)
			rc = write_tensor(a, laid_out(a, a->parts[i].name), a->parts[i].layer, piece, err);
	}
	mem_free(piece);
	return rc;
}

/* --- the task ------------------------------------------------------------------------------------ */

static struct json *assembly_result(const struct assembly *a)
{
	const struct st_tensor *last = NULL;
	struct json *result = json_new_object();
	uint64_t bytes = a->data_start;

	for (size_t i = 0; i < a->count; i++)
		if (!last || a->tensors[i].end > last->end)
			last = &a->tensors[i];
	bytes += last ? last->end : 0;
	if (json_set_int(result, "bytes", (int64_t)bytes) != 0 ||
	    json_set_number(result, "rounding", a->rounding) != 0) {
		json_free(result);
		return NULL;
	}
	return result;
}

static int assemble(struct assembly *a, const struct json *spec, struct err *err)
{
	if (read_tensors(a, spec, err) != 0)
		return -1;
	a->path = task_output_path(a->env, "file", err);
	if (!a->path)
		return -1;
	a->fd = file_open(a->path, O_RDWR | O_CREAT | O_TRUNC, 0644, err);
	if (a->fd < 0 || write_head(a, json_get(spec, "metadata"), err) != 0)
		return -1;
	return write_tensors(a, err);
}

int task_assemble(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct assembly a = { .env = env, .fd = -1, .open_layer = -1 };
	int rc;

	if (checkpoint_open(&a.ck, env->model, NULL, err) != 0)
		return -1;
	rc = assemble(&a, spec, err);
	if (rc == 0 && !(*result = assembly_result(&a)))
		rc = err_set_nomem(err, "a result");
	if (a.open_layer >= 0)
		layer_blob_close(&a.blob);
	if (a.fd >= 0)
		close(a.fd);
	mem_free(a.path);
	mem_free(a.tensors);
	mem_free(a.parts);
	checkpoint_close(&a.ck);
	return rc;
}
