/* head_tile of the reference backend: one logit after the other into the running log-sum-exp. */
#include <math.h>

#include "worker/backend/ref/ref.h"
#include "worker/backend/shape.h"

static void fold(const struct head_state *st, size_t row, double logit, int32_t id, int32_t target)
{
	if (logit > st->max[row]) {
		st->sum[row] = st->sum[row] * exp(st->max[row] - logit) + 1;
		st->max[row] = logit;
	} else {
		st->sum[row] += exp(logit - st->max[row]);
	}
	if (id == target)
		st->target[row] = logit;
	if (logit > st->top_logit[row]) {
		st->top_logit[row] = logit;
		st->top_id[row] = id;
	}
}

int ref_head_tile(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w,
		  size_t tile_rows, int32_t first_id, const int32_t *targets,
		  struct head_state *state, struct err *err)
{
	(void)be;
	if (matrix_shape_check("head_tile", rows, hidden, err) != 0 ||
	    matrix_shape_check("head_tile", tile_rows, hidden, err) != 0)
		return -1;
	for (size_t r = 0; r < rows; r++) {
		for (size_t n = 0; n < tile_rows; n++) {
			double logit = 0;

			for (size_t k = 0; k < hidden; k++)
				logit += (double)x[r * hidden + k] * w[n * hidden + k];
			if (!isfinite((float)logit))
				return err_set_not_finite(err, "head_tile");
			fold(state, r, logit, first_id + (int32_t)n, targets[r]);
		}
	}
	return 0;
}
