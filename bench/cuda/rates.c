/* What the floors are counted with: products of cuBLAS and a copy, at sizes that fill the GPU. */
#include <stdio.h>

#include "bench/cuda/bench.h"
#include "worker/backend/cuda/product_kinds.h"

enum { SIDE = 8192, SIDE_F64 = 4096, REPEATS = 7 };

static const size_t copy_bytes = (size_t)4 << 30;

struct events { cudaEvent_t start, stop; };

static struct events events_new(void)
{
	struct events e;

	if (cudaEventCreate(&e.start) != cudaSuccess || cudaEventCreate(&e.stop) != cudaSuccess)
		bench_fail("no events");
	return e;
}

static void events_free(struct events *e)
{
	cudaEventDestroy(e->start);
	cudaEventDestroy(e->stop);
}

/* What is between _start and _stop is in the stream. */
static double between(struct events *e)
{
	float ms = 0;

	if (cudaEventSynchronize(e->stop) != cudaSuccess || cudaEventElapsedTime(&ms, e->start, e->stop) != cudaSuccess)
		bench_fail("a measured piece of work failed on the GPU");
	return 1e-3 * (double)ms;
}

/* Operations per second of one product of side^3. */
static double product_rate(struct bench *b, enum cuda_kind kind)
{
	struct err err = ERR_INIT;
	struct cuda_frame f = cuda_begin(b->be, "a product", &err);
	const size_t n = (size_t)SIDE * SIDE;
	float *x = bench_device_noise(b, n, 1, 1), *y = bench_device_noise(b, n, 1, 2);
	struct events e = events_new();
	double seconds[REPEATS];
	struct cuda_product p = { .form = CUDA_NT, .m = SIDE, .n = SIDE, .k = SIDE, .alpha = 1 };

	p.a = cuda_split_as(&f, kind, x, n);
	p.b = cuda_split_as(&f, kind, y, n);
	p.c = cuda_take(&f, n * sizeof(*p.c));
	for (int i = -2; i < REPEATS && cuda_ok(&f); i++) {
		cudaEventRecord(e.start, f.cuda->stream);
		cuda_multiply_as(&f, kind, &p);
		cudaEventRecord(e.stop, f.cuda->stream);
		if (cuda_ok(&f) && i >= 0)
			seconds[i] = between(&e);
	}
	if (cuda_end(&f) != 0)
		bench_fail(err.text);
	events_free(&e);
	bench_give(b, x);
	bench_give(b, y);
	return 2.0 * SIDE * SIDE * SIDE / bench_median(seconds, REPEATS);
}

/* The numbers are pairs of floats, read as doubles of normal size. */
static double product_rate_f64(struct bench *b)
{
	struct cuda_backend *cuda = cuda_of(b->be);
	const struct cuda_libraries *l = &cuda->libraries;
	const size_t n = (size_t)SIDE_F64 * SIDE_F64;
	double *x = (double *)bench_device_noise(b, 2 * n, 1, 3), *c = bench_memory(b, n * sizeof(*c));
	const double one = 1, zero = 0;
	struct events e = events_new();
	double seconds[REPEATS];

	for (int i = -1; i < REPEATS; i++) {
		cudaEventRecord(e.start, cuda->stream);
		if (l->gemm(l->blas, BLAS_N, BLAS_T, SIDE_F64, SIDE_F64, SIDE_F64, &one, x, CUDA_R_64F, SIDE_F64, x,
			    CUDA_R_64F, SIDE_F64, &zero, c, CUDA_R_64F, SIDE_F64, BLAS_COMPUTE_64F,
			    BLAS_ALGORITHM_DEFAULT) != 0)
			bench_fail("cuBLAS failed at a product of doubles");
		cudaEventRecord(e.stop, cuda->stream);
		if (i >= 0)
			seconds[i] = between(&e);
	}
	events_free(&e);
	bench_give(b, x);
	bench_give(b, c);
	return 2.0 * SIDE_F64 * SIDE_F64 * SIDE_F64 / bench_median(seconds, REPEATS);
}

/* Bytes read and written per second. */
static double copy_rate(struct bench *b)
{
	struct cuda_backend *cuda = cuda_of(b->be);
	char *from = bench_memory(b, copy_bytes), *to = bench_memory(b, copy_bytes);
	struct events e = events_new();
	double seconds[REPEATS];

	for (int i = -1; i < REPEATS; i++) {
		cudaEventRecord(e.start, cuda->stream);
		if (cudaMemcpyAsync(to, from, copy_bytes, cudaMemcpyDeviceToDevice, cuda->stream) != cudaSuccess)
			bench_fail("a copy failed on the GPU");
		cudaEventRecord(e.stop, cuda->stream);
		if (i >= 0)
			seconds[i] = between(&e);
	}
	events_free(&e);
	bench_give(b, from);
	bench_give(b, to);
	return 2.0 * (double)copy_bytes / bench_median(seconds, REPEATS);
}

void bench_rates(struct bench *b)
{
	b->rates = (struct rates){ .half = product_rate(b, CUDA_F16), .f32 = product_rate(b, CUDA_F32),
				   .f64 = product_rate_f64(b), .copy = copy_rate(b) };
	printf("measured: products of halves %.0f TFLOP/s, float32 %.1f, double %.1f; copy %.2f TB/s\n",
	       1e-12 * b->rates.half, 1e-12 * b->rates.f32, 1e-12 * b->rates.f64, 1e-12 * b->rates.copy);
}
