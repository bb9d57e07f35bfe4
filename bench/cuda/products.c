/* Rate and error of every kind of product (worker/backend/cuda/product_kinds.h).
 *
 * The error of an entry is |c - exact| / sqrt(sum a^2 sum b^2), the exact value in double on the host, for the entries of some
 * rows and columns spread over the matrix; bias is the mean of that with its sign, where c is positive by nature (the diagonal
 * of x' x), else 0. Splitting is timed apart from the products: it is done once for several of them.
 */
#include <math.h>
#include <stdio.h>

#include "bench/cuda/bench.h"
#include "common/alloc.h"
#include "worker/backend/cuda/product_kinds.h"

enum {
	ROWS = 16384, COLS = 11008, DEPTH = 4096, SAMPLED = 40, REPEATS = 5, OUTLIER_EVERY = 97,
	AT_ONCE = 4 /* products in the stream at a time, so that starting them is not what is measured */
};

struct shape { enum cuda_form form; size_t m, n, k; };

/* a (ROWS, DEPTH), b (COLS, DEPTH), on both sides. */
struct data { float *a, *b, *a_d, *b_d, *c_d, *c; };

struct errors { double max, mean, bias; };
struct times { double split, multiply; };

static float *host_noise(size_t rows, uint64_t seed, bool heavy)
{
	float *x = mem_alloc_aligned(rows * DEPTH, sizeof(*x));

	if (!x)
		bench_fail("out of memory");
	bench_noise(x, rows * DEPTH, seed, heavy);
	for (size_t r = 0; heavy && r < rows; r++)
		for (size_t j = 0; j < DEPTH; j += OUTLIER_EVERY)
			x[r * DEPTH + j] *= 100;
	return x;
}

static float *uploaded(struct bench *b, const float *x, size_t n)
{
	float *d = bench_memory(b, n * sizeof(*d));

	bench_copy(b, d, x, n * sizeof(*x));
	return d;
}

static struct data data_new(struct bench *b, bool heavy)
{
	struct data d = { .a = host_noise(ROWS, 1, heavy), .b = host_noise(COLS, 2, heavy) };

	d.a_d = uploaded(b, d.a, (size_t)ROWS * DEPTH);
	d.b_d = uploaded(b, d.b, (size_t)COLS * DEPTH);
	d.c_d = bench_memory(b, (size_t)ROWS * COLS * sizeof(float));
	d.c = mem_alloc_aligned((size_t)ROWS * COLS, sizeof(float));
	if (!d.c)
		bench_fail("out of memory");
	return d;
}

static void data_free(struct bench *b, struct data *d)
{
	bench_give(b, d->a_d);
	bench_give(b, d->b_d);
	bench_give(b, d->c_d);
	mem_free(d->a);
	mem_free(d->b);
	mem_free(d->c);
}

/* --- error -------------------------------------------------------------------------------------- */

/* Entry (i, j) from double, and the root of the sums of squares. */
static double exact(const struct data *d, const struct shape *s, size_t i, size_t j, double *norm)
{
	const bool gram = s->form == CUDA_TN;
	const float *a = gram ? d->a + i : d->a + i * s->k, *b = gram ? d->a + j : d->b + j * s->k;
	const size_t step = gram ? s->m : 1;
	double sum = 0, a2 = 0, b2 = 0;

	for (size_t t = 0; t < s->k; t++) {
		const double x = a[t * step], y = b[t * step];

		sum += x * y;
		a2 += x * x;
		b2 += y * y;
	}
	*norm = sqrt(a2 * b2);
	return sum;
}

static struct errors errors_of(const struct data *d, const struct shape *s)
{
	struct errors e = { 0 };
	int diagonal = 0;

