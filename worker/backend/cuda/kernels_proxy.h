/* kernels_proxy.h - device code of the proxy loss.
 *
 * Every array is on the device; sums run in double and in an order fixed by shape. For products in float32 H is in units
 * of a power of two near its largest diagonal entry, and each row of E in its own, so that float32 holds all of them.
 * Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_PROXY_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_PROXY_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* unit: the power of two at or below the largest h_jj + damp, 1 where there is none; diagonal (n): (h_jj + damp) / unit. */
cudaError_t cuda_proxy_diagonal_launch(cudaStream_t stream, const double *h, size_t n, double damp, double *unit,
				       double *diagonal);
/* a (n, n) = 2 h_ij / unit above the diagonal, zero on and below it. */
cudaError_t cuda_proxy_upper_launch(cudaStream_t stream, const double *h, size_t n, const double *unit, float *a);

/* E of some rows, and the part of the loss that the diagonal of H gives. */
struct cuda_proxy_rows {
	const float *w;                 /* (rows, cols) */
	const uint8_t *codes;           /* (rows, cols), or NULL: E is W */
	const float *scales, *zeros;    /* (rows, cols / group) */
	size_t rows, cols, group;
	const double *diagonal;         /* (cols) */
	float *e;                       /* out: (rows, cols) E / the row's unit, rounded once */
	double *units, *sums;           /* out: (rows) powers of two; sum over j of diagonal_j e_j^2 */
};
cudaError_t cuda_proxy_rows_launch(cudaStream_t stream, const struct cuda_proxy_rows *r);

/* sums (rows) += e p^T of each row: e (rows, n) with rows `cols` apart, p (rows, n) dense. */
cudaError_t cuda_proxy_dot_launch(cudaStream_t stream, const float *e, size_t cols, const float *p, size_t rows,
				  size_t n, double *sums);
/* *total += unit * sum over rows of sums * units^2; units and unit NULL: 1. */
cudaError_t cuda_proxy_total_launch(cudaStream_t stream, const double *sums, const double *units, size_t rows,
				    const double *unit, double *total);

/* All in double, for few rows. e (rows, cols) = E of r, whose outputs and diagonal are not looked at. */
cudaError_t cuda_proxy_exact_rows_launch(cudaStream_t stream, const struct cuda_proxy_rows *r, double *e);
/* sums (rows) = e (p + damp e)^T of each row; e, p (rows, cols) */
cudaError_t cuda_proxy_exact_dot_launch(cudaStream_t stream, const double *e, const double *p, double damp, size_t rows,
					size_t cols, double *sums);

#ifdef __cplusplus
}
#endif

#endif
