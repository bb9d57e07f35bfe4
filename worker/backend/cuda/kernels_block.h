/* kernels_block.h - device code of the way forward through a block, except attention (kernels_attention.h).
 *
 * Every array is on the device; all of it is bound by memory. bad: set to 1 where a value written is not finite. A
 * launcher with nothing to do does nothing. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_BLOCK_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_BLOCK_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* y = RMSNorm(x) * weight (cols): x, y (rows, cols); y may be x. The sum of squares is in double. */
cudaError_t cuda_norm_launch(cudaStream_t stream, const float *x, const float *weight, float eps, size_t rows,
			     size_t cols, float *y, int *bad);

/* Optional norm, then turn, of every head of in (rows, heads * dim); out may be in. Row r is at position r % seq_len. */
struct cuda_turn {
	const float *cos, *sin;         /* (seq_len, dim / 2) */
	size_t rows, seq_len, heads, dim;
	const float *in, *norm;         /* norm (dim), or NULL */
	float eps;
	float *out;
	int *bad;
};
cudaError_t cuda_turn_launch(cudaStream_t stream, const struct cuda_turn *t);

/* d = silu(gate) * up, n elements; d may be up or gate. */
cudaError_t cuda_swiglu_launch(cudaStream_t stream, const float *gate, const float *up, size_t n, float *d, int *bad);

/* y (rows, cols) = residual (rows, cols) + bias (cols); either may be NULL; residual may be y. */
cudaError_t cuda_rows_begin_launch(cudaStream_t stream, const float *residual, const float *bias, size_t rows,
				   size_t cols, float *y);
/* Looks at n elements. */
cudaError_t cuda_rows_finite_launch(cudaStream_t stream, const float *x, size_t n, int *bad);

#ifdef __cplusplus
}
#endif

#endif
