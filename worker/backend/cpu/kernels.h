/* kernels.h - the inner loops of the cpu backend's forward half, one table per instruction-set level.
 *
 * Sums run over KERNEL_LANES interleaved partial sums that are then added in one fixed order, so
 * a result depends on n alone. Pure, thread-safe, any alignment.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_KERNELS_H
#define QUARRY_WORKER_BACKEND_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>

struct forward_kernels {
	/* y = x * weight / sqrt(mean(x^2) + eps), n elements; y may be x. */
	void (*rms_norm)(const float *x, const float *weight, float eps, size_t n, float *y);
	/* x (n) becomes exp(x - max x); the return value is the sum of that. n >= 1. */
	float (*softmax)(float *x, size_t n);
	/* up = silu(gate) * up. */
	void (*swiglu)(const float *gate, float *up, size_t n);
	/* Turns x (2*half): element i with element i+half by the angle i. */
	void (*rope)(float *x, const float *cosine, const float *sine, size_t half);
	void (*scale)(float *x, float factor, size_t n);
	void (*add)(float *y, const float *x, size_t n);
	/* h += x */
	void (*add_double)(double *h, const float *x, size_t n);
	/* n >= 1 */
	float (*max)(const float *x, size_t n);
	/* Sum of exp(x - max), max >= every x. */
	double (*sum_exp)(const float *x, float max, size_t n);
	/* No infinity, no NaN. */
	bool (*finite)(const float *x, size_t n);
};

#endif
