/* kernels_head.h - device code of head.c. Every array is on the device. Internal to worker/backend/cuda.
 *
 * One block of threads takes one row of logits; sums run in double, in an order fixed by n. A result that is not finite
 * sets `bad`.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_HEAD_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_HEAD_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* logits (rows, n) of ids first_id .. into the state (struct head_state) of `rows` rows. */
struct head_fold {
	const float *logits;
	size_t rows, n;
	int32_t first_id;
	const int32_t *targets;
	double *max, *sum, *target, *top_logit;
	int32_t *top_id;
	int *bad;
};
cudaError_t cuda_head_fold_launch(cudaStream_t stream, const struct head_fold *h);

/* kl (rows), or NULL: += the sum of p_ref (log p_ref - log p) over the row. difference (rows, n), or NULL: p - p_ref;
 * may be logits. */
struct head_compare {
	const float *logits, *ref_logits;       /* (rows, n) */
	size_t rows, n;
	const double *max, *sum, *ref_max, *ref_sum;
	double *kl;
	float *difference;
	int *bad;
};
cudaError_t cuda_head_compare_launch(cudaStream_t stream, const struct head_compare *h);

cudaError_t cuda_head_finite_launch(cudaStream_t stream, const float *x, size_t n, int *bad);

#ifdef __cplusplus
}
#endif

#endif
