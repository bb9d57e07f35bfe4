/* Every operation of backend.h at the sizes of Llama-2-7B, all arrays in the backend's memory.
 *
 * A floor is the largest of operations / measured rate of the unit that can do them and bytes / measured copy rate, where
 * bytes are each input read and each output written once. Float32-accurate products count as three of halves (product.c); those
 * of the factor, n^3 / 3, as double. Of refinement the one product A e is counted, of initialization and of passes over memory
 * the bytes alone: what a search has to do nobody knows. The median of some runs, after one that is not counted.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/cuda/bench.h"
#include "common/alloc.h"

enum {
	HIDDEN = 4096, INTER = 11008, HEADS = 32, HEAD_DIM = 128, VOCAB = 32000, SEQ = 2048, TOKENS = 8 * SEQ, BATCH = 4,
	REPEATS = 5, PRODUCTS = 3
};

struct cost { double products, f64, bytes; };   /* products in useful operations, each three times that of halves */

/* before, if not NULL, restores what run() changes, and is not timed. */
struct operation {
	const char *what;
	struct cost cost;
	int (*run)(struct bench *b, void *ctx, struct err *err);
	void (*before)(struct bench *b, void *ctx);
	void *ctx;
};

static double floor_of(const struct bench *b, const struct cost *c)
{
	return fmax(PRODUCTS * c->products / b->rates.half, fmax(c->f64 / b->rates.f64, c->bytes / b->rates.copy));
}

static void measure(struct bench *b, const struct operation *o)
{
	const double floor_s = floor_of(b, &o->cost);
	double seconds[REPEATS], median;

	for (int i = -1; i < REPEATS; i++) {
		struct err err = ERR_INIT;
		double start;

		if (o->before)
			o->before(b, o->ctx);
		start = bench_now_s();
		if (o->run(b, o->ctx, &err) != 0) {
			printf("%-44s failed: %s\n", o->what, err.text);
			return;
		}
		if (i >= 0)
			seconds[i] = bench_now_s() - start;
	}
	median = bench_median(seconds, REPEATS);
	printf("%-44s %10.3f ms  floor %9.3f ms  ratio %7.2f\n", o->what, 1e3 * median, 1e3 * floor_s, median / floor_s);
	fflush(stdout);
}

static double square(size_t n)
{
	return (double)n * (double)n;
}

/* --- one module and its H ------------------------------------------------------------------------ */

struct module {
	size_t rows, cols, groups;
	struct grid grid;
	float *x, *w, *u, *scales, *zeros, *scales_kept, *zeros_kept;
	double *h, *diagonal, *pivots, *row_loss, damp;
	int32_t *perm;
	uint8_t *codes, *codes_kept;
};

static int run_gram(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;

	return b->ops->gram_add(b->be, m->x, TOKENS, m->cols, m->h, err);
}

static int run_mean(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;

	return b->ops->gram_mean(b->be, m->h, m->cols, 1, m->diagonal, err);
}

static int run_factor(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;

	return b->ops->factor(b->be, m->h, m->perm, m->cols, m->damp, m->u, m->pivots, err);
}

static int run_fit(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;

	return b->ops->fit_groups(b->be, FIT_NEUQI, &m->grid, m->w, m->rows, m->cols, m->diagonal, m->scales, m->zeros,
				  NULL, err);
}

static int run_nearest(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;

	return b->ops->round_nearest(b->be, &m->grid, m->w, m->rows, m->cols, m->scales, m->zeros, m->codes, err);
}

static int run_ldlq(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;

	return b->ops->round_ldlq(b->be, &m->grid, m->w, m->rows, m->cols, m->perm, m->u, m->pivots, m->scales, m->zeros,
				  m->codes, m->row_loss, err);
}

static int run_refine(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;

	return b->ops->refine(b->be, &m->grid, m->w, m->rows, m->cols, m->h, m->damp, m->perm, m->codes, m->scales,
			      m->zeros, m->row_loss, err);
}

static int run_proxy(struct bench *b, void *ctx, struct err *err)
{
	const struct module *m = ctx;
	double loss, energy;

	return b->ops->proxy_loss(b->be, &m->grid, m->w, m->rows, m->cols, m->h, m->damp, m->codes, m->scales, m->zeros,
				  &loss, &energy, err);
}

static void copy_state(struct bench *b, const struct module *m, bool back)
{
	const size_t sides = m->rows * m->groups * sizeof(float);

	bench_copy(b, back ? m->codes : m->codes_kept, back ? m->codes_kept : m->codes, m->rows * m->cols);
	bench_copy(b, back ? m->scales : m->scales_kept, back ? m->scales_kept : m->scales, sides);
	bench_copy(b, back ? m->zeros : m->zeros_kept, back ? m->zeros_kept : m->zeros, sides);
}

