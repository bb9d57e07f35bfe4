/* Loops that the compiler turns into vector code, compiled once per level (levels.h).
 *
 * Where an output may be an input, element i of it is written from element i alone: ivdep says so.
 */
#include "worker/backend/cpu/kernels_train.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "worker/backend/cpu/kernels_math.h"
#include "worker/backend/cpu/levels.h"

enum { GROUP_LANES = 16 };

static const float round_shift = 12582912.0f;   /* 1.5 * 2^23: adding it rounds to an integer, half to even */

/* In double: for few columns, or one that is far above the rest, the two terms of dx nearly cancel. */
static void norm_backward(const float *x, const float *weight, float eps, size_t n, const float *dy,
			  const float *add, float *dx, float *dweight)
{
	double square[KERNEL_LANES] = { 0 }, along[KERNEL_LANES] = { 0 };
	double scale, back;
	size_t i;

	for (i = 0; i + KERNEL_LANES <= n; i += KERNEL_LANES)
		for (int l = 0; l < KERNEL_LANES; l++) {
			const double xi = x[i + l];

			square[l] += xi * xi;
			along[l] += (double)weight[i + l] * dy[i + l] * xi;
		}
	for (; i < n; i++) {
		square[i % KERNEL_LANES] += (double)x[i] * x[i];
		along[i % KERNEL_LANES] += (double)weight[i] * dy[i] * x[i];
	}
	scale = 1 / sqrt(sum_lanes_double(square) / (double)n + eps);
	back = scale * scale * scale * sum_lanes_double(along) / (double)n;
	if (dweight)
		for (i = 0; i < n; i++)
			dweight[i] += dy[i] * (x[i] * (float)scale);
#pragma GCC ivdep
	for (i = 0; i < n; i++)
		dx[i] = (float)((double)weight[i] * dy[i] * scale - x[i] * back);
	if (add)
		for (i = 0; i < n; i++)
			dx[i] += add[i];
}

static void swiglu(const float *gate, const float *up, float *d, size_t n)
{
	for (size_t i = 0; i < n; i++)
		d[i] = up[i] * (gate[i] / (1.0f + exp_one(-gate[i])));
}

static void swiglu_backward(float *restrict gate, float *restrict up, const float *restrict dd, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const float g = gate[i], sigmoid = 1.0f / (1.0f + exp_one(-g));
		const float silu = g * sigmoid;

		gate[i] = dd[i] * up[i] * (sigmoid + silu * (1.0f - sigmoid));
		up[i] = dd[i] * silu;
	}
}

static void softmax_backward(float *restrict scores, float *restrict dp, float max, float inverse,
			     float mean, float factor, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const float p = exp_one(scores[i] - max) * inverse;

		scores[i] = p;
		dp[i] = p * (dp[i] - mean) * factor;
	}
}

static void rope_backward(float *x, const float *cosine, const float *sine, size_t half)
{
	float *restrict low = x, *restrict high = x + half;

	for (size_t i = 0; i < half; i++) {
		const float a = low[i], b = high[i];

		low[i] = a * cosine[i] + b * sine[i];
		high[i] = b * cosine[i] - a * sine[i];
	}
}

static float dot(const float *a, const float *b, size_t n)
{
	float acc[KERNEL_LANES] = { 0 };
	size_t i;

	for (i = 0; i + KERNEL_LANES <= n; i += KERNEL_LANES)
		for (int l = 0; l < KERNEL_LANES; l++)
			acc[l] += a[i + l] * b[i + l];
	for (; i < n; i++)
		acc[i % KERNEL_LANES] += a[i] * b[i];
	return sum_lanes(acc);
}

/* One term of the divergence; *x becomes p - p_ref. */
static inline float kl_term(float *x, float ref, struct kl_side side, struct kl_side ref_side, float shift)
{
	const float from_max = *x - side.max, ref_from_max = ref - ref_side.max;
	const float p = exp_one(from_max) * side.inverse, p_ref = exp_one(ref_from_max) * ref_side.inverse;

	*x = p - p_ref;
	return p_ref * (ref_from_max - from_max + shift);
}

static double kl(float *restrict x, const float *restrict ref, struct kl_side side, struct kl_side ref_side,
		 float shift, size_t n)
{
	float acc[KERNEL_LANES] = { 0 };
	size_t i;

	for (i = 0; i + KERNEL_LANES <= n; i += KERNEL_LANES)
		for (int l = 0; l < KERNEL_LANES; l++)
			acc[l] += kl_term(x + i + l, ref[i + l], side, ref_side, shift);
	for (; i < n; i++)
		acc[i % KERNEL_LANES] += kl_term(x + i, ref[i], side, ref_side, shift);
	return sum_lanes(acc);
}

static inline float nearest_code(float latent, float top)
{
	float q = latent > 0.0f ? latent : 0.0f;

	q = q < top ? q : top;
	return (q + round_shift) - round_shift;
}

