/* Speed of the cpu backend's training half.
 *
 * bench_train [hidden intermediate heads kv_heads head_dim seq_len n_seq]
 * Without arguments: the shape of a small llama, then of one with hidden 1024. block_backward and
 * head_kl_tile as a ratio to plain cblas_sgemm on as many threads, counting what the mathematics needs: three
 * times the block's forward pass (causal attention as T(T+1)/2 pairs), three products of the head. Passes
 * over memory as a ratio to memcpy on as many threads, both counted as bytes read plus bytes written.
 */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/alloc.h"
#include "worker/backend/backend.h"
#include "worker/backend/pool.h"

enum { REPEATS = 12, SQUARE = 1024, COPY_ITEM = 1 << 16, PARAMS = 16 << 20, GROUP = 64, HEAD_IDS = 4096 };

struct setup {
	struct block_shape shape;
	struct block_weights weights;
	struct block_grads grads;
	struct rope_table rope;
	size_t seq_len, n_seq, rows;
	float *x, *dx, *target;
	struct backend *be;             /* that computes at the moment */
};

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "bench_train: %s\n", what);
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

/* --- rivals ----------------------------------------------------------------------------------- */

/* Each worker multiplies its own matrices. */
static void square_item(void *ctx, size_t item, int worker)
{
	float *data = (float *)ctx + 3 * item * SQUARE * SQUARE;

	(void)worker;
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SQUARE, SQUARE, SQUARE, 1, data, SQUARE,
		    data + SQUARE * SQUARE, SQUARE, 0, data + 2 * SQUARE * SQUARE, SQUARE);
}

struct rival { struct pool *pool; float *squares; double best; };

/* Called before every measured run, so that both meet the same machine. */
static void multiply_squares(struct rival *r)
{
	for (int i = 0; i < 3; i++) {
		const double start = now_s();

		pool_run(r->pool, (size_t)pool_workers(r->pool), square_item, r->squares);
		r->best = fmin(r->best, now_s() - start);
	}
}

static double sgemm_rate(const struct rival *r)
{
	return 2e-9 * pool_workers(r->pool) * SQUARE * (double)SQUARE * SQUARE / r->best;
}

struct copy { float *to, *from; };

static void copy_item(void *ctx, size_t item, int worker)
{
	const struct copy *c = ctx;

	(void)worker;
	memcpy(c->to + item * COPY_ITEM, c->from + item * COPY_ITEM, COPY_ITEM * sizeof(float));
}

static double copy_rate(struct pool *pool, struct copy *c)
{
	double best = INFINITY;

	for (int i = 0; i < REPEATS; i++) {
		const double start = now_s();

		pool_run(pool, PARAMS / COPY_ITEM, copy_item, c);
		best = fmin(best, now_s() - start);
	}
	return 1e-9 * PARAMS * 2 * sizeof(float) / best;
}

/* --- the block -------------------------------------------------------------------------------- */

static void prepare(struct setup *s)
{
	const struct block_shape *d = &s->shape;
	const size_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim, half = d->head_dim / 2;
	const size_t hidden = d->hidden, inter = d->intermediate;
	const float scale = 1.0f / sqrtf((float)hidden);
	float *angles = noise(2 * s->seq_len * half, 1);

	s->rows = s->n_seq * s->seq_len;
	s->weights = (struct block_weights){
		.attn_norm = noise(hidden, 1), .mlp_norm = noise(hidden, 1), .q = noise(q * hidden, scale),
		.k = noise(kv * hidden, scale), .v = noise(kv * hidden, scale), .o = noise(hidden * q, scale),
		.gate = noise(inter * hidden, scale), .up = noise(inter * hidden, scale),
		.down = noise(hidden * inter, scale),
	};
	s->grads = (struct block_grads){
		.attn_norm = noise(hidden, 1), .mlp_norm = noise(hidden, 1), .q = noise(q * hidden, 1),
		.k = noise(kv * hidden, 1), .v = noise(kv * hidden, 1), .o = noise(hidden * q, 1),
		.gate = noise(inter * hidden, 1), .up = noise(inter * hidden, 1),
		.down = noise(hidden * inter, 1),
	};
	for (size_t i = 0; i < s->seq_len * half; i++) {
		angles[s->seq_len * half + i] = sinf(angles[i] * 3);
		angles[i] = cosf(angles[i] * 3);
	}
	s->rope = (struct rope_table){ angles, angles + s->seq_len * half };
	s->x = noise(s->rows * hidden, 1);
	s->dx = noise(s->rows * hidden, 1);
	s->target = noise(s->rows * hidden, 1);
}

