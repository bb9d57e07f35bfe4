/* mlx.c - MLX affine quantization: w = s q + b in groups of 32, 64 or 128.
 *
 * A larger group is written as several equal ones, the largest of 128, 64 and 32 that divides it. b = -s z must be
 * exact: halves when z is any number (the intermediate keeps s z a half) or symmetric (z a power of two), else -
 * integers and fractions, whose product with s has too many bits - scales and biases of the module are float32.
 */
#include <string.h>

#include "formats/bits.h"
#include "formats/codecs.h"
#include "formats/rules.h"
#include "formats/values.h"

static const struct format_rule rule = {
	.format = "mlx", .bits = 0x17c, .bits_text = "2, 3, 4, 5, 6 or 8 bits", .group_of = 32, .outside = "*",
};

static int check(const struct codec_module *m, struct problems *problems)
{
	return rule_check(&rule, m, problems);
}

static size_t group_written(const struct codec_module *m)
{
	const size_t group = codec_group(m);

	return group % 128 == 0 ? 128 : group % 64 == 0 ? 64 : 32;
}

static bool halves_fit(const struct codec_module *m)
{
	return m->settings.symmetric || codec_zero_parts(m) == 0;
}

static unsigned tensors(const struct codec_module *m, struct codec_tensor *out)
{
	const enum st_dtype dtype = halves_fit(m) ? ST_F16 : ST_F32;
	const uint64_t groups = m->cols / group_written(m);

	out[0] = (struct codec_tensor){ ".weight", ST_U32, 2,
		{ m->rows, m->cols / 32 * (uint64_t)m->settings.bits } };
	out[1] = (struct codec_tensor){ ".scales", dtype, 2, { m->rows, groups } };
	out[2] = (struct codec_tensor){ ".biases", dtype, 2, { m->rows, groups } };
	return 3;
}

/* --- scales and biases --------------------------------------------------------------------------- */

static void repeat_halves(const uint16_t *from, size_t count, size_t times, uint16_t *to)
{
	for (size_t i = 0; i < count; i++)
		for (size_t k = 0; k < times; k++)
			*to++ = from[i];
}

static void repeat_floats(const float *from, size_t count, size_t times, float *to)
{
	for (size_t i = 0; i < count; i++)
		for (size_t k = 0; k < times; k++)
			*to++ = from[i];
}

/* `at`: index of the run's first group among those of the module, as written. */
static int put_halves(const struct codec_module *m, const struct codec_values *v, struct group_run run, size_t at,
		      size_t times, void *const *out, struct err *err)
{
	uint16_t half[TILE_GROUPS];

	if (values_halves(m, v, run, 1, half, err) != 0)
		return -1;
	repeat_halves(half, run.count, times, (uint16_t *)out[1] + at);
	if (values_half_offsets(m, v, run, half, err) != 0)
		return -1;
	repeat_halves(half, run.count, times, (uint16_t *)out[2] + at);
	return 0;
}

static int put_floats(const struct codec_module *m, const struct codec_values *v, struct group_run run, size_t at,
		      size_t times, void *const *out, struct err *err)
{
	float offsets[TILE_GROUPS];

	if (values_float_offsets(m, v, run, offsets, err) != 0)
		return -1;
	repeat_floats(v->scales + run.row * (v->cols / v->group) + run.first, run.count, times, (float *)out[1] + at);
	repeat_floats(offsets, run.count, times, (float *)out[2] + at);
	return 0;
}

static int encode(const struct codec_module *m, const struct codec_values *v, void *const *out, struct err *err)
{
	const size_t times = codec_group(m) / group_written(m);
	const bool halves = halves_fit(m);
	size_t groups;

	if (values_check(m, v, err) != 0)
		return -1;
	groups = v->cols / v->group;
	bits_along_rows(v->codes, v->rows, v->cols, v->bits, 0, out[0]);
	for (size_t r = 0; r < v->rows; r++) {
		for (size_t g = 0; g < groups; g += TILE_GROUPS) {
			const struct group_run run = { r, g, groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS };
			const size_t at = (r * groups + g) * times;

			if ((halves ? put_halves : put_floats)(m, v, run, at, times, out, err) != 0)
				return -1;
		}
	}
	return 0;
}

/* --- config.json --------------------------------------------------------------------------------- */

static bool same(const struct codec_module *a, const struct codec_module *b)
{
	return a->settings.bits == b->settings.bits && group_written(a) == group_written(b);
}

static int put_setting(const struct codec_module *m, struct json *o)
{
	int rc = json_set_int(o, "group_size", (int64_t)group_written(m));

	rc |= json_set_int(o, "bits", m->settings.bits);
	return rc;
}

/* The commonest setting on top, then each module that differs. Modules without scales are left alone. */
static struct json *quantization(const struct codec_module *modules, size_t count, const struct codec_module *most)
{
	struct json *o = json_new_object();
	int rc = put_setting(most, o);

	rc |= json_set_string(o, "mode", "affine");
	for (size_t i = 0; rc == 0 && i < count; i++) {
		struct json *one;

		if (modules[i].settings.skip || same(most, &modules[i]))
			continue;
		one = json_new_object();
		rc = put_setting(&modules[i], one);
		rc |= json_set(o, modules[i].name, one);
	}
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

/* The readers know rope_theta and rope_scaling at the top only. */
static int put_rope(const struct json *source, struct json *config)
{
	const struct json *rope = json_get(source, "rope_parameters");
	const struct json *theta = json_get(rope, "rope_theta");
	const char *type = json_get_string(rope, "rope_type", json_get_string(rope, "type", "default"));
	int rc = 0;

	if (theta && !json_get(source, "rope_theta"))
		rc |= json_set(config, "rope_theta", json_copy(theta));
	if (json_type(rope) == JSON_OBJECT && strcmp(type, "default") != 0 && !json_get(source, "rope_scaling")) {
		struct json *scaling = json_copy(rope);

		json_remove(scaling, "rope_theta");
		rc |= json_set(config, "rope_scaling", scaling);
	}
	return rc;
}

static int config(const struct codec_module *modules, size_t count, const struct json *source, struct json *config)
{
	const struct codec_module *most = rule_most_frequent(modules, count, same);
	int rc = put_rope(source, config);

	if (most && rc == 0) {
		rc |= json_set(config, "quantization", quantization(modules, count, most));
		rc |= json_set(config, "quantization_config", json_copy(json_get(config, "quantization")));
	}
	return rc;
}

const struct codec codec_mlx = {
	.name = "mlx", .meta_format = "mlx", .config_dtype = "float16", .other_dtype = "F16", .always_index = true,
	.tables = CODEC_TABLES_CODED,
	.about = "MLX affine quantization for mlx-lm; zero-points kept exactly as biases",
	.check = check, .tensors = tensors, .encode = encode, .config = config,
};
