#include "bench/cuda/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/alloc.h"

enum { BLOCK = (1 << 24) + 40 };

void bench_fail(const char *what)
{
	fprintf(stderr, "bench_cuda: %s\n", what);
	exit(1);
}

double bench_now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_median(double *values, int n)
{
	qsort(values, (size_t)n, sizeof(*values), compare);
	return values[n / 2];
}

/* The sum of four uniform numbers of 16 bits, times a factor and with an addend that fill the bits below. */
void bench_noise(float *x, size_t n, uint64_t seed, bool heavy)
{
	uint64_t state = 88172645463325252u + seed * 2654435761u;

	for (size_t i = 0; i < n; i++) {
		float sum;

		state ^= state << 13, state ^= state >> 7, state ^= state << 17;
		sum = (float)((state & 0xffff) + (state >> 16 & 0xffff) + (state >> 32 & 0xffff) + (state >> 48));
		sum = (sum / 65536 - 2) * 1.7320508f + (float)(state >> 20 & 0xffffff) * 0x1p-36f;
		x[i] = heavy ? sum * sum * sum : sum;
	}
}

void *bench_memory(struct bench *b, size_t bytes)
{
	struct err err = ERR_INIT;
	void *memory = b->ops->memory_take(b->be, bytes, "arrays of a measurement", &err);

	if (!memory)
		bench_fail(err.text);
	return memory;
}

void bench_give(struct bench *b, void *memory)
{
	b->ops->memory_give(b->be, memory);
}

void bench_copy(struct bench *b, void *to, const void *from, size_t bytes)
{
	struct err err = ERR_INIT;

	if (b->ops->memory_copy(b->be, to, from, bytes, &err) != 0)
		bench_fail(err.text);
}

float *bench_device_noise(struct bench *b, size_t n, float scale, uint64_t seed)
{
	const size_t block = n < BLOCK ? n : BLOCK;
	float *host = mem_alloc_aligned(block, sizeof(*host)), *x = bench_memory(b, n * sizeof(*x));

	if (!host)
		bench_fail("out of memory");
	bench_noise(host, block, seed, false);
	for (size_t i = 0; i < block; i++)
		host[i] *= scale;
	for (size_t at = 0; at < n; at += block)
		bench_copy(b, x + at, host, (n - at < block ? n - at : block) * sizeof(*x));
	mem_free(host);
	return x;
}