static double block_operations(const struct setup *s)
{
	const struct block_shape *d = &s->shape;
	const double q = (double)(d->heads * d->head_dim), kv = (double)(d->kv_heads * d->head_dim);
	const double hidden = (double)d->hidden, t = (double)s->seq_len;
	const double linears = hidden * (2 * q + 2 * kv + 3 * (double)d->intermediate);

	return 3 * ((double)s->rows * 2 * linears + (double)s->n_seq * 2 * t * (t + 1) * q);
}

/* The mean squared distance to s->target. */
static int distance(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	const struct setup *s = ctx;
	const size_t n = rows * cols;
	double sum;

	return s->be->ops->squared_error(s->be, y, s->target + sequence * n, n, 2.0 / (double)(s->rows * cols), dy, &sum,
					 NULL);
}

static double block_seconds(struct setup *s, struct backend *be, struct rival *rival)
{
	struct err err = ERR_INIT;
	double best = INFINITY;

	s->be = be;
	for (int i = 0; i < REPEATS; i++) {
		double start;

		multiply_squares(rival);
		start = now_s();
		if (be->ops->block_backward(be, &s->shape, &s->weights, &s->rope, s->x, s->n_seq, s->seq_len,
					    distance, s, s->dx, &s->grads, &err) != 0)
			fail(err.text);
		best = fmin(best, now_s() - start);
	}
	return best;
}

/* The two sides are the rows of s->x, shifted by one. */
static double head_seconds(struct setup *s, struct backend *be, size_t rows, struct rival *rival)
{
	const size_t hidden = s->shape.hidden;
	float *w = noise(HEAD_IDS * hidden, 1.0f / sqrtf((float)hidden)), *dx = noise(rows * hidden, 1);
	double *max = mem_alloc(rows, sizeof(*max)), *sum = mem_alloc(rows, sizeof(*sum));
	double *kl = mem_alloc(rows, sizeof(*kl)), best = INFINITY;
	const struct head_state state = { .max = max, .sum = sum };
	struct err err = ERR_INIT;

	if (!max || !sum || !kl)
		fail("out of memory");
	for (size_t r = 0; r < rows; r++)
		max[r] = 4, sum[r] = 100;
	for (int i = 0; i < REPEATS; i++) {
		double start;

		multiply_squares(rival);
		start = now_s();
		if (be->ops->head_kl_tile(be, s->x, s->x + hidden, rows, hidden, w, w, HEAD_IDS, &state,
					  &state, kl, dx, &err) != 0)
			fail(err.text);
		best = fmin(best, now_s() - start);
	}
	mem_free(w);
	mem_free(dx);
	mem_free(max);
	mem_free(sum);
	mem_free(kl);
	return best;
}

static void report(const char *what, int threads, double seconds, double rate, double rival)
{
	printf("%-28s %2d threads %8.2f ms %8.1f GFLOP/s  %.2f of sgemm\n", what, threads, 1e3 * seconds,
	       rate, rate / rival);
}

static void measure_block(struct setup *s, struct backend *be, struct pool *pool)
{
	const size_t rows = s->rows > 2048 ? 2048 : s->rows - 1, hidden = s->shape.hidden;
	const double head_operations = 6.0 * (double)(rows * hidden) * HEAD_IDS;
	const int threads = pool_workers(pool);
	struct rival rival = { pool, noise((size_t)threads * 3 * SQUARE * SQUARE, 1), INFINITY };
	const double block = block_seconds(s, be, &rival), head = head_seconds(s, be, rows, &rival);
	char what[64];

	report("sgemm 1024^3", threads, rival.best, sgemm_rate(&rival), sgemm_rate(&rival));
	snprintf(what, sizeof(what), "block_backward hidden %zu", hidden);
	report(what, threads, block, 1e-9 * block_operations(s) / block, sgemm_rate(&rival));
	snprintf(what, sizeof(what), "head_kl_tile hidden %zu", hidden);
	report(what, threads, head, 1e-9 * head_operations / head, sgemm_rate(&rival));
	mem_free(rival.squares);
}

/* --- passes over memory ------------------------------------------------------------------------- */

struct params { float *p, *g, *m, *v, *scales, *zeros, *dscales, *dzeros; };

static const struct grid grid = { .bits = 3, .group = GROUP };
enum { COLS = 1024, ROWS = PARAMS / COLS };

static int step_adam(struct backend *be, struct params *p, struct err *err)
{
	const struct adam adam = { .rate = 1e-6f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f,
				   .step = 9 };

	return be->ops->adam_step(be, &adam, PARAMS, p->p, p->g, p->m, p->v, err);
}

