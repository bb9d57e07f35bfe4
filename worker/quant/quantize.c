/* Order and safeguards of quantizing one module.
 *
 * Invariants:
 *  1. The damping of a site is decided once, before any module: fit, rounding and losses all see the
 *     same H + damp I.
 *  2. Rounding with error feedback is kept only when it does not raise the proxy loss above that of nearest codes.
 */
#include "worker/quant/quantize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"

enum { DAMP_RETRIES = 5 };

/* --- site ---------------------------------------------------------------------------------- */

static int mean_diagonal(const double *h, size_t cols, double *mean, struct err *err)
{
	double sum = 0;

	for (size_t i = 0; i < cols; i++) {
		const double d = h[i * cols + i];

		if (!(d >= 0) || !isfinite(d))
			return err_set(err, ERR_NUMERIC,
				       "H has %g on its diagonal at column %zu; it must be a finite number, at least 0",
				       d, i);
		sum += d / (double)cols;
	}
	if (!(sum > 0) || !isfinite(sum))
		return err_set(err, ERR_NUMERIC,
			       "H is zero: the calibration data never activates this input");
	*mean = sum;
	return 0;
}

struct ranked { double diag; int32_t column; };

static int by_decreasing_diagonal(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->diag != y->diag)
		return x->diag < y->diag ? 1 : -1;
	return (x->column > y->column) - (x->column < y->column);
}

/* Columns by decreasing h_ii, which the damping does not change. */
static int order_columns(struct quant_site *site, struct err *err)
{
	struct ranked *rank = mem_alloc(site->cols, sizeof(*rank));

	if (!rank)
		return err_set_nomem(err, "the order of columns");
	for (size_t i = 0; i < site->cols; i++)
		rank[i] = (struct ranked){ site->h[i * site->cols + i], (int32_t)i };
	qsort(rank, site->cols, sizeof(*rank), by_decreasing_diagonal);
	for (size_t i = 0; i < site->cols; i++)
		site->perm[i] = rank[i].column;
	mem_free(rank);
	return 0;
}

static int factor_damped(struct quant_site *site, struct backend *be, struct err *err)
{
	struct err failure = ERR_INIT;
	const double first = site->damp;

	for (;;) {
		if (be->ops->factor(be, site->h, site->perm, site->cols, site->damp, site->u,
				    &failure) == 0)
			return 0;
		if (failure.code != ERR_NUMERIC)
			return err_set(err, failure.code, "%s", failure.text);
		if (site->damp_retries == DAMP_RETRIES)
			return err_set(err, ERR_NUMERIC,
				       "%s, even with %g instead of %g added to its diagonal",
				       failure.text, site->damp, first);
		site->damp *= 10;
		site->damp_retries++;
	}
}

static int site_fill(struct quant_site *site, struct backend *be, double damp_fraction,
		     bool need_factor, struct err *err)
{
	size_t cells;
	double mean = 0;

	if (mean_diagonal(site->h, site->cols, &mean, err) != 0)
		return -1;
	site->damp = damp_fraction * mean;
	site->diag = mem_alloc(site->cols, sizeof(*site->diag));
	site->perm = mem_alloc(site->cols, sizeof(*site->perm));
	if (!site->diag || !site->perm)
		return err_set_nomem(err, "the diagonal of H");
	if (order_columns(site, err) != 0)
		return -1;
	if (need_factor) {
		if (size_mul(site->cols, site->cols, &cells))
			site->u = mem_alloc_aligned(cells, sizeof(*site->u));
		if (!site->u)
			return err_set_nomem(err, "the factor of H");
		if (factor_damped(site, be, err) != 0)
			return -1;
	}
	for (size_t i = 0; i < site->cols; i++) {
		site->diag[i] = site->h[i * site->cols + i] + site->damp;
		if (!(site->diag[i] > 0))
			return err_set(err, ERR_NUMERIC,
				       "H is zero at column %zu and nothing is added to it; the damping must be above 0",
				       i);
	}
	return 0;
}

int quant_site_init(struct quant_site *site, struct backend *be, const double *h, size_t cols,
		    double damp_fraction, bool need_factor, struct err *err)
{
	*site = (struct quant_site){ .cols = cols, .h = h };
	if (cols == 0 || cols > INT32_MAX)
		return err_set(err, ERR_INVALID, "H has %zu columns; it must have 1 to %d", cols,
			       INT32_MAX);
	if (!(damp_fraction >= 0) || !isfinite(damp_fraction))
		return err_set(err, ERR_INVALID, "the damping is %g; it must be at least 0",
			       damp_fraction);
	if (site_fill(site, be, damp_fraction, need_factor, err) == 0)
		return 0;
	quant_site_deinit(site);
	return -1;
}

