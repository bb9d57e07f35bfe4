/* Loops that the compiler turns into vector code, compiled once per level (levels.h).
 *
 * LDLQ handles LDLQ_LANES rows together: their running targets stay in registers while the columns
 * before them in the block are added, so each error is read once per later column.
 */
#include "worker/backend/cpu/kernels_ldlq.h"

#include <string.h>

#include "worker/backend/cpu/levels.h"

enum { DOT_LANES = 32 };

static const float round_float = 12582912.0f; /* 1.5 * 2^23: adding it rounds half to even */

/* acc += sum over k < j of u[k] * e[k], LDLQ_LANES rows */
static inline void add_feedback(const float *restrict u, const float *restrict e, size_t j,
				size_t stride, float acc[LDLQ_LANES])
{
	float sum[LDLQ_LANES];

	memcpy(sum, acc, sizeof(sum));
	for (size_t k = 0; k < j; k++) {
		const float factor = u[k];

		for (int l = 0; l < LDLQ_LANES; l++)
			sum[l] += factor * e[k * stride + l];
	}
	memcpy(acc, sum, sizeof(sum));
}

/* A target that is not finite leaves an error that is not; target becomes what rounding missed. */
static inline void quantize(float *restrict target, const float *restrict w,
			    const float *restrict scale, const float *restrict inverse,
			    const float *restrict zero, float top, float *restrict e,
			    uint8_t *restrict codes)
{
	for (int l = 0; l < LDLQ_LANES; l++) {
		float q = target[l] * inverse[l] + zero[l], value;

		q = q < 0.0f ? 0.0f : q;
		q = q > top ? top : q;
		q = (q + round_float) - round_float;
		value = scale[l] * (q - zero[l]);
		e[l] = w[l] - value;
		target[l] -= value;
		codes[l] = (uint8_t)(int)(q > 0.0f ? q : 0.0f);
	}
}

static inline void add_loss(const float *restrict miss, double pivot, double *restrict loss)
{
	for (int l = 0; l < LDLQ_LANES; l++)
		loss[l] += pivot * ((double)miss[l] * miss[l]);
}

static void block(const struct ldlq_block *b)
{
	float acc[LDLQ_LANES];

	for (size_t r = 0; r < b->stride; r += LDLQ_LANES) {
		for (size_t j = 0; j < b->columns; j++) {
			const size_t c = (size_t)b->column[j], g = c / b->group * b->stride + r;
			const size_t at = j * b->stride + r;

			memcpy(acc, b->target + at, sizeof(acc));
			add_feedback(b->u + j * b->columns, b->e + r, j, b->stride, acc);
			quantize(acc, b->w + at, b->scale + g, b->inverse + g, b->zero + g, b->top,
				 b->e + at, b->codes + c * b->stride + r);
			if (b->pivots)
				add_loss(acc, b->pivots[j], b->loss + r);
		}
	}
}

static void error(const float *w, const uint8_t *codes, float s, float z, size_t n, float *out)
{
	for (size_t i = 0; i < n; i++)
		out[i] = w[i] - s * ((float)codes[i] - z);
}

static double dot(const double *h, const float *x, size_t n)
{
	double acc[DOT_LANES] = { 0 };
	size_t i;

	for (i = 0; i + DOT_LANES <= n; i += DOT_LANES)
		for (int l = 0; l < DOT_LANES; l++)
			acc[l] += h[i + l] * x[i + l];
	for (; i < n; i++)
		acc[i % DOT_LANES] += h[i] * x[i];
	for (int width = DOT_LANES / 2; width > 0; width /= 2)
		for (int l = 0; l < width; l++)
			acc[l] += acc[l + width];
	return acc[0];
}

const struct ldlq_kernels KERNEL_TABLE(ldlq_kernels) = {
	.block = block,
	.error = error,
	.dot = dot,
};
