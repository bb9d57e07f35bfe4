/* values.h - private to formats/: what an encoder may assume of a module, and numbers that must fit exactly.
 *
 * values_check() comes first in every encoder: afterwards shapes are those of the module, codes fit their
 * bits, scales are positive and finite, zeros finite. The others turn a run of one row's groups into what a
 * format stores; a value that is not stored exactly ends in ERR_NUMERIC, naming module, row and group.
 * An offset counts as exact when it is off by at most 2^-22 of itself: z = o / s was rounded to float32 once.
 */
#ifndef QUARRY_FORMATS_VALUES_H
#define QUARRY_FORMATS_VALUES_H

#include <math.h>
#include <string.h>

#include "formats/codec.h"

int values_check(const struct codec_module *m, const struct codec_values *v, struct err *err);

/* Groups `first` .. `first` + `count` - 1 of row `row`. */
struct group_run { size_t row, first, count; };

/* out[i] = the half equal to scale / divisor (a power of two). */
int values_halves(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		  float divisor, uint16_t *out, struct err *err);
/* out[i] = the integer z * parts, within min .. max. */
int values_fields(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		  unsigned parts, unsigned min, unsigned max, uint8_t *out, struct err *err);
/* out[i] = -s z as a half, or as a float. */
int values_half_offsets(const struct codec_module *m, const struct codec_values *v, struct group_run run,
			uint16_t *out, struct err *err);
int values_float_offsets(const struct codec_module *m, const struct codec_values *v, struct group_run run,
			 float *out, struct err *err);

/* The nearest half, ties to even, of a number within the halves' range, given as bits, with |value| + 0.5 as bits too:
 * f32_to_f16() without branches, so that loops over it become vector code. */
static inline uint16_t values_to_half(uint32_t bits, uint32_t shifted)
{
	const uint32_t size = bits & 0x7fffffff, small = 0u - (uint32_t)(size < 0x38800000);
	const uint32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;

	return (uint16_t)((bits >> 16 & 0x8000) | ((shifted - 0x3f000000) & small) | (normal & ~small));
}

/* The same from the number itself. */
static inline uint16_t values_half_of(float value)
{
	const float shifted = fabsf(value) + 0.5f;
	uint32_t bits, shifted_bits;

	memcpy(&bits, &value, sizeof(bits));
	memcpy(&shifted_bits, &shifted, sizeof(bits));
	return values_to_half(bits, shifted_bits);
}

#endif
