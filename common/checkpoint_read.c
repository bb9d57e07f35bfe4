/* checkpoint_read.c - rows of a checkpoint's tensors. 16-bit types are read in pieces of at most
 * 1 MiB, so that a read needs little more memory than its result; values are converted and looked at in
 * steps that stay in the first cache. Nothing of the checkpoint is written to. */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/half.h"

enum { PIECE_ELEMENTS = 1 << 19, STEP_ELEMENTS = 1 << 11 };

/* Elements of a tensor's rows, found and checked. */
struct span {
	const struct st_tensor *tensor;
	const char *file;
	uint64_t cols, first, count; /* in elements */
	size_t width;                /* bytes of one element */
	uint64_t offset;             /* in the file */
};

static int find_span(struct checkpoint *ck, const char *name, uint64_t row, uint64_t rows,
		     struct span *span, struct err *err)
{
	const struct checkpoint_file *file;
	const struct st_tensor *t = checkpoint_find(ck, name, &file);

	if (!t)
		return err_set(err, ERR_NOT_FOUND, "there is no tensor \"%s\" in %s", name,
			       ck->source->label);
	if (t->ndim < 1 || t->ndim > 2 || (t->dtype != ST_BF16 && t->dtype != ST_F16 && t->dtype != ST_F32))
		return err_set(err, ERR_UNSUPPORTED, "%s: tensor \"%s\" is not a float vector or matrix",
			       file->name, name);
	if (row > t->shape[0] || rows > t->shape[0] - row)
		return err_set(err, ERR_INVALID, "%s: tensor \"%s\" has %llu rows; rows %llu to %llu were "
			       "asked for",
			       file->name, name, (unsigned long long)t->shape[0], (unsigned long long)row,
			       (unsigned long long)(row + rows));
	span->tensor = t;
	span->file = file->name;
	span->cols = t->ndim == 2 ? t->shape[1] : 1;
	span->first = row * span->cols; /* no overflow: the header's sizes were checked */
	span->count = rows * span->cols;
	span->width = st_dtype_bits(t->dtype) / 8;
	span->offset = file->header.data_start + t->begin + span->first * span->width;
	return 0;
}

/* A NaN or infinity has all bits of the exponent set. */
static bool all_finite(const float *values, size_t count)
{
	uint32_t any = 0;

	for (size_t i = 0; i < count; i++) {
		uint32_t bits;

		memcpy(&bits, &values[i], sizeof(bits));
		any |= (bits & 0x7f800000) == 0x7f800000;
	}
	return any == 0;
}

static int check_finite(const struct span *span, const float *values, uint64_t first, size_t count,
			struct err *err)
{
	if (all_finite(values, count))
		return 0;
	for (size_t i = 0; i < count; i++) {
		uint64_t at = span->first + first + i;

		if (isfinite(values[i]))
			continue;
		if (span->tensor->ndim == 1)
			return err_set(err, ERR_CORRUPT, "%s: element %llu of tensor \"%s\" is %s; weights "
				       "must be "
				       "finite", span->file, (unsigned long long)at, span->tensor->name,
				       isnan(values[i]) ? "NaN" : "infinite");
		return err_set(err, ERR_CORRUPT, "%s: element [%llu, %llu] of tensor \"%s\" is %s; weights "
			       "must be finite", span->file, (unsigned long long)(at / span->cols),
			       (unsigned long long)(at % span->cols), span->tensor->name,
			       isnan(values[i]) ? "NaN" : "infinite");
	}
	return 0;
}

/* Elements [first, first+count) of the span into `out`; `piece` holds count 16-bit values. */
static int read_piece(struct source *source, const struct span *span, uint64_t first, size_t count,
		      void *piece, float *out, struct err *err)
{
	void *into = span->tensor->dtype == ST_F32 ? (void *)out : piece;

	if (source->read(source, span->file, span->offset + first * span->width, into,
			 count * span->width, err) != 0)
		return -1;
	for (size_t at = 0, now; at < count; at += now) {
		now = count - at < STEP_ELEMENTS ? count - at : STEP_ELEMENTS;
		if (span->tensor->dtype == ST_BF16)
			bf16_to_f32_array((const char *)piece + 2 * at, out + at, now);
		else if (span->tensor->dtype == ST_F16)
			f16_to_f32_array((const char *)piece + 2 * at, out + at, now);
		if (check_finite(span, out + at, first + at, now, err) != 0)
			return -1;
	}
	return 0;
}

int checkpoint_read_f32(struct checkpoint *ck, const char *name, uint64_t row, uint64_t rows,
			float *out, struct err *err)
{
	struct span span = { 0 };
	void *piece;
	int rc = 0;

	if (find_span(ck, name, row, rows, &span, err) != 0)
		return -1;
	piece = mem_alloc_aligned(span.count < PIECE_ELEMENTS ? (size_t)span.count : PIECE_ELEMENTS, 2);
	if (!piece)
		return err_set_nomem(err, name);
	for (uint64_t first = 0; rc == 0 && first < span.count;) {
		uint64_t left = span.count - first;
		size_t count = left < PIECE_ELEMENTS ? (size_t)left : PIECE_ELEMENTS;

		rc = read_piece(ck->source, &span, first, count, piece, out + first, err);
		first += count;
	}
	mem_free(piece);
	return rc;
}

int checkpoint_read_raw(struct checkpoint *ck, const char *name, uint64_t row, uint64_t rows,
			void *out, struct err *err)
{
	struct span span = { 0 };

	if (find_span(ck, name, row, rows, &span, err) != 0)
		return -1;
	return ck->source->read(ck->source, span.file, span.offset, out, (size_t)span.count * span.width,
				err);
}