static void restore_state(struct bench *b, void *ctx)
{
	copy_state(b, ctx, true);
}

/* Columns in their order; that of decreasing diagonal costs as much. */
static int32_t *natural_order(struct bench *b, size_t n)
{
	int32_t *host = mem_alloc(n, sizeof(*host)), *perm = bench_memory(b, n * sizeof(*perm));

	if (!host)
		bench_fail("out of memory");
	for (size_t i = 0; i < n; i++)
		host[i] = (int32_t)i;
	bench_copy(b, perm, host, n * sizeof(*perm));
	mem_free(host);
	return perm;
}

static double *zeroed(struct bench *b, size_t n)
{
	double *host = mem_alloc(n, sizeof(*host)), *device = bench_memory(b, n * sizeof(*device));

	if (!host)
		bench_fail("out of memory");
	bench_copy(b, device, host, n * sizeof(*host));
	mem_free(host);
	return device;
}

/* H of 16384 rows of independent inputs, and its factor's room; rows and grid of the largest module that will use it. */
static struct module module_new(struct bench *b, size_t rows, size_t cols)
{
	const size_t cells = rows * cols, sides = (rows * cols / 64) * sizeof(float);
	struct module m = { .rows = rows, .cols = cols };
	struct err err = ERR_INIT;

	m.x = bench_device_noise(b, (size_t)TOKENS * cols, 1, 5);
	m.w = bench_device_noise(b, cells, 0.02f, 6);
	m.h = zeroed(b, cols * cols);
	m.diagonal = bench_memory(b, cols * sizeof(double));
	m.pivots = bench_memory(b, cols * sizeof(double));
	m.row_loss = bench_memory(b, rows * sizeof(double));
	m.u = bench_memory(b, cols * cols * sizeof(float));
	m.scales = bench_memory(b, sides);
	m.zeros = bench_memory(b, sides);
	m.scales_kept = bench_memory(b, sides);
	m.zeros_kept = bench_memory(b, sides);
	m.codes = bench_memory(b, cells);
	m.codes_kept = bench_memory(b, cells);
	m.perm = natural_order(b, cols);
	if (b->ops->gram_add(b->be, m.x, TOKENS, cols, m.h, &err) != 0 ||
	    b->ops->gram_mean(b->be, m.h, cols, TOKENS, m.diagonal, &err) != 0)
		bench_fail(err.text);
	m.damp = 0.01; /* of a mean diagonal of about 1 */
	return m;
}

static void module_free(struct bench *b, const struct module *m)
{
	void *const all[] = { m->x, m->w, m->u, m->scales, m->zeros, m->scales_kept, m->zeros_kept, m->h, m->diagonal,
			      m->pivots, m->row_loss, m->perm, m->codes, m->codes_kept };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		bench_give(b, all[i]);
}

static void measure_gram(struct bench *b, struct module *m)
{
	const double k = square(m->cols);
	char what[64];

	snprintf(what, sizeof(what), "gram_add %d x %zu", TOKENS, m->cols);
	measure(b, &(struct operation){ what, { .products = TOKENS * k, .bytes = 4.0 * TOKENS * (double)m->cols + 16 * k },
					run_gram, NULL, m });
	/* As before: the sums of the runs just measured, and of their rows, to a mean. */
	if (b->ops->gram_mean(b->be, m->h, m->cols, (uint64_t)(REPEATS + 1) * TOKENS, m->diagonal,
			      &(struct err)ERR_INIT) != 0)
		bench_fail("gram_mean failed");
	snprintf(what, sizeof(what), "gram_mean %zu", m->cols);
	measure(b, &(struct operation){ what, { .bytes = 16 * k }, run_mean, NULL, m });
	snprintf(what, sizeof(what), "factor %zu", m->cols);
	measure(b, &(struct operation){ what, { .f64 = k * (double)m->cols / 3, .bytes = 12 * k }, run_factor, NULL, m });
}

static void measure_fit(struct bench *b, struct module *m, int bits, size_t group)
{
	const double cells = (double)(m->rows * m->cols);
	char what[64];

	m->grid = (struct grid){ .bits = bits, .group = group };
	m->groups = m->cols / group;
	snprintf(what, sizeof(what), "fit_groups %zu x %zu, %d bits by %zu", m->rows, m->cols, bits, group);
	measure(b, &(struct operation){ what, { .bytes = 4 * cells }, run_fit, NULL, m });
}

