/* gptq.c - GPTQ: codes and integer zero-points in bit streams, scales as halves, all transposed to (.., N).
 *
 * Version 1 stores z - 1 and is what symmetric checkpoints are written in (every runtime reads it); version 2
 * stores z and holds z = 0: asymmetric checkpoints. One checkpoint has one version, so all modules must be of
 * one kind. Columns stay in their order: g_idx[k] = k / group.
 */
#include "common/alloc.h"
#include "common/packed.h"
#include "common/version.h"
#include "formats/bits.h"
#include "formats/codecs.h"
#include "formats/rules.h"
#include "formats/values.h"

static const int64_t groups_held[] = { 16, 32, 64, 128, 256, 512, 1024, 0 };

static const struct format_rule rule = {
	.format = "gptq", .bits = 0x11c, .bits_text = "2, 3, 4 or 8 bits", .cols_of = 32, .rows_of = 32,
	.groups = groups_held, .outside = "lm_head",
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

static int check_model(const struct codec_module *modules, size_t count, struct problems *problems)
{
	const struct codec_module *symmetric = NULL, *other = NULL;
	int rc = rule_check_fused(&rule, modules, count, rule_same_settings,
				  "bits, group size and symmetry", problems);

	for (size_t i = 0; i < count; i++)
		if (!modules[i].settings.skip)
			*(modules[i].settings.symmetric ? &symmetric : &other) = &modules[i];
	if (!symmetric || !other)
		return rc;
	if (problems)
		problems_add(problems, "gptq holds symmetric or asymmetric modules, not both; %s is symmetric and %s is not; "
			     "compressed-tensors and mlx hold both", symmetric->name, other->name);
	return -1;
}

static unsigned tensors(const struct codec_module *m, struct codec_tensor *out)
{
	const uint64_t bits = (uint64_t)m->settings.bits, groups = m->cols / codec_group(m);

	out[0] = (struct codec_tensor){ ".qweight", ST_I32, 2, { m->cols / 32 * bits, m->rows } };
	out[1] = (struct codec_tensor){ ".qzeros", ST_I32, 2, { groups, m->rows / 32 * bits } };
	out[2] = (struct codec_tensor){ ".scales", ST_F16, 2, { groups, m->rows } };
	out[3] = (struct codec_tensor){ ".g_idx", ST_I32, 1, { m->cols, 0 } };
	return 4;
}

/* --- bytes --------------------------------------------------------------------------------------- */

struct tile {
	uint16_t scales[TILE_ROWS][TILE_GROUPS];
	uint8_t zeros[TILE_ROWS][TILE_GROUPS];
};

static int read_tile(const struct codec_module *m, const struct codec_values *v, struct group_run run,
		     struct tile *t, struct err *err)
{
	const unsigned middle = 1u << (v->bits - 1), top = (1u << v->bits) - 1;
	const bool symmetric = m->settings.symmetric;

	for (size_t i = 0; i < TILE_ROWS; i++, run.row++)
		if (values_halves(m, v, run, 1, t->scales[i], err) != 0 ||
		    values_fields(m, v, run, 1, symmetric ? middle : 0, symmetric ? middle : top, t->zeros[i], err) != 0)
			return -1;
	return 0;
}

/* 32 zero-points of one group along N fill `bits` words. */
static void put_tile(const struct codec_module *m, const struct tile *t, struct group_run run, size_t rows,
		     void *const *out)
{
	const int bits = m->settings.bits;
	const uint8_t minus = m->settings.symmetric; /* version 1 stores z - 1 */

	for (size_t g = 0; g < run.count; g++) {
		uint16_t *scales = (uint16_t *)out[2] + (run.first + g) * rows + run.row;
		uint8_t fields[TILE_ROWS];

		for (size_t i = 0; i < TILE_ROWS; i++) {
			scales[i] = t->scales[i][g];
			fields[i] = (uint8_t)(t->zeros[i][g] - minus);
		}
		packed_pack_row(fields, TILE_ROWS, bits, (uint32_t *)out[1] +
				((run.first + g) * rows + run.row) / TILE_ROWS * (size_t)bits);
	}
}

static int encode(const struct codec_module *m, const struct codec_values *v, void *const *out, struct err *err)
{
	struct tile tile;
	size_t groups;

	if (values_check(m, v, err) != 0)
		return -1;
	groups = v->cols / v->group;
	bits_down_columns(v->codes, v->rows, v->cols, v->bits, out[0]);
	for (size_t r = 0; r < v->rows; r += TILE_ROWS) {
		for (size_t g = 0; g < groups; g += TILE_GROUPS) {
			const struct group_run run = { r, g, groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS };

			if (read_tile(m, v, run, &tile, err) != 0)
				return -1;
			put_tile(m, &tile, run, v->rows, out);
		}
	}
	for (size_t k = 0; k < v->cols; k++)
		((int32_t *)out[3])[k] = (int32_t)(k / v->group);
	return 0;
}

/* --- config.json --------------------------------------------------------------------------------- */

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
	return a->settings.bits == b->settings.bits && group_written(a) == group_written(b);
}

