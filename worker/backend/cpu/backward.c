/* block_backward of the cpu backend: forward over one sequence with everything kept that the way back
 * needs, the loss, then the same maps in reverse.
 *
 * All arrays of a sequence, and what the workers need, are one piece of scratch memory, cut up once per call.
 * Gradients of weights come last, all of them in one run of the pool: they are most of the work, so
 * their tiles even out what threads have to do.
 */
#include <stdatomic.h>

#include "worker/backend/cpu/attention.h"
#include "worker/backend/cpu/backward_attention.h"
#include "worker/backend/cpu/backward_linear.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/linear.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

struct pass {
	struct cpu_backend *cpu;
	const struct block_shape *shape;
	const struct block_weights *w;
	const struct rope_table *rope;
	struct block_grads grads;
	size_t seq_len, q_cols, kv_cols;
	/* One sequence; rows = seq_len. q_in, k_in: before head norms, else NULL. */
	float *a, *r, *m, *y;                   /* (rows, hidden) */
	float *q_in, *k_in, *q, *k, *v, *o;     /* (rows, q_cols | kv_cols) */
	float *stats;                           /* (rows, heads, 2) */
	float *gate, *up, *d;                   /* (rows, intermediate); gate and up become their gradients */
	float *dy, *dr;                         /* (rows, hidden) */
	float *d_norm;                          /* (rows, hidden) gradient of m, then of a: y's place */
	float *d_o, *dq, *dk, *dv;
	float *norm_shares, *q_shares, *k_shares, *partial, *workers;
	atomic_bool bad;
};

static int finite_so_far(struct pass *s, const char *what, struct err *err)
{
	return atomic_load(&s->bad) ? err_set_not_finite(err, what) : 0;
}

/* --- memory --------------------------------------------------------------------------------- */

/* base NULL: only counts. */
struct cutter { float *base; size_t used; };

static float *cut(struct cutter *c, size_t rows, size_t cols)
{
	const size_t at = c->used;

	c->used += (rows * cols + 15) / 16 * 16;
	return c->base ? c->base + at : NULL;
}

static size_t largest(size_t a, size_t b)
{
	return a > b ? a : b;
}

static size_t worker_floats(const struct pass *s)
{
	return largest(cpu_attention_scratch(s->seq_len),
		       largest(cpu_attention_back_scratch(), cpu_swiglu_back_scratch()));
}

/* Returns the floats needed. */
static size_t cut_all(struct pass *s, float *base)
{
	const struct block_shape *d = s->shape;
	const size_t n = s->seq_len, hidden = d->hidden, inter = d->intermediate, dim = d->head_dim;
	struct cutter c = { .base = base };

	s->a = cut(&c, n, hidden), s->r = cut(&c, n, hidden), s->m = cut(&c, n, hidden);
	s->q = cut(&c, n, s->q_cols), s->k = cut(&c, n, s->kv_cols), s->v = cut(&c, n, s->kv_cols);
	s->q_in = s->w->q_norm ? cut(&c, n, s->q_cols) : NULL;
	s->k_in = s->w->k_norm ? cut(&c, n, s->kv_cols) : NULL;
	s->o = cut(&c, n, s->q_cols), s->stats = cut(&c, n, 2 * d->heads);
	s->gate = cut(&c, n, inter), s->up = cut(&c, n, inter), s->d = cut(&c, n, inter);
	s->y = s->d_norm = cut(&c, n, hidden);
	s->dy = cut(&c, n, hidden), s->dr = cut(&c, n, hidden);
	s->d_o = cut(&c, n, s->q_cols), s->dq = cut(&c, n, s->q_cols);
	s->dk = cut(&c, n, s->kv_cols), s->dv = cut(&c, n, s->kv_cols);
	s->norm_shares = cut(&c, norm_back_shares(n), hidden);
	s->q_shares = cut(&c, cpu_attention_back_q_shares(d, n), dim);
	s->k_shares = cut(&c, cpu_attention_back_k_shares(d, n), dim);
	s->partial = cut(&c, cpu_attention_back_partial(d, n), 1);
	s->workers = cut(&c, (size_t)pool_workers(s->cpu->pool), worker_floats(s));
	return c.used;
}

static struct swiglu_back mlp_of(const struct pass *s)
{
	const struct block_weights *w = s->w;

	return (struct swiglu_back){ .w_gate = w->gate, .w_up = w->up, .gate_bias = w->gate_bias,
				     .up_bias = w->up_bias, .w_down = w->down, .n = s->shape->intermediate,
				     .hidden = s->shape->hidden, .gate = s->gate, .up = s->up, .d = s->d,
				     .scratch = s->workers };
}

/* --- forward -------------------------------------------------------------------------------- */

struct turn_job {
	struct pass *s;
	const float *in, *norm;
	float *out;
	size_t heads;
};

