/* kernels_split.h - device code that splits float32 numbers into parts of fewer bits (product.c says why).
 *
 * Every array is on the device and has n elements; x may begin anywhere, parts at a multiple of 16 bytes. A value that is
 * not finite has a part that is not. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_SPLIT_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_SPLIT_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_SPLIT_BLOCKS = 1024 };      /* blocks that look for the largest value */

/* high = x rounded to 11 bits, low = the rest rounded to 11 bits. */
cudaError_t cuda_split_tf32_launch(cudaStream_t stream, const float *x, size_t n, float *high, float *low);
/* bfloat16: high = x, low = x - high, least = x - high - low, each rounded to nearest. low and least may be NULL. */
cudaError_t cuda_split_bf16_launch(cudaStream_t stream, const float *x, size_t n, uint16_t *high, uint16_t *low,
				   uint16_t *least);
/* Halves: x = *scale * (high + low / 2^11), *scale a power of two. low may be NULL. largest (CUDA_SPLIT_BLOCKS): scratch. */
cudaError_t cuda_split_half_launch(cudaStream_t stream, const float *x, size_t n, uint16_t *high, uint16_t *low,
				   float *scale, uint32_t *largest);
/* factors (4) of the products of halves: alpha * both scales / 2^11, alpha * both scales, beta, 1. */
cudaError_t cuda_factors_launch(cudaStream_t stream, float alpha, float beta, const float *a_scale,
				const float *b_scale, float *factors);

#ifdef __cplusplus
}
#endif

#endif
