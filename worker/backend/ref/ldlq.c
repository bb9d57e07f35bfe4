/* Rounding with error feedback, one row after the other, one column after the other. */
#include <math.h>

#include "common/alloc.h"
#include "worker/backend/ref/ref.h"

/* e (K) receives w - what in the order of perm. */
static int round_row(const struct grid *grid, const float *w, size_t cols, const int32_t *perm,
		     const float *u, const double *pivots, const float *scales, const float *zeros,
		     double *e, uint8_t *codes, double *row_loss, struct err *err)
{
	const double top = (1 << grid->bits) - 1;
	double loss = 0;

	for (size_t j = 0; j < cols; j++) {
		size_t c = (size_t)perm[j];
		double s = scales[c / grid->group], z = zeros[c / grid->group];
		double target = w[c], q;

		for (size_t i = 0; i < j; i++)
			target += u[i * cols + j] * e[i];
		q = nearbyint(target / s + z);
		if (isnan(q))
			return err_set(err, ERR_NUMERIC, "column %zu rounds to NaN", c);
		q = fmin(fmax(q, 0), top);
		e[j] = w[c] - s * (q - z);
		codes[c] = (uint8_t)q;
		if (row_loss) {
			const double miss = target - s * (q - z);

			loss += pivots[j] * miss * miss;
		}
	}
	if (row_loss)
		*row_loss = loss;
	return 0;
}

int ref_round_ldlq(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const int32_t *perm, const float *u, const double *pivots,
		   const float *scales, const float *zeros, uint8_t *codes, double *row_loss,
		   struct err *err)
{
	const size_t groups = cols / grid->group;
	double *e = mem_alloc(cols, sizeof(*e));
	int rc = 0;

	(void)be;
	if (!e)
		return err_set_nomem(err, "one row of rounding errors");
	for (size_t r = 0; r < rows && rc == 0; r++) {
		rc = round_row(grid, w + r * cols, cols, perm, u, pivots, scales + r * groups,
			       zeros + r * groups, e, codes + r * cols,
			       row_loss ? row_loss + r : NULL, err);
		if (rc != 0)
			err_prefix(err, "row %zu", r);
	}
	mem_free(e);
	return rc;
}
