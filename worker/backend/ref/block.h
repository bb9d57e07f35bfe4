/* block.h - the transformer block in double precision, forward and backward: what the float32 operations
 * block_forward and block_backward convert from and to, and what tests differentiate numerically.
 *
 * The block, for one row x of a sequence (Attn looks at the rows up to its own):
 *   a = RMSNorm(x; attn_norm)                  site attn-in
 *   q,k,v = a Wq' + bq, a Wk' + bk, a Wv' + bv; per head: optional RMSNorm of q and k, then RoPE
 *   o = concat over heads of softmax(q k' / sqrt(head_dim)) v    site o-in
 *   r = x + o Wo' + bo
 *   m = RMSNorm(r; mlp_norm)                   site mlp-in
 *   d = silu(m Wg' + bg) * (m Wu' + bu)        site down-in
 *   y = r + d Wd' + bd
 *
 * Internal to worker/backend/ref; no state, thread-safe. Sums run in index order.
 */
#ifndef QUARRY_WORKER_BACKEND_REF_BLOCK_H
#define QUARRY_WORKER_BACKEND_REF_BLOCK_H

#include "worker/backend/backend.h"

/* The kinds of parameters, in the order of struct block_weights and struct block_grads. */
enum ref_param {
	REF_ATTN_NORM, REF_MLP_NORM, REF_Q, REF_K, REF_V, REF_O, REF_GATE, REF_UP, REF_DOWN,
	REF_Q_BIAS, REF_K_BIAS, REF_V_BIAS, REF_O_BIAS, REF_GATE_BIAS, REF_UP_BIAS, REF_DOWN_BIAS,
	REF_Q_NORM, REF_K_NORM, REF_PARAMS
};

const char *ref_param_name(enum ref_param which);
/* Elements of the tensor. */
size_t ref_param_size(const struct block_shape *shape, enum ref_param which);
/* The member of each struct; NULL where that is. */
const float *ref_param_weight(const struct block_weights *w, enum ref_param which);
float *ref_param_grad(const struct block_grads *grads, enum ref_param which);

/* A block's parameters and rotary tables in double; p[] is NULL where the block has no such tensor. */
struct ref_block {
	struct block_shape shape;
	double *p[REF_PARAMS];
	double *cos, *sin;      /* (seq_len, head_dim/2) */
};

/* Copies everything; shapes have passed block_shape_check(). On failure nothing is held. */
int ref_block_init(struct ref_block *b, const struct block_shape *shape, const struct block_weights *w,
		   const struct rope_table *rope, size_t seq_len, struct err *err);
void ref_block_deinit(struct ref_block *b);

/* Activations of n_seq sequences. Without `keep`, x, r and y are one array, so are a and m, q_in and q,
 * k_in and k, up and d: enough for a forward pass. */
struct ref_acts {
	size_t n_seq, seq_len, rows;
	bool keep;
	double *x, *r, *y;      /* (rows, hidden) input, after attention, output */
	double *a, *m;          /* (rows, hidden) normalized x and r */
	double *q_in, *k_in;    /* (rows, heads*head_dim | kv_heads*head_dim) before head norm and RoPE */
	double *q, *k, *v, *o;
	double *gate, *up, *d;  /* (rows, intermediate); gate and up before the activation */
	double *p;              /* (seq_len) attention weights of one query */
	double *dp;             /* (seq_len) with keep: their gradients */
};

int ref_acts_init(struct ref_acts *s, const struct block_shape *shape, size_t n_seq, size_t seq_len,
		  bool keep, struct err *err);
void ref_acts_deinit(struct ref_acts *s);

/* From s->x to s->y; stops behind the last site when `with_y` is false. The tap sees float32 copies in
 * `site` (rows, widest site); both may be NULL. -1: the tap stopped it, or ERR_NUMERIC. */
int ref_block_run(const struct ref_block *b, const struct ref_acts *s, bool with_y, block_tap tap,
		  void *tap_ctx, float *site, struct err *err);
/* After ref_block_run() over kept activations: from dy (rows, hidden) dx (rows, hidden), written, and
 * grads[], added to where not NULL. */
int ref_block_back(const struct ref_block *b, const struct ref_acts *s, const double *dy, double *dx,
		   double *const grads[REF_PARAMS], struct err *err);

/* --- the parts ------------------------------------------------------------------------------ */

/* Every value stays finite as float32. */
bool ref_all_finite(const double *x, size_t n);
/* n doubles, checked: rows * cols. NULL with err set on failure. */
double *ref_take(size_t rows, size_t cols, struct err *err);

/* y = RMSNorm(x) * weight of one row; y may be x. */
void ref_norm_row(const double *x, const double *weight, double eps, size_t n, double *y);
/* Its gradients from dy: dx written (dx may be dy), or added to; dweight added to unless NULL. */
void ref_norm_row_back(const double *x, const double *weight, double eps, size_t n, const double *dy,
		       bool add, double *dx, double *dweight);

/* y (rows, n) = x (rows, cols) w' + bias, or y += that; bias may be NULL. */
void ref_linear(const double *x, size_t rows, size_t cols, const double *w, const double *bias, size_t n,
		bool add, double *y);
/* dx (rows, cols) += dy w, dw (n, cols) += dy' x, dbias (n) += column sums of dy; each may be NULL. */
void ref_linear_back(const double *x, size_t rows, size_t cols, const double *w, size_t n, const double *dy,
		     double *dx, double *dw, double *dbias);

/* Optional norm (weight or NULL) and RoPE of every head of in (rows, heads*head_dim); out may be in. */
void ref_turn_heads(const struct ref_block *b, const struct ref_acts *s, const double *in, size_t heads,
		    const double *norm, double *out);
/* d (rows, heads*head_dim) from the gradient behind to the gradient before; dnorm added to unless NULL. */
void ref_turn_heads_back(const struct ref_block *b, const struct ref_acts *s, const double *in,
			 size_t heads, const double *norm, double *d, double *dnorm);

/* s->o from s->q, s->k, s->v. */
void ref_attention(const struct ref_block *b, const struct ref_acts *s);
/* dq, dk, dv += from d_out, the gradient of s->o. */
void ref_attention_back(const struct ref_block *b, const struct ref_acts *s, const double *d_out,
			double *dq, double *dk, double *dv);

#endif
