/* kernels_loss.h - device code of the squared error. Every array is on the device. Internal to worker/backend/cuda. */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_LOSS_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_LOSS_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sums that are added up by the last one, at most. */
enum { CUDA_LOSS_PARTS = 1024 };

/* *sum of (y - target)^2, dy = scale (y - target); all in double, dy rounded. dy may be y, or NULL. *bad becomes 1 when
 * *sum is not finite. */
struct cuda_squared_error {
	const float *y, *target;        /* (n) */
	size_t n;
	double scale;
	float *dy;                      /* (n) */
	double *parts;                  /* (CUDA_LOSS_PARTS) scratch */
	double *sum;                    /* (1) */
	int *bad;
};

cudaError_t cuda_squared_error_launch(cudaStream_t stream, const struct cuda_squared_error *e);

#ifdef __cplusplus
}
#endif

#endif
