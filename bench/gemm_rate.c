/* gemm_rate THREADS - GFLOP/s of plain float32 cblas_sgemm with that many threads, each on matrices of its own that fit
 * the cache: the machine's practical limit, the denominator of every ratio that `make bench` prints. */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/alloc.h"
#include "worker/backend/pool.h"

enum { SIDE = 512, ROUNDS = 60, REPEATS = 5 };

static void multiply(void *ctx, size_t item, int worker)
{
	float *m = (float *)ctx + item * 3 * SIDE * SIDE;

	(void)worker;
	for (int i = 0; i < ROUNDS; i++)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SIDE, SIDE, SIDE, 1, m, SIDE, m + SIDE * SIDE, SIDE, 0,
			    m + 2 * SIDE * SIDE, SIDE);
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	size_t n = (size_t)(threads > 0 ? threads : 1) * 3 * SIDE * SIDE;
	struct err err = ERR_INIT;
	struct pool *pool = pool_new(threads, &err);
	float *data = mem_alloc_aligned(n, sizeof(*data));
	double best = 0;

	if (!pool || !data) {
		fprintf(stderr, "usage: gemm_rate THREADS (1 or more)\n");
		return 2;
	}
	openblas_set_num_threads(1);
	for (size_t i = 0; i < n; i++)
		data[i] = (float)(i % 17) - 8;
	for (int r = 0; r < REPEATS; r++) {
		double start = now_s(), rate;

		pool_run(pool, (size_t)threads, multiply, data);
		rate = 2.0 * SIDE * SIDE * SIDE * ROUNDS * threads / (now_s() - start) * 1e-9;
		best = rate > best ? rate : best;
	}
	printf("%.1f GFLOP/s\n", best);
	pool_free(pool);
	mem_free(data);
	return 0;
}
