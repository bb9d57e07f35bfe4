/* gguf_floats.c - plain numbers into F32, F16, BF16, Q8_0 and Q6_K. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "common/half.h"
#include "common/utf8.h"
#include "formats/gguf_blocks.h"

#define HALF_LARGEST 65504.0f
/* A half in reach of `value`, as the reader will see it. */
static float as_half(float value, uint16_t *half)
{
	*half = f32_to_f16(fminf(fmaxf(value, -HALF_LARGEST), HALF_LARGEST));
	return f16_to_f32(*half);
}

/* The nearest integer of low .. high, ties to even: adding 1.5 * 2^23 leaves no room for fractions. Plain comparisons, so that
 * loops over it become vector code. A NaN gives `low`. */
static inline float nearest(float x, float low, float high)
{
	const float big = 0x1.8p23f;

	x = x > low ? x : low;
	x = x < high ? x : high;
	return (x + big) - big;
}

/* --- Q8_0 ---------------------------------------------------------------------------------------- */

static void put_q8_0(const float *x, uint8_t *out)
{
	float largest = 0, d;
	uint16_t half;

	for (int i = 0; i < 32; i++)
		largest = fmaxf(largest, fabsf(x[i]));
	d = as_half(largest / 127, &half);
	memcpy(out, &half, 2);
	for (int i = 0; i < 32; i++)
		out[2 + i] = d > 0 ? (uint8_t)(int8_t)nearest(x[i] / d, -128, 127) : 0;
}

/* --- Q6_K ---------------------------------------------------------------------------------------- */

enum { SUB = 16, SUBS = 16, LOWEST = -32, HIGHEST = 31, TRIES = 8 };

static float largest_of(const float *x, int count)
{
	float largest = 0;

	for (int i = 0; i < count; i++)
		if (fabsf(x[i]) > fabsf(largest))
			largest = x[i];
	return largest;
}

/* The scale s, of either sign, with the least squared error of s q, q = -32 .. 31, among the best scales for the codes of
 * some scales about the one that puts the largest number at -32. 0 for zeros. */
static float best_scale(const float *x)
{
	const float largest = largest_of(x, SUB);
	float inverse[TRIES], xq[TRIES] = { 0 }, qq[TRIES] = { 0 }, best = 0, most = 0;

	if (fabsf(largest) < 0x1p-100f)
		return 0;
	for (int t = 0; t < TRIES; t++)
		inverse[t] = (LOWEST + 0.2f * (float)(t - TRIES / 2)) / largest;
	for (int i = 0; i < SUB; i++)
		for (int t = 0; t < TRIES; t++) {
			const float q = nearest(x[i] * inverse[t], LOWEST, HIGHEST);

			xq[t] += x[i] * q;
			qq[t] += q * q;
		}
	for (int t = 0; t < TRIES; t++)
		if (xq[t] / largest * xq[t] / largest > most * qq[t]) {
			most = xq[t] / largest * xq[t] / largest / qq[t];
			best = xq[t] / qq[t];
		}
	return best;
}

/* Sub-scales as multiples of d, the largest at -128. Returns d as stored. */
static float put_sub_scales(const float *scales, int8_t *out, uint16_t *half)
{
	const float d = as_half(largest_of(scales, SUBS) / -128, half);

	for (int i = 0; i < SUBS; i++)
		out[i] = d != 0 ? (int8_t)nearest(scales[i] / d, -128, 127) : 0;
	return d;
}

static void put_six_bits(const uint8_t *q, uint8_t *out)
{
	uint8_t *top = out + 128;

	for (int half = 0; half < 2; half++, q += 128, out += 64)
		for (int l = 0; l < 32; l++) {
			out[l] = (uint8_t)((q[l] & 15) | (q[l + 64] & 15) << 4);
			out[l + 32] = (uint8_t)((q[l + 32] & 15) | (q[l + 96] & 15) << 4);
			top[32 * half + l] = (uint8_t)(q[l] >> 4 | q[l + 32] >> 4 << 2 | q[l + 64] >> 4 << 4 | q[l + 96] >> 4 << 6);
		}
}

static void put_q6_k(const float *x, uint8_t *out)
{
	float scales[SUBS], d;
	int8_t sub[SUBS];
	uint8_t q[256];
	uint16_t half;

	for (int i = 0; i < SUBS; i++)
		scales[i] = best_scale(x + SUB * i);
	d = put_sub_scales(scales, sub, &half);
	for (int j = 0; j < SUBS; j++) {
		const float s = d * sub[j], inverse = s != 0 ? 1 / s : 0;

		for (int e = SUB * j; e < SUB * j + SUB; e++)
			q[e] = (uint8_t)(nearest(x[e] * inverse, LOWEST, HIGHEST) - LOWEST);
	}
	put_six_bits(q, out);
	memcpy(out + 192, sub, SUBS);
	memcpy(out + 208, &half, 2);
}

/* --- rows ---------------------------------------------------------------------------------------- */

/* The largest number that does not overflow the type. */
static float largest_held(enum gguf_type type)
{
	if (type == GGUF_F16)
		return 65519.99f;
	if (type == GGUF_BF16)
		return 0x1.fefffep127f;
	return type == GGUF_F32 ? FLT_MAX : type == GGUF_Q8_0 ? 127 * HALF_LARGEST : 32 * 128 * HALF_LARGEST;
}

static int check_values(const char *name, enum gguf_type type, const float *values, size_t count, size_t cols,
			struct err *err)
{
	const float most = largest_held(type);
	char shown[UTF8_SHOWN_MAX];

	for (size_t i = 0; i < count; i++)
		if (!(fabsf(values[i]) <= most))
			return err_set(err, ERR_NUMERIC, "%s: row %zu, column %zu is %g; gguf type %s holds numbers to %g",
				       utf8_show(shown, name), i / cols, i % cols, (double)values[i], gguf_type_name(type),
				       (double)most);
	return 0;
}

static void put_blocks(enum gguf_type type, const float *values, size_t count, uint8_t *out)
{
	const size_t block = gguf_block_elements(type), bytes = gguf_block_bytes(type);

	for (size_t i = 0; i < count; i += block, out += bytes) {
		if (type == GGUF_Q8_0)
			put_q8_0(values + i, out);
		else
			put_q6_k(values + i, out);
	}
}

int gguf_encode_floats(const char *name, enum gguf_type type, const float *values, size_t rows, size_t cols,
		       void *out, struct err *err)
{
	const bool blocks = type == GGUF_Q8_0 || type == GGUF_Q6_K;
	char shown[UTF8_SHOWN_MAX];

	if (!blocks && type != GGUF_F32 && type != GGUF_F16 && type != GGUF_BF16)
		return err_set(err, ERR_UNSUPPORTED, "%s: plain numbers are written as F32, F16, BF16, Q8_0 or Q6_K, not as %s",
			       utf8_show(shown, name), gguf_type_name(type));
	if (cols % gguf_block_elements(type) != 0)
		return err_set(err, ERR_REFUSED, "%s: gguf type %s needs a multiple of %zu columns, not %zu; F16 needs none",
			       utf8_show(shown, name), gguf_type_name(type), gguf_block_elements(type), cols);
	if (check_values(name, type, values, rows * cols, cols, err) != 0)
		return -1;
	if (blocks)
		put_blocks(type, values, rows * cols, out);
	else if (type == GGUF_F32)
		memcpy(out, values, rows * cols * sizeof(float));
	else if (type == GGUF_F16)
		f32_to_f16_array(values, out, rows * cols);
	else
		f32_to_bf16_array(values, out, rows * cols);
	return 0;
}
