/* read_compressed.c - compressed-tensors, format "pack-quantized".
 *
 * Rows of weight_packed are streams over the columns, columns of weight_zero_point streams over the rows; both hold
 * signed numbers plus half of the range. Widths that do not divide 32 were packed in two ways under one name:
 * they are refused.
 */
#include <string.h>

#include "common/utf8.h"
#include "formats/read_parts.h"

/* --- settings ------------------------------------------------------------------------------------ */

/* `targets` names the module, or matches it; with `kind` also by the class of every module. 0, 1, -1. */
static int named(const struct json *targets, const char *module, bool kind, struct err *err)
{
	for (const struct json *t = json_first(targets); t; t = json_next(t)) {
		const char *text = json_string(t, "");
		int found = kind ? strcmp(text, "Linear") == 0 : strcmp(text, module) == 0;

		if (!kind && strncmp(text, "re:", 3) == 0)
			found = read_matches(text + 3, module, err);
		if (found != 0)
			return found;
	}
	return 0;
}

/* Names and patterns before the class. 0 with *out == NULL when no group wants the module. */
static int find_group(const struct json *groups, const char *module, const struct json **out, struct err *err)
{
	*out = NULL;
	for (int kind = 0; kind <= 1; kind++)
		for (const struct json *g = json_first(groups); g; g = json_next(g)) {
			const int found = named(json_get(g, "targets"), module, kind != 0, err);

			if (found < 0)
				return -1;
			if (found == 0)
				continue;
			*out = g;
			return 0;
		}
	return 0;
}

static int take_weights(const struct json *w, struct stored_settings *out, struct err *err)
{
	const char *strategy = json_get_string(w, "strategy", json_get(w, "group_size") ? "group" : "channel");
	char shown[UTF8_SHOWN_MAX];
	int64_t bits;

	if (strcmp(json_get_string(w, "type", "int"), "int") != 0)
		return err_set(err, ERR_UNSUPPORTED, "config.json: weights of type '%s' are not known; 'int' is",
			       utf8_show(shown, json_get_string(w, "type", "")));
	if (json_require_int(w, "num_bits", 1, 8, &bits, err) != 0)
		return err_prefix(err, "config.json, weights");
	if (bits != 2 && bits != 4 && bits != 8)
		return err_set(err, ERR_UNSUPPORTED, "config.json: num_bits %d has no one way to be packed; 2, 4 and 8 have",
			       (int)bits);
	out->group_size = -1;
	if (strcmp(strategy, "group") == 0 &&
	    json_require_int(w, "group_size", -1, INT32_MAX, &out->group_size, err) != 0)
		return err_prefix(err, "config.json, weights");
	if (strcmp(strategy, "group") != 0 && strcmp(strategy, "channel") != 0)
		return err_set(err, ERR_UNSUPPORTED, "config.json: strategy '%s' is not known; 'group' and 'channel' are",
			       utf8_show(shown, strategy));
	out->quantized = true;
	out->bits = (int)bits;
	out->symmetric = json_get_bool(w, "symmetric", true);
	return 0;
}

static int settings(const struct json *config, const char *module, struct stored_settings *out, struct err *err)
{
	const struct json *q = json_get(config, "quantization_config"), *group;
	const char *format = json_get_string(q, "format", "");
	char shown[UTF8_SHOWN_MAX];
	int ignored;

	if (strcmp(format, "pack-quantized") != 0)
		return err_set(err, ERR_UNSUPPORTED, "config.json: compressed-tensors format '%s' is not known; 'pack-quantized' "
			       "is", utf8_show(shown, format));
	ignored = named(json_get(q, "ignore"), module, false, err);
	if (ignored != 0)
		return ignored < 0 ? -1 : 0;
	if (find_group(json_get(q, "config_groups"), module, &group, err) != 0)
		return -1;
	return group ? take_weights(json_get(group, "weights"), out, err) : 0;
}

/* --- tensors ------------------------------------------------------------------------------------- */

static uint64_t words_for(uint64_t count, int bits)
{
	const uint64_t in_a_word = 32 / (uint64_t)bits;

	return count / in_a_word + (count % in_a_word != 0);
}

/* {N, K}; both fit 32 bits, as no word count could hold more. */
static int read_sizes(struct stored_source source, const char *module, uint64_t *rows, uint64_t *cols,
		      struct err *err)
{
	struct stored_tensor t;
	char shown[UTF8_SHOWN_MAX];

