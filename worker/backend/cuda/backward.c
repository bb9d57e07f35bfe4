/* block_backward of the cuda backend: forward over one sequence with everything kept that the way back needs, the loss on
 * y where it was made, then the same maps in reverse.
 *
 * Every matrix is split once (product.h) for all the products it takes part in: a weight for y = x W' and dx = dy W of
 * all sequences; the rows of a site for y and dW = dy' x; a gradient for dx and dW. Of a sequence's activations only
 * the split form is kept where nothing else reads them, so a few buffers serve in turns; struct sequence says which.
 */
#include "worker/backend/cuda/backward.h"

#include "worker/backend/cuda/kernels_block.h"
#include "worker/backend/shape.h"

struct split_weights { struct cuda_operand q, k, v, o, gate, up, down; };

struct pass {
	struct cuda_frame *f;
	struct cuda_block b;            /* one sequence */
	struct split_weights w;
	struct block_grads grads;       /* on the device */
	const float *x;                 /* (n_seq * seq_len, hidden) on the device */
	float *dx;                      /* the same, or NULL */
	bool add;                       /* this is not the first sequence */
};

/* One sequence on the device; rows = seq_len. */
struct sequence {
	const float *x;                 /* (rows, hidden) */
	struct cuda_operand a, o_in, m, d_in; /* the rows of the four sites, split */
	float *norm;                    /* (rows, hidden) a, then m, then y, then the gradient of m, then that of a */
	float *r, *dy, *dr;             /* (rows, hidden) */
	float *q_in, *k_in;             /* before head norms; q and k themselves where there are none */
	float *q, *k, *v, *o;           /* (rows, q_cols | kv_cols) */
	float *stats;                   /* (rows, heads) */
	float *gate, *up;               /* (rows, intermediate), then their gradients */
	float *d;                       /* (rows, intermediate) d, then its gradient */
	float *d_o;                     /* (rows, q_cols) */
	struct cuda_attention_grads back;
};

static float *rows_of(struct pass *p, size_t cols)
{
	return cuda_take(p->f, p->b.rows * cols * sizeof(float));
}

/* --- forward ---------------------------------------------------------------------------------------------- */

/* A linear map: x (rows, cols) in, y (rows, n) out. */
struct map { struct cuda_operand w; const float *bias; size_t cols, n; };

/* y = x W' + bias + residual. */
static void linear(struct pass *p, struct map map, struct cuda_operand x, const float *residual, float *y)
{
	const bool started = residual || map.bias;
	const struct cuda_product product = { .form = CUDA_NT, .m = p->b.rows, .n = map.n, .k = map.cols, .a = x,
					      .b = map.w, .c = y, .alpha = 1, .beta = started ? 1 : 0 };

	if (started && cuda_ok(p->f))
		cuda_try(p->f, cuda_rows_begin_launch(p->f->cuda->stream, residual, map.bias, p->b.rows, map.n, y));
	cuda_multiply(p->f, &product);
}

static void take_attention(struct pass *p, struct sequence *s)
{
	const struct cuda_block *b = &p->b;

	s->q_in = rows_of(p, b->q_cols);
	s->k_in = rows_of(p, b->kv_cols);
	s->q = b->w.q_norm ? rows_of(p, b->q_cols) : s->q_in;
	s->k = b->w.k_norm ? rows_of(p, b->kv_cols) : s->k_in;
	s->v = rows_of(p, b->kv_cols);
	s->o = rows_of(p, b->q_cols);
	s->stats = rows_of(p, b->shape->heads);
	s->d_o = rows_of(p, b->q_cols);
	s->back.dq = rows_of(p, b->q_cols);
	s->back.dk = rows_of(p, b->kv_cols);
	s->back.dv = rows_of(p, b->kv_cols);
}

static void take_rest(struct pass *p, struct sequence *s)
{
	const struct block_shape *d = p->b.shape;

	s->norm = rows_of(p, d->hidden);
	s->r = rows_of(p, d->hidden);
	s->dy = rows_of(p, d->hidden);
	s->dr = rows_of(p, d->hidden);
	s->gate = rows_of(p, d->intermediate);
	s->up = rows_of(p, d->intermediate);
	s->d = rows_of(p, d->intermediate);
}