/* The grid is that of the last fit. */
static void measure_rounding(struct bench *b, struct module *m)
{
	const double n = (double)m->rows, k = square(m->cols), cells = (double)(m->rows * m->cols);
	char what[64];

	snprintf(what, sizeof(what), "round_nearest %zu x %zu", m->rows, m->cols);
	measure(b, &(struct operation){ what, { .bytes = 5 * cells }, run_nearest, NULL, m });
	snprintf(what, sizeof(what), "round_ldlq %zu x %zu", m->rows, m->cols);
	measure(b, &(struct operation){ what, { .products = n * k, .bytes = 5 * cells + 2 * k }, run_ldlq, NULL, m });
	copy_state(b, m, false);
	snprintf(what, sizeof(what), "refine %zu x %zu", m->rows, m->cols);
	measure(b, &(struct operation){ what, { .products = 2 * n * k, .bytes = 6 * cells + 8 * k }, run_refine,
					restore_state, m });
	snprintf(what, sizeof(what), "proxy_loss and energy %zu x %zu", m->rows, m->cols);
	measure(b, &(struct operation){ what, { .products = 4 * n * k, .bytes = 5 * cells + 8 * k }, run_proxy, NULL, m });
}

static void measure_modules(struct bench *b)
{
	struct module m = module_new(b, HIDDEN, HIDDEN);

	measure_gram(b, &m);
	measure_fit(b, &m, 4, 128);
	measure_fit(b, &m, 2, HIDDEN);
	measure_rounding(b, &m);
	module_free(b, &m);
	m = module_new(b, INTER, HIDDEN);
	measure_fit(b, &m, 4, 128);
	measure_fit(b, &m, 2, HIDDEN);
	module_free(b, &m);
	m = module_new(b, HIDDEN, INTER);
	measure_gram(b, &m);
	measure_fit(b, &m, 2, INTER);
	measure_rounding(b, &m);
	module_free(b, &m);
}

/* --- a block -------------------------------------------------------------------------------------- */

struct block {
	struct block_shape shape;
	struct block_weights w;
	struct block_grads grads;
	struct rope_table rope;
	float *angles, *x, *y;
	size_t n_seq;
};

struct tensor { const float **weight; float **grad; size_t n; };

enum { TENSORS = 9 };

static void list_tensors(struct block *k, struct tensor out[TENSORS])
{
	const size_t square_n = (size_t)HIDDEN * HIDDEN, wide = (size_t)HIDDEN * INTER;
	const struct tensor all[TENSORS] = {
		{ &k->w.attn_norm, &k->grads.attn_norm, HIDDEN }, { &k->w.mlp_norm, &k->grads.mlp_norm, HIDDEN },
		{ &k->w.q, &k->grads.q, square_n }, { &k->w.k, &k->grads.k, square_n },
		{ &k->w.v, &k->grads.v, square_n }, { &k->w.o, &k->grads.o, square_n },
		{ &k->w.gate, &k->grads.gate, wide }, { &k->w.up, &k->grads.up, wide },
		{ &k->w.down, &k->grads.down, wide },
	};

	memcpy(out, all, sizeof(all));
}

/* Sines and cosines of angles that grow with the position, faster in the first elements of a head. */
static float *rope_angles(struct bench *b)
{
	const size_t half = HEAD_DIM / 2, n = (size_t)SEQ * half;
	float *host = mem_alloc_aligned(2 * n, sizeof(*host)), *device = bench_memory(b, 2 * n * sizeof(*device));

	if (!host)
		bench_fail("out of memory");
	for (size_t i = 0; i < n; i++) {
		const double angle = (double)(i / half) * pow(10000, -(double)(i % half) / (double)half);

		host[i] = (float)cos(angle);
		host[n + i] = (float)sin(angle);
	}
	bench_copy(b, device, host, 2 * n * sizeof(*host));
	mem_free(host);
	return device;
}

static void block_new(struct bench *b, struct block *k)
{
	struct tensor tensors[TENSORS];

	*k = (struct block){ .shape = { .hidden = HIDDEN, .heads = HEADS, .kv_heads = HEADS, .head_dim = HEAD_DIM,
					.intermediate = INTER, .rms_eps = 1e-5f } };
	list_tensors(k, tensors);
	for (int i = 0; i < TENSORS; i++) {
		*tensors[i].weight = bench_device_noise(b, tensors[i].n, tensors[i].n == HIDDEN ? 1 : 1.0f / 64, 10 + (uint64_t)i);
		*tensors[i].grad = bench_memory(b, tensors[i].n * sizeof(float));
	}
	k->angles = rope_angles(b);
	k->rope = (struct rope_table){ k->angles, k->angles + (size_t)SEQ * HEAD_DIM / 2 };
	k->x = bench_device_noise(b, (size_t)TOKENS * HIDDEN, 1, 30);
	k->y = bench_memory(b, (size_t)TOKENS * HIDDEN * sizeof(float));
}

