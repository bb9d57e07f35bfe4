/* compressed_tensors.c - compressed-tensors "pack-quantized": 4 or 8 bits, integer zero-points or none.
 *
 * Codes of 2 or 3 bits go into the 4-bit container: with t = 2^(4 - b), q' = t q, s' = s / t, z' = t z give the
 * same weights, and z may be a multiple of 1/t. Stored fields are q' and z' themselves (the format's signed values
 * plus half of the range). Symmetric modules have no zero-point tensor.
 */
#include <stdio.h>

#include "common/alloc.h"
#include "common/packed.h"
#include "formats/bits.h"
#include "formats/codecs.h"
#include "formats/rules.h"
#include "formats/values.h"

static const struct format_rule rule = {
	.format = "compressed-tensors", .bits = 0x11c, .bits_text = "4 and 8 bits, and 2 and 3 within 4",
	.outside = "lm_head",
};

static int container_bits(const struct codec_module *m)
{
	return m->settings.bits <= 4 ? 4 : 8;
}

static int container_shift(const struct codec_module *m)
{
	return container_bits(m) - m->settings.bits;
}

static unsigned zero_parts(const struct codec_module *m)
{
	return m->settings.bits >= 1 && m->settings.bits <= 8 ? 1u << container_shift(m) : 1;
}

static int check(const struct codec_module *m, struct problems *problems)
{
	return rule_check(&rule, m, problems) | rule_check_zeros(&rule, m, zero_parts(m), problems);
}

static bool same(const struct codec_module *a, const struct codec_module *b)
{
	return container_bits(a) == container_bits(b) && a->settings.group_size == b->settings.group_size &&
	       a->settings.symmetric == b->settings.symmetric;
}

static int check_model(const struct codec_module *modules, size_t count, struct problems *problems)
{
	return rule_check_fused(&rule, modules, count, same, "stored bits, group size and symmetry", problems);
}

/* transformers 5.23: docs/formats.md. */
static int caution(const struct codec_module *modules, size_t count, struct problems *warnings)
{
	const struct codec_module *first = NULL;
	bool mixed = false, asymmetric = false;

	for (size_t i = 0; i < count; i++) {
		const struct codec_module *m = &modules[i];

		if (m->settings.skip)
			continue;
		first = first ? first : m;
		mixed |= !same(first, m);
		asymmetric |= !m->settings.symmetric;
	}
	if (!mixed || !asymmetric)
		return 0;
	return problems_add(warnings, "compressed-tensors: transformers reads modules of several settings wrongly, without an error, unless all "
			    "are symmetric; the library compressed-tensors itself reads them right");
}

static unsigned tensors(const struct codec_module *m, struct codec_tensor *out)
{
	const int bits = container_bits(m);
	const uint64_t groups = m->cols / codec_group(m);
	unsigned n = 0;

	out[n++] = (struct codec_tensor){ ".weight_packed", ST_I32, 2,
		{ m->rows, packed_row_words((size_t)m->cols, bits) } };
	out[n++] = (struct codec_tensor){ ".weight_scale", ST_F16, 2, { m->rows, groups } };
	out[n++] = (struct codec_tensor){ ".weight_shape", ST_I64, 1, { 2, 0 } };
	if (!m->settings.symmetric)
		out[n++] = (struct codec_tensor){ ".weight_zero_point", ST_I32, 2,
			{ packed_row_words((size_t)m->rows, bits), groups } };
	return n;
}

/* --- bytes --------------------------------------------------------------------------------------- */

/* Symmetric modules store no zero-point, so every one must be the middle. */
static int put_scales(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		      uint8_t *zeros, uint16_t *scales, struct err *err)
{
	const unsigned parts = zero_parts(m), middle = 1u << (container_bits(m) - 1);
	const bool symmetric = m->settings.symmetric;

	if (values_halves(m, v, run, (float)parts, scales, err) != 0)
		return -1;
	return values_fields(m, v, run, parts, symmetric ? middle : 0, symmetric ? middle : 2 * middle - 1, zeros, err);
}

/* Column g of the zero-points is a stream down the rows: 32 of them fill `bits` words. */
static void put_zeros(const struct codec_module *m, uint8_t zeros[TILE_ROWS][TILE_GROUPS], size_t rows,
		      struct group_run run, size_t groups, uint32_t *out)
{
	const int bits = container_bits(m);

	for (size_t g = 0; g < run.count; g++) {
		uint32_t words[8];
		uint8_t fields[TILE_ROWS];
		uint32_t *to = out + run.row / TILE_ROWS * (size_t)bits * groups + run.first + g;

		for (size_t i = 0; i < rows; i++)
			fields[i] = zeros[i][g];
		packed_pack_row(fields, rows, bits, words);
		for (size_t w = 0; w < packed_row_words(rows, bits); w++)
			to[w * groups] = words[w];
	}
}

static int put_tile(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		    void *const *out, struct err *err)
{
	const size_t groups = v->cols / v->group, first_row = run.row;
	const size_t rows = v->rows - first_row < TILE_ROWS ? v->rows - first_row : TILE_ROWS;
	uint8_t zeros[TILE_ROWS][TILE_GROUPS];

	for (size_t i = 0; i < rows; i++, run.row++)
		if (put_scales(m, v, run, zeros[i], (uint16_t *)out[1] + run.row * groups + run.first, err) != 0)
			return -1;
	run.row = first_row;
	if (!m->settings.symmetric)
		put_zeros(m, zeros, rows, run, groups, out[3]);
	return 0;
}

