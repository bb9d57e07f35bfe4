/* rms_norm and block_forward of the reference backend: float32 outside, the block of block.h inside.
 * All rows of a call go through one line of it before the next. */
#include <math.h>

#include "common/alloc.h"
#include "worker/backend/ref/block.h"
#include "worker/backend/ref/ref.h"
#include "worker/backend/shape.h"

int ref_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
		 size_t cols, float *y, struct err *err)
{
	(void)be;
	if (matrix_shape_check("rms_norm", rows, cols, err) != 0)
		return -1;
	for (size_t r = 0; r < rows; r++) {
		double sum = 0, scale;

		for (size_t i = 0; i < cols; i++)
			sum += (double)x[r * cols + i] * x[r * cols + i];
		scale = 1 / sqrt(sum / (double)cols + eps);
		for (size_t i = 0; i < cols; i++) {
			y[r * cols + i] = (float)(x[r * cols + i] * scale * weight[i]);
			if (!isfinite(y[r * cols + i]))
				return err_set_not_finite(err, "rms_norm");
		}
	}
	return 0;
}

/* Float32 rows for the tap: as wide as the widest site. */
static float *take_site(const struct block_shape *shape, size_t rows, struct err *err)
{
	const size_t q_cols = shape->heads * shape->head_dim;
	size_t wide = shape->hidden > shape->intermediate ? shape->hidden : shape->intermediate, n;
	float *site;

	wide = q_cols > wide ? q_cols : wide;
	site = size_mul(rows, wide, &n) ? mem_alloc_aligned(n, sizeof(*site)) : NULL;
	if (!site)
		err_set_nomem(err, "a block's activations");
	return site;
}

int ref_block_forward(struct backend *be, const struct block_shape *shape,
		      const struct block_weights *w, const struct rope_table *rope, const float *x,
		      size_t n_seq, size_t seq_len, float *y, block_tap tap, void *tap_ctx,
		      struct err *err)
{
	struct ref_block b = { 0 };
	struct ref_acts s = { 0 };
	float *site = NULL;
	int rc = -1;

	(void)be;
	if (block_shape_check(shape, n_seq, seq_len, err) != 0)
		return -1;
	if (!y && !tap)
		return 0;
	if (ref_block_init(&b, shape, w, rope, seq_len, err) != 0 ||
	    ref_acts_init(&s, shape, n_seq, seq_len, false, err) != 0)
		goto out;
	site = take_site(shape, s.rows, err);
	if (!site)
		goto out;
	for (size_t i = 0; i < s.rows * shape->hidden; i++)
		s.x[i] = x[i];
	rc = ref_block_run(&b, &s, y != NULL, tap, tap_ctx, site, err);
	for (size_t i = 0; rc == 0 && y && i < s.rows * shape->hidden; i++)
		y[i] = (float)s.y[i];
out:
	mem_free(site);
	ref_acts_deinit(&s);
	ref_block_deinit(&b);
	return rc;
}
