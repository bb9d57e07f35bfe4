/* Parameters and activations of a block in double, and its forward pass; see block.h. */
#include "worker/backend/ref/block.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/shape.h"

#define PARAM(field) { #field, offsetof(struct block_weights, field), offsetof(struct block_grads, field) }

static const struct { const char *name; size_t weight_at, grad_at; } params[REF_PARAMS] = {
	PARAM(attn_norm), PARAM(mlp_norm),
	PARAM(q), PARAM(k), PARAM(v), PARAM(o), PARAM(gate), PARAM(up), PARAM(down),
	PARAM(q_bias), PARAM(k_bias), PARAM(v_bias), PARAM(o_bias),
	PARAM(gate_bias), PARAM(up_bias), PARAM(down_bias),
	PARAM(q_norm), PARAM(k_norm),
};

const char *ref_param_name(enum ref_param which)
{
	return params[which].name;
}

const float *ref_param_weight(const struct block_weights *w, enum ref_param which)
{
	return *(const float *const *)((const char *)w + params[which].weight_at);
}

float *ref_param_grad(const struct block_grads *grads, enum ref_param which)
{
	return *(float *const *)((const char *)grads + params[which].grad_at);
}

size_t ref_param_size(const struct block_shape *d, enum ref_param which)
{
	const size_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim;

	switch (which) {
	case REF_ATTN_NORM: case REF_MLP_NORM: case REF_O_BIAS: case REF_DOWN_BIAS:
		return d->hidden;
	case REF_Q: case REF_O:
		return q * d->hidden;
	case REF_K: case REF_V:
		return kv * d->hidden;
	case REF_GATE: case REF_UP: case REF_DOWN:
		return d->intermediate * d->hidden;
	case REF_Q_BIAS:
		return q;
	case REF_K_BIAS: case REF_V_BIAS:
		return kv;
	case REF_GATE_BIAS: case REF_UP_BIAS:
		return d->intermediate;
	case REF_Q_NORM: case REF_K_NORM:
		return d->head_dim;
	case REF_PARAMS:
		break;
	}
	return 0;
}

static double *copy(const float *x, size_t n, struct err *err)
{
	double *out = ref_take(n, 1, err);

	for (size_t i = 0; out && i < n; i++)
		out[i] = x[i];
	return out;
}

int ref_block_init(struct ref_block *b, const struct block_shape *shape, const struct block_weights *w,
		   const struct rope_table *rope, size_t seq_len, struct err *err)
{
	const size_t n = seq_len * (shape->head_dim / 2);

	*b = (struct ref_block){ .shape = *shape };
	for (enum ref_param i = 0; i < REF_PARAMS; i++) {
		const float *from = ref_param_weight(w, i);

		if (!from)
			continue;
		b->p[i] = copy(from, ref_param_size(shape, i), err);
		if (!b->p[i])
			goto fail;
	}
	b->cos = copy(rope->cos, n, err);
	b->sin = b->cos ? copy(rope->sin, n, err) : NULL;
	if (b->sin)
		return 0;
fail:
	ref_block_deinit(b);
	return -1;
}

void ref_block_deinit(struct ref_block *b)
{
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		mem_free(b->p[i]);
	mem_free(b->cos);
	mem_free(b->sin);
	*b = (struct ref_block){ 0 };
}

/* Another array when activations are kept, else the same one again. */
static double *next(const struct ref_acts *s, double *same, size_t cols, struct err *err)
{
	return s->keep ? ref_take(s->rows, cols, err) : same;
}

int ref_acts_init(struct ref_acts *s, const struct block_shape *d, size_t n_seq, size_t seq_len, bool keep,
		  struct err *err)
{
	const size_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim;

	*s = (struct ref_acts){ .n_seq = n_seq, .seq_len = seq_len, .rows = n_seq * seq_len, .keep = keep };
	if ((s->x = ref_take(s->rows, d->hidden, err)) && (s->r = next(s, s->x, d->hidden, err)) &&
	    (s->y = next(s, s->r, d->hidden, err)) && (s->a = ref_take(s->rows, d->hidden, err)) &&
	    (s->m = next(s, s->a, d->hidden, err)) && (s->q_in = ref_take(s->rows, q, err)) &&
	    (s->q = next(s, s->q_in, q, err)) && (s->k_in = ref_take(s->rows, kv, err)) &&
	    (s->k = next(s, s->k_in, kv, err)) && (s->v = ref_take(s->rows, kv, err)) &&
	    (s->o = ref_take(s->rows, q, err)) && (s->gate = ref_take(s->rows, d->intermediate, err)) &&
	    (s->up = ref_take(s->rows, d->intermediate, err)) &&
	    (s->d = next(s, s->up, d->intermediate, err)) && (s->p = ref_take(seq_len, 1, err)) &&
	    (s->dp = keep ? ref_take(seq_len, 1, err) : s->p))
		return 0;
	ref_acts_deinit(s);
	return -1;
}