	for (size_t r = 0; r < SAMPLED; r++)
		for (size_t c = 0; c < SAMPLED; c++) {
			const size_t i = r * (s->m - 1) / (SAMPLED - 1), j = c * (s->n - 1) / (SAMPLED - 1);
			double norm, off;

			off = exact(d, s, i, j, &norm);
			off = ((double)d->c[i * s->n + j] - off) / norm;
			e.max = fmax(e.max, isnan(off) ? INFINITY : fabs(off));
			e.mean += fabs(off) / (SAMPLED * SAMPLED);
			if (s->form == CUDA_TN && i == j) {
				e.bias += off;
				diagonal++;
			}
		}
	e.bias = diagonal > 0 ? e.bias / diagonal : 0;
	return e;
}

/* --- time --------------------------------------------------------------------------------------- */

/* One run; times from the host, the stream empty before and after each part. */
static struct times run(struct bench *b, const struct data *d, const struct shape *s, enum cuda_kind kind)
{
	struct err err = ERR_INIT;
	struct cuda_frame f = cuda_begin(b->be, "a product", &err);
	const bool gram = s->form == CUDA_TN;
	struct cuda_product p = { .form = s->form, .m = s->m, .n = s->n, .k = s->k, .c = d->c_d, .alpha = 1 };
	const double start = bench_now_s();
	double middle, end;

	p.a = cuda_split_as(&f, kind, d->a_d, s->m * s->k);
	p.b = gram ? p.a : cuda_split_as(&f, kind, d->b_d, s->n * s->k);
	cuda_try(&f, cudaStreamSynchronize(f.cuda->stream));
	middle = bench_now_s();
	for (int i = 0; i < AT_ONCE; i++)
		cuda_multiply_as(&f, kind, &p);
	cuda_try(&f, cudaStreamSynchronize(f.cuda->stream));
	end = bench_now_s();
	if (cuda_end(&f) != 0)
		bench_fail(err.text);
	return (struct times){ middle - start, (end - middle) / AT_ONCE };
}

static void measure(struct bench *b, const struct data *d, const struct shape *s, enum cuda_kind kind, const char *inputs)
{
	static const char *const forms[] = { [CUDA_NT] = "a b'", [CUDA_NN] = "a b", [CUDA_TN] = "x' x" };
	double split[REPEATS], multiply[REPEATS];
	struct errors e;
	double seconds;

	run(b, d, s, kind);
	for (int i = 0; i < REPEATS; i++) {
		const struct times t = run(b, d, s, kind);

		split[i] = t.split;
		multiply[i] = t.multiply;
	}
	seconds = bench_median(multiply, REPEATS);
	bench_copy(b, d->c, d->c_d, s->m * s->n * sizeof(float));
	e = errors_of(d, s);
	printf("%-7s %-4s %5zu %5zu %5zu  %-6s %8.3f ms %6.1f TFLOP/s  split %6.3f ms  error max %.2e mean %.2e bias %+.1e\n",
	       cuda_kind_name(kind), forms[s->form], s->m, s->n, s->k, inputs, 1e3 * seconds,
	       2e-12 * (double)s->m * (double)s->n * (double)s->k / seconds, 1e3 * bench_median(split, REPEATS),
	       e.max, e.mean, e.bias);
	fflush(stdout);
}

void bench_products(struct bench *b)
{
	static const struct shape shapes[] = {
		{ CUDA_NT, 16384, 4096, 4096 }, { CUDA_NT, 16384, 11008, 4096 }, { CUDA_NT, 2048, 4096, 4096 },
		{ CUDA_TN, 4096, 4096, 1024 }, { CUDA_TN, 4096, 4096, 2048 }, { CUDA_TN, 4096, 4096, 4096 },
	};

	for (int heavy = 0; heavy < 2; heavy++) {
		struct data d = data_new(b, heavy);

		for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
			for (int kind = 0; kind < CUDA_KINDS; kind++)
				measure(b, &d, &shapes[i], (enum cuda_kind)kind, heavy ? "heavy" : "normal");
		data_free(b, &d);
	}
}
