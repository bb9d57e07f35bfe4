/* The loss, the trainable grid and the optimizer of the reference backend, straight from backend.h. */
#include <math.h>

#include "worker/backend/ref/ref.h"
#include "worker/backend/shape.h"

int ref_squared_error(struct backend *be, const float *y, const float *target, size_t n, double scale, float *dy,
		      double *sum, struct err *err)
{
	(void)be;
	*sum = 0;
	for (size_t i = 0; i < n; i++) {
		const double d = (double)y[i] - (double)target[i];

		*sum += d * d;
		if (dy)
			dy[i] = (float)(scale * d);
	}
	return isfinite(*sum) ? 0 : err_set_not_finite(err, "squared_error");
}

static float code_of(const struct grid *grid, float latent)
{
	const float top = (float)((1 << grid->bits) - 1);

	return fminf(fmaxf(nearbyintf(latent), 0), top);
}

int ref_grid_values(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		    size_t cols, const float *scales, const float *zeros, float *w, struct err *err)
{
	(void)be;
	if (grid_shape_check("grid_values", grid, rows, cols, err) != 0)
		return -1;
	for (size_t i = 0; i < rows * cols; i++) {
		const size_t g = i / grid->group;

		w[i] = scales[g] * (code_of(grid, latents[i]) - zeros[g]);
		if (!isfinite(w[i]))
			return err_set_not_finite(err, "grid_values");
	}
	return 0;
}

/* One group of n columns; false when a gradient is not finite. */
static bool group_gradients(const struct grid *grid, const float *latents, size_t n, double scale,
			    double zero, const float *dw, float *dscale, float *dzero, float *dlatents)
{
	const double end = (1 << grid->bits) - 0.5;
	double along_scale = 0, sum = 0;
	bool finite = true;

	for (size_t i = 0; i < n; i++) {
		along_scale += dw[i] * (code_of(grid, latents[i]) - zero);
		sum += dw[i];
	}
	if (dscale)
		*dscale = (float)along_scale;
	if (dzero)
		*dzero = (float)(-scale * sum);
	finite = isfinite((float)along_scale) && isfinite((float)(scale * sum));
	for (size_t i = 0; dlatents && i < n; i++) {
		dlatents[i] = latents[i] > -0.5 && latents[i] < end ? (float)(scale * dw[i]) : 0;
		finite = finite && isfinite(dlatents[i]);
	}
	return finite;
}

int ref_grid_gradients(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		       size_t cols, const float *scales, const float *zeros, const float *dw,
		       float *dscales, float *dzeros, float *dlatents, struct err *err)
{
	(void)be;
	if (grid_shape_check("grid_gradients", grid, rows, cols, err) != 0)
		return -1;
	for (size_t g = 0; g < rows * cols / grid->group; g++) {
		const size_t at = g * grid->group;

		if (!group_gradients(grid, latents + at, grid->group, scales[g], zeros[g], dw + at,
				     dscales ? dscales + g : NULL, dzeros ? dzeros + g : NULL,
				     dlatents ? dlatents + at : NULL))
			return err_set_not_finite(err, "grid_gradients");
	}
	return 0;
}

int ref_adam_step(struct backend *be, const struct adam *adam, size_t n, float *p, const float *g, float *m,
		  float *v, struct err *err)
{
	const double beta1 = adam->beta1, beta2 = adam->beta2;
	double correct1, correct2;

	(void)be;
	if (adam_check(adam, err) != 0)
		return -1;
	correct1 = 1 - pow(beta1, (double)adam->step);
	correct2 = 1 - pow(beta2, (double)adam->step);
	for (size_t i = 0; i < n; i++) {
		const double mean = beta1 * m[i] + (1 - beta1) * g[i];
		const double square = beta2 * v[i] + (1 - beta2) * g[i] * g[i];

		m[i] = (float)mean;
		v[i] = (float)square;
		p[i] = (float)(p[i] - adam->rate * (mean / correct1) /
				      (sqrt(square / correct2) + adam->epsilon));
		if (!isfinite(p[i]) || !isfinite(m[i]) || !isfinite(v[i]))
			return err_set_not_finite(err, "adam_step");
	}
	return 0;
}