void ref_acts_deinit(struct ref_acts *s)
{
	if (s->keep) {
		mem_free(s->r);
		mem_free(s->y);
		mem_free(s->m);
		mem_free(s->q);
		mem_free(s->k);
		mem_free(s->d);
		mem_free(s->dp);
	}
	mem_free(s->x);
	mem_free(s->a);
	mem_free(s->q_in);
	mem_free(s->k_in);
	mem_free(s->v);
	mem_free(s->o);
	mem_free(s->gate);
	mem_free(s->up);
	mem_free(s->p);
	*s = (struct ref_acts){ 0 };
}

struct viewer { block_tap tap; void *ctx; float *site; size_t rows; };

/* Shows the rows of one site to the tap; sites count from 0 in the order of enum block_site. */
static int show(const struct viewer *v, int site, const double *x, size_t cols)
{
	if (!v->tap)
		return 0;
	for (size_t i = 0; i < v->rows * cols; i++)
		v->site[i] = (float)x[i];
	return v->tap(v->ctx, site, v->site, v->rows, cols) == 0 ? 0 : -1;
}

static int attention_half(const struct ref_block *b, const struct ref_acts *s, const struct viewer *v,
			  struct err *err)
{
	const struct block_shape *d = &b->shape;
	const size_t q_cols = d->heads * d->head_dim, kv_cols = d->kv_heads * d->head_dim;
	double *const *p = b->p;

	for (size_t i = 0; i < s->rows * d->hidden; i += d->hidden)
		ref_norm_row(s->x + i, p[REF_ATTN_NORM], d->rms_eps, d->hidden, s->a + i);
	if (show(v, 0, s->a, d->hidden) != 0)
		return -1;
	ref_linear(s->a, s->rows, d->hidden, p[REF_Q], p[REF_Q_BIAS], q_cols, false, s->q_in);
	ref_linear(s->a, s->rows, d->hidden, p[REF_K], p[REF_K_BIAS], kv_cols, false, s->k_in);
	ref_linear(s->a, s->rows, d->hidden, p[REF_V], p[REF_V_BIAS], kv_cols, false, s->v);
	ref_turn_heads(b, s, s->q_in, d->heads, p[REF_Q_NORM], s->q);
	ref_turn_heads(b, s, s->k_in, d->kv_heads, p[REF_K_NORM], s->k);
	ref_attention(b, s);
	if (!ref_all_finite(s->o, s->rows * q_cols))
		return err_set_not_finite(err, "the block's attention");
	if (show(v, 1, s->o, q_cols) != 0)
		return -1;
	memmove(s->r, s->x, s->rows * d->hidden * sizeof(*s->r));
	ref_linear(s->o, s->rows, q_cols, p[REF_O], p[REF_O_BIAS], d->hidden, true, s->r);
	return 0;
}

int ref_block_run(const struct ref_block *b, const struct ref_acts *s, bool with_y, block_tap tap,
		  void *tap_ctx, float *site, struct err *err)
{
	const struct viewer v = { .tap = tap, .ctx = tap_ctx, .site = site, .rows = s->rows };
	const struct block_shape *d = &b->shape;
	double *const *p = b->p;

	if (attention_half(b, s, &v, err) != 0)
		return -1;
	for (size_t i = 0; i < s->rows * d->hidden; i += d->hidden)
		ref_norm_row(s->r + i, p[REF_MLP_NORM], d->rms_eps, d->hidden, s->m + i);
	if (show(&v, 2, s->m, d->hidden) != 0)
		return -1;
	ref_linear(s->m, s->rows, d->hidden, p[REF_GATE], p[REF_GATE_BIAS], d->intermediate, false, s->gate);
	ref_linear(s->m, s->rows, d->hidden, p[REF_UP], p[REF_UP_BIAS], d->intermediate, false, s->up);
	for (size_t i = 0; i < s->rows * d->intermediate; i++)
		s->d[i] = s->up[i] * (s->gate[i] / (1 + exp(-s->gate[i])));
	if (!ref_all_finite(s->d, s->rows * d->intermediate))
		return err_set_not_finite(err, "the block's MLP");
	if (show(&v, 3, s->d, d->intermediate) != 0)
		return -1;
	if (!with_y)
		return 0;
	memmove(s->y, s->r, s->rows * d->hidden * sizeof(*s->y));
	ref_linear(s->d, s->rows, d->intermediate, p[REF_DOWN], p[REF_DOWN_BIAS], d->hidden, true, s->y);
	return ref_all_finite(s->y, s->rows * d->hidden) ? 0 : err_set_not_finite(err, "the block");
}