static void forward_attention(struct pass *p, struct sequence *s)
{
	struct cuda_block *b = &p->b;
	const size_t hidden = b->shape->hidden;

	cuda_norm(b, s->x, b->w.attn_norm, b->rows, hidden, s->norm);
	s->a = cuda_split(p->f, s->norm, b->rows * hidden);
	linear(p, (struct map){ p->w.q, b->w.q_bias, hidden, b->q_cols }, s->a, NULL, s->q_in);
	linear(p, (struct map){ p->w.k, b->w.k_bias, hidden, b->kv_cols }, s->a, NULL, s->k_in);
	linear(p, (struct map){ p->w.v, b->w.v_bias, hidden, b->kv_cols }, s->a, NULL, s->v);
	cuda_turn_heads(b, s->q_in, b->shape->heads, b->w.q_norm, s->q);
	cuda_turn_heads(b, s->k_in, b->shape->kv_heads, b->w.k_norm, s->k);
	cuda_attention(b, s->q, s->k, s->v, s->o, s->stats);
	s->o_in = cuda_split(p->f, s->o, b->rows * b->q_cols);
	linear(p, (struct map){ p->w.o, b->w.o_bias, b->q_cols, hidden }, s->o_in, s->x, s->r);
}

static void forward_mlp(struct pass *p, struct sequence *s)
{
	struct cuda_block *b = &p->b;
	const size_t hidden = b->shape->hidden, inter = b->shape->intermediate;

	cuda_norm(b, s->r, b->w.mlp_norm, b->rows, hidden, s->norm);
	s->m = cuda_split(p->f, s->norm, b->rows * hidden);
	linear(p, (struct map){ p->w.gate, b->w.gate_bias, hidden, inter }, s->m, NULL, s->gate);
	linear(p, (struct map){ p->w.up, b->w.up_bias, hidden, inter }, s->m, NULL, s->up);
	cuda_swiglu(b, s->gate, s->up, b->rows * inter, s->d);
	s->d_in = cuda_split(p->f, s->d, b->rows * inter);
	linear(p, (struct map){ p->w.down, b->w.down_bias, inter, hidden }, s->d_in, s->r, s->norm);
}

static void check_finite(struct pass *p, const float *x, size_t n)
{
	int *bad = cuda_bad(p->f);

	if (x && cuda_ok(p->f))
		cuda_try(p->f, cuda_rows_finite_launch(p->f->cuda->stream, x, n, bad));
}

/* The loss reads y in s->norm and writes s->dy. What it runs uses the flag of the backend too (cuda_bad()), which is
 * clear when it begins; it was asked about by then. */
static void call_loss(struct pass *p, struct sequence *s, size_t sequence, block_loss loss, void *ctx)
{
	const size_t hidden = p->b.shape->hidden;

	check_finite(p, s->norm, p->b.rows * hidden);
	if (cuda_finite_so_far(p->f) && loss(ctx, sequence, s->norm, p->b.rows, hidden, s->dy) != 0)
		cuda_fail(p->f);
}

/* --- backward --------------------------------------------------------------------------------------------- */

/* dx (rows, cols) = dy W, or `onto` what it holds. */
static void input_gradient(struct pass *p, struct map map, struct cuda_operand dy, bool onto, float *dx)
{
	const struct cuda_product product = { .form = CUDA_NN, .m = p->b.rows, .n = map.cols, .k = map.n, .a = dy,
					      .b = map.w, .c = dx, .alpha = 1, .beta = onto ? 1 : 0 };

	cuda_multiply(p->f, &product);
}

/* dw (n, cols) = dy' x, summed over the sequences; NULL: not wanted. */
static void weight_gradient(struct pass *p, struct map map, struct cuda_operand dy, struct cuda_operand x, float *dw)
{
	const struct cuda_product product = { .form = CUDA_TN, .m = map.n, .n = map.cols, .k = p->b.rows, .a = dy,
					      .b = x, .c = dw, .alpha = 1, .beta = p->add ? 1 : 0 };

	if (dw)
		cuda_multiply(p->f, &product);
}