static int put_setting(const struct codec_module *m, struct json *o)
{
	int rc = json_set_int(o, "bits", m->settings.bits);

	rc |= json_set_int(o, "group_size", group_written(m));
	rc |= json_set_bool(o, "desc_act", false);
	rc |= json_set_bool(o, "sym", m->settings.symmetric);
	return rc;
}

/* Joined modules share a rule that matches the joined name too: readers that join before they look
 * see that one only. */
static int put_rule(const struct codec_module *m, struct json *dynamic)
{
	char *pattern = rule_pattern(m->settings.skip ? "-:" : "+:", m, true);
	struct json *o = json_new_object();
	int rc = pattern && o && !m->settings.skip ? put_setting(m, o) : 0;

	if (pattern && !json_get(dynamic, pattern)) {
		rc |= json_set(dynamic, pattern, o);
	} else {
		rc |= pattern ? 0 : -1;
		json_free(o);
	}
	mem_free(pattern);
	return rc;
}

static struct json *dynamic_rules(const struct codec_module *modules, size_t count, const struct codec_module *most)
{
	struct json *o = json_new_object();
	int rc = o ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < count; i++)
		if (modules[i].settings.skip ? modules[i].layer >= 0 : !same(&modules[i], most))
			rc = put_rule(&modules[i], o); /* "lm_head" says whether that one is quantized */
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *meta(void)
{
	struct json *o = json_new_object(), *list = json_new_array();
	int rc = json_push(list, json_new_string("quarry:" QUARRY_VERSION));

	rc |= json_set(o, "quantizer", list);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static int config(const struct codec_module *modules, size_t count, const struct json *source, struct json *config)
{
	const struct codec_module *most = rule_most_frequent(modules, count, same);
	const struct codec_module *head = rule_find(modules, count, "lm_head");
	const char *version = most && most->settings.symmetric ? "gptq" : "gptq_v2";
	struct json *o;
	int rc;

	(void)source;
	if (!most)
		return 0;
	o = json_new_object();
	rc = json_set_string(o, "quant_method", "gptq");
	rc |= json_set_string(o, "method", "gptq");
	rc |= json_set_string(o, "checkpoint_format", version);
	rc |= json_set_string(o, "format", version);
	rc |= put_setting(most, o);
	rc |= json_set_bool(o, "lm_head", head && !head->settings.skip);
	rc |= json_set_string(o, "pack_dtype", "int32");
	rc |= json_set(o, "dynamic", dynamic_rules(modules, count, most));
	rc |= json_set(o, "meta", meta());
	rc |= json_set(config, "quantization_config", o);
	return rc;
}

const struct codec codec_gptq = {
	.name = "gptq", .meta_format = "pt", .config_dtype = "float16", .other_dtype = "F16",
	.extra_file = "quantize_config.json",
	.about = "GPTQ tensors for GPTQModel, transformers and vLLM; integer zero-points",
	.check = check, .check_model = check_model, .zero_parts = zero_parts, .tensors = tensors, .encode = encode,
	.config = config,
};