static int encode(const struct codec_module *m, const struct codec_values *v, void *const *out, struct err *err)
{
	size_t groups;

	if (values_check(m, v, err) != 0)
		return -1;
	groups = v->cols / v->group;
	bits_along_rows(v->codes, v->rows, v->cols, container_bits(m), container_shift(m), out[0]);
	for (size_t r = 0; r < v->rows; r += TILE_ROWS) {
		for (size_t g = 0; g < groups; g += TILE_GROUPS) {
			const struct group_run run = { r, g, groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS };

			if (put_tile(m, v, run, out, err) != 0)
				return -1;
		}
	}
	((int64_t *)out[2])[0] = (int64_t)v->rows;
	((int64_t *)out[2])[1] = (int64_t)v->cols;
	return 0;
}

/* --- config.json --------------------------------------------------------------------------------- */

/* Only the keys that old readers know: they refuse others. */
static struct json *weights(const struct codec_module *m)
{
	const bool channel = m->settings.group_size == -1;
	struct json *o = json_new_object();
	int rc = json_set_int(o, "num_bits", container_bits(m));

	rc |= json_set_string(o, "type", "int");
	rc |= json_set_bool(o, "symmetric", m->settings.symmetric);
	rc |= json_set_string(o, "strategy", channel ? "channel" : "group");
	rc |= channel ? json_set_null(o, "group_size") : json_set_int(o, "group_size", m->settings.group_size);
	rc |= json_set_null(o, "block_structure");
	rc |= json_set_bool(o, "dynamic", false);
	rc |= json_set_null(o, "actorder");
	rc |= json_set_string(o, "observer", "minmax");
	rc |= json_set(o, "observer_kwargs", json_new_object());
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static int push_pattern(struct json *list, const struct codec_module *m)
{
	char *pattern = rule_pattern("re:", m, false);
	int rc = pattern ? json_push(list, json_new_string(pattern)) : -1;

	mem_free(pattern);
	return rc;
}

/* Every linear when there is one setting, else each module of this one by name. */
static struct json *targets(const struct codec_module *modules, size_t count, const struct codec_module *of,
			    bool only)
{
	struct json *list = json_new_array();
	int rc = only ? json_push(list, json_new_string("Linear")) : list ? 0 : -1;

	for (size_t i = 0; !only && rc == 0 && i < count; i++)
		if (!modules[i].settings.skip && same(of, &modules[i]))
			rc = push_pattern(list, &modules[i]);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

static struct json *scheme(const struct codec_module *modules, size_t count, const struct codec_module *of, bool only)
{
	struct json *o = json_new_object();
	int rc = json_set(o, "targets", targets(modules, count, of, only));

	rc |= json_set(o, "weights", weights(of));
	rc |= json_set_null(o, "input_activations");
	rc |= json_set_null(o, "output_activations");
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static bool is_first(const struct codec_module *modules, size_t i)
{
	if (modules[i].settings.skip)
		return false;
	for (size_t j = 0; j < i; j++)
		if (!modules[j].settings.skip && same(&modules[j], &modules[i]))
			return false;
	return true;
}

static struct json *config_groups(const struct codec_module *modules, size_t count)
{
	struct json *o = json_new_object();
	size_t settings = 0, n = 0;
	int rc = o ? 0 : -1;
	char name[32];

	for (size_t i = 0; i < count; i++)
		settings += is_first(modules, i);
	for (size_t i = 0; rc == 0 && i < count; i++) {
		if (!is_first(modules, i))
			continue;
		snprintf(name, sizeof(name), "group_%zu", n++);
		rc = json_set(o, name, scheme(modules, count, &modules[i], settings == 1));
	}
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *ignored(const struct codec_module *modules, size_t count)
{
	struct json *list = json_new_array();
	int rc = list ? 0 : -1;

	if (!rule_find(modules, count, "lm_head"))
		rc |= json_push(list, json_new_string("lm_head"));
	for (size_t i = 0; rc == 0 && i < count; i++)
		if (modules[i].settings.skip)
			rc = json_push(list, json_new_string(modules[i].name));
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

static int config(const struct codec_module *modules, size_t count, const struct json *source, struct json *config)
{
	struct json *o;
	int rc;

	(void)source;
	if (!rule_most_frequent(modules, count, same))
		return 0;
	o = json_new_object();
	rc = json_set_string(o, "quant_method", "compressed-tensors");
	rc |= json_set_string(o, "format", "pack-quantized");
	rc |= json_set_string(o, "quantization_status", "compressed");
	rc |= json_set(o, "config_groups", config_groups(modules, count));
	rc |= json_set(o, "ignore", ignored(modules, count));
	rc |= json_set_null(o, "kv_cache_scheme");
	rc |= json_set(config, "quantization_config", o);
	return rc;
}

const struct codec codec_compressed_tensors = {
	.name = "compressed-tensors", .meta_format = "pt", .config_dtype = "float16", .other_dtype = "F16",
	.about = "compressed-tensors pack-quantized for vLLM, SGLang and transformers; integer zero-points",
	.check = check, .check_model = check_model, .caution = caution, .zero_parts = zero_parts, .tensors = tensors, .encode = encode,
	.config = config,
};
