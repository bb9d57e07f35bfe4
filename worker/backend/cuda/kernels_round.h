/* kernels_round.h - device code of round_nearest. Every array is on the device. Internal to worker/backend/cuda. */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_ROUND_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_ROUND_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* codes = clamp(round-half-even(w / s + z), 0, 2^b - 1); a group does not reach from one row into the next, so rows do
 * not matter. */
struct cuda_round {
	int bits;
	size_t n, group;                /* weights in all, and of one group */
	const float *w;                 /* (n) */
	const float *scales, *zeros;    /* (n / group) */
	uint8_t *codes;                 /* (n) */
	int *bad;                       /* set by a scale that is not positive and finite, a zero-point or a weight that is
					 * not finite */
};
cudaError_t cuda_round_launch(cudaStream_t stream, const struct cuda_round *r);

#ifdef __cplusplus
}
#endif

#endif
