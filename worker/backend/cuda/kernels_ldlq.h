/* kernels_ldlq.h - device code of LDLQ: one column block of the walk, and the order of the codes.
 *
 * Every array is on the device. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_LDLQ_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_LDLQ_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Columns of a block; rows that one thread block takes. */
enum { CUDA_LDLQ_BLOCK = 128, CUDA_LDLQ_ROWS = 16 };

/* Columns first .. first + CUDA_LDLQ_BLOCK - 1 (or to the end) in rounding order, of all rows. */
struct cuda_ldlq_block {
	const float *w;                 /* (rows, cols) natural columns */
	size_t rows, cols, group, first;
	const int32_t *perm;            /* (cols) */
	const float *u;                 /* (cols, cols) */
	const double *pivots;           /* (cols), or NULL: no loss wanted */
	const float *scales, *zeros;    /* (rows, cols / group) */
	float top;                      /* 2^b - 1 */
	const float *feedback;          /* (rows, wide) rounding order, of all earlier blocks; not read in the first */
	float *errors;                  /* out: (cols, height) w - what, rounding order, rows side by side */
	uint8_t *codes;                 /* out: (rows, wide) rounding order */
	double *row_loss;               /* (rows) += of this block; written in the first */
	size_t wide, height;            /* multiples of CUDA_LDLQ_BLOCK, CUDA_LDLQ_ROWS; at least cols, rows */
	int *bad;
};
cudaError_t cuda_ldlq_block_launch(cudaStream_t stream, const struct cuda_ldlq_block *b);

/* place[perm[j]] = j */
cudaError_t cuda_ldlq_place_launch(cudaStream_t stream, const int32_t *perm, size_t n, int32_t *place);
/* to (rows, cols), natural columns, from (rows, wide) in rounding order. */
cudaError_t cuda_ldlq_codes_launch(cudaStream_t stream, const uint8_t *from, size_t wide, const int32_t *place,
				   size_t rows, size_t cols, uint8_t *to);

#ifdef __cplusplus
}
#endif

#endif