/* All of a linear map from dy (rows, n); dx may be NULL. */
static void linear_back(struct pass *p, struct map map, const float *dy, struct cuda_operand x, bool onto, float *dx,
			float *dw, float *dbias)
{
	const size_t mark = cuda_mark(p->f);

	if (dx || dw) {
		const struct cuda_operand split = cuda_split(p->f, dy, p->b.rows * map.n);

		if (dx)
			input_gradient(p, map, split, onto, dx);
		weight_gradient(p, map, split, x, dw);
	}
	cuda_bias_backward(p->f, dy, p->b.rows, map.n, p->add, dbias);
	cuda_drop(p->f, mark);
}

/* dx = dy + the gradient of x through its norm, from that of the norm in s->norm. */
static void norm_back(struct pass *p, const struct sequence *s, const float *x, const float *weight, const float *dy,
		      float *dx, float *dweight)
{
	const struct cuda_norm_back n = { .x = x, .weight = weight, .dy = s->norm, .add = dy,
					  .eps = p->b.shape->rms_eps, .rows = p->b.rows, .cols = p->b.shape->hidden,
					  .dx = dx };

	cuda_norm_backward(p->f, &n, dweight, p->add);
}

/* From s->dy to s->dr. */
static void backward_mlp(struct pass *p, struct sequence *s)
{
	const struct block_grads *g = &p->grads;
	const size_t hidden = p->b.shape->hidden, inter = p->b.shape->intermediate;

	linear_back(p, (struct map){ p->w.down, NULL, inter, hidden }, s->dy, s->d_in, false, s->d, g->down,
		    g->down_bias);
	if (cuda_ok(p->f))
		cuda_try(p->f, cuda_swiglu_back_launch(p->f->cuda->stream, s->gate, s->up, s->d, p->b.rows * inter));
	linear_back(p, (struct map){ p->w.gate, NULL, hidden, inter }, s->gate, s->m, false, s->norm, g->gate,
		    g->gate_bias);
	linear_back(p, (struct map){ p->w.up, NULL, hidden, inter }, s->up, s->m, true, s->norm, g->up, g->up_bias);
	norm_back(p, s, s->r, p->b.w.mlp_norm, s->dy, s->dr, g->mlp_norm);
}

/* From s->dr to dx, NULL: not wanted. */
static void backward_attention(struct pass *p, struct sequence *s, float *dx)
{
	struct cuda_block *b = &p->b;
	const struct block_grads *g = &p->grads;
	const size_t hidden = b->shape->hidden;
	float *to = dx || g->attn_norm ? s->norm : NULL;

	linear_back(p, (struct map){ p->w.o, NULL, b->q_cols, hidden }, s->dr, s->o_in, false, s->d_o, g->o, g->o_bias);
	cuda_attention_backward(b, s->q, s->k, s->v, s->o, s->stats, s->d_o, s->back);
	cuda_turn_backward(b, s->q_in, b->shape->heads, b->w.q_norm, s->back.dq, g->q_norm, p->add);
	cuda_turn_backward(b, s->k_in, b->shape->kv_heads, b->w.k_norm, s->back.dk, g->k_norm, p->add);
	linear_back(p, (struct map){ p->w.q, NULL, hidden, b->q_cols }, s->back.dq, s->a, false, to, g->q, g->q_bias);
	linear_back(p, (struct map){ p->w.k, NULL, hidden, b->kv_cols }, s->back.dk, s->a, true, to, g->k, g->k_bias);
	linear_back(p, (struct map){ p->w.v, NULL, hidden, b->kv_cols }, s->back.dv, s->a, true, to, g->v, g->v_bias);
	if (to)
		norm_back(p, s, s->x, b->w.attn_norm, s->dr, dx ? dx : s->dy, g->attn_norm);
}

