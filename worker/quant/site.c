/* What the modules of one input site share: damping, order of columns, factor of H.
 *
 * The damping is decided once, before any module: fit, rounding and losses all see the same
 * H + damp I.
 */
#include <math.h>
#include <stdlib.h>

#include "common/alloc.h"
#include "worker/quant/quantize.h"

enum { DAMP_RETRIES = 5 };

static int mean_diagonal(const double *diagonal, size_t cols, double *mean, struct err *err)
{
	double sum = 0;

	for (size_t i = 0; i < cols; i++) {
		const double d = diagonal[i];

		if (!(d >= 0) || !isfinite(d))
			return err_set(err, ERR_NUMERIC,
				       "H has %g on its diagonal at column %zu; it must be finite and at "
				       "least 0", d, i);
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
static int order_columns(struct quant_site *site, const double *diagonal, struct err *err)
{
	struct ranked *rank = mem_alloc(site->cols, sizeof(*rank));

	if (!rank)
		return err_set_nomem(err, "the order of columns");
	for (size_t i = 0; i < site->cols; i++)
		rank[i] = (struct ranked){ diagonal[i], (int32_t)i };
	qsort(rank, site->cols, sizeof(*rank), by_decreasing_diagonal);
	for (size_t i = 0; i < site->cols; i++)
		site->perm[i] = rank[i].column;
	mem_free(rank);
	return 0;
}

static int factor_damped(struct quant_site *site, struct err *err)
{
	struct backend *be = site->be;
	struct err failure = ERR_INIT;
	const double first = site->damp;

	for (;;) {
		if (be->ops->factor(be, site->h, quant_site_perm(site), site->cols, site->damp, site->u, site->pivots,
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

static int make_order(struct quant_site *site, const double *diagonal, struct err *err)
{
	site->perm = mem_alloc(site->cols, sizeof(*site->perm));
	if (!site->perm)
		return err_set_nomem(err, "the order of columns");
	if (order_columns(site, diagonal, err) != 0)
		return -1;
	return placed_init(&site->perm_placed, site->be, site->perm, site->cols * sizeof(*site->perm),
			   "the order of columns", err);
}

static int make_factor(struct quant_site *site, struct err *err)
{
	const struct backend_ops *ops = site->be->ops;
	size_t cells, bytes;

	if (!size_mul(site->cols, site->cols, &cells) || !size_mul(cells, sizeof(*site->u), &bytes))
		return err_set_nomem(err, "the factor of H");
	site->u = ops->memory_take(site->be, bytes, "the factor of H", err);
	if (!site->u)
		return -1;
	site->pivots = ops->memory_take(site->be, site->cols * sizeof(*site->pivots), "the factor of H", err);
	return site->pivots ? factor_damped(site, err) : -1;
}

static int make_diagonal(struct quant_site *site, const double *diagonal, struct err *err)
{
	site->diag = mem_alloc(site->cols, sizeof(*site->diag));
	if (!site->diag)
		return err_set_nomem(err, "the diagonal of H");
	for (size_t i = 0; i < site->cols; i++) {
		site->diag[i] = diagonal[i] + site->damp;
		if (!(site->diag[i] > 0))
			return err_set(err, ERR_NUMERIC,
				       "H is zero at column %zu and nothing is added to it; the damping "
				       "must be above 0", i);
	}
	return placed_init(&site->diag_placed, site->be, site->diag, site->cols * sizeof(*site->diag),
			   "the diagonal of H", err);
}

static int site_fill(struct quant_site *site, const double *diagonal, double damp_fraction, bool need_factor,
		     struct err *err)
{
	double mean = 0;

	if (mean_diagonal(diagonal, site->cols, &mean, err) != 0)
		return -1;
	site->damp = damp_fraction * mean;
	if (make_order(site, diagonal, err) != 0 || (need_factor && make_factor(site, err) != 0))
		return -1;
	return make_diagonal(site, diagonal, err);
}

int quant_site_init(struct quant_site *site, struct backend *be, const double *h, const double *diagonal,
		    size_t cols, double damp_fraction, bool need_factor, struct err *err)
{
	*site = (struct quant_site){ .be = be, .cols = cols, .h = h };
	if (cols == 0 || cols > INT32_MAX)
		return err_set(err, ERR_INVALID, "H has %zu columns; it must have 1 to %d", cols,
			       INT32_MAX);
	if (!(damp_fraction >= 0) || !isfinite(damp_fraction))
		return err_set(err, ERR_INVALID, "the damping is %g; it must be at least 0",
			       damp_fraction);
	if (site_fill(site, diagonal, damp_fraction, need_factor, err) == 0)
		return 0;
	quant_site_deinit(site);
	return -1;
}

const int32_t *quant_site_perm(const struct quant_site *site)
{
	return placed_at(&site->perm_placed, site->perm);
}

const double *quant_site_diag(const struct quant_site *site)
{
	return placed_at(&site->diag_placed, site->diag);
}

void quant_site_deinit(struct quant_site *site)
{
	placed_deinit(&site->diag_placed);
	placed_deinit(&site->perm_placed);
	mem_free(site->diag);
	mem_free(site->perm);
	if (site->u)
		site->be->ops->memory_give(site->be, site->u);
	if (site->pivots)
		site->be->ops->memory_give(site->be, site->pivots);
	*site = (struct quant_site){ 0 };
}
