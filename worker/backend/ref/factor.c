/* H = U D U^T by elimination from the last column backwards: column j of U is
 * (a_ij - sum over k > j of U_ik D_k U_jk) / D_j, D_j the same expression with i = j. */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/pivots.h"
#include "worker/backend/ref/ref.h"

/* a (n,n), upper part: permuted matrix in, U (strictly upper) and D (diagonal) out. Row j of the lower part
 * keeps column j before its division, so that the inner loop runs along rows. */
static int factor_in_place(double *a, size_t n, struct err *err)
{
	for (size_t j = n; j-- > 0;) {
		const double d = a[j * n + j];

		if (!(d > 0) || !isfinite(d))
			return err_set(err, ERR_NUMERIC,
				       "H is not positive definite at column %zu of %zu", j, n);
		for (size_t i = 0; i < j; i++) {
			a[j * n + i] = a[i * n + j];
			a[i * n + j] /= d;
		}
		for (size_t i = 0; i < j; i++)
			for (size_t k = i; k < j; k++)
				a[i * n + k] -= a[i * n + j] * a[j * n + k];
	}
	return 0;
}

int ref_factor(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp,
	       float *u, double *pivots, struct err *err)
{
	double *a = NULL;
	size_t cells;
	int rc;

	(void)be;
	if (size_mul(n, n, &cells))
		a = mem_alloc(cells, sizeof(*a));
	if (!a)
		return err_set_nomem(err, "the factor of H");
	for (size_t i = 0; i < n; i++) {
		for (size_t j = i; j < n; j++)
			a[i * n + j] = h[(size_t)perm[i] * n + (size_t)perm[j]];
		a[i * n + i] += damp;
	}
	rc = factor_in_place(a, n, err);
	for (size_t i = 0; i < n && rc == 0; i++) {
		memset(u + i * n, 0, (i + 1) * sizeof(*u));
		for (size_t j = i + 1; j < n; j++)
			u[i * n + j] = (float)a[i * n + j];
	}
	mem_free(a);
	if (rc == 0 && pivots)
		factor_pivots(h, perm, n, damp, u, pivots);
	return rc;
}
