/* awq.c - AWQ, "gemm" layout: 4 bits, eight output channels to a word in the order 0 2 4 6 1 3 5 7, zero-points
 * as they are. One group size for the whole checkpoint; modules are quantized or not, nothing in between. */
#include <string.h>

#include "common/alloc.h"
#include "formats/bits.h"
#include "formats/codecs.h"
#include "formats/rules.h"
#include "formats/values.h"

enum { BITS = 4, TOP = 15, PER_WORD = 8 };

static const int64_t groups_held[] = { 32, 64, 128, 0 };

static const struct format_rule rule = {
	.format = "awq", .bits = 1 << BITS, .bits_text = "4 bits", .rows_of = PER_WORD, .groups = groups_held,
};

static int check(const struct codec_module *m, struct problems *problems)
{
	return rule_check(&rule, m, problems) | rule_check_zeros(&rule, m, 1, problems);
}

static unsigned zero_parts(const struct codec_module *m)
{
	(void)m;
	return 1;
}

/* A size that kernels do not list can only be a whole row. */
static int64_t group_written(const struct codec_module *m)
{
	for (const int64_t *g = groups_held; *g; g++)
		if (*g == m->settings.group_size)
			return *g;
	return -1;
}

static bool same(const struct codec_module *a, const struct codec_module *b)
{
	return group_written(a) == group_written(b);
}

static int check_model(const struct codec_module *modules, size_t count, struct problems *problems)
{
	const struct codec_module *most = rule_most_frequent(modules, count, same);
	int rc = rule_check_fused(&rule, modules, count, same, "group sizes", problems);

	for (size_t i = 0; most && i < count; i++) {
		if (modules[i].settings.skip || same(most, &modules[i]))
			continue;
		rc = -1;
		if (problems)
			problems_add(problems, "%s: awq has one group size for all modules, and most have %lld, not %lld; "
				     "mlx, gptq and compressed-tensors can mix them", modules[i].name,
				     (long long)most->settings.group_size, (long long)modules[i].settings.group_size);
	}
	return rc;
}

static unsigned tensors(const struct codec_module *m, struct codec_tensor *out)
{
	const uint64_t groups = m->cols / codec_group(m), words = m->rows / PER_WORD;

	out[0] = (struct codec_tensor){ ".qweight", ST_I32, 2, { m->cols, words } };
	out[1] = (struct codec_tensor){ ".qzeros", ST_I32, 2, { groups, words } };
	out[2] = (struct codec_tensor){ ".scales", ST_F16, 2, { groups, m->rows } };
	return 3;
}

/* Eight rows at a time: a word of zero-points and eight scales for each group. */
static int put_rows(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		    void *const *out, struct err *err)
{
	uint16_t scales[PER_WORD][TILE_GROUPS];
	uint8_t zeros[PER_WORD][TILE_GROUPS];
	const size_t row = run.row;

	for (size_t i = 0; i < PER_WORD; i++, run.row++)
		if (values_halves(m, v, run, 1, scales[i], err) != 0 ||
		    values_fields(m, v, run, 1, 0, TOP, zeros[i], err) != 0)
			return -1;
	for (size_t g = 0; g < run.count; g++) {
		const size_t at = (run.first + g) * v->rows + row;
		uint8_t fields[PER_WORD];

		for (size_t i = 0; i < PER_WORD; i++) {
			((uint16_t *)out[2])[at + i] = scales[i][g];
			fields[i] = zeros[i][g];
		}
		((uint32_t *)out[1])[at / PER_WORD] = bits_interleave_word(fields);
	}
	return 0;
}

static int encode(const struct codec_module *m, const struct codec_values *v, void *const *out, struct err *err)
{
	size_t groups;

	if (values_check(m, v, err) != 0)
		return -1;
	groups = v->cols / v->group;
	bits_interleaved(v->codes, v->rows, v->cols, out[0]);
	for (size_t r = 0; r < v->rows; r += PER_WORD) {
		for (size_t g = 0; g < groups; g += TILE_GROUPS) {
			const struct group_run run = { r, g, groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS };

			if (put_rows(m, v, run, out, err) != 0)
				return -1;
		}
	}
	return 0;
}

/* --- config.json --------------------------------------------------------------------------------- */

static int push_name(struct json *list, const char *name)
{
	return json_push(list, json_new_string(name));
}

static bool last_is(const struct json *list, const char *name)
{
	const size_t n = json_size(list);

	return n > 0 && strcmp(json_string(json_at(list, n - 1), ""), name) == 0;
}

/* The joined name too, once after its parts: older readers look for that one. */
static int push_joined(struct json *list, const struct codec_module *m, const struct codec_module *next)
{
	const char *joined = rule_fused(m).joined;
	char *name;
	int rc;

	if (!joined || (next && next->layer == m->layer && rule_fused(next).joined == joined))
		return 0;
	name = rule_sibling(m->name, joined);
	rc = name ? (last_is(list, name) ? 0 : push_name(list, name)) : -1;
	mem_free(name);
	return rc;
}

/* null when every module is quantized. */
static struct json *not_converted(const struct codec_module *modules, size_t count)
{
	struct json *list = json_new_array();
	int rc = list ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < count; i++) {
		if (!modules[i].settings.skip)
			continue;
		rc = push_name(list, modules[i].name);
		rc |= push_joined(list, &modules[i], i + 1 < count ? &modules[i + 1] : NULL);
	}
	if (rc == 0 && json_size(list) > 0 && !rule_find(modules, count, "lm_head"))
		rc = push_name(list, "lm_head");
	if (rc == 0 && json_size(list) > 0)
		return list;
	json_free(list);
	return rc == 0 ? json_new_null() : NULL;
}

static int config(const struct codec_module *modules, size_t count, const struct json *source, struct json *config)
{
	const struct codec_module *most = rule_most_frequent(modules, count, same);
	struct json *o;
	int rc;

	(void)source;
	if (!most)
		return 0;
	o = json_new_object();
	rc = json_set_string(o, "quant_method", "awq");
	rc |= json_set_int(o, "bits", BITS);
	rc |= json_set_int(o, "group_size", group_written(most));
	rc |= json_set_bool(o, "zero_point", true);
	rc |= json_set_string(o, "version", "gemm");
	rc |= json_set(o, "modules_to_not_convert", not_converted(modules, count));
	rc |= json_set(config, "quantization_config", o);
	return rc;
}

const struct codec codec_awq = {
	.name = "awq", .meta_format = "pt", .config_dtype = "float16", .other_dtype = "F16",
	.about = "AWQ gemm tensors for vLLM, SGLang and transformers; 4 bits, integer zero-points",
	.check = check, .check_model = check_model, .zero_parts = zero_parts, .tensors = tensors, .encode = encode,
	.config = config,
};
