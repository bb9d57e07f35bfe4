/* kernels_train.h - device code of the trainable grid and of Adam. Every array is on the device; bad is set where a
 * result is not finite. A launcher with nothing to do does nothing. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_TRAIN_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_TRAIN_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* n elements in groups of `group`; a group does not reach from one row into the next, so rows do not matter. */
struct cuda_trained_grid {
	int bits;
	size_t n, group;
	const float *latents;           /* (n) */
	const float *scales, *zeros;    /* (n / group) */
	int *bad;
};

/* w (n) = s (q - z) */
cudaError_t cuda_grid_values_launch(cudaStream_t stream, const struct cuda_trained_grid *g, float *w);

/* Gradients of that from dw (n): dscales, dzeros (n / group), dlatents (n), each may be NULL; dlatents may be dw. */
cudaError_t cuda_grid_gradients_launch(cudaStream_t stream, const struct cuda_trained_grid *g, const float *dw,
				       float *dscales, float *dzeros, float *dlatents);

/* Adam's step with what does not depend on the element: p -= rate * m / (sqrt(v) * root + epsilon). */
struct cuda_adam { float beta1, rest1, beta2, rest2, rate, root, epsilon; };
cudaError_t cuda_adam_launch(cudaStream_t stream, const struct cuda_adam *adam, size_t n, float *p, const float *g,
			     float *m, float *v, int *bad);

#ifdef __cplusplus
}
#endif

#endif
