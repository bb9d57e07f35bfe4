/* The parts of the block in double precision, each beside its gradient; see block.h. */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/ref/block.h"

bool ref_all_finite(const double *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isfinite((float)x[i]))
			return false;
	return true;
}

double *ref_take(size_t rows, size_t cols, struct err *err)
{
	size_t n;
	double *x = size_mul(rows, cols, &n) ? mem_alloc_aligned(n, sizeof(*x)) : NULL;

	if (!x)
		err_set_nomem(err, "a block's activations");
	return x;
}

static double norm_scale(const double *x, double eps, size_t n)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += x[i] * x[i];
	return 1 / sqrt(sum / (double)n + eps);
}

void ref_norm_row(const double *x, const double *weight, double eps, size_t n, double *y)
{
	const double scale = norm_scale(x, eps, n);

	for (size_t i = 0; i < n; i++)
		y[i] = x[i] * scale * weight[i];
}

/* With t = scale(x): dy_i/dx_j = weight_i (t [i = j] - t^3 x_i x_j / n). */
void ref_norm_row_back(const double *x, const double *weight, double eps, size_t n, const double *dy,
		       bool add, double *dx, double *dweight)
{
	const double scale = norm_scale(x, eps, n);
	double along = 0;

	for (size_t i = 0; i < n; i++)
		along += dy[i] * weight[i] * x[i];
	for (size_t i = 0; dweight && i < n; i++)
		dweight[i] += dy[i] * x[i] * scale;
	for (size_t i = 0; i < n; i++) {
		const double g = scale * (dy[i] * weight[i] - x[i] * scale * scale * along / (double)n);

		dx[i] = add ? dx[i] + g : g;
	}
}

