/* rms_norm and block_forward of the reference backend.
 *
 * The block, for one row x of a sequence (Attn looks at the rows up to its own):
 *   a = RMSNorm(x; attn_norm)                  site attn-in
 *   q,k,v = a Wq' + bq, a Wk' + bk, a Wv' + bv; per head: optional RMSNorm of q and k, then RoPE
 *   o = concat over heads of softmax(q k' / sqrt(head_dim)) v    site o-in
 *   r = x + o Wo' + bo
 *   m = RMSNorm(r; mlp_norm)                   site mlp-in
 *   d = silu(m Wg' + bg) * (m Wu' + bu)        site down-in
 *   y = r + d Wd' + bd
 * All rows of a call go through one line before the next; everything between is double.
 */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/ref/ref.h"
#include "worker/backend/shape.h"

struct pass {
	const struct block_shape *shape;
	const struct block_weights *w;
	const struct rope_table *rope;
	size_t n_seq, seq_len, rows;
	double *r;              /* (rows, hidden) the residual stream */
	double *a;              /* (rows, hidden) normalized rows */
	double *q, *k, *v, *o;  /* (rows, heads*head_dim | kv_heads*head_dim) */
	double *gate, *d;       /* (rows, intermediate) */
	double *p;              /* (seq_len) attention weights of one query */
	float *site;            /* (rows, widest site) what the tap sees */
	block_tap tap;
	void *tap_ctx;
};

static void norm_row(const double *x, const float *weight, double eps, size_t n, double *y)
{
	double sum = 0, scale;

	for (size_t i = 0; i < n; i++)
		sum += x[i] * x[i];
	scale = 1 / sqrt(sum / (double)n + eps);
	for (size_t i = 0; i < n; i++)
		y[i] = x[i] * scale * weight[i];
}

static int all_finite(const double *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isfinite((float)x[i]))
			return 0;
	return 1;
}

int ref_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
		 size_t cols, float *y, struct err *err)
{
	(void)be;
	if (matrix_shape_check("rms_norm", rows, cols, err) != 0)
		return -1;
	for (size_t r = 0; r < rows; r++) {
		double sum = 0, scale;

		for (size_t i = 0; i < cols; i++)
			sum += (double)x[r * cols + i] * x[r * cols + i];
		scale = 1 / sqrt(sum / (double)cols + eps);
		for (size_t i = 0; i < cols; i++) {
			y[r * cols + i] = (float)(x[r * cols + i] * scale * weight[i]);
			if (!isfinite(y[r * cols + i]))
				return err_set_not_finite(err, "rms_norm");
		}
	}
	return 0;
}

