/* Nearest rounding and the proxy loss trace(E H E^T), straight from their definitions. */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/ref/ref.h"

int ref_round_nearest(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		      size_t cols, const float *scales, const float *zeros, uint8_t *codes,
		      struct err *err)
{
	const double top = (1 << grid->bits) - 1;
	const size_t groups = cols / grid->group;

	(void)be;
	for (size_t r = 0; r < rows; r++) {
		for (size_t c = 0; c < cols; c++) {
			size_t g = r * groups + c / grid->group;
			double x = nearbyint((double)w[r * cols + c] / scales[g] + zeros[g]);

			if (!(scales[g] > 0) || !isfinite(scales[g]) || !isfinite(zeros[g]))
				return err_set(err, ERR_NUMERIC,
					       "a scale or zero-point of row %zu is not usable", r);
			codes[r * cols + c] = (uint8_t)fmin(fmax(x, 0), top);
		}
	}
	return 0;
}

/* x^T (H + damp I) x */
static double quadratic_form(const double *x, const double *h, double damp, size_t n)
{
	double total = 0;

	for (size_t i = 0; i < n; i++) {
		double dot = damp * x[i];

		for (size_t j = 0; j < n; j++)
			dot += h[i * n + j] * x[j];
		total += x[i] * dot;
	}
	return total;
}

int ref_proxy_loss(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const double *h, double damp, const uint8_t *codes,
		   const float *scales, const float *zeros, double *loss, double *energy,
		   struct err *err)
{
	const size_t groups = cols / grid->group;
	double *x = mem_alloc(cols, sizeof(*x));
	double e_sum = 0, w_sum = 0;

	(void)be;
	if (!x)
		return err_set_nomem(err, "one row of rounding errors");
	for (size_t r = 0; r < rows; r++) {
		const float *row = w + r * cols;

		for (size_t c = 0; c < cols; c++) {
			size_t g = r * groups + c / grid->group;

			x[c] = row[c] - (double)scales[g] * (codes[r * cols + c] - (double)zeros[g]);
		}
		e_sum += quadratic_form(x, h, damp, cols);
		if (!energy)
			continue;
		for (size_t c = 0; c < cols; c++)
			x[c] = row[c];
		w_sum += quadratic_form(x, h, damp, cols);
	}
	mem_free(x);
	if (!isfinite(e_sum) || !isfinite(w_sum))
		return err_set(err, ERR_NUMERIC, "the proxy loss is not finite");
	*loss = e_sum;
	if (energy)
		*energy = w_sum;
	return 0;
}