/* Four outputs at a time, each a sum in index order: the additions of one do not wait for another's. */
static void dot4(const double *x, const double *w, size_t cols, double out[4])
{
	const double *w1 = w + cols, *w2 = w1 + cols, *w3 = w2 + cols;
	double s0 = 0, s1 = 0, s2 = 0, s3 = 0;

	for (size_t k = 0; k < cols; k++) {
		s0 += x[k] * w[k];
		s1 += x[k] * w1[k];
		s2 += x[k] * w2[k];
		s3 += x[k] * w3[k];
	}
	out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

static double dot(const double *x, const double *w, size_t cols)
{
	double sum = 0;

	for (size_t k = 0; k < cols; k++)
		sum += x[k] * w[k];
	return sum;
}

void ref_linear(const double *x, size_t rows, size_t cols, const double *w, const double *bias, size_t n,
		bool add, double *y)
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

/* y += a x */
static void add_scaled(double a, const double *x, size_t n, double *y)
{
	for (size_t i = 0; i < n; i++)
		y[i] += a * x[i];
}

void ref_linear_back(const double *x, size_t rows, size_t cols, const double *w, size_t n, const double *dy,
		     double *dx, double *dw, double *dbias)
{
	for (size_t r = 0; r < rows; r++) {
		for (size_t i = 0; i < n; i++) {
			const double g = dy[r * n + i];

			if (dx)
				add_scaled(g, w + i * cols, cols, dx + r * cols);
			if (dw)
				add_scaled(g, x + r * cols, cols, dw + i * cols);
			if (dbias)
				dbias[i] += g;
		}
	}
}

/* Element i of a head turns with element i + half by `sign` times the angle of its position. */
static void rope_head(double *x, const double *cosine, const double *sine, double sign, size_t half)
{
	for (size_t i = 0; i < half; i++) {
		const double a = x[i], b = x[i + half];

		x[i] = a * cosine[i] - sign * b * sine[i];
		x[i + half] = b * cosine[i] + sign * a * sine[i];
	}
}

void ref_turn_heads(const struct ref_block *b, const struct ref_acts *s, const double *in, size_t heads,
		    const double *norm, double *out)
{
	const size_t dim = b->shape.head_dim, half = dim / 2;

	for (size_t r = 0; r < s->rows; r++) {
		const size_t at = r % s->seq_len * half;

		for (size_t h = r * heads; h < (r + 1) * heads; h++) {
			if (norm)
				ref_norm_row(in + h * dim, norm, b->shape.rms_eps, dim, out + h * dim);
			else
				memmove(out + h * dim, in + h * dim, dim * sizeof(*out));
			rope_head(out + h * dim, b->cos + at, b->sin + at, 1, half);
		}
	}
}

/* A rotation's gradient is the rotation back. */
void ref_turn_heads_back(const struct ref_block *b, const struct ref_acts *s, const double *in,
			 size_t heads, const double *norm, double *d, double *dnorm)
{
	const size_t dim = b->shape.head_dim, half = dim / 2;

	for (size_t r = 0; r < s->rows; r++) {
		const size_t at = r % s->seq_len * half;

		for (size_t h = r * heads; h < (r + 1) * heads; h++) {
			rope_head(d + h * dim, b->cos + at, b->sin + at, -1, half);
			if (norm)
				ref_norm_row_back(in + h * dim, norm, b->shape.rms_eps, dim, d + h * dim,
						  false, d + h * dim, dnorm);
		}
	}
}

/* Where one query at position `at` of a sequence, and its key-value head, begin. */
struct query { size_t at, q, kv, kv_step; };

static struct query query_of(const struct ref_block *b, const struct ref_acts *s, size_t row, size_t head)
{
	const size_t dim = b->shape.head_dim, heads = b->shape.heads, kv_heads = b->shape.kv_heads;
	const size_t at = row % s->seq_len;

	return (struct query){ .at = at, .q = (row * heads + head) * dim, .kv_step = kv_heads * dim,
			       .kv = ((row - at) * kv_heads + head / (heads / kv_heads)) * dim };
}

/* s->p: softmax over the keys 0 .. at. */
static void attention_weights(const struct ref_acts *s, struct query n, size_t dim)
{
	double max = -INFINITY, sum = 0;

	for (size_t t = 0; t <= n.at; t++) {
		s->p[t] = dot(s->q + n.q, s->k + n.kv + t * n.kv_step, dim) / sqrt((double)dim);
		max = fmax(max, s->p[t]);
	}
	for (size_t t = 0; t <= n.at; t++) {
		s->p[t] = exp(s->p[t] - max);
		sum += s->p[t];
	}
	for (size_t t = 0; t <= n.at; t++)
		s->p[t] /= sum;
}

void ref_attention(const struct ref_block *b, const struct ref_acts *s)
{
	const size_t dim = b->shape.head_dim;

	memset(s->o, 0, s->rows * b->shape.heads * dim * sizeof(*s->o));
	for (size_t row = 0; row < s->rows; row++) {
		for (size_t head = 0; head < b->shape.heads; head++) {
			const struct query n = query_of(b, s, row, head);

			attention_weights(s, n, dim);
			for (size_t t = 0; t <= n.at; t++)
				add_scaled(s->p[t], s->v + n.kv + t * n.kv_step, dim, s->o + n.q);
		}
	}
}

/* o = sum_t p_t v_t, p = softmax(e), e_t = q k_t / sqrt(dim):
 * de_t = p_t (do v_t - sum_u p_u do v_u). */
static void query_back(const struct ref_acts *s, struct query n, size_t dim, const double *d_out,
		       double *dq, double *dk, double *dv)
{
	double mean = 0;

	attention_weights(s, n, dim);
	for (size_t t = 0; t <= n.at; t++) {
		const size_t kv = n.kv + t * n.kv_step;

		s->dp[t] = dot(d_out + n.q, s->v + kv, dim);
		mean += s->p[t] * s->dp[t];
		add_scaled(s->p[t], d_out + n.q, dim, dv + kv);
	}
	for (size_t t = 0; t <= n.at; t++) {
		const size_t kv = n.kv + t * n.kv_step;
		const double de = s->p[t] * (s->dp[t] - mean) / sqrt((double)dim);

		add_scaled(de, s->k + kv, dim, dq + n.q);
		add_scaled(de, s->q + n.q, dim, dk + kv);
	}
}

void ref_attention_back(const struct ref_block *b, const struct ref_acts *s, const double *d_out,
			double *dq, double *dk, double *dv)
{
	for (size_t row = 0; row < s->rows; row++)
		for (size_t head = 0; head < b->shape.heads; head++)
			query_back(s, query_of(b, s, row, head), b->shape.head_dim, d_out, dq, dk, dv);
}