/* Head norm and turn of one row tile, where the rows before them are kept. */
static void turn_item(void *ctx, size_t item, int worker)
{
	const struct turn_job *job = ctx;
	const struct pass *s = job->s;
	const struct forward_kernels *kernels = s->cpu->forward;
	const size_t dim = s->shape->head_dim, half = dim / 2, first = item * NORM_ROWS;
	const size_t end = first + tile_length(s->seq_len, NORM_ROWS, item);

	(void)worker;
	for (size_t r = first; r < end; r++)
		for (size_t h = 0; h < job->heads; h++) {
			float *out = job->out + (r * job->heads + h) * dim;

			kernels->rms_norm(job->in + (r * job->heads + h) * dim, job->norm,
					  s->shape->rms_eps, dim, out);
			kernels->rope(out, s->rope->cos + r * half, s->rope->sin + r * half, half);
		}
}

static void turn_heads(struct pass *s, const float *in, const float *norm, size_t heads, float *out)
{
	struct turn_job job = { .s = s, .in = in, .norm = norm, .out = out, .heads = heads };

	if (norm)
		pool_run(s->cpu->pool, ceil_div(s->seq_len, NORM_ROWS), turn_item, &job);
}

static void attend(struct pass *s, const struct row_tiles *tiles)
{
	const struct block_shape *d = s->shape;
	const struct block_weights *w = s->w;
	const struct linear maps[] = {
		{ .w = w->q, .bias = w->q_bias, .out = s->q_in ? s->q_in : s->q, .n = s->q_cols,
		  .rope = s->q_in ? NULL : s->rope, .head_dim = d->head_dim },
		{ .w = w->k, .bias = w->k_bias, .out = s->k_in ? s->k_in : s->k, .n = s->kv_cols,
		  .rope = s->k_in ? NULL : s->rope, .head_dim = d->head_dim },
		{ .w = w->v, .bias = w->v_bias, .out = s->v, .n = s->kv_cols },
	};
	const struct attention attention = {
		.heads = d->heads, .kv_heads = d->kv_heads, .head_dim = d->head_dim, .n_seq = 1,
		.seq_len = s->seq_len, .q = s->q, .k = s->k, .v = s->v, .o = s->o, .stats = s->stats,
		.scratch = s->workers,
	};

	cpu_linear(s->cpu, tiles, s->a, d->hidden, maps, 3, &s->bad);
	turn_heads(s, s->q_in, w->q_norm, d->heads, s->q);
	turn_heads(s, s->k_in, w->k_norm, d->kv_heads, s->k);
	cpu_attention(s->cpu, &attention);
}

static int run_forward(struct pass *s, const float *x, struct err *err)
{
	const struct block_shape *d = s->shape;
	const struct block_weights *w = s->w;
	const struct row_tiles tiles = row_tiles_of(1, s->seq_len, BACK_ROWS);
	const struct linear o = { .w = w->o, .bias = w->o_bias, .residual = x, .out = s->r, .n = d->hidden };
	const struct linear down = { .w = w->down, .bias = w->down_bias, .residual = s->r, .out = s->y,
				     .n = d->hidden };
	const struct swiglu_back mlp = mlp_of(s);

	if (cpu_rms_norm(&s->cpu->base, x, w->attn_norm, d->rms_eps, s->seq_len, d->hidden, s->a, err) != 0)
		return -1;
	attend(s, &tiles);
	cpu_linear(s->cpu, &tiles, s->o, s->q_cols, &o, 1, &s->bad);
	if (finite_so_far(s, "the block's attention", err) != 0 ||
	    cpu_rms_norm(&s->cpu->base, s->r, w->mlp_norm, d->rms_eps, s->seq_len, d->hidden, s->m, err) != 0)
		return -1;
	cpu_swiglu_keep(s->cpu, &mlp, s->m, s->seq_len, &s->bad);
	if (finite_so_far(s, "the block's MLP", err) != 0)
		return -1;
	cpu_linear(s->cpu, &tiles, s->d, d->intermediate, &down, 1, &s->bad);
	return finite_so_far(s, "the block", err);
}

/* --- backward ------------------------------------------------------------------------------- */

enum { MAP_DOWN, MAP_GATE, MAP_UP, MAP_O, MAP_Q, MAP_K, MAP_V, MAPS };

static void maps_of(const struct pass *s, struct linear_back maps[MAPS])
{
	const struct block_weights *w = s->w;
	const struct block_grads *g = &s->grads;
	const size_t hidden = s->shape->hidden, inter = s->shape->intermediate;

	maps[MAP_DOWN] = (struct linear_back){ w->down, s->dy, s->d, g->down, g->down_bias, hidden, inter };
	maps[MAP_GATE] = (struct linear_back){ w->gate, s->gate, s->m, g->gate, g->gate_bias, inter, hidden };
	maps[MAP_UP] = (struct linear_back){ w->up, s->up, s->m, g->up, g->up_bias, inter, hidden };
	maps[MAP_O] = (struct linear_back){ w->o, s->dr, s->o, g->o, g->o_bias, hidden, s->q_cols };
	maps[MAP_Q] = (struct linear_back){ w->q, s->dq, s->a, g->q, g->q_bias, s->q_cols, hidden };
	maps[MAP_K] = (struct linear_back){ w->k, s->dk, s->a, g->k, g->k_bias, s->kv_cols, hidden };
	maps[MAP_V] = (struct linear_back){ w->v, s->dv, s->a, g->v, g->v_bias, s->kv_cols, hidden };
}