	if (read_tensor(source, module, (struct wanted){ ".weight_shape", READ_I64 | READ_I32, 1, false }, &t, err) != 0)
		return -1;
	*rows = *cols = 0;
	if (t.shape[0] == 2 && t.dtype == ST_I32) {
		*rows = read_field(t.bytes, 0, 1, 0, 32);
		*cols = read_field(t.bytes, 1, 1, 0, 32);
	} else if (t.shape[0] == 2 && read_field(t.bytes, 1, 1, 0, 32) == 0 && read_field(t.bytes, 3, 1, 0, 32) == 0) {
		*rows = read_field(t.bytes, 0, 1, 0, 32);
		*cols = read_field(t.bytes, 2, 1, 0, 32);
	}
	read_tensor_free(&t);
	if (*rows > 0 && *cols > 0 && *rows <= INT32_MAX && *cols <= INT32_MAX)
		return 0;
	return err_set(err, ERR_CORRUPT, "tensor %s.weight_shape does not hold two sizes", utf8_show(shown, module));
}

static int packed_zeros(const struct stored_tensor *t, const char *module, struct stored_module *m, struct err *err)
{
	const int bits = m->settings.bits;

	if (read_expect_shape(t, module, ".weight_zero_point", words_for(m->rows, bits), m->groups, err) != 0)
		return -1;
	for (size_t n = 0; n < m->rows; n++)
		for (size_t g = 0; g < m->groups; g++)
			m->zeros[n * m->groups + g] = read_field(t->bytes, g, m->groups, (uint64_t)bits * n, bits);
	return 0;
}

/* Older files keep the signed numbers, one byte each. */
static int plain_zeros(const struct stored_tensor *t, const char *module, struct stored_module *m, struct err *err)
{
	const int half = 1 << (m->settings.bits - 1);

	if (read_expect_shape(t, module, ".weight_zero_point", m->rows, m->groups, err) != 0)
		return -1;
	for (size_t i = 0; i < m->rows * m->groups; i++)
		m->zeros[i] = ((const int8_t *)t->bytes)[i] + half;
	return 0;
}

static int read_zeros(struct stored_source source, const char *module, struct stored_module *m, struct err *err)
{
	struct stored_tensor t = { 0 };
	int rc = 0;

	for (size_t i = 0; m->settings.symmetric && i < m->rows * m->groups; i++)
		m->zeros[i] = 1 << (m->settings.bits - 1);
	if (!m->settings.symmetric)
		rc = read_tensor(source, module, (struct wanted){ ".weight_zero_point", READ_I32 | READ_I8, 2, false }, &t, err);
	if (rc == 0 && t.bytes)
		rc = (t.dtype == ST_I8 ? plain_zeros : packed_zeros)(&t, module, m, err);
	if (rc == 0)
		read_offsets_from_zeros(m);
	read_tensor_free(&t);
	return rc;
}

static void read_codes(const struct stored_tensor *t, struct stored_module *m)
{
	const uint64_t in_a_word = 32 / (uint64_t)m->settings.bits;

	for (size_t n = 0; n < m->rows; n++)
		for (size_t k = 0; k < m->cols; k++)
			m->codes[n * m->cols + k] = (uint8_t)read_field(
				t->bytes, n * (size_t)t->shape[1] + (size_t)(k / in_a_word), 1,
				k % in_a_word * (uint64_t)m->settings.bits, m->settings.bits);
}

static int read(const struct json *config, const char *module, struct stored_source source,
		struct stored_module *out, struct err *err)
{
	struct stored_tensor codes = { 0 }, scales = { 0 };
	uint64_t rows = 0, cols = 0, groups = 0;
	int rc = read_tensor(source, module, (struct wanted){ ".weight_packed", READ_I32, 2, true }, &codes, err);

	(void)config;
	if (rc == 0)
		rc = read_tensor(source, module, (struct wanted){ ".weight_scale", READ_FLOATS, 2, false }, &scales, err);
	if (rc == 0)
		rc = read_sizes(source, module, &rows, &cols, err);
	if (rc == 0)
		rc = read_expect_shape(&codes, module, ".weight_packed", rows, words_for(cols, out->settings.bits), err);
	if (rc == 0)
		rc = read_groups(&out->settings, module, cols, &groups, err);
	if (rc == 0)
		rc = read_expect_shape(&scales, module, ".weight_scale", rows, groups, err);
	if (rc == 0)
		rc = read_room(out, module, rows, cols, groups, err);
	if (rc == 0)
		rc = read_scales(&scales, module, false, out, err);
	if (rc == 0)
		rc = read_group_map(source, module, ".weight_g_idx", out, err);
	if (rc == 0) {
		read_codes(&codes, out);
		rc = read_zeros(source, module, out, err);
	}
	read_tensor_free(&codes);
	read_tensor_free(&scales);
	return rc;
}

const struct stored_format read_compressed_tensors = { "compressed-tensors", settings, read };
