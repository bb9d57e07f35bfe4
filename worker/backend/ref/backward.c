/* rms_norm_backward and block_backward of the reference backend; the block and its symbols: block.h.
 * d_x stands for dLoss/dx. Gradients are summed in double over the sequences of a call and rounded once. */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/ref/block.h"
#include "worker/backend/ref/ref.h"
#include "worker/backend/shape.h"

int ref_rms_norm_backward(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
			  size_t cols, const float *dy, float *dx, struct err *err)
{
	double *row, *scale, *d;
	int rc = 0;

	(void)be;
	if (matrix_shape_check("rms_norm_backward", rows, cols, err) != 0)
		return -1;
	row = ref_take(3, cols, err);
	if (!row)
		return -1;
	scale = row + cols;
	d = scale + cols;
	for (size_t r = 0; r < rows && rc == 0; r++) {
		for (size_t i = 0; i < cols; i++) {
			row[i] = x[r * cols + i];
			scale[i] = weight[i];
			d[i] = dy[r * cols + i];
		}
		ref_norm_row_back(row, scale, eps, cols, d, false, d, NULL);
		if (!ref_all_finite(d, cols))
			rc = err_set_not_finite(err, "rms_norm_backward");
		for (size_t i = 0; i < cols; i++)
			dx[r * cols + i] = (float)d[i];
	}
	mem_free(row);
	return rc;
}

/* Gradients of activations, of one call of ref_block_back(). */
struct back {
	const struct ref_block *b;
	const struct ref_acts *s;
	double *const *grads;
	double *wide1, *wide2;  /* (rows, intermediate) */
	double *norm;           /* (rows, hidden) behind a norm */
	double *o, *q, *k, *v;  /* (rows, heads*head_dim | kv_heads*head_dim) */
};

static void zero(double *x, size_t n)
{
	memset(x, 0, n * sizeof(*x));
}

/* Gradient of one linear: of its rows x (rows, cols) into dx, of its weight and bias. */
static void linear_back(const struct back *k, enum ref_param weight, enum ref_param bias, const double *x,
			size_t cols, const double *dy, size_t n, double *dx)
{
	ref_linear_back(x, k->s->rows, cols, k->b->p[weight], n, dy, dx, k->grads[weight], k->grads[bias]);
}

/* dr (rows, hidden) comes with the gradient of y and leaves with that of r. */
static void mlp_back(const struct back *k, double *dr)
{
	const struct ref_acts *s = k->s;
	const struct block_shape *d = &k->b->shape;
	const size_t inter = s->rows * d->intermediate, hidden = s->rows * d->hidden;
	double *d_gate = k->wide1, *d_up = k->wide2;

	zero(d_up, inter);
	linear_back(k, REF_DOWN, REF_DOWN_BIAS, s->d, d->intermediate, dr, d->hidden, d_up);
	for (size_t i = 0; i < inter; i++) {
		const double g = s->gate[i], sigmoid = 1 / (1 + exp(-g)), dd = d_up[i];

		d_gate[i] = dd * s->up[i] * sigmoid * (1 + g * (1 - sigmoid));
		d_up[i] = dd * g * sigmoid;
	}
	zero(k->norm, hidden);
	linear_back(k, REF_GATE, REF_GATE_BIAS, s->m, d->hidden, d_gate, d->intermediate, k->norm);
	linear_back(k, REF_UP, REF_UP_BIAS, s->m, d->hidden, d_up, d->intermediate, k->norm);
	for (size_t i = 0; i < hidden; i += d->hidden)
		ref_norm_row_back(s->r + i, k->b->p[REF_MLP_NORM], d->rms_eps, d->hidden, k->norm + i, true,
				  dr + i, k->grads[REF_MLP_NORM]);
}

/* dr comes with the gradient of r and leaves with that of x. */
static void attention_back(const struct back *k, double *dr)
{
	const struct ref_acts *s = k->s;
	const struct block_shape *d = &k->b->shape;
	const size_t q_cols = d->heads * d->head_dim, kv_cols = d->kv_heads * d->head_dim;
	const size_t hidden = s->rows * d->hidden;

	zero(k->o, s->rows * q_cols);
	linear_back(k, REF_O, REF_O_BIAS, s->o, q_cols, dr, d->hidden, k->o);
	zero(k->q, s->rows * q_cols);
	zero(k->k, s->rows * kv_cols);
	zero(k->v, s->rows * kv_cols);
	ref_attention_back(k->b, s, k->o, k->q, k->k, k->v);
	ref_turn_heads_back(k->b, s, s->q_in, d->heads, k->b->p[REF_Q_NORM], k->q, k->grads[REF_Q_NORM]);
	ref_turn_heads_back(k->b, s, s->k_in, d->kv_heads, k->b->p[REF_K_NORM], k->k, k->grads[REF_K_NORM]);
	zero(k->norm, hidden);
	linear_back(k, REF_Q, REF_Q_BIAS, s->a, d->hidden, k->q, q_cols, k->norm);
	linear_back(k, REF_K, REF_K_BIAS, s->a, d->hidden, k->k, kv_cols, k->norm);
	linear_back(k, REF_V, REF_V_BIAS, s->a, d->hidden, k->v, kv_cols, k->norm);
	for (size_t i = 0; i < hidden; i += d->hidden)
		ref_norm_row_back(s->x + i, k->b->p[REF_ATTN_NORM], d->rms_eps, d->hidden, k->norm + i, true,
				  dr + i, k->grads[REF_ATTN_NORM]);
}

