/* Speed of the cpu backend's forward half, as a ratio to plain cblas_sgemm on as many threads.
 *
 * bench_forward [hidden intermediate heads kv_heads head_dim seq_len n_seq]
 * The defaults are the shape of a small llama at 1024 tokens. Operations count what the mathematics
 * needs: causal attention as T(T+1)/2 pairs, x^T x as its lower triangle. The best of several
 * runs is printed, one line per operation and thread count.
 */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/alloc.h"
#include "worker/backend/backend.h"
#include "worker/backend/pool.h"

enum { REPEATS = 5, SQUARE = 1024 };

struct setup {
	struct block_shape shape;
	struct block_weights weights;
	struct rope_table rope;
	size_t seq_len, n_seq, rows;
	float *data, *x, *y, *wide;
	double *h;
};

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "bench_forward: %s\n", what);
	exit(1);
}

static float *noise(size_t n, float scale)
{
	float *x = mem_alloc_aligned(n, sizeof(*x));
	uint64_t state = 88172645463325252u + n;

	if (!x)
		fail("out of memory");
	for (size_t i = 0; i < n; i++) {
		state ^= state << 13, state ^= state >> 7, state ^= state << 17;
		x[i] = scale * ((float)(state >> 40) / (float)(1 << 23) - 1);
	}
	return x;
}

static void prepare(struct setup *s)
{
	const struct block_shape *d = &s->shape;
	const size_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim, half = d->head_dim / 2;
	const float scale = 1.0f / sqrtf((float)d->hidden);
	float *angles = noise(2 * s->seq_len * half, 1);

	s->rows = s->n_seq * s->seq_len;
	s->weights = (struct block_weights){
		.attn_norm = noise(d->hidden, 1), .mlp_norm = noise(d->hidden, 1),
		.q = noise(q * d->hidden, scale), .k = noise(kv * d->hidden, scale),
		.v = noise(kv * d->hidden, scale), .o = noise(d->hidden * q, scale),
		.gate = noise(d->intermediate * d->hidden, scale),
		.up = noise(d->intermediate * d->hidden, scale),
		.down = noise(d->hidden * d->intermediate, scale),
	};
	for (size_t i = 0; i < s->seq_len * half; i++) {
		angles[s->seq_len * half + i] = sinf(angles[i] * 3);
		angles[i] = cosf(angles[i] * 3);
	}
	s->rope = (struct rope_table){ angles, angles + s->seq_len * half };
	s->x = noise(s->rows * d->hidden, 1);
	s->y = noise(s->rows * d->hidden, 1);
	s->wide = noise(s->rows * d->intermediate, 1);
	s->h = mem_alloc(d->intermediate * d->intermediate, sizeof(*s->h));
	if (!s->h)
		fail("out of memory");
}

static double block_operations(const struct setup *s)
{
	const struct block_shape *d = &s->shape;
	const double q = (double)(d->heads * d->head_dim), kv = (double)(d->kv_heads * d->head_dim);
	const double hidden = (double)d->hidden, t = (double)s->seq_len;
	const double linears = hidden * (2 * q + 2 * kv + 3 * (double)d->intermediate);

	return (double)s->rows * 2 * linears + (double)s->n_seq * 2 * t * (t + 1) * q;
}

/* Each worker multiplies its own matrices. */
static void square_item(void *ctx, size_t item, int worker)
{
	float *data = (float *)ctx + 3 * item * SQUARE * SQUARE;

	(void)worker;
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SQUARE, SQUARE, SQUARE, 1, data, SQUARE,
		    data + SQUARE * SQUARE, SQUARE, 0, data + 2 * SQUARE * SQUARE, SQUARE);
}

static double sgemm_rate(int threads)
{
	float *data = noise((size_t)threads * 3 * SQUARE * SQUARE, 1);
	struct pool *pool = pool_new(threads, NULL);
	double best = INFINITY;

	if (!pool)
		fail("cannot start threads");
	openblas_set_num_threads(1);
	for (int i = 0; i < 2 * REPEATS; i++) {
		const double start = now_s();

		pool_run(pool, (size_t)threads, square_item, data);
		best = fmin(best, now_s() - start);
	}
	pool_free(pool);
	mem_free(data);
	return 2e-9 * threads * SQUARE * (double)SQUARE * SQUARE / best;
}

static void report(const char *what, int threads, double rate, double rival)
{
	printf("%-24s %2d threads %8.1f GFLOP/s  %.2f of sgemm\n", what, threads, rate, rate / rival);
}

static double block_seconds(struct setup *s, struct backend *be)
{
	struct err err = ERR_INIT;
	double best = INFINITY;

	for (int i = 0; i < REPEATS; i++) {
		const double start = now_s();

		if (be->ops->block_forward(be, &s->shape, &s->weights, &s->rope, s->x, s->n_seq, s->seq_len,
					   s->y, NULL, NULL, &err) != 0)
			fail(err.text);
		best = fmin(best, now_s() - start);
	}
	return best;
}

static double gram_seconds(struct setup *s, struct backend *be, const float *x, size_t cols)
{
	struct err err = ERR_INIT;
	double best = INFINITY;

	for (int i = 0; i < REPEATS; i++) {
		const double start = now_s();

		if (be->ops->gram_add(be, x, s->rows, cols, s->h, &err) != 0)
			fail(err.text);
		best = fmin(best, now_s() - start);
	}
	return best;
}

static void measure(struct setup *s, int threads)
{
	const struct backend_options options = { .threads = threads };
	const double rival = sgemm_rate(threads), rows = (double)s->rows;
	const double hidden = (double)s->shape.hidden, inter = (double)s->shape.intermediate;
	struct err err = ERR_INIT;
	const struct backend_ops *ops = backend_find("cpu", &err);
	struct backend *be = ops ? ops->open(&options, &err) : NULL;

	if (!be)
		fail(err.text);
	printf("%s\n", ops->identity(be));
	report("sgemm 1024^3", threads, rival, rival);
	report("block_forward", threads, 1e-9 * block_operations(s) / block_seconds(s, be), rival);
	report("gram_add hidden", threads,
	       1e-9 * rows * hidden * (hidden + 1) / gram_seconds(s, be, s->x, s->shape.hidden), rival);
	report("gram_add intermediate", threads,
	       1e-9 * rows * inter * (inter + 1) / gram_seconds(s, be, s->wide, s->shape.intermediate),
	       rival);
	ops->close(be);
}

int main(int argc, char **argv)
{
	size_t v[7] = { 384, 1024, 6, 2, 64, 1024, 16 };
	const long cores = sysconf(_SC_NPROCESSORS_ONLN);
	struct setup s;

	for (int i = 0; i < 7 && i + 1 < argc; i++)
		v[i] = strtoul(argv[i + 1], NULL, 10);
	s = (struct setup){ .shape = { .hidden = v[0], .intermediate = v[1], .heads = v[2], .kv_heads = v[3],
				       .head_dim = v[4], .rms_eps = 1e-5f }, .seq_len = v[5], .n_seq = v[6] };
	prepare(&s);
	for (int threads = 1; threads <= cores; threads *= 2)
		measure(&s, threads);
	return 0;
}
