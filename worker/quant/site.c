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

static int mean_diagonal(const double *h, size_t cols, double *mean, struct err *err)
{
	double sum = 0;

	for (size_t i = 0; i < cols; i++) {
		const double d = h[i * cols + i];

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

/* D from U D U^T = H + damp I, last column first: D_j = h_jj - sum over k > j of U_jk^2 D_k. */
static void find_pivots(struct quant_site *site)
{
	const size_t n = site->cols;

	for (size_t j = n; j-- > 0;) {
		const size_t c = (size_t)site->perm[j];
		double d = site->h[c * n + c] + site->damp;

		for (size_t k = j + 1; k < n; k++)
			d -= (double)site->u[j * n + k] * site->u[j * n + k] * site->pivots[k];
		site->pivots[j] = fmax(d, 0);
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
		site->pivots = mem_alloc(site->cols, sizeof(*site->pivots));
		if (!site->u || !site->pivots)
			return err_set_nomem(err, "the factor of H");
		if (factor_damped(site, be, err) != 0)
			return -1;
		find_pivots(site);
	}
	for (size_t i = 0; i < site->cols; i++) {
		site->diag[i] = site->h[i * site->cols + i] + site->damp;
		if (!(site->diag[i] > 0))
			return err_set(err, ERR_NUMERIC,
				       "H is zero at column %zu and nothing is added to it; the damping "
				       "must be above 0", i);
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
	mem_free(site->pivots);
	*site = (struct quant_site){ 0 };
}
