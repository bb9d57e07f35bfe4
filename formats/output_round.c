/* output_round.c - numbers rounded to a format's dtype, and how far dense weights were moved by it. */
#include <math.h>
#include <string.h>

#include "common/half.h"
#include "common/utf8.h"
#include "formats/output_parts.h"
#include "formats/values.h"

enum { STRIP = 256, GRID = 16 };

/* The largest number that does not overflow. */
static float largest_of(enum st_dtype dtype)
{
	return dtype == ST_F16 ? 65519.99f : dtype == ST_BF16 ? 0x1.fefffep127f : INFINITY;
}

static int check_range(const char *tensor, const float *values, size_t n, enum st_dtype dtype, struct err *err)
{
	const float most = largest_of(dtype);
	char shown[UTF8_SHOWN_MAX];
	int bad = 0;

	for (size_t i = 0; i < n; i++)
		bad |= !(fabsf(values[i]) <= most);
	for (size_t i = 0; bad && i < n; i++)
		if (!(fabsf(values[i]) <= most))
			return err_set(err, ERR_NUMERIC, "%s holds %g, which %s cannot hold; dense keeps such numbers",
				       utf8_show(shown, tensor), (double)values[i], st_dtype_name(dtype));
	return 0;
}

int output_round(const char *tensor, const float *values, size_t n, enum st_dtype dtype, void *out, struct err *err)
{
	if (check_range(tensor, values, n, dtype, err) != 0)
		return -1;
	if (dtype == ST_F16)
		f32_to_f16_array(values, out, n);
	else if (dtype == ST_BF16)
		f32_to_bf16_array(values, out, n);
	else if (dtype == ST_F32)
		memcpy(out, values, n * sizeof(float));
	else
		return err_set(err, ERR_INTERNAL, "%s is to be rounded to %s", tensor, st_dtype_name(dtype));
	return 0;
}

/* --- how far ------------------------------------------------------------------------------------- */

static void exact_values(const uint8_t *restrict codes, size_t n, float s, float z, float *restrict out)
{
	for (size_t i = 0; i < n; i++)
		out[i] = s * ((float)codes[i] - z);
}

/* A half that is finite: the product is exact, for small halves too. */
static inline float from_half(uint16_t half)
{
	const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return half & 0x8000 ? -(value * 0x1p112f) : value * 0x1p112f;
}

static inline float from_bf16(uint16_t half)
{
	const uint32_t bits = (uint32_t)half << 16;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* Beyond the halves' range any bits: no code of such a value is there, it would have been refused. */
static inline uint16_t to_bf16(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void as_floats(enum st_dtype dtype, const uint16_t *restrict stored, float *restrict out, size_t n)
{
	if (dtype == ST_F16)
		for (size_t i = 0; i < n; i++)
			out[i] = from_half(stored[i]);
	else
		for (size_t i = 0; i < n; i++)
			out[i] = from_bf16(stored[i]);
}

/* Whether one of them moved by more than `share` of itself. */
static bool any_beyond(const float *restrict exact, const float *restrict stored, size_t n, float share)
{
	int any = 0;

	for (size_t i = 0; i < n; i++)
		any |= fabsf(stored[i] - exact[i]) > share * fabsf(exact[i]);
	return any;
}

static double largest_share(const float *exact, const float *stored, size_t n, double most)
{
	for (size_t i = 0; i < n; i++) {
		const double x = (double)exact[i];
		const double share = exact[i] == 0 ? 0 : fabs(((double)stored[i] - x) / x);

		most = share > most ? share : most;
	}
	return most;
}

/* Whether any value that the group's grid has would move by more than `share`: most groups need no look at their codes. */
static bool grid_beyond(enum st_dtype dtype, float s, float z, size_t entries, float share)
{
	float exact[GRID], back[GRID];
	uint8_t codes[GRID];
	uint16_t stored[GRID];

	for (size_t i = 0; i < entries; i++)
		codes[i] = (uint8_t)i;
	exact_values(codes, entries, s, z, exact);
	for (size_t i = 0; i < entries; i++)
		stored[i] = dtype == ST_F16 ? values_half_of(exact[i]) : to_bf16(exact[i]);
	as_floats(dtype, stored, back, entries);
	return any_beyond(exact, back, entries, share);
}

double output_rounding(const struct codec_values *v, enum st_dtype dtype, const void *stored, double most)
{
	const size_t entries = (size_t)1 << v->bits;
	const uint16_t *from = stored;
	float exact[STRIP], back[STRIP];

	if (dtype != ST_F16 && dtype != ST_BF16)
		return most;
	for (size_t g = 0; g < v->rows * (v->cols / v->group); g++) {
		if (entries <= GRID && entries < v->group &&
		    !grid_beyond(dtype, v->scales[g], v->zeros[g], entries, (float)most))
			continue;
		for (size_t at = 0; at < v->group; at += STRIP) {
			const size_t n = v->group - at < STRIP ? v->group - at : STRIP, i = g * v->group + at;

			exact_values(v->codes + i, n, v->scales[g], v->zeros[g], exact);
			as_floats(dtype, from + i, back, n);
			if (any_beyond(exact, back, n, (float)most))
				most = largest_share(exact, back, n, most);
		}
	}
	return most;
}
