/* kernels_math.h - what kernels_*.c files share: exp and sums over lanes, for the compiler to vectorize in
 * the file that includes them, at that file's level.
 *
 * exp: x = n ln 2 + r with |r| <= ln 2 / 2, exp r = 1 + r + r^2 p(r) with p the minimax polynomial
 * (relative error 3e-9 before rounding, about 1 ulp after), then n goes into the exponent. Arguments
 * are clamped to [-87, 88], where the result is a normal number; NaN stays NaN.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_KERNELS_MATH_H
#define QUARRY_WORKER_BACKEND_CPU_KERNELS_MATH_H

#include <stdint.h>
#include <string.h>

enum { KERNEL_LANES = 32 };

static inline float exp_one(float x)
{
	const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
	float t, n, r, p;
	uint32_t bits;

	x = x < -87.0f ? -87.0f : x;
	x = x > 88.0f ? 88.0f : x;
	t = x * 1.44269504f + shift;
	n = t - shift;
	memcpy(&bits, &t, sizeof(bits));
	r = x - n * 0.693359375f;
	r = r - n * -2.12194440e-4f;
	p = 1.381432e-3f;
	p = p * r + 8.368851e-3f;
	p = p * r + 4.16684e-2f;
	p = p * r + 1.666652e-1f;
	p = p * r + 4.9999994e-1f;
	p = (p * r) * r + r + 1.0f;
	bits = (bits << 23) + 0x3f800000u;
	memcpy(&t, &bits, sizeof(t));
	return p * t;
}

static inline float sum_lanes(const float acc[KERNEL_LANES])
{
	float s[KERNEL_LANES];

	memcpy(s, acc, sizeof(s));
	for (int width = KERNEL_LANES / 2; width > 0; width /= 2)
		for (int l = 0; l < width; l++)
			s[l] += s[l + width];
	return s[0];
}

static inline double sum_lanes_double(const double acc[KERNEL_LANES])
{
	double s[KERNEL_LANES];

	memcpy(s, acc, sizeof(s));
	for (int width = KERNEL_LANES / 2; width > 0; width /= 2)
		for (int l = 0; l < width; l++)
			s[l] += s[l + width];
	return s[0];
}

#endif
