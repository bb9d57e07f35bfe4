/* values.c - checks first over whole runs without branches; the search for the culprit only when one is there. */
#include "formats/values.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/half.h"
#include "common/utf8.h"

#define HALF_LARGEST 65504.0f
#define EXACT_ENOUGH 0x1p-22
enum { FIELD_BEYOND = 1024 };   /* no field is so large */

static uint32_t bits_of(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

/* --- shapes and ranges --------------------------------------------------------------------------- */

static int check_shape(const struct codec_module *m, const struct codec_values *v, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (v->rows == m->rows && v->cols == m->cols && v->bits == m->settings.bits && v->bits >= 1 && v->bits <= 8 &&
	    v->group == codec_group(m) && v->group > 0 && v->cols % v->group == 0)
		return 0;
	return err_set(err, ERR_REFUSED, "%s: values of %zu x %zu, %d bits, groups of %zu were given; the plan says %llu x "
		       "%llu, %d bits, groups of %zu", utf8_show(shown, m->name), v->rows, v->cols, v->bits, v->group,
		       (unsigned long long)m->rows, (unsigned long long)m->cols, m->settings.bits, codec_group(m));
}

static int check_codes(const struct codec_module *m, const struct codec_values *v, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (size_t r = 0; r < v->rows; r++) {
		const uint8_t *row = v->codes + r * v->cols;
		uint8_t all = 0;

		for (size_t j = 0; j < v->cols; j++)
			all |= row[j];
		for (size_t j = 0; all >> v->bits && j < v->cols; j++)
			if (row[j] >> v->bits)
				return err_set(err, ERR_NUMERIC, "%s: row %zu, group %zu holds the code %d, more than %d bits",
					       utf8_show(shown, m->name), r, j / v->group, row[j], v->bits);
	}
	return 0;
}

static int check_numbers(const struct codec_module *m, const struct codec_values *v, struct err *err)
{
	const size_t groups = v->cols / v->group;
	char shown[UTF8_SHOWN_MAX];

	for (size_t r = 0; r < v->rows; r++) {
		const float *s = v->scales + r * groups, *z = v->zeros + r * groups;
		int bad = 0;

		for (size_t g = 0; g < groups; g++)
			bad |= !(s[g] > 0) | !(s[g] <= FLT_MAX) | !(fabsf(z[g]) <= FLT_MAX);
		for (size_t g = 0; bad && g < groups; g++)
			if (!(s[g] > 0 && s[g] <= FLT_MAX && fabsf(z[g]) <= FLT_MAX))
				return err_set(err, ERR_NUMERIC, "%s: row %zu, group %zu has scale %g and zero-point %g; a scale is "
					       "positive and both are finite", utf8_show(shown, m->name), r, g, (double)s[g],
					       (double)z[g]);
	}
	return 0;
}

int values_check(const struct codec_module *m, const struct codec_values *v, struct err *err)
{
	if (check_shape(m, v, err) != 0 || check_codes(m, v, err) != 0)
		return -1;
	return check_numbers(m, v, err);
}

/* --- what formats store -------------------------------------------------------------------------- */

static size_t at(const struct codec_values *v, struct group_run run)
{
	return run.row * (v->cols / v->group) + run.first;
}

static int not_exact(const struct codec_module *m, struct group_run run, size_t i, const char *what, double value,
		     const char *needs, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	return err_set(err, ERR_NUMERIC, "%s: row %zu, group %zu has the %s %.9g, which is not %s", utf8_show(shown, m->name),
		       run.row, run.first + i, what, value, needs);
}

int values_halves(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		  float divisor, uint16_t *out, struct err *err)
{
	const float *scales = v->scales + at(v, run), factor = 1 / divisor;
	uint32_t bad = 0;

	for (size_t i = 0; i < run.count; i++) {
		const uint32_t bits = bits_of(scales[i] * factor);

		out[i] = (uint16_t)((bits - 0x38000000) >> 13);
		bad |= (bits & 0x1fff) | (uint32_t)(bits < 0x38800000) | (uint32_t)(bits > 0x477fe000);
	}
	for (size_t i = 0; bad && i < run.count; i++) { /* small halves keep fewer bits: one by one */
		out[i] = f32_to_f16(scales[i] * factor);
		if (f16_to_f32(out[i]) * divisor != scales[i])
			return not_exact(m, run, i, divisor == 1 ? "scale" : "scale, before it is divided for the container,",
					 (double)scales[i], "a 16-bit float that the format can hold", err);
	}
	return 0;
}

int values_fields(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		  unsigned parts, unsigned min, unsigned max, uint8_t *out, struct err *err)
{
	const float *zeros = v->zeros + at(v, run), scale = (float)parts;
	int bad = 0;

	for (size_t i = 0; i < run.count; i++) {
		float z = zeros[i] * scale;
		int field;

		z = z < FIELD_BEYOND ? z : FIELD_BEYOND;
		z = z > -1 ? z : -1;
		field = (int)z;
		out[i] = (uint8_t)field;
		bad |= ((float)field != z) | (field < (int)min) | (field > (int)max);
	}
	for (size_t i = 0; bad && i < run.count; i++) {
		const float z = zeros[i] * scale;
		char needs[96];

		if (z >= (float)min && z <= (float)max && z == floorf(z))
			continue;
		if (parts == 1)
			snprintf(needs, sizeof(needs), "an integer of %u to %u", min, max);
		else
			snprintf(needs, sizeof(needs), "a multiple of 1/%u of %g to %g", parts, (double)min / parts,
				 (double)max / parts);
		return not_exact(m, run, i, "zero-point", (double)zeros[i], needs, err);
	}
	return 0;
}

int values_half_offsets(const struct codec_module *m, const struct codec_values *v, struct group_run run,
			uint16_t *out, struct err *err)
{
	const float *scales = v->scales + at(v, run), *zeros = v->zeros + at(v, run);

	for (size_t i = 0; i < run.count; i++) {
		const double offset = 0 - (double)scales[i] * (double)zeros[i]; /* never -0 */
		const float rounded = (float)offset;

		if (!(fabsf(rounded) <= HALF_LARGEST))
			return not_exact(m, run, i, "offset", offset, "within the 16-bit floats, -65504 to 65504", err);
		out[i] = values_to_half(bits_of(rounded), bits_of(fabsf(rounded) + 0.5f));
		if (fabs((double)f16_to_f32(out[i]) - offset) > EXACT_ENOUGH * fabs(offset))
			return not_exact(m, run, i, "offset", offset, "a 16-bit float", err);
	}
	return 0;
}

int values_float_offsets(const struct codec_module *m, const struct codec_values *v, struct group_run run,
			 float *out, struct err *err)
{
	const float *scales = v->scales + at(v, run), *zeros = v->zeros + at(v, run);

	for (size_t i = 0; i < run.count; i++) {
		const double offset = 0 - (double)scales[i] * (double)zeros[i]; /* never -0 */

		out[i] = (float)offset;
		if (!(fabsf(out[i]) <= FLT_MAX) || fabs((double)out[i] - offset) > EXACT_ENOUGH * fabs(offset))
			return not_exact(m, run, i, "offset", offset, "a 32-bit float", err);
	}
	return 0;
}