static void block_free(struct bench *b, struct block *k)
{
	struct tensor tensors[TENSORS];

	list_tensors(k, tensors);
	for (int i = 0; i < TENSORS; i++) {
		bench_give(b, (void *)*tensors[i].weight);
		bench_give(b, *tensors[i].grad);
	}
	bench_give(b, k->angles);
	bench_give(b, k->x);
	bench_give(b, k->y);
}

static int run_forward(struct bench *b, void *ctx, struct err *err)
{
	const struct block *k = ctx;

	return b->ops->block_forward(b->be, &k->shape, &k->w, &k->rope, k->x, k->n_seq, SEQ, k->y, NULL, NULL, err);
}

struct losing { struct bench *b; const struct block *block; struct err *err; };

/* The squared error against the block's input. */
static int squared_error(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	const struct losing *l = ctx;
	const size_t n = rows * cols;
	double sum;

	return l->b->ops->squared_error(l->b->be, y, l->block->x + sequence * n, n, 2.0 / (double)n, dy, &sum, l->err);
}

static int run_backward(struct bench *b, void *ctx, struct err *err)
{
	const struct block *k = ctx;
	struct losing l = { b, k, err };

	return b->ops->block_backward(b->be, &k->shape, &k->w, &k->rope, k->x, k->n_seq, SEQ, squared_error, &l, k->y,
				      &k->grads, err);
}

static int run_squared_error(struct bench *b, void *ctx, struct err *err)
{
	const struct block *k = ctx;
	double sum;

	return b->ops->squared_error(b->be, k->y, k->x, (size_t)SEQ * HIDDEN, 1, k->y, &sum, err);
}

static double block_operations(size_t n_seq)
{
	const double linears = (double)HIDDEN * (4.0 * HIDDEN + 3.0 * INTER);

	return (double)n_seq * SEQ * 2 * linears + (double)n_seq * 2 * (double)SEQ * (SEQ + 1) * HIDDEN;
}

static void measure_block(struct bench *b)
{
	const double weights = 4.0 * HIDDEN * (4.0 * HIDDEN + 3.0 * INTER), rows = 4.0 * SEQ * HIDDEN;
	struct block k;

	block_new(b, &k);
	k.n_seq = TOKENS / SEQ;
	measure(b, &(struct operation){ "block_forward 8 x 2048", { .products = block_operations(k.n_seq),
					.bytes = weights + 2.0 * (double)k.n_seq * rows }, run_forward, NULL, &k });
	k.n_seq = 1;
	measure(b, &(struct operation){ "block_forward 1 x 2048", { .products = block_operations(1),
					.bytes = weights + 2 * rows }, run_forward, NULL, &k });
	measure(b, &(struct operation){ "block_backward 1 x 2048", { .products = 3 * block_operations(1),
					.bytes = 2 * weights + 2 * rows }, run_backward, NULL, &k });
	k.n_seq = BATCH;
	measure(b, &(struct operation){ "block_backward 4 x 2048", { .products = 3 * block_operations(BATCH),
					.bytes = 2 * weights + 2.0 * BATCH * rows }, run_backward, NULL, &k });
	measure(b, &(struct operation){ "squared_error 2048 tokens", { .bytes = 3 * rows }, run_squared_error, NULL, &k });
	block_free(b, &k);
}

/* --- the head ------------------------------------------------------------------------------------- */

struct head { float *x, *x_ref, *w, *dx; double *kl; int32_t *targets; struct head_state state; };

/* Doubles that all begin as `value`. */
static double *filled(struct bench *b, size_t n, double value)
{
	double *host = mem_alloc(n, sizeof(*host)), *device = bench_memory(b, n * sizeof(*device));

	if (!host)
		bench_fail("out of memory");
	for (size_t i = 0; i < n; i++)
		host[i] = value;
	bench_copy(b, device, host, n * sizeof(*host));
	mem_free(host);
	return device;
}

static int run_head(struct bench *b, void *ctx, struct err *err)
{
	struct head *h = ctx;

	return b->ops->head_tile(b->be, h->x, SEQ, HIDDEN, h->w, VOCAB, 0, h->targets, &h->state, err);
}