void quant_site_deinit(struct quant_site *site)
{
	mem_free(site->diag);
	mem_free(site->perm);
	mem_free(site->u);
	*site = (struct quant_site){ 0 };
}

/* --- module -------------------------------------------------------------------------------- */

static int check_options(const struct quant_site *site, const struct quant_options *options,
			 struct err *err)
{
	const struct grid *grid = &options->grid;

	if (grid->bits < 1 || grid->bits > 8)
		return err_set(err, ERR_INVALID, "bits is %d; it must be 1 to 8", grid->bits);
	if (grid->group == 0 || site->cols % grid->group != 0)
		return err_set(err, ERR_INVALID, "group size %zu does not divide %zu columns",
			       grid->group, site->cols);
	if (options->ldlq && !site->u)
		return err_set(err, ERR_INTERNAL, "LDLQ needs the factor of H, which was not asked for");
	return 0;
}

static int allocate(struct quant_result *out, size_t rows, size_t cols, size_t groups,
		    struct err *err)
{
	size_t cells;

	if (size_mul(rows, cols, &cells)) {
		out->codes = mem_alloc(cells, 1);
		out->scales = mem_alloc(rows * groups, sizeof(*out->scales));
		out->zeros = mem_alloc(rows * groups, sizeof(*out->zeros));
	}
	if (!out->codes || !out->scales || !out->zeros)
		return err_set_nomem(err, "codes and scales of a module");
	return 0;
}

static int fit(struct quant_result *out, struct backend *be, const struct quant_site *site,
	       const struct quant_options *options, const float *w, size_t rows, struct err *err)
{
	const size_t count = rows * (site->cols / options->grid.group);
	double *objective = mem_alloc(count, sizeof(*objective));
	int rc;

	if (!objective)
		return err_set_nomem(err, "the objective of each group");
	rc = be->ops->fit_groups(be, options->method, &options->grid, w, rows, site->cols,
				 site->diag, out->scales, out->zeros, objective, err);
	for (size_t i = 0; i < count && rc == 0; i++)
		out->init_objective += objective[i];
	mem_free(objective);
	return rc;
}

static int loss_of(const struct quant_result *r, const uint8_t *codes, struct backend *be,
		   const struct quant_site *site, const struct grid *grid, const float *w,
		   size_t rows, double *loss, double *energy, struct err *err)
{
	return be->ops->proxy_loss(be, grid, w, rows, site->cols, site->h, site->damp, codes,
				   r->scales, r->zeros, loss, energy, err);
}

/* Replaces the nearest codes when that does not raise the loss. */
static int round_with_feedback(struct quant_result *out, struct backend *be,
			       const struct quant_site *site, const struct grid *grid,
			       const float *w, size_t rows, struct err *err)
{
	uint8_t *codes = mem_alloc(rows * site->cols, 1);
	double loss;

	if (!codes)
		return err_set_nomem(err, "codes of a module");
	if (be->ops->round_ldlq(be, grid, w, rows, site->cols, site->perm, site->u, out->scales,
				out->zeros, codes, err) != 0 ||
	    loss_of(out, codes, be, site, grid, w, rows, &loss, NULL, err) != 0) {
		mem_free(codes);
		return -1;
	}
	if (loss <= out->loss_nearest) {
		uint8_t *nearest = out->codes;

		out->codes = codes;
		out->loss = loss;
		codes = nearest;
	}
	mem_free(codes);
	return 0;
}

int quant_module(struct quant_result *out, struct backend *be, const struct quant_site *site,
		 const struct quant_options *options, const float *w, size_t rows, struct err *err)
{
	const struct grid *grid = &options->grid;

	*out = (struct quant_result){ 0 };
	if (check_options(site, options, err) != 0)
		return -1;
	if (allocate(out, rows, site->cols, site->cols / grid->group, err) != 0 ||
	    fit(out, be, site, options, w, rows, err) != 0 ||
	    be->ops->round_nearest(be, grid, w, rows, site->cols, out->scales, out->zeros,
				   out->codes, err) != 0 ||
	    loss_of(out, out->codes, be, site, grid, w, rows, &out->loss_nearest, &out->energy,
		    err) != 0)
		goto fail;
	out->loss = out->loss_nearest;
	if (options->ldlq && round_with_feedback(out, be, site, grid, w, rows, err) != 0)
		goto fail;
	return 0;
fail:
	quant_result_deinit(out);
	return -1;
}

void quant_result_deinit(struct quant_result *r)
{
	mem_free(r->codes);
	mem_free(r->scales);
	mem_free(r->zeros);
	*r = (struct quant_result){ 0 };
}
