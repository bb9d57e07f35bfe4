/* block_forward of the cuda backend: the lines of ref/block.c, each over all rows.
 *
 * Memory is taken in the order that lets it go as soon as it has been used: what lives longest comes first. Besides
 * weights, input and output the widest places need, in columns of float32 a row, 2 intermediate + 2 hidden (MLP) and
 * q_cols + 2 (q_cols + 2 kv_cols) (attention).
 */
#include "worker/backend/cuda/block.h"
#include "worker/backend/cuda/kernels_block.h"
#include "worker/backend/shape.h"

struct pass {
	struct cuda_block b;
	struct cuda_frame *f;
	const float *x;         /* (rows, hidden) */
	float *r;               /* (rows, hidden) residual stream, then output; may be x */
	block_tap tap;
	void *tap_ctx;
};

static float *take(struct pass *p, size_t cols)
{
	return cuda_take(p->f, p->b.rows * cols * sizeof(float));
}

/* What was computed last is finite, and the tap, which may launch work of its own, has seen it. */
static bool show(struct pass *p, int site, const float *x, size_t cols)
{
	if (cuda_finite_so_far(p->f) && p->tap && p->tap(p->tap_ctx, site, x, p->b.rows, cols) != 0)
		cuda_fail(p->f);
	return cuda_ok(p->f);
}

struct map { const float *w, *bias; size_t n; float *y; };

/* Normalizes x, shows it, and takes it through `count` linear maps. */
static bool normalize(struct pass *p, const char *what, int site, const float *x, const float *weight,
		      const struct map *maps, size_t count)
{
	const size_t hidden = p->b.shape->hidden, mark = cuda_mark(p->f);
	float *a = take(p, hidden);
	struct cuda_operand parts;

	p->f->what = what;
	cuda_norm(&p->b, x, weight, p->b.rows, hidden, a);
	if (show(p, site, a, hidden)) {
		parts = cuda_split(p->f, a, p->b.rows * hidden);
		for (size_t i = 0; i < count; i++)
			cuda_linear(&p->b, parts, hidden, maps[i].w, maps[i].bias, NULL, maps[i].n, maps[i].y);
	}
	cuda_drop(p->f, mark);
	return cuda_ok(p->f);
}

/* o (rows, q_cols) from x. */
static bool attend(struct pass *p, float *o)
{
	struct cuda_block *b = &p->b;
	const size_t mark = cuda_mark(p->f);
	float *q = take(p, b->q_cols), *k = take(p, b->kv_cols), *v = take(p, b->kv_cols);
	const struct map maps[] = {
		{ b->w.q, b->w.q_bias, b->q_cols, q }, { b->w.k, b->w.k_bias, b->kv_cols, k },
		{ b->w.v, b->w.v_bias, b->kv_cols, v },
	};

	if (normalize(p, "rms_norm", 0, p->x, b->w.attn_norm, maps, 3)) {
		p->f->what = "the block's attention";
		cuda_turn_heads(b, q, b->shape->heads, b->w.q_norm, q);
		cuda_turn_heads(b, k, b->shape->kv_heads, b->w.k_norm, k);
		cuda_attention(b, q, k, v, o, NULL);
	}
	cuda_drop(p->f, mark);
	return cuda_ok(p->f);
}

/* r = x + attention. */
static bool attention_half(struct pass *p)
{
	struct cuda_block *b = &p->b;
	const size_t mark = cuda_mark(p->f);
	float *o = take(p, b->q_cols);

	if (attend(p, o) && show(p, 1, o, b->q_cols))
		cuda_linear(b, cuda_split(p->f, o, b->rows * b->q_cols), b->q_cols, b->w.o, b->w.o_bias, p->x,
			    b->shape->hidden, p->r);
	cuda_drop(p->f, mark);
	return cuda_ok(p->f);
}

/* d (rows, intermediate) from r. A sum with x that is not finite shows in the norm. */
static bool activate(struct pass *p, float *d)
{
	struct cuda_block *b = &p->b;
	const size_t inter = b->shape->intermediate, mark = cuda_mark(p->f);
	float *gate = take(p, inter);
	const struct map maps[] = {
		{ b->w.gate, b->w.gate_bias, inter, gate }, { b->w.up, b->w.up_bias, inter, d },
	};

	if (normalize(p, "the block's attention", 2, p->r, b->w.mlp_norm, maps, 2)) {
		p->f->what = "the block's MLP";
		cuda_swiglu(b, gate, d, b->rows * inter, d);
	}
	cuda_drop(p->f, mark);
	return cuda_ok(p->f);
}

/* r += MLP, unless nobody wants what lies behind the last tap. */
static void mlp_half(struct pass *p, bool with_y)
{
	struct cuda_block *b = &p->b;
	const size_t inter = b->shape->intermediate, hidden = b->shape->hidden, mark = cuda_mark(p->f);
	float *d = take(p, inter);
	int *bad = cuda_bad(p->f);

	if (activate(p, d) && show(p, 3, d, inter) && with_y) {
		p->f->what = "the block";
		cuda_linear(b, cuda_split(p->f, d, b->rows * inter), inter, b->w.down, b->w.down_bias, p->r, hidden,
			    p->r);
		if (cuda_ok(p->f))
			cuda_try(p->f, cuda_rows_finite_launch(p->f->cuda->stream, p->r, b->rows * hidden, bad));
	}
	cuda_drop(p->f, mark);
}

int cuda_block_forward(struct backend *be, const struct block_shape *shape,
		       const struct block_weights *w, const struct rope_table *rope, const float *x,
		       size_t n_seq, size_t seq_len, float *y, block_tap tap, void *tap_ctx,
		       struct err *err)
{
	struct cuda_frame f;
	struct pass p = { .tap = tap, .tap_ctx = tap_ctx };
	size_t bytes;

	if (block_shape_check(shape, n_seq, seq_len, err) != 0)
		return -1;
	if (!y && !tap)
		return 0;
	f = cuda_begin(be, "the block", err);
	p.f = &f;
	cuda_block_begin(&p.b, &f, shape, w, rope, n_seq, seq_len);
	bytes = p.b.rows * shape->hidden * sizeof(*x);
	if (x == y)
		p.r = cuda_inout(&f, y, bytes);
	else
		p.r = y ? cuda_out(&f, y, bytes) : cuda_take(&f, bytes);
	p.x = x == y ? p.r : cuda_in(&f, x, bytes);
	if (cuda_ok(&f) && attention_half(&p))
		mlp_half(&p, y != NULL);
	return cuda_end(&f);
}
