/* kernels_factor.h - device code around the factorization of H.
 *
 * Every array is on the device. The reversed matrix has rows and columns of the permuted H last to first, so that its
 * Cholesky factor L gives U: u_ij = L_pq / L_qq with p = n-1-i, q = n-1-j. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_FACTOR_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_FACTOR_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* a (n, n) = the reversed, permuted h (n, n) with damp added to its diagonal, all of it. */
cudaError_t cuda_factor_load_launch(cudaStream_t stream, const double *h, const int32_t *perm, size_t n, double damp,
				    double *a);
/* diagonal (n) = L_qq in the order of U. *first: the smallest q whose L_qq is not positive and finite, or n. */
cudaError_t cuda_factor_diagonal_launch(cudaStream_t stream, const double *l, size_t n, double *diagonal, int *first);
/* u (n, n) from L and its diagonal; zero on and below the diagonal. bad: set where it is not finite. */
cudaError_t cuda_factor_store_launch(cudaStream_t stream, const double *l, const double *diagonal, size_t n, float *u,
				     int *bad);
/* pivots (n): D_j = h_jj + damp - sum over k > j of u_jk^2 D_k, at least 0; j counted in the order of perm. */
cudaError_t cuda_factor_pivots_launch(cudaStream_t stream, const double *h, const int32_t *perm, size_t n, double damp,
				      const float *u, double *pivots, int *bad);

#ifdef __cplusplus
}
#endif

#endif
