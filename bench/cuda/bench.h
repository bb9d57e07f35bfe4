/* bench.h - what the sections of bench_cuda share. */
#ifndef QUARRY_BENCH_CUDA_BENCH_H
#define QUARRY_BENCH_CUDA_BENCH_H

#include <stddef.h>
#include <stdint.h>

#include "worker/backend/cuda/cuda.h"

/* Operations per second and bytes per second that this GPU reached at the start of the run. */
struct rates { double half, f32, f64, copy; };

struct bench {
	struct backend *be;
	const struct backend_ops *ops;
	struct rates rates;
};

/* Prints and ends the program. */
void bench_fail(const char *what) __attribute__((noreturn));
double bench_now_s(void);
double bench_median(double *values, int n);

/* Ordinary memory: n numbers of mean 0 and variance 1, all 24 bits in use; about normal, or their cubes (heavy tails). */
void bench_noise(float *x, size_t n, uint64_t seed, bool heavy);

void *bench_memory(struct bench *b, size_t bytes);
void bench_give(struct bench *b, void *memory);
void bench_copy(struct bench *b, void *to, const void *from, size_t bytes);
/* n numbers on the device, about normal, times scale; they repeat after 2^24 + 40 of them. */
float *bench_device_noise(struct bench *b, size_t n, float scale, uint64_t seed);

void bench_rates(struct bench *b);
void bench_products(struct bench *b);
void bench_operations(struct bench *b);

#endif
