/* head_tile of the reference backend: one logit after the other into the running log-sum-exp; and
 * head_kl_tile, which reads what came of it. */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
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

static double logit_of(const float *x, const float *w, size_t hidden)
{
	double logit = 0;

	for (size_t k = 0; k < hidden; k++)
		logit += (double)x[k] * w[k];
	return logit;
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
			const double logit = logit_of(x + r * hidden, w + n * hidden, hidden);

			if (!isfinite((float)logit))
				return err_set_not_finite(err, "head_tile");
			fold(state, r, logit, first_id + (int32_t)n, targets[r]);
		}
	}
	return 0;
}

/* One row against a tile: what it adds to the row's kl is returned, sum (p - p_ref) w is in d (hidden). */
static double kl_row(const float *x, const float *x_ref, size_t hidden, const float *w, const float *w_ref,
		     size_t tile_rows, double log_norm, double ref_log_norm, double *d)
{
	double kl = 0;

	memset(d, 0, hidden * sizeof(*d));
	for (size_t n = 0; n < tile_rows; n++) {
		const double log_p = logit_of(x, w + n * hidden, hidden) - log_norm;
		const double log_ref = logit_of(x_ref, w_ref + n * hidden, hidden) - ref_log_norm;
		const double p = exp(log_p), ref = exp(log_ref);

		kl += ref * (log_ref - log_p);
		for (size_t k = 0; k < hidden; k++)
			d[k] += (p - ref) * w[n * hidden + k];
	}
	return kl;
}

int ref_head_kl_tile(struct backend *be, const float *x, const float *x_ref, size_t rows, size_t hidden,
		     const float *w, const float *w_ref, size_t tile_rows, const struct head_state *state,
		     const struct head_state *ref_state, double *kl, float *dx, struct err *err)
{
	double *d;
	int rc = 0;

	(void)be;
	if (matrix_shape_check("head_kl_tile", rows, hidden, err) != 0 ||
	    matrix_shape_check("head_kl_tile", tile_rows, hidden, err) != 0)
		return -1;
	d = mem_alloc_aligned(hidden, sizeof(*d));
	if (!d)
		return err_set_nomem(err, "one row of head gradients");
	for (size_t r = 0; r < rows && rc == 0; r++) {
		const double add = kl_row(x + r * hidden, x_ref + r * hidden, hidden, w, w_ref, tile_rows,
					  state->max[r] + log(state->sum[r]),
					  ref_state->max[r] + log(ref_state->sum[r]), d);
		bool finite = isfinite(add);

		if (kl)
			kl[r] += add;
		for (size_t k = 0; dx && k < hidden; k++) {
			dx[r * hidden + k] = (float)(dx[r * hidden + k] + d[k]);
			finite = finite && isfinite(dx[r * hidden + k]);
		}
		if (!finite)
			rc = err_set_not_finite(err, "head_kl_tile");
	}
	mem_free(d);
	return rc;
}
