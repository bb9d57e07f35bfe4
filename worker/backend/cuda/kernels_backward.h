/* kernels_backward.h - device code of the way back through a block, except attention (kernels_backward_attention.h).
 *
 * Every array is on the device. Sums run in double and in an order fixed by shape. A launcher with nothing to do does
 * nothing. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_BACKWARD_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_BACKWARD_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Back through y = RMSNorm(x) * weight, all (rows, cols): dx = add + the gradient of x; add may be NULL, dx may be dy
 * or add. scales (rows), or NULL: 1 / the root of each row's mean square. bad: set where dx is not finite. */
struct cuda_norm_back {
	const float *x, *weight, *dy, *add;
	float eps;
	size_t rows, cols;
	float *dx, *scales;
	int *bad;
};
cudaError_t cuda_norm_back_launch(cudaStream_t stream, const struct cuda_norm_back *n);

/* Back through the optional norm and turn of every head (cuda_turn_heads()). d (rows, heads * dim): in the gradient
 * behind the turn, left as that before it. With norm (dim): out (rows, heads * dim) the gradient of `in`, scales
 * (rows, heads) as above. Row r is at position r % seq_len. */
struct cuda_turn_back {
	const float *cos, *sin;         /* (seq_len, dim / 2) */
	size_t rows, seq_len, heads, dim;
	float *d;
	const float *in, *norm;
	float eps;
	float *out, *scales;
};
cudaError_t cuda_turn_back_launch(cudaStream_t stream, const struct cuda_turn_back *t);

/* From dd, the gradient of d = silu(gate) * up: gate and up become their gradients; n elements. */
cudaError_t cuda_swiglu_back_launch(cudaStream_t stream, float *gate, float *up, const float *dd, size_t n);

/* total (cols) = the sum over rows of dy (rows, cols), of dy * x * scales (rows) with x (rows, cols); `add`: to what it
 * holds. parts: scratch, (cuda_column_parts(rows), cols). */
struct cuda_column_sums {
	const float *dy, *x, *scales;   /* x and scales both or neither */
	size_t rows, cols;
	double *parts;
	bool add;
	float *total;
};
size_t cuda_column_parts(size_t rows);
cudaError_t cuda_column_sums_launch(cudaStream_t stream, const struct cuda_column_sums *s);

#ifdef __cplusplus
}
#endif

#endif