/* dx = dy + the gradient through the norm of x, from d_norm. */
static void norm_back(struct pass *s, const float *x, const float *weight, const float *dy, float *dx,
		      float *dweight, bool add)
{
	const struct norm_back norm = { .x = x, .weight = weight, .dy = s->d_norm, .add = dy,
					.eps = s->shape->rms_eps, .cols = s->shape->hidden, .dx = dx,
					.shares = dweight ? s->norm_shares : NULL };

	cpu_norm_back(s->cpu, &norm, s->seq_len, &s->bad);
	if (dweight)
		cpu_sum_shares(s->norm_shares, norm_back_shares(s->seq_len), norm.cols, add, dweight,
			       &s->bad);
}

static void attention_back(struct pass *s, bool add)
{
	const struct block_shape *d = s->shape;
	const struct block_weights *w = s->w;
	const struct attention_back back = {
		.heads = d->heads, .kv_heads = d->kv_heads, .head_dim = d->head_dim, .seq_len = s->seq_len,
		.rope = s->rope, .q = s->q, .k = s->k, .v = s->v, .o = s->o, .stats = s->stats,
		.d_o = s->d_o, .q_in = s->q_in, .k_in = s->k_in, .q_norm = w->q_norm, .k_norm = w->k_norm,
		.eps = d->rms_eps, .dq = s->dq, .dk = s->dk, .dv = s->dv, .q_norm_shares = s->q_shares,
		.k_norm_shares = s->k_shares, .partial = s->partial, .scratch = s->workers,
	};

	cpu_attention_back(s->cpu, &back);
	if (w->q_norm && s->grads.q_norm)
		cpu_sum_shares(s->q_shares, cpu_attention_back_q_shares(d, s->seq_len), d->head_dim, add,
			       s->grads.q_norm, &s->bad);
	if (w->k_norm && s->grads.k_norm)
		cpu_sum_shares(s->k_shares, cpu_attention_back_k_shares(d, s->seq_len), d->head_dim, add,
			       s->grads.k_norm, &s->bad);
}

/* From s->dy; dx may be NULL. `add`: onto gradients of the sequences before; `last`: there is no next one. */
static int run_backward(struct pass *s, const float *x, float *dx, bool add, bool last, struct err *err)
{
	struct linear_back maps[MAPS];
	const struct swiglu_back mlp = mlp_of(s);

	maps_of(s, maps);
	cpu_swiglu_back(s->cpu, &mlp, s->dy, s->seq_len);
	cpu_linear_back(s->cpu, maps + MAP_GATE, 2, s->seq_len, s->d_norm);
	norm_back(s, s->r, s->w->mlp_norm, s->dy, s->dr, s->grads.mlp_norm, add);
	cpu_linear_back(s->cpu, maps + MAP_O, 1, s->seq_len, s->d_o);
	attention_back(s, add);
	if (dx || s->grads.attn_norm) {
		cpu_linear_back(s->cpu, maps + MAP_Q, 3, s->seq_len, s->d_norm);
		norm_back(s, x, s->w->attn_norm, s->dr, dx ? dx : s->d_norm, s->grads.attn_norm, add);
	}
	cpu_linear_gradients(s->cpu, maps, MAPS, s->seq_len, add, last, &s->bad);
	return finite_so_far(s, "block_backward", err);
}

int cpu_block_backward(struct backend *be, const struct block_shape *shape,
		       const struct block_weights *w, const struct rope_table *rope, const float *x,
		       size_t n_seq, size_t seq_len, block_loss loss, void *loss_ctx, float *dx,
		       const struct block_grads *grads, struct err *err)
{
	struct pass s = { .cpu = cpu_of(be), .shape = shape, .w = w, .rope = rope, .grads = *grads,
			  .seq_len = seq_len, .q_cols = shape->heads * shape->head_dim,
			  .kv_cols = shape->kv_heads * shape->head_dim };
	float *base;
	int rc = 0;

	if (block_shape_check(shape, n_seq, seq_len, err) != 0 || block_grads_check(w, grads, err) != 0)
		return -1;
	base = cpu_scratch_take(s.cpu, cut_all(&s, NULL), "a block's activations", err);
	if (!base)
		return -1;
	cut_all(&s, base);
	for (size_t i = 0; rc == 0 && i < n_seq; i++) {
		const size_t at = i * seq_len * shape->hidden;

		rc = run_forward(&s, x + at, err);
		if (rc == 0 && loss(loss_ctx, i, s.y, seq_len, shape->hidden, s.dy) != 0)
			rc = -1;
		if (rc == 0)
			rc = run_backward(&s, x + at, dx ? dx + at : NULL, i > 0, i + 1 == n_seq, err);
	}
	cpu_scratch_give(s.cpu);
	return rc;
}
