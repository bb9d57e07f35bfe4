/* The parts of a block that both directions share: weights on the device, linear maps, heads, activation. */
#include "worker/backend/cuda/block.h"

#include "common/alloc.h"
#include "worker/backend/cuda/kernels_block.h"

/* No size of an array of this block overflows; room is for the parts of an operand and padding of heads. */
static bool sizes_fit(const struct cuda_block *b)
{
	enum { ROOM = 256 };
	const struct block_shape *d = b->shape;
	size_t wide = d->hidden > d->intermediate ? d->hidden : d->intermediate, n;

	wide = wide > b->q_cols ? wide : b->q_cols;
	return size_mul(b->rows, wide, &n) && size_mul(n, ROOM, &n);
}

static const float *place(struct cuda_block *b, const float *array, size_t rows, size_t cols)
{
	return cuda_in(b->f, array, rows * cols * sizeof(*array));
}

static void place_weights(struct cuda_block *b, const struct block_weights *w)
{
	const struct block_shape *d = b->shape;

	b->w = (struct block_weights){
		.attn_norm = place(b, w->attn_norm, d->hidden, 1), .mlp_norm = place(b, w->mlp_norm, d->hidden, 1),
		.q = place(b, w->q, b->q_cols, d->hidden), .k = place(b, w->k, b->kv_cols, d->hidden),
		.v = place(b, w->v, b->kv_cols, d->hidden), .o = place(b, w->o, d->hidden, b->q_cols),
		.gate = place(b, w->gate, d->intermediate, d->hidden),
		.up = place(b, w->up, d->intermediate, d->hidden),
		.down = place(b, w->down, d->hidden, d->intermediate),
		.q_bias = place(b, w->q_bias, b->q_cols, 1), .k_bias = place(b, w->k_bias, b->kv_cols, 1),
		.v_bias = place(b, w->v_bias, b->kv_cols, 1), .o_bias = place(b, w->o_bias, d->hidden, 1),
		.gate_bias = place(b, w->gate_bias, d->intermediate, 1),
		.up_bias = place(b, w->up_bias, d->intermediate, 1),
		.down_bias = place(b, w->down_bias, d->hidden, 1),
		.q_norm = place(b, w->q_norm, d->head_dim, 1), .k_norm = place(b, w->k_norm, d->head_dim, 1),
	};
}

void cuda_block_begin(struct cuda_block *b, struct cuda_frame *f, const struct block_shape *shape,
		      const struct block_weights *w, const struct rope_table *rope, size_t n_seq, size_t seq_len)
{
	*b = (struct cuda_block){
		.f = f, .shape = shape, .n_seq = n_seq, .seq_len = seq_len, .rows = n_seq * seq_len,
		.q_cols = shape->heads * shape->head_dim, .kv_cols = shape->kv_heads * shape->head_dim,
	};
	if (!cuda_ok(f))
		return;
	if (!sizes_fit(b)) {
		err_set_nomem(f->err, "a block's activations");
		cuda_fail(f);
		return;
	}
	place_weights(b, w);
	b->rope.cos = place(b, rope->cos, seq_len, shape->head_dim / 2);
	b->rope.sin = place(b, rope->sin, seq_len, shape->head_dim / 2);
}

void cuda_linear(struct cuda_block *b, struct cuda_operand x, size_t cols, const float *w, const float *bias,
		 const float *residual, size_t n, float *y)
{
	struct cuda_frame *f = b->f;
	const size_t mark = cuda_mark(f);
	const bool begun = bias || residual; /* the product is added to what stands in y */
	struct cuda_product p = {
		.form = CUDA_NT, .m = b->rows, .n = n, .k = cols, .a = x, .c = y, .alpha = 1, .beta = begun ? 1 : 0,
	};

	if (!cuda_ok(f))
		return;
	if (bias || (residual && residual != y))
		cuda_try(f, cuda_rows_begin_launch(f->cuda->stream, residual, bias, b->rows, n, y));
	p.b = cuda_split(f, w, n * cols);
	if (cuda_ok(f))
		cuda_multiply(f, &p);
	cuda_drop(f, mark);
}

void cuda_turn_heads(struct cuda_block *b, const float *in, size_t heads, const float *norm, float *out)
{
	struct cuda_turn t = {
		.cos = b->rope.cos, .sin = b->rope.sin, .rows = b->rows, .seq_len = b->seq_len, .heads = heads,
		.dim = b->shape->head_dim, .in = in, .norm = norm, .eps = b->shape->rms_eps, .out = out,
		.bad = cuda_bad(b->f),
	};

	if (cuda_ok(b->f))
		cuda_try(b->f, cuda_turn_launch(b->f->cuda->stream, &t));
}

void cuda_swiglu(struct cuda_block *b, const float *gate, const float *up, size_t n, float *d)
{
	int *bad = cuda_bad(b->f);

	if (cuda_ok(b->f))
		cuda_try(b->f, cuda_swiglu_launch(b->f->cuda->stream, gate, up, n, d, bad));
}
