/* packed.c - the lossless intermediate as a format: codes, float32 scales and zero-points, nothing refused. */
#include <string.h>

#include "common/packed.h"
#include "formats/bits.h"
#include "formats/codecs.h"
#include "formats/rules.h"
#include "formats/values.h"

static const struct format_rule rule = {
	.format = "packed", .bits = 0x1fe, .bits_text = "1 to 8 bits", .outside = "*",
};

static int check(const struct codec_module *m, struct problems *problems)
{
	return rule_check(&rule, m, problems);
}

static unsigned tensors(const struct codec_module *m, struct codec_tensor *out)
{
	const uint64_t groups = m->cols / codec_group(m);

	out[0] = (struct codec_tensor){ ".codes", ST_U32, 2,
		{ m->rows, packed_row_words((size_t)m->cols, m->settings.bits) } };
	out[1] = (struct codec_tensor){ ".scales", ST_F32, 2, { m->rows, groups } };
	out[2] = (struct codec_tensor){ ".zeros", ST_F32, 2, { m->rows, groups } };
	return 3;
}

static int encode(const struct codec_module *m, const struct codec_values *v, void *const *out, struct err *err)
{
	size_t bytes;

	if (values_check(m, v, err) != 0)
		return -1;
	bytes = v->rows * (v->cols / v->group) * sizeof(float);
	bits_along_rows(v->codes, v->rows, v->cols, v->bits, 0, out[0]);
	memcpy(out[1], v->scales, bytes);
	memcpy(out[2], v->zeros, bytes);
	return 0;
}

/* Settings of every module; at the top those that most modules share. */
static int config(const struct codec_module *modules, size_t count, const struct json *source, struct json *config)
{
	const struct codec_module *most = rule_most_frequent(modules, count, rule_same_settings);
	struct json *o = json_new_object(), *all = json_new_object();
	int rc = o && all ? 0 : -1;

	(void)source;
	rc |= json_set_string(o, "quant_method", "quarry");
	rc |= json_set_int(o, "version", 1);
	if (most) {
		rc |= module_settings_to_json(&most->settings, o);
		json_remove(o, "skip");
	}
	for (size_t i = 0; rc == 0 && i < count; i++) {
		struct json *one = json_new_object();

		rc = module_settings_to_json(&modules[i].settings, one);
		rc |= json_set(all, modules[i].name, one);
	}
	rc |= json_set(o, "modules", all);
	rc |= json_set(config, "quantization_config", o);
	return rc;
}

const struct codec codec_packed = {
	.name = "packed", .always = true, .meta_format = "quarry-packed", .meta_modules = true, .tables = CODEC_TABLES_CARRIED,
	.about = "codes, scales and zero-points exactly as quantized; the source of every other format",
	.check = check, .tensors = tensors, .encode = encode, .config = config,
};
