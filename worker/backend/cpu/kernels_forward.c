/* Loops that the compiler turns into vector code, compiled once per level (levels.h). */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/kernels_math.h"
#include "worker/backend/cpu/levels.h"

static void rms_norm(const float *x, const float *weight, float eps, size_t n, float *y)
{
	double acc[KERNEL_LANES] = { 0 };
	float scale;
	size_t i;

	for (i = 0; i + KERNEL_LANES <= n; i += KERNEL_LANES)
		for (int l = 0; l < KERNEL_LANES; l++)
			acc[l] += (double)x[i + l] * x[i + l];
	for (; i < n; i++)
		acc[i % KERNEL_LANES] += (double)x[i] * x[i];
	scale = (float)(1 / sqrt(sum_lanes_double(acc) / (double)n + eps));
	for (i = 0; i < n; i++)
		y[i] = x[i] * scale * weight[i];
}

static float max_of(const float *x, size_t n)
{
	float acc[KERNEL_LANES], best;
	size_t i;

	for (int l = 0; l < KERNEL_LANES; l++)
		acc[l] = x[0];
	for (i = 0; i + KERNEL_LANES <= n; i += KERNEL_LANES)
		for (int l = 0; l < KERNEL_LANES; l++)
			acc[l] = x[i + l] > acc[l] ? x[i + l] : acc[l];
	best = acc[0];
	for (int l = 1; l < KERNEL_LANES; l++)
		best = acc[l] > best ? acc[l] : best;
	for (; i < n; i++)
		best = x[i] > best ? x[i] : best;
	return best;
}

static float softmax(float *x, size_t n)
{
	const float max = max_of(x, n);
	float acc[KERNEL_LANES] = { 0 };
	size_t i;

	for (i = 0; i < n; i++)
		x[i] = exp_one(x[i] - max);
	for (i = 0; i + KERNEL_LANES <= n; i += KERNEL_LANES)
		for (int l = 0; l < KERNEL_LANES; l++)
			acc[l] += x[i + l];
	for (; i < n; i++)
		acc[i % KERNEL_LANES] += x[i];
	return sum_lanes(acc);
}

static double sum_exp(const float *x, float max, size_t n)
{
	double total = 0;

	/* Runs short enough for float partial sums, their totals in double. */
	while (n > 0) {
		const size_t run = n < 4096 ? n : 4096;
		float acc[KERNEL_LANES] = { 0 };
		size_t i;

		for (i = 0; i + KERNEL_LANES <= run; i += KERNEL_LANES)
			for (int l = 0; l < KERNEL_LANES; l++)
				acc[l] += exp_one(x[i + l] - max);
		for (; i < run; i++)
			acc[i % KERNEL_LANES] += exp_one(x[i] - max);
		total += sum_lanes(acc);
		x += run;
		n -= run;
	}
	return total;
}

static void swiglu(const float *gate, float *up, size_t n)
{
	for (size_t i = 0; i < n; i++)
		up[i] *= gate[i] / (1.0f + exp_one(-gate[i]));
}

static void rope(float *x, const float *cosine, const float *sine, size_t half)
{
	float *restrict low = x, *restrict high = x + half;

	for (size_t i = 0; i < half; i++) {
		const float a = low[i], b = high[i];

		low[i] = a * cosine[i] - b * sine[i];
		high[i] = b * cosine[i] + a * sine[i];
	}
}

static void scale(float *x, float factor, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] *= factor;
}

static void add(float *y, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] += x[i];
}

static void add_double(double *h, const float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		h[i] += x[i];
}

static bool all_finite(const float *x, size_t n)
{
	uint32_t worst = 0;

	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, x + i, sizeof(bits));
		bits &= 0x7fffffffu;
		worst = bits > worst ? bits : worst;
	}
	return worst < 0x7f800000u;
}

const struct forward_kernels KERNEL_TABLE(forward_kernels) = {
	.rms_norm = rms_norm,
	.softmax = softmax,
	.swiglu = swiglu,
	.rope = rope,
	.scale = scale,
	.add = add,
	.add_double = add_double,
	.max = max_of,
	.sum_exp = sum_exp,
	.finite = all_finite,
};
