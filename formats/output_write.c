/* output_write.c - what writing safetensors and gguf files have in common: reading pieces, putting them, telling how far. */
#include <string.h>

#include "common/alloc.h"
#include "common/half.h"
#include "common/utf8.h"
#include "formats/output_parts.h"

int output_put(struct output_work *w, uint64_t offset, const void *bytes, uint64_t len, struct err *err)
{
	if (len > 0 && w->sink->write(w->sink->ctx, offset, bytes, (size_t)len, err) != 0)
		return -1;
	w->stats->bytes = offset + len > w->stats->bytes ? offset + len : w->stats->bytes;
	return 0;
}

int output_advance(struct output_work *w, uint64_t bytes, struct err *err)
{
	w->done += bytes;
	if (!w->sink->progress)
		return 0;
	return w->sink->progress(w->sink->ctx, w->total > 0 ? (double)w->done / (double)w->total : 1, err) != 0 ? -1 : 0;
}

uint64_t output_piece_rows(uint64_t rows, uint64_t row_bytes)
{
	const uint64_t fit = row_bytes > 0 ? OUTPUT_PIECE_BYTES / row_bytes : rows;

	return fit < 1 ? 1 : fit < rows ? fit : rows;
}

/* --- reading ------------------------------------------------------------------------------------- */

static int to_floats(const char *tensor, enum st_dtype dtype, const void *raw, float *out, size_t n, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (dtype == ST_F32)
		memcpy(out, raw, n * sizeof(float));
	else if (dtype == ST_BF16)
		bf16_to_f32_array(raw, out, n);
	else if (dtype == ST_F16)
		f16_to_f32_array(raw, out, n);
	else
		return err_set(err, ERR_UNSUPPORTED, "tensor %s is %s; a float type is needed", utf8_show(shown, tensor),
			       st_dtype_name(dtype));
	return 0;
}

int output_read_floats(struct output_work *w, struct output_rows rows, float *out, struct err *err)
{
	const size_t n = (size_t)(rows.count * rows.cols);
	enum st_dtype dtype;
	void *raw;
	int rc;

	if (w->plan->model->dtype(w->plan->model->ctx, rows.tensor, &dtype) != 0)
		return err_set(err, ERR_NOT_FOUND, "the model has no tensor %s", rows.tensor);
	raw = mem_alloc(n, st_dtype_bits(dtype) / 8);
	if (!raw)
		return err_set_nomem(err, rows.tensor);
	rc = w->source->rows(w->source->ctx, rows.tensor, rows.first, rows.count, raw, err);
	if (rc == 0)
		rc = to_floats(rows.tensor, dtype, raw, out, n, err);
	mem_free(raw);
	return rc;
}

void *output_room_get(struct output_room *room, size_t size)
{
	if (room->bytes && room->size >= size)
		return room->bytes;
	mem_free(room->bytes);
	room->bytes = mem_alloc_aligned(size, 1);
	room->size = room->bytes ? size : 0;
	return room->bytes;
}

int output_values_read(struct output_work *w, size_t module, struct codec_values *out, struct err *err)
{
	const struct codec_module *m = &w->plan->model->modules[module];
	const size_t rows = (size_t)m->rows, cols = (size_t)m->cols, group = codec_group(m);
	const size_t pairs = rows * (cols / group) * sizeof(float);
	uint8_t *codes = output_room_get(&w->codes, rows * cols);
	float *scales = output_room_get(&w->scales, pairs), *zeros = output_room_get(&w->zeros, pairs);

	if (!codes || !scales || !zeros)
		return err_set_nomem(err, m->name);
	*out = (struct codec_values){ rows, cols, group, m->settings.bits, codes, scales, zeros };
	return w->source->module(w->source->ctx, module, codes, scales, zeros, err);
}

/* --- one file ------------------------------------------------------------------------------------ */

int output_write(const struct output_plan *p, size_t i, const struct output_source *source,
		 const struct output_sink *sink, struct output_stats *stats, struct err *err)
{
	struct output_work w = { .plan = p, .file = &p->files[i], .source = source, .sink = sink, .stats = stats,
				 .total = p->files[i].bytes };
	int rc;

	*stats = (struct output_stats){ 0 };
	rc = p->format->codec ? output_write_tensors(&w, err) : output_write_gguf(&w, err);
	mem_free(w.codes.bytes);
	mem_free(w.scales.bytes);
	mem_free(w.zeros.bytes);
	for (unsigned k = 0; k < CODEC_TENSORS_MAX; k++)
		mem_free(w.out[k].bytes);
	return rc;
}
