/* stored_rows.c - what a stored checkpoint hands out: modules as codes, tensors as rows of plain numbers. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/half.h"
#include "common/utf8.h"
#include "formats/stored_parts.h"

/* --- modules ------------------------------------------------------------------------------------- */

void stored_forget(struct stored_folder *f)
{
	stored_module_deinit(&f->kept);
	f->kept_index = SIZE_MAX;
}

int stored_decode(struct stored_folder *f, size_t i, struct stored_module *out, struct stored_facts *facts, struct err *err)
{
	const struct codec_module *m = &f->modules[i];
	struct stored_facts mine;
	bool whole;
	const int rc = f->ops->module(f, m->name, 0, m->rows, m->rows, m->cols, out, &whole, err);

	if (rc != 0)
		return rc < 0 ? -1 : err_set(err, ERR_CORRUPT, "%s is quantized as config.json says, but its tensors are missing", m->name);
	stored_tidy(out, facts ? facts : &mine);
	return 0;
}

/* Codes, scales and zero-points of a module as f->modules describes it. */
static int give_module(void *ctx, size_t i, uint8_t *codes, float *scales, float *zeros, struct err *err)
{
	struct stored_folder *f = ctx;
	const struct codec_module *m = &f->modules[i];
	const size_t groups = (size_t)m->cols / codec_group(m);
	struct stored_facts facts;
	struct stored_module got;

	if (stored_decode(f, i, &got, &facts, err) != 0)
		return -1;
	if (!facts.ordered || stored_join(&got, groups) != 0) {
		stored_module_deinit(&got);
		return err_set(err, ERR_CORRUPT, "%s has changed since it was looked at", m->name);
	}
	memcpy(codes, got.codes, got.rows * got.cols);
	for (size_t g = 0; g < got.rows * groups; g++) {
		scales[g] = (float)got.scales[g];
		zeros[g] = (float)got.zeros[g];
	}
	stored_module_deinit(&got);
	return 0;
}

/* --- plain numbers ------------------------------------------------------------------------------- */

struct named { const char *module; size_t index; uint64_t rows, cols; };

/* The quantized module, handed on as plain numbers, whose weight this is: index among the linears, then the tables. */
static bool plain_module(const struct stored_folder *f, const char *tensor, struct named *out)
{
	static const char *const tables[2] = { "model.embed_tokens", "lm_head" };
	const size_t len = strlen(tensor), tail = strlen(".weight");

	if (len <= tail || strcmp(tensor + len - tail, ".weight") != 0)
		return false;
	for (size_t t = 0; t < 2; t++)
		if (f->tables[t].quantized && strlen(tables[t]) == len - tail && memcmp(tensor, tables[t], len - tail) == 0) {
			*out = (struct named){ tables[t], f->linears + t, f->config.vocab, f->config.hidden };
			return true;
		}
	for (size_t i = 0; i < f->linears; i++)
		if (f->linear[i].quantized && strlen(f->names[i]) == len - tail && memcmp(tensor, f->names[i], len - tail) == 0) {
			*out = (struct named){ f->names[i], i, f->modules[i].rows, f->modules[i].cols };
			return true;
		}
	return false;
}

static int decode_rows(struct stored_folder *f, const struct named *n, uint64_t row, uint64_t rows, struct stored_module *out,
		       bool *whole, struct err *err)
{
	const int rc = f->ops->module(f, n->module, row, rows, n->rows, n->cols, out, whole, err);

	return rc <= 0 ? rc : err_set(err, ERR_CORRUPT, "%s is quantized as config.json says, but its tensors are missing", n->module);
}

static int put_rows(const struct stored_module *m, const char *name, uint64_t first, uint64_t row, uint64_t rows, float *out,
		    struct err *err)
{
	double *one = mem_alloc(m->cols, sizeof(*one));
	char shown[UTF8_SHOWN_MAX];

	if (!one)
		return err_set_nomem(err, "a row of weights");
	for (uint64_t r = 0; r < rows; r++, out += m->cols) {
		stored_module_row(m, (size_t)(row - first + r), one);
		for (size_t k = 0; k < m->cols; k++) {
			out[k] = (float)one[k];
			if (isfinite(out[k]))
				continue;
			mem_free(one);
			return err_set(err, ERR_CORRUPT, "%s: the weight [%llu, %zu] is not finite", utf8_show(shown, name),
				       (unsigned long long)(row + r), k);
		}
	}
	mem_free(one);
	return 0;
}

/* Formats that do not keep a row's numbers together are decoded whole, once. */
static int dequantized(struct stored_folder *f, const struct named *n, uint64_t row, uint64_t rows, float *out, struct err *err)
{
	struct stored_module part;
	bool whole;
	int rc;

	if (row > n->rows || rows > n->rows - row)
		return err_set(err, ERR_INVALID, "%s has %llu rows", n->module, (unsigned long long)n->rows);
	if (f->kept_index == n->index)
		return put_rows(&f->kept, n->module, 0, row, rows, out, err);
	if (decode_rows(f, n, row, rows, &part, &whole, err) != 0)
		return -1;
	if (part.cols != n->cols || part.rows != (whole ? n->rows : rows))
		rc = err_set(err, ERR_CORRUPT, "%s does not have the sizes of the model", n->module);
	else
		rc = put_rows(&part, n->module, whole ? 0 : row, row, rows, out, err);
	if (rc == 0 && whole && rows < n->rows) {
		stored_forget(f);
		f->kept = part;
		f->kept_index = n->index;
	} else {
		stored_module_deinit(&part);
	}
	return rc;
}