int ref_block_back(const struct ref_block *b, const struct ref_acts *s, const double *dy, double *dx,
		   double *const grads[REF_PARAMS], struct err *err)
{
	const struct block_shape *d = &b->shape;
	const size_t q_cols = d->heads * d->head_dim, kv_cols = d->kv_heads * d->head_dim;
	struct back k = { .b = b, .s = s, .grads = grads };
	int rc = -1;

	if ((k.wide1 = ref_take(s->rows, d->intermediate, err)) &&
	    (k.wide2 = ref_take(s->rows, d->intermediate, err)) &&
	    (k.norm = ref_take(s->rows, d->hidden, err)) && (k.o = ref_take(s->rows, q_cols, err)) &&
	    (k.q = ref_take(s->rows, q_cols, err)) && (k.k = ref_take(s->rows, kv_cols, err)) &&
	    (k.v = ref_take(s->rows, kv_cols, err))) {
		memmove(dx, dy, s->rows * d->hidden * sizeof(*dx));
		mlp_back(&k, dx);
		attention_back(&k, dx);
		rc = 0;
	}
	mem_free(k.wide1);
	mem_free(k.wide2);
	mem_free(k.norm);
	mem_free(k.o);
	mem_free(k.q);
	mem_free(k.k);
	mem_free(k.v);
	return rc;
}

/* --- the float32 operation -------------------------------------------------------------------- */

struct training {
	struct ref_block block;
	struct ref_acts acts;           /* of one sequence */
	double *grads[REF_PARAMS];      /* where wanted */
	double *d;                      /* (seq_len, hidden) gradient of y, then of x */
	float *y, *dy;                  /* (seq_len, hidden) what the loss reads and writes */
};

static void training_deinit(struct training *t)
{
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		mem_free(t->grads[i]);
	mem_free(t->d);
	mem_free(t->y);
	mem_free(t->dy);
	ref_acts_deinit(&t->acts);
	ref_block_deinit(&t->block);
}

/* What is held on failure belongs to training_deinit(). */
static int training_init(struct training *t, const struct block_shape *shape, const struct block_weights *w,
			 const struct rope_table *rope, size_t seq_len, const struct block_grads *grads,
			 struct err *err)
{
	const size_t n = seq_len * shape->hidden;

	*t = (struct training){ 0 };
	if (ref_block_init(&t->block, shape, w, rope, seq_len, err) != 0 ||
	    ref_acts_init(&t->acts, shape, 1, seq_len, true, err) != 0)
		return -1;
	for (enum ref_param i = 0; i < REF_PARAMS; i++) {
		if (!ref_param_grad(grads, i))
			continue;
		t->grads[i] = ref_take(ref_param_size(shape, i), 1, err);
		if (!t->grads[i])
			return -1;
		zero(t->grads[i], ref_param_size(shape, i));
	}
	t->d = ref_take(n, 1, err);
	t->y = t->d ? mem_alloc_aligned(n, sizeof(*t->y)) : NULL;
	t->dy = t->y ? mem_alloc_aligned(n, sizeof(*t->dy)) : NULL;
	return t->dy ? 0 : err_set_nomem(err, "a block's activations");
}

/* One sequence: x (seq_len, hidden), dx or NULL. */
static int train_sequence(struct training *t, const float *x, size_t sequence, block_loss loss,
			  void *loss_ctx, float *dx, struct err *err)
{
	const size_t hidden = t->block.shape.hidden, rows = t->acts.rows, n = rows * hidden;

	for (size_t i = 0; i < n; i++)
		t->acts.x[i] = x[i];
	if (ref_block_run(&t->block, &t->acts, true, NULL, NULL, NULL, err) != 0)
		return -1;
	for (size_t i = 0; i < n; i++)
		t->y[i] = (float)t->acts.y[i];
	if (loss(loss_ctx, sequence, t->y, rows, hidden, t->dy) != 0)
		return -1;
	for (size_t i = 0; i < n; i++)
		t->d[i] = t->dy[i];
	if (ref_block_back(&t->block, &t->acts, t->d, t->d, t->grads, err) != 0)
		return -1;
	if (!ref_all_finite(t->d, n))
		return err_set_not_finite(err, "block_backward");
	for (size_t i = 0; dx && i < n; i++)
		dx[i] = (float)t->d[i];
	return 0;
}

static int give_grads(const struct training *t, const struct block_grads *grads, struct err *err)
{
	for (enum ref_param i = 0; i < REF_PARAMS; i++) {
		const size_t n = ref_param_size(&t->block.shape, i);

		if (!t->grads[i])
			continue;
		if (!ref_all_finite(t->grads[i], n))
			return err_set_not_finite(err, "block_backward");
		for (size_t j = 0; j < n; j++)
			ref_param_grad(grads, i)[j] = (float)t->grads[i][j];
	}
	return 0;
}

int ref_block_backward(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
		       const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len,
		       block_loss loss, void *loss_ctx, float *dx, const struct block_grads *grads,
		       struct err *err)
{
	const size_t n = seq_len * shape->hidden;
	struct training t;
	int rc;

	(void)be;
	if (block_shape_check(shape, n_seq, seq_len, err) != 0 || block_grads_check(w, grads, err) != 0)
		return -1;
	rc = training_init(&t, shape, w, rope, seq_len, grads, err);
	for (size_t i = 0; rc == 0 && i < n_seq; i++)
		rc = train_sequence(&t, x + i * n, i, loss, loss_ctx, dx ? dx + i * n : NULL, err);
	if (rc == 0)
		rc = give_grads(&t, grads, err);
	training_deinit(&t);
	return rc;
}