static void run_sequence(struct pass *p, size_t sequence, block_loss loss, void *loss_ctx)
{
	const size_t at = sequence * p->b.rows * p->b.shape->hidden, mark = cuda_mark(p->f);
	struct sequence s = { .x = cuda_ok(p->f) ? p->x + at : NULL };

	p->add = sequence > 0;
	take_attention(p, &s);
	take_rest(p, &s);
	forward_attention(p, &s);
	forward_mlp(p, &s);
	call_loss(p, &s, sequence, loss, loss_ctx);
	if (cuda_ok(p->f)) {
		backward_mlp(p, &s);
		backward_attention(p, &s, p->dx ? p->dx + at : NULL);
	}
	cuda_drop(p->f, mark);
}

/* --- the operation ---------------------------------------------------------------------------------------- */

static void split_all(struct pass *p)
{
	const struct cuda_block *b = &p->b;
	const size_t q = b->q_cols * b->shape->hidden, kv = b->kv_cols * b->shape->hidden;
	const size_t mlp = b->shape->intermediate * b->shape->hidden;

	p->w.q = cuda_split(p->f, b->w.q, q);
	p->w.k = cuda_split(p->f, b->w.k, kv);
	p->w.v = cuda_split(p->f, b->w.v, kv);
	p->w.o = cuda_split(p->f, b->w.o, q);
	p->w.gate = cuda_split(p->f, b->w.gate, mlp);
	p->w.up = cuda_split(p->f, b->w.up, mlp);
	p->w.down = cuda_split(p->f, b->w.down, mlp);
}

struct gradient { float **at; size_t n; };
enum { GRADIENTS = sizeof(struct block_grads) / sizeof(float *) };

static void list_gradients(struct block_grads *g, const struct cuda_block *b, struct gradient list[GRADIENTS])
{
	const size_t hidden = b->shape->hidden, inter = b->shape->intermediate, dim = b->shape->head_dim;
	const size_t q = b->q_cols, kv = b->kv_cols;
	const struct gradient all[GRADIENTS] = {
		{ &g->attn_norm, hidden }, { &g->mlp_norm, hidden }, { &g->q, q * hidden }, { &g->k, kv * hidden },
		{ &g->v, kv * hidden }, { &g->o, q * hidden }, { &g->gate, inter * hidden }, { &g->up, inter * hidden },
		{ &g->down, inter * hidden }, { &g->q_bias, q }, { &g->k_bias, kv }, { &g->v_bias, kv },
		{ &g->o_bias, hidden }, { &g->gate_bias, inter }, { &g->up_bias, inter }, { &g->down_bias, hidden },
		{ &g->q_norm, dim }, { &g->k_norm, dim },
	};

	for (size_t i = 0; i < GRADIENTS; i++)
		list[i] = all[i];
}

/* Where the gradients are made: the caller's own arrays on the device, or new ones that go back in the end. */
static void place_gradients(struct pass *p, const struct block_grads *grads)
{
	struct gradient list[GRADIENTS];

	p->grads = *grads;
	list_gradients(&p->grads, &p->b, list);
	for (size_t i = 0; i < GRADIENTS; i++)
		*list[i].at = cuda_out(p->f, *list[i].at, list[i].n * sizeof(float));
}

static void check_gradients(struct pass *p)
{
	struct gradient list[GRADIENTS];

	list_gradients(&p->grads, &p->b, list);
	for (size_t i = 0; i < GRADIENTS; i++)
		check_finite(p, *list[i].at, list[i].n);
}

int cuda_block_backward(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
			const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len, block_loss loss,
			void *loss_ctx, float *dx, const struct block_grads *grads, struct err *err)
{
	const size_t bytes = n_seq * seq_len * shape->hidden * sizeof(*x);
	struct cuda_frame f = cuda_begin(be, "block_backward", err);
	struct pass p = { .f = &f };

	if (block_shape_check(shape, n_seq, seq_len, err) != 0 || block_grads_check(w, grads, err) != 0)
		return -1;
	cuda_block_begin(&p.b, &f, shape, w, rope, 1, seq_len);
	p.x = cuda_in(&f, x, bytes);
	p.dx = cuda_out(&f, dx, bytes);
	place_gradients(&p, grads);
	split_all(&p);
	for (size_t i = 0; i < n_seq && cuda_ok(&f); i++)
		run_sequence(&p, i, loss, loss_ctx);
	check_gradients(&p);
	return cuda_end(&f);
}