int stored_handed(struct stored_folder *f, const char *name, struct stored_shape *out)
{
	struct named n;

	if (f->ops->find(f, name, out) != 0) {
		if (!plain_module(f, name, &n))
			return 1;
		*out = (struct stored_shape){ ST_F32, 2, n.rows, n.cols };
	}
	if (f->casts)
		out->dtype = f->cast;
	return 0;
}

int stored_rows_f32(struct stored_folder *f, const char *name, uint64_t row, uint64_t rows, float *out, struct err *err)
{
	struct stored_shape shape;
	struct named n;
	size_t count;
	void *raw;
	int rc;

	if (f->ops->find(f, name, &shape) != 0)
		return plain_module(f, name, &n) ? dequantized(f, &n, row, rows, out, err) :
			err_set(err, ERR_NOT_FOUND, "there is no tensor \"%s\" in %s", name, f->dir);
	count = (size_t)(rows * shape.cols);
	if (shape.dtype == ST_F32)
		return f->ops->rows(f, name, row, rows, out, err);
	raw = mem_alloc(count, 2);
	if (!raw)
		return err_set_nomem(err, name);
	rc = f->ops->rows(f, name, row, rows, raw, err);
	if (rc == 0 && shape.dtype == ST_F16)
		f16_to_f32_array(raw, out, count);
	else if (rc == 0)
		bf16_to_f32_array(raw, out, count);
	mem_free(raw);
	return rc;
}

static int round_to(enum st_dtype dtype, const char *name, const float *values, size_t count, void *out, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (size_t i = 0; dtype == ST_F16 && i < count; i++)
		if (!(fabsf(values[i]) <= 65504.0f))
			return err_set(err, ERR_NUMERIC, "tensor %s holds %g, which F16 cannot; bf16 and f32 can", utf8_show(shown, name),
				       (double)values[i]);
	if (dtype == ST_F16)
		f32_to_f16_array(values, out, count);
	else if (dtype == ST_BF16)
		f32_to_bf16_array(values, out, count);
	else
		memcpy(out, values, count * sizeof(*values));
	return 0;
}

static int give_rows(void *ctx, const char *tensor, uint64_t row, uint64_t rows, void *out, struct err *err)
{
	struct stored_folder *f = ctx;
	struct stored_shape shape, raw;
	uint64_t count;
	float *values;
	int rc;

	if (stored_handed(f, tensor, &shape) != 0)
		return err_set(err, ERR_NOT_FOUND, "there is no tensor \"%s\" in %s", tensor, f->dir);
	if (f->ops->find(f, tensor, &raw) == 0 && raw.dtype == shape.dtype)
		return f->ops->rows(f, tensor, row, rows, out, err);
	if (rows > shape.rows || !u64_mul(rows, shape.cols, &count))
		return err_set(err, ERR_INVALID, "tensor %s has %llu rows", tensor, (unsigned long long)shape.rows);
	values = mem_alloc((size_t)count, sizeof(*values));
	if (!values)
		return err_set_nomem(err, tensor);
	rc = stored_rows_f32(f, tensor, row, rows, values, err);
	if (rc == 0)
		rc = round_to(shape.dtype, tensor, values, (size_t)count, out, err);
	mem_free(values);
	return rc;
}

/* --- for output_*() ------------------------------------------------------------------------------ */

static int give_dtype(void *ctx, const char *tensor, enum st_dtype *out)
{
	struct stored_shape shape;

	if (stored_handed(ctx, tensor, &shape) != 0)
		return -1;
	*out = shape.dtype;
	return 0;
}

/* config.json is the plain model's, as a job has it. */
static char *give_text(void *ctx, const char *file, size_t *len, struct err *err)
{
	struct stored_folder *f = ctx;
	char *copy;

	if (strcmp(file, "config.json") != 0)
		return f->ops->text(f, file, len, err);
	copy = mem_strdup(f->config_text);
	*len = strlen(f->config_text);
	if (!copy)
		err_set_nomem(err, file);
	return copy;
}

void stored_folder_model(struct stored_folder *f, struct output_model *out)
{
	*out = (struct output_model){
		.config = &f->config, .source_config = f->plain, .modules = f->modules, .count = f->count, .dtype = give_dtype, .ctx = f,
	};
}

struct output_source stored_folder_source(struct stored_folder *f)
{
	return (struct output_source){ .module = give_module, .rows = give_rows, .text = give_text, .ctx = f };
}

void stored_folder_cast(struct stored_folder *f, enum st_dtype dtype)
{
	f->cast = dtype;
	f->casts = true;
}
