/* D from U D U^T = H + damp I, last column first: D_j = h_jj - sum over k > j of U_jk^2 D_k. */
#include "worker/backend/pivots.h"

#include <math.h>

void factor_pivots(const double *h, const int32_t *perm, size_t n, double damp, const float *u, double *pivots)
{
	for (size_t j = n; j-- > 0;) {
		const size_t c = (size_t)perm[j];
		double d = h[c * n + c] + damp;

		for (size_t k = j + 1; k < n; k++)
			d -= (double)u[j * n + k] * u[j * n + k] * pivots[k];
		pivots[j] = fmax(d, 0);
	}
}