static void grid_values(const struct grid_row *row, const float *restrict latents, float *restrict w)
{
	const float top = row->top;

	for (size_t g = 0; g < row->count; g++, latents += row->group, w += row->group) {
		const float s = row->scales[g], z = row->zeros[g];

		for (size_t i = 0; i < row->group; i++)
			w[i] = s * (nearest_code(latents[i], top) - z);
	}
}

static inline float sum_group(const float s[GROUP_LANES])
{
	float half[GROUP_LANES / 2], quarter[GROUP_LANES / 4];

	for (int l = 0; l < GROUP_LANES / 2; l++)
		half[l] = s[l] + s[l + GROUP_LANES / 2];
	for (int l = 0; l < GROUP_LANES / 4; l++)
		quarter[l] = half[l] + half[l + GROUP_LANES / 4];
	return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

/* *dq = sum of dw (q - z), *total = sum of dw over one group. */
static inline void group_sums(const float *latents, const float *dw, size_t n, float z, float top, float *dq,
			      float *total)
{
	float a[GROUP_LANES] = { 0 }, b[GROUP_LANES] = { 0 };
	size_t i;

	for (i = 0; i + GROUP_LANES <= n; i += GROUP_LANES)
		for (int l = 0; l < GROUP_LANES; l++) {
			a[l] += dw[i + l] * (nearest_code(latents[i + l], top) - z);
			b[l] += dw[i + l];
		}
	for (; i < n; i++) {
		a[i % GROUP_LANES] += dw[i] * (nearest_code(latents[i], top) - z);
		b[i % GROUP_LANES] += dw[i];
	}
	*dq = sum_group(a);
	*total = sum_group(b);
}

static void grid_gradients(const struct grid_row *row, const float *latents, const float *dw, float *dscales,
			   float *dzeros, float *dlatents)
{
	const size_t n = row->group;
	const float top = row->top, beyond = row->top + 0.5f;

	for (size_t g = 0; g < row->count; g++) {
		const float s = row->scales[g], *x = latents + g * n, *y = dw + g * n;
		float dq, total;

		if (dscales || dzeros)
			group_sums(x, y, n, row->zeros[g], top, &dq, &total);
		if (dscales)
			dscales[g] = dq;
		if (dzeros)
			dzeros[g] = -s * total;
		if (!dlatents)
			continue;
#pragma GCC ivdep
		for (size_t i = 0; i < n; i++) {
			const float d = s * y[i];

			dlatents[g * n + i] = x[i] > -0.5f && x[i] < beyond ? d : 0.0f;
		}
	}
}

static double squared_error(const float *y, const float *target, size_t n)
{
	double acc[KERNEL_LANES] = { 0 };
	size_t i;

	for (i = 0; i + KERNEL_LANES <= n; i += KERNEL_LANES)
		for (int l = 0; l < KERNEL_LANES; l++) {
			const double d = (double)y[i + l] - (double)target[i + l];

			acc[l] += d * d;
		}
	for (; i < n; i++) {
		const double d = (double)y[i] - (double)target[i];

		acc[i % KERNEL_LANES] += d * d;
	}
	return sum_lanes_double(acc);
}

static void error_gradient(const float *y, const float *target, size_t n, double scale, float *dy)
{
#pragma GCC ivdep
	for (size_t i = 0; i < n; i++)
		dy[i] = (float)(scale * ((double)y[i] - (double)target[i]));
}

/* Without the sign, infinities and NaN have the largest bits. */
static inline uint32_t largest_bits(uint32_t worst, float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	bits &= 0x7fffffffu;
	return bits > worst ? bits : worst;
}

static bool adam(const struct adam_factors *f, size_t n, float *restrict p, const float *restrict g,
		 float *restrict m, float *restrict v)
{
	const struct adam_factors c = *f;
	uint32_t worst = 0;

	for (size_t i = 0; i < n; i++) {
		const float first = c.beta1 * m[i] + c.rest1 * g[i];
		const float second = c.beta2 * v[i] + c.rest2 * g[i] * g[i];
		const float next = p[i] - c.rate * first / (sqrtf(second) * c.root + c.epsilon);

		m[i] = first;
		v[i] = second;
		p[i] = next;
		worst = largest_bits(worst, next);
		worst = largest_bits(worst, first);
		worst = largest_bits(worst, second);
	}
	return worst < 0x7f800000u;
}

const struct train_kernels KERNEL_TABLE(train_kernels) = {
	.norm_backward = norm_backward,
	.swiglu = swiglu,
	.swiglu_backward = swiglu_backward,
	.softmax_backward = softmax_backward,
	.rope_backward = rope_backward,
	.dot = dot,
	.kl = kl,
	.squared_error = squared_error,
	.error_gradient = error_gradient,
	.grid_values = grid_values,
	.grid_gradients = grid_gradients,
	.adam = adam,
};