static int step_loss(struct backend *be, struct params *p, struct err *err)
{
	double sum;

	return be->ops->squared_error(be, p->p, p->g, PARAMS, 1e-6, p->m, &sum, err);
}

static int step_values(struct backend *be, struct params *p, struct err *err)
{
	return be->ops->grid_values(be, &grid, p->p, ROWS, COLS, p->scales, p->zeros, p->m, err);
}

static int step_gradients(struct backend *be, struct params *p, struct err *err)
{
	return be->ops->grid_gradients(be, &grid, p->p, ROWS, COLS, p->scales, p->zeros, p->g, p->dscales,
				       p->dzeros, p->m, err);
}

static int step_gradients_in_place(struct backend *be, struct params *p, struct err *err)
{
	return be->ops->grid_gradients(be, &grid, p->p, ROWS, COLS, p->scales, p->zeros, p->m, p->dscales,
				       p->dzeros, p->m, err);
}

static void measure_pass(const char *what, struct backend *be, struct params *p, int threads, double bytes,
			 double rival, int (*step)(struct backend *, struct params *, struct err *))
{
	struct err err = ERR_INIT;
	double best = INFINITY;

	for (int i = 0; i < REPEATS; i++) {
		const double start = now_s();

		if (step(be, p, &err) != 0)
			fail(err.text);
		best = fmin(best, now_s() - start);
	}
	printf("%-28s %2d threads %8.2f ms %8.1f GB/s  %.2f of memcpy\n", what, threads, 1e3 * best,
	       1e-9 * bytes / best, 1e-9 * bytes / best / rival);
}

static void measure_passes(struct backend *be, struct pool *pool, struct params *p, int threads)
{
	struct copy copy = { p->m, p->g };
	const double rival = copy_rate(pool, &copy), n = (double)PARAMS * sizeof(float);

	printf("%-28s %2d threads %8.2f ms %8.1f GB/s  1.00 of memcpy\n", "memcpy", threads,
	       2e-6 * n / rival, rival);
	measure_pass("squared_error", be, p, threads, 3 * n, rival, step_loss);
	measure_pass("grid_values", be, p, threads, 2 * n, rival, step_values);
	measure_pass("grid_gradients", be, p, threads, 3 * n, rival, step_gradients);
	measure_pass("grid_gradients in place", be, p, threads, 3 * n, rival, step_gradients_in_place);
	measure_pass("adam_step", be, p, threads, 7 * n, rival, step_adam);
}

static struct setup setup_of(const size_t v[7])
{
	return (struct setup){ .shape = { .hidden = v[0], .intermediate = v[1], .heads = v[2],
					  .kv_heads = v[3], .head_dim = v[4], .rms_eps = 1e-5f },
			       .seq_len = v[5], .n_seq = v[6] };
}

int main(int argc, char **argv)
{
	size_t v[2][7] = { { 384, 1024, 6, 2, 64, 1024, 4 }, { 1024, 2816, 16, 16, 64, 1024, 1 } };
	const long cores = sysconf(_SC_NPROCESSORS_ONLN);
	const int blocks = argc > 1 ? 1 : 2;
	struct setup s[2];
	struct params p = { noise(PARAMS, 4), noise(PARAMS, 1), noise(PARAMS, 0), noise(PARAMS, 0),
			    noise(PARAMS / GROUP, 1), noise(PARAMS / GROUP, 3), noise(PARAMS / GROUP, 1),
			    noise(PARAMS / GROUP, 1) };

	for (int i = 0; i < 7 && i + 1 < argc; i++)
		v[0][i] = strtoul(argv[i + 1], NULL, 10);
	for (int i = 0; i < blocks; i++) {
		s[i] = setup_of(v[i]);
		prepare(&s[i]);
	}
	for (int threads = 1; threads <= cores; threads *= 2) {
		const struct backend_options options = { .threads = threads };
		struct err err = ERR_INIT;
		const struct backend_ops *ops = backend_find("cpu", &err);
		struct backend *be = ops ? ops->open(&options, &err) : NULL;
		struct pool *pool = be ? pool_new(threads, &err) : NULL;

		if (!pool)
			fail(err.text);
		printf("%s\n", ops->identity(be));
		for (int i = 0; i < blocks; i++)
			measure_block(&s[i], be, pool);
		measure_passes(be, pool, &p, threads);
		pool_free(pool);
		ops->close(be);
	}
	return 0;
}
