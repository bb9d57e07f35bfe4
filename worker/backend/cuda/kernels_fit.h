/* kernels_fit.h - device code of fit_groups: scale and zero-point of every group.
 *
 * Every array is on the device. The method is that of cpu/fit_group.c; kernels_fit.cu says how it is spread over
 * threads. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_FIT_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_FIT_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_fit {
	bool minmax;                    /* no search */
	int bits;
	bool integer_zero, symmetric;
	const float *w;                 /* (count, n): group after group */
	size_t count, n;
	const double *h;                /* (period, n): group i has row i % period */
	size_t period;
	float *scales, *zeros;          /* (count) */
	double *objective;              /* (count), or NULL */
	void *scratch;                  /* cuda_fit_scratch() bytes */
	int *bad;                       /* set when a group has no finite objective */
};

/* Scratch for count groups of n weights; 0 for groups that fit into the memory of a multiprocessor. */
cudaError_t cuda_fit_scratch(size_t n, size_t count, size_t *bytes);
cudaError_t cuda_fit_launch(cudaStream_t stream, const struct cuda_fit *fit);

#ifdef __cplusplus
}
#endif

#endif