/* Four outputs at a time, each a sum in index order: the additions of one do not wait for another's. */
static void dot4(const double *x, const float *w, size_t cols, double out[4])
{
	const float *w1 = w + cols, *w2 = w1 + cols, *w3 = w2 + cols;
	double s0 = 0, s1 = 0, s2 = 0, s3 = 0;

	for (size_t k = 0; k < cols; k++) {
		s0 += x[k] * w[k];
		s1 += x[k] * w1[k];
		s2 += x[k] * w2[k];
		s3 += x[k] * w3[k];
	}
	out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

static double dot(const double *x, const float *w, size_t cols)
{
	double sum = 0;

	for (size_t k = 0; k < cols; k++)
		sum += x[k] * w[k];
	return sum;
}

/* y (rows, n) = x (rows, cols) w' + bias, or y += that. */
static void linear(const double *x, size_t rows, size_t cols, const float *w, const float *bias,
		   size_t n, bool add, double *y)
{
	for (size_t r = 0; r < rows; r++) {
		const double *xr = x + r * cols;
		double *yr = y + r * n, out[4];
		size_t i;

		if (!add)
			memset(yr, 0, n * sizeof(*yr));
		for (i = 0; i + 4 <= n; i += 4) {
			dot4(xr, w + i * cols, cols, out);
			for (int j = 0; j < 4; j++)
				yr[i + j] += out[j];
		}
		for (; i < n; i++)
			yr[i] += dot(xr, w + i * cols, cols);
		for (i = 0; bias && i < n; i++)
			yr[i] += bias[i];
	}
}

/* Element i of a head turns with element i + half by the angle of its position. */
static void rope_head(double *x, const float *cosine, const float *sine, size_t half)
{
	for (size_t i = 0; i < half; i++) {
		double a = x[i], b = x[i + half];

		x[i] = a * cosine[i] - b * sine[i];
		x[i + half] = b * cosine[i] + a * sine[i];
	}
}

/* Optional norm and RoPE of every head of x (rows, heads*head_dim). */
static void turn_heads(const struct pass *s, double *x, size_t heads, const float *norm)
{
	const size_t dim = s->shape->head_dim, half = dim / 2;

	for (size_t r = 0; r < s->rows; r++) {
		const size_t at = r % s->seq_len * half;

		for (size_t h = 0; h < heads; h++) {
			double *head = x + (r * heads + h) * dim;

			if (norm)
				norm_row(head, norm, s->shape->rms_eps, dim, head);
			rope_head(head, s->rope->cos + at, s->rope->sin + at, half);
		}
	}
}

/* One query at position `at`: softmax over the keys 0..at of its sequence, then the mean of values. */
static void attend(const struct pass *s, size_t first_row, size_t at, size_t head)
{
	const size_t dim = s->shape->head_dim, heads = s->shape->heads, kv_heads = s->shape->kv_heads;
	const size_t kv = head / (heads / kv_heads);
	const double *q = s->q + ((first_row + at) * heads + head) * dim;
	double *o = s->o + ((first_row + at) * heads + head) * dim;
	double max = -INFINITY, sum = 0;

	for (size_t t = 0; t <= at; t++) {
		const double *k = s->k + ((first_row + t) * kv_heads + kv) * dim;

		s->p[t] = 0;
		for (size_t i = 0; i < dim; i++)
			s->p[t] += q[i] * k[i];
		s->p[t] /= sqrt((double)dim);
		if (s->p[t] > max)
			max = s->p[t];
	}
	memset(o, 0, dim * sizeof(*o));
	for (size_t t = 0; t <= at; t++) {
		const double *v = s->v + ((first_row + t) * kv_heads + kv) * dim;
		const double p = exp(s->p[t] - max);

		sum += p;
		for (size_t i = 0; i < dim; i++)
			o[i] += p * v[i];
	}
	for (size_t i = 0; i < dim; i++)
		o[i] /= sum;
}

static void attention(const struct pass *s)
{
	for (size_t n = 0; n < s->n_seq; n++)
		for (size_t at = 0; at < s->seq_len; at++)
			for (size_t head = 0; head < s->shape->heads; head++)
				attend(s, n * s->seq_len, at, head);
}

/* Shows the rows of one site to the tap; sites count from 0 in the order of enum block_site. */
static int show(const struct pass *s, int site, const double *x, size_t cols)
{
	if (!s->tap)
		return 0;
	for (size_t i = 0; i < s->rows * cols; i++)
		s->site[i] = (float)x[i];
	return s->tap(s->tap_ctx, site, s->site, s->rows, cols) == 0 ? 0 : -1;
}

static int run(const struct pass *s, float *y, struct err *err)
{
	const struct block_shape *d = s->shape;
	const struct block_weights *w = s->w;
	const size_t q_cols = d->heads * d->head_dim, kv_cols = d->kv_heads * d->head_dim;

	for (size_t r = 0; r < s->rows; r++)
		norm_row(s->r + r * d->hidden, w->attn_norm, d->rms_eps, d->hidden, s->a + r * d->hidden);
	if (show(s, 0, s->a, d->hidden) != 0)
		return -1;
	linear(s->a, s->rows, d->hidden, w->q, w->q_bias, q_cols, false, s->q);
	linear(s->a, s->rows, d->hidden, w->k, w->k_bias, kv_cols, false, s->k);
	linear(s->a, s->rows, d->hidden, w->v, w->v_bias, kv_cols, false, s->v);
	turn_heads(s, s->q, d->heads, w->q_norm);
	turn_heads(s, s->k, d->kv_heads, w->k_norm);
	attention(s);
	if (!all_finite(s->o, s->rows * q_cols))
		return err_set_not_finite(err, "the block's attention");
	if (show(s, 1, s->o, q_cols) != 0)
		return -1;
	linear(s->o, s->rows, q_cols, w->o, w->o_bias, d->hidden, true, s->r);
	for (size_t r = 0; r < s->rows; r++)
		norm_row(s->r + r * d->hidden, w->mlp_norm, d->rms_eps, d->hidden, s->a + r * d->hidden);
	if (show(s, 2, s->a, d->hidden) != 0)
		return -1;
	linear(s->a, s->rows, d->hidden, w->gate, w->gate_bias, d->intermediate, false, s->gate);
	linear(s->a, s->rows, d->hidden, w->up, w->up_bias, d->intermediate, false, s->d);
	for (size_t i = 0; i < s->rows * d->intermediate; i++)
		s->d[i] *= s->gate[i] / (1 + exp(-s->gate[i]));
	if (!all_finite(s->d, s->rows * d->intermediate))
		return err_set_not_finite(err, "the block's MLP");
	if (show(s, 3, s->d, d->intermediate) != 0)
		return -1;
	if (!y)
		return 0;
	linear(s->d, s->rows, d->intermediate, w->down, w->down_bias, d->hidden, true, s->r);
	if (!all_finite(s->r, s->rows * d->hidden))
		return err_set_not_finite(err, "the block");
	for (size_t i = 0; i < s->rows * d->hidden; i++)
		y[i] = (float)s->r[i];
	return 0;
}

static int take(double **out, size_t rows, size_t cols, struct err *err)
{
	size_t n;

	*out = size_mul(rows, cols, &n) ? mem_alloc_aligned(n, sizeof(double)) : NULL;
	return *out ? 0 : err_set_nomem(err, "a block's activations");
}

int ref_block_forward(struct backend *be, const struct block_shape *shape,
		      const struct block_weights *w, const struct rope_table *rope, const float *x,
		      size_t n_seq, size_t seq_len, float *y, block_tap tap, void *tap_ctx,
		      struct err *err)
{
	struct pass s = { .shape = shape, .w = w, .rope = rope, .n_seq = n_seq, .seq_len = seq_len,
			  .rows = n_seq * seq_len, .tap = tap, .tap_ctx = tap_ctx };
	const size_t q_cols = shape->heads * shape->head_dim, kv_cols = shape->kv_heads * shape->head_dim;
	const size_t wide = q_cols > shape->intermediate ? q_cols : shape->intermediate;
	int rc = -1;

	(void)be;
	if (block_shape_check(shape, n_seq, seq_len, err) != 0)
		return -1;
	if (!y && !tap)
		return 0;
	if (take(&s.r, s.rows, shape->hidden, err) != 0 || take(&s.a, s.rows, shape->hidden, err) != 0 ||
	    take(&s.q, s.rows, q_cols, err) != 0 || take(&s.k, s.rows, kv_cols, err) != 0 ||
	    take(&s.v, s.rows, kv_cols, err) != 0 || take(&s.o, s.rows, q_cols, err) != 0 ||
	    take(&s.gate, s.rows, shape->intermediate, err) != 0 ||
	    take(&s.d, s.rows, shape->intermediate, err) != 0 || take(&s.p, seq_len, 1, err) != 0)
		goto out;
	s.site = mem_alloc_aligned(s.rows * (wide > shape->hidden ? wide : shape->hidden), sizeof(float));
	if (!s.site) {
		err_set_nomem(err, "a block's activations");
		goto out;
	}
	for (size_t i = 0; i < s.rows * shape->hidden; i++)
		s.r[i] = x[i];
	rc = run(&s, y, err);
out:
	mem_free(s.r);
	mem_free(s.a);
	mem_free(s.q);
	mem_free(s.k);
	mem_free(s.v);
	mem_free(s.o);
	mem_free(s.gate);
	mem_free(s.d);
	mem_free(s.p);
	mem_free(s.site);
	return rc;
}
