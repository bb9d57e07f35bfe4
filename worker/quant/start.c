/* Initialization, and its snapping to the numbers that formats store.
 *
 * Where z must be a multiple of 1/n, two fits compete group by group: one with integer zero-points, which are such
 * multiples, and one with free ones, snapped. Neither is always better: far from zero the first sees the bounds of z,
 * elsewhere the second the finer steps.
 */
#include "worker/quant/start.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/grid_snap.h"

/* (s, z) and the objective of every group. */
struct fitted { float *scales, *zeros; double *objective; size_t count; };

static void fitted_deinit(struct fitted *f)
{
	mem_free(f->scales);
	mem_free(f->zeros);
	mem_free(f->objective);
}

static int fitted_init(struct fitted *f, size_t count, struct err *err)
{
	*f = (struct fitted){ mem_alloc(count, sizeof(*f->scales)), mem_alloc(count, sizeof(*f->zeros)),
			      mem_alloc(count, sizeof(*f->objective)), count };
	if (f->scales && f->zeros && f->objective)
		return 0;
	fitted_deinit(f);
	return err_set_nomem(err, "the objective of each group");
}

static int fit(struct fitted *f, struct backend *be, const struct quant_site *site, enum fit_method method,
	       const struct grid *grid, const struct quant_weights *w, struct err *err)
{
	return be->ops->fit_groups(be, method, grid, w->placed, w->rows, site->cols, quant_site_diag(site),
				   f->scales, f->zeros, f->objective, err);
}

/* sum_i h_i (w_i - s (q_i - z))^2 with the nearest codes. */
static double objective_of(const struct grid *grid, const float *w, const double *h, float s, float z)
{
	const double top = (1 << grid->bits) - 1;
	double sum = 0;

	for (size_t i = 0; i < grid->group; i++) {
		const double q = fmin(fmax(nearbyint((double)w[i] / s + z), 0), top), e = w[i] - s * (q - z);

		sum += h[i] * e * e;
	}
	return sum;
}

/* The free fit, snapped, where it loses less than the fit with integers. */
static void prefer_steps(struct fitted *integers, const struct fitted *free_fit, const struct grid *grid,
			 const struct quant_site *site, const float *w)
{
	const size_t groups = site->cols / grid->group;

	for (size_t i = 0; i < integers->count; i++) {
		float s = free_fit->scales[i], z = free_fit->zeros[i];
		double objective;

		grid_snap(grid, &s, &z);
		objective = objective_of(grid, w + i * grid->group, site->diag + i % groups * grid->group, s, z);
		if (!(objective < integers->objective[i]))
			continue;
		integers->scales[i] = s;
		integers->zeros[i] = z;
		integers->objective[i] = objective;
	}
}

static int measure(struct quant_result *out, struct backend *be, const struct quant_site *site,
		   const struct grid *grid, const struct quant_weights *w, double *loss, struct err *err)
{
	if (be->ops->round_nearest(be, grid, w->placed, w->rows, site->cols, out->scales, out->zeros, out->codes,
				   err) != 0)
		return -1;
	return be->ops->proxy_loss(be, grid, w->placed, w->rows, site->cols, site->h, site->damp, out->codes,
				   out->scales, out->zeros, loss, &out->energy, err);
}

/* Takes `f` as the state and measures it before anything is snapped. */
static int take(struct quant_result *out, const struct fitted *f, struct backend *be, const struct quant_site *site,
		const struct grid *grid, const struct quant_weights *w, struct err *err)
{
	memcpy(out->scales, f->scales, f->count * sizeof(*f->scales));
	memcpy(out->zeros, f->zeros, f->count * sizeof(*f->zeros));
	return measure(out, be, site, grid, w, &out->loss_exact, err);
}

static int fit_steps(struct quant_result *out, struct fitted *f, struct backend *be, const struct quant_site *site,
		     const struct quant_options *options, const struct quant_weights *w, struct err *err)
{
	struct grid integers = options->grid, any = options->grid;
	struct fitted other;
	int rc;

	integers.integer_zero = true;
	any.zero_parts = 0;
	if (fitted_init(&other, f->count, err) != 0)
		return -1;
	rc = fit(f, be, site, options->method, &integers, w, err);
	if (rc == 0)
		rc = fit(&other, be, site, options->method, &any, w, err);
	if (rc == 0)
		rc = take(out, &other, be, site, &any, w, err);
	if (rc == 0) {
		prefer_steps(f, &other, &options->grid, site, w->w);
		memcpy(out->scales, f->scales, f->count * sizeof(*f->scales));
		memcpy(out->zeros, f->zeros, f->count * sizeof(*f->zeros));
	}
	fitted_deinit(&other);
	return rc;
}

int quant_start(struct quant_result *out, struct backend *be, const struct quant_site *site,
		const struct quant_options *options, const struct quant_weights *w, struct err *err)
{
	const struct grid *grid = &options->grid;
	const size_t count = w->rows * (site->cols / grid->group);
	struct fitted f;
	int rc = fitted_init(&f, count, err);

	if (rc != 0)
		return -1;
	if (grid->zero_parts > 0 && !grid->integer_zero && !grid->symmetric)
		rc = fit_steps(out, &f, be, site, options, w, err);
	else if ((rc = fit(&f, be, site, options->method, grid, w, err)) == 0)
		rc = take(out, &f, be, site, grid, w, err);
	for (size_t i = 0; i < count && rc == 0; i++)
		out->init_objective += f.objective[i];
	fitted_deinit(&f);
	if (rc != 0)
		return -1;
	out->loss_nearest = out->loss_exact;
	if (!grid->half && grid->zero_parts == 0)
		return 0;
	grid_snap_all(grid, out->scales, out->zeros, count);
	return measure(out, be, site, grid, w, &out->loss_nearest, err);
}