static int run_head_kl(struct bench *b, void *ctx, struct err *err)
{
	const struct head *h = ctx;

	return b->ops->head_kl_tile(b->be, h->x, h->x_ref, SEQ, HIDDEN, h->w, h->w, VOCAB, &h->state, &h->state, h->kl,
				    h->dx, err);
}

static void measure_head(struct bench *b)
{
	const size_t n = (size_t)SEQ * HIDDEN;
	const double product = 2.0 * SEQ * HIDDEN * VOCAB, bytes = 4.0 * HIDDEN * (SEQ + (double)VOCAB);
	struct head h = {
		.x = bench_device_noise(b, n, 1, 40), .x_ref = bench_device_noise(b, n, 1, 41),
		.w = bench_device_noise(b, (size_t)VOCAB * HIDDEN, 1.0f / 64, 42), .dx = bench_device_noise(b, n, 1, 43),
		.kl = zeroed(b, SEQ), .targets = natural_order(b, SEQ),
		.state = { .max = filled(b, SEQ, -INFINITY), .sum = zeroed(b, SEQ), .target = zeroed(b, SEQ),
			   .top_logit = filled(b, SEQ, -INFINITY), .top_id = natural_order(b, SEQ) },
	};
	void *const all[] = { h.x, h.x_ref, h.w, h.dx, h.kl, h.targets, h.state.max, h.state.sum, h.state.target,
			      h.state.top_logit, h.state.top_id };

	measure(b, &(struct operation){ "head_tile 2048 x 4096, 32000 ids", { .products = product, .bytes = bytes },
					run_head, NULL, &h });
	measure(b, &(struct operation){ "head_kl_tile 2048 x 4096, 32000 ids", { .products = 3 * product, .bytes = bytes },
					run_head_kl, NULL, &h });
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		bench_give(b, all[i]);
}

/* --- passes over memory --------------------------------------------------------------------------- */

enum { PARAMS = HIDDEN * INTER, GROUP = 64 };

struct params { float *p, *g, *m, *v, *scales, *zeros, *dscales, *dzeros; };

static const struct grid grid = { .bits = 2, .group = GROUP };

static int run_adam(struct bench *b, void *ctx, struct err *err)
{
	const struct params *p = ctx;
	const struct adam adam = { .rate = 1e-6f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .step = 9 };

	return b->ops->adam_step(b->be, &adam, PARAMS, p->p, p->g, p->m, p->v, err);
}

static int run_values(struct bench *b, void *ctx, struct err *err)
{
	const struct params *p = ctx;

	return b->ops->grid_values(b->be, &grid, p->p, INTER, HIDDEN, p->scales, p->zeros, p->g, err);
}

static int run_gradients(struct bench *b, void *ctx, struct err *err)
{
	const struct params *p = ctx;

	return b->ops->grid_gradients(b->be, &grid, p->p, INTER, HIDDEN, p->scales, p->zeros, p->g, p->dscales,
				      p->dzeros, p->m, err);
}

static int run_norm(struct bench *b, void *ctx, struct err *err)
{
	const struct params *p = ctx;

	return b->ops->rms_norm(b->be, p->p, p->scales, 1e-5f, INTER, HIDDEN, p->g, err);
}

static void measure_passes(struct bench *b)
{
	const double n = 4.0 * PARAMS;
	struct params p = {
		.p = bench_device_noise(b, PARAMS, 1, 50), .g = bench_device_noise(b, PARAMS, 1, 51),
		.m = bench_device_noise(b, PARAMS, 0, 52), .v = bench_device_noise(b, PARAMS, 0, 53),
		.scales = bench_device_noise(b, PARAMS / GROUP, 1, 54), .zeros = bench_device_noise(b, PARAMS / GROUP, 1, 55),
		.dscales = bench_memory(b, n / GROUP), .dzeros = bench_memory(b, n / GROUP),
	};
	float *const all[] = { p.p, p.g, p.m, p.v, p.scales, p.zeros, p.dscales, p.dzeros };

	measure(b, &(struct operation){ "adam_step 11008 x 4096", { .bytes = 7 * n }, run_adam, NULL, &p });
	measure(b, &(struct operation){ "rms_norm 11008 x 4096", { .bytes = 2 * n }, run_norm, NULL, &p });
	measure(b, &(struct operation){ "grid_values 11008 x 4096", { .bytes = 2 * n }, run_values, NULL, &p });
	measure(b, &(struct operation){ "grid_gradients 11008 x 4096", { .bytes = 3 * n }, run_gradients, NULL, &p });
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		bench_give(b, all[i]);
}

void bench_operations(struct bench *b)
{
	measure_passes(b);
	measure_modules(b);
	measure_head(b);
	measure_block(b);
}
