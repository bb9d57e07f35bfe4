/* read_gptq.c - GPTQ and AWQ: tensors transposed, (input, output).
 *
 * GPTQ: column n of qweight is a stream over k; row g of qzeros a stream over n of z (format gptq_v2) or z - 1.
 * AWQ: nibble i of a word holds output channel 0 2 4 6 1 3 5 7 of eight.
 */
#include <string.h>

#include "common/utf8.h"
#include "formats/read_parts.h"

static const struct json *block(const struct json *config)
{
	return json_get(config, "quantization_config");
}

/* --- gptq settings ------------------------------------------------------------------------------- */

static void take(const struct json *from, struct stored_settings *out)
{
	out->bits = (int)json_get_int(from, "bits", out->bits);
	out->group_size = json_get_int(from, "group_size", out->group_size);
	out->symmetric = json_get_bool(from, "sym", out->symmetric);
}

/* The first rule that matches counts: "-:pattern" leaves the module alone, others change its settings. */
static int apply_rules(const struct json *rules, const char *module, struct stored_settings *out, struct err *err)
{
	for (const struct json *r = json_first(rules); r; r = json_next(r)) {
		const char *key = json_key(r) ? json_key(r) : "";
		const bool leave = strncmp(key, "-:", 2) == 0;
		const int found = read_matches(leave || strncmp(key, "+:", 2) == 0 ? key + 2 : key, module, err);

		if (found < 0)
			return -1;
		if (found == 0)
			continue;
		out->quantized = !leave;
		if (!leave)
			take(r, out);
		break;
	}
	return 0;
}

static int gptq_settings(const struct json *config, const char *module, struct stored_settings *out,
			 struct err *err)
{
	const struct json *q = block(config);
	int64_t bits;

	if (json_require_int(q, "bits", 2, 8, &bits, err) != 0 ||
	    json_require_int(q, "group_size", -1, INT32_MAX, &out->group_size, err) != 0)
		return err_prefix(err, "config.json, quantization_config");
	take(q, out);
	out->quantized = strcmp(module, "lm_head") != 0 || json_get_bool(q, "lm_head", false);
	return apply_rules(json_get(q, "dynamic"), module, out, err);
}

/* What must be added to a stored zero-point, or -1. */
static int zero_shift(const struct json *config, struct err *err)
{
	const char *format = json_get_string(block(config), "checkpoint_format",
					     json_get_string(block(config), "format", "gptq"));
	char shown[UTF8_SHOWN_MAX];

	if (strcmp(format, "gptq") == 0)
		return 1;
	if (strcmp(format, "gptq_v2") == 0)
		return 0;
	return err_set(err, ERR_UNSUPPORTED, "config.json: checkpoint_format '%s' is not known; 'gptq' and 'gptq_v2' are",
		       utf8_show(shown, format));
}

/* --- gptq tensors -------------------------------------------------------------------------------- */

static void gptq_codes(const struct stored_tensor *t, struct stored_module *m)
{
	const int bits = m->settings.bits;

	for (size_t n = 0; n < m->rows; n++)
		for (size_t k = 0; k < m->cols; k++)
			m->codes[n * m->cols + k] = (uint8_t)read_field(t->bytes, n, m->rows, (uint64_t)bits * k, bits);
}

static void gptq_zeros(const struct stored_tensor *t, int shift, struct stored_module *m)
{
	const int bits = m->settings.bits;

	for (size_t n = 0; n < m->rows; n++)
		for (size_t g = 0; g < m->groups; g++)
			m->zeros[n * m->groups + g] = shift + (double)read_field(t->bytes, g * (size_t)t->shape[1], 1,
										 (uint64_t)bits * n, bits);
	read_offsets_from_zeros(m);
}

struct transposed { struct stored_tensor codes, zeros, scales; };

static int read_three(struct stored_source source, const char *module, struct transposed *t, struct err *err)
{
	int rc = read_tensor(source, module, (struct wanted){ ".qweight", READ_I32, 2, true }, &t->codes, err);

	if (rc == 0)
		rc = read_tensor(source, module, (struct wanted){ ".qzeros", READ_I32, 2, false }, &t->zeros, err);
	if (rc == 0)
		rc = read_tensor(source, module, (struct wanted){ ".scales", READ_FLOATS, 2, false }, &t->scales, err);
	return rc;
}

static void free_three(struct transposed *t)
{
	read_tensor_free(&t->codes);
	read_tensor_free(&t->zeros);
	read_tensor_free(&t->scales);
}

/* Rows and columns are known: the other shapes must agree, and there must be room. */
static int check_three(const struct transposed *t, const char *module, uint64_t rows, uint64_t cols, uint64_t words,
		       struct stored_module *out, struct err *err)
{
	uint64_t groups;

	if (read_groups(&out->settings, module, cols, &groups, err) != 0 ||
	    read_expect_shape(&t->zeros, module, ".qzeros", groups, words, err) != 0 ||
	    read_expect_shape(&t->scales, module, ".scales", groups, rows, err) != 0)
		return -1;
	return read_room(out, module, rows, cols, groups, err);
}

static int gptq_sizes(const struct transposed *t, const char *module, struct stored_module *out, struct err *err)
{
	const int bits = out->settings.bits;
	uint64_t cols, rows;

	if (bits == 5 || bits == 6 || bits == 7)
		return err_set(err, ERR_UNSUPPORTED, "gptq with %d bits is stored in planes, which this reader does not know", bits);
	if (read_codes_in(module, t->codes.shape[0], bits, &cols, err) != 0 ||
	    read_codes_in(module, t->zeros.shape[1], bits, &rows, err) != 0)
		return -1;
	if (read_expect_shape(&t->codes, module, ".qweight", t->codes.shape[0], rows, err) != 0)
		return -1;
	return check_three(t, module, rows, cols, t->zeros.shape[1], out, err);
}

static int gptq_read(const struct json *config, const char *module, struct stored_source source,
		     struct stored_module *out, struct err *err)
{
	const int shift = zero_shift(config, err);
	struct transposed t = { 0 };
	int rc = shift < 0 ? -1 : read_three(source, module, &t, err);

	if (rc == 0)
		rc = gptq_sizes(&t, module, out, err);
	if (rc == 0)
		rc = read_scales(&t.scales, module, true, out, err);
	if (rc == 0)
		rc = read_group_map(source, module, ".g_idx", out, err);
	if (rc == 0) {
		gptq_codes(&t.codes, out);
		gptq_zeros(&t.zeros, shift, out);
	}
	free_three(&t);
	return rc;
}

const struct stored_format read_gptq = { "gptq", gptq_settings, gptq_read };

/* --- awq ----------------------------------------------------------------------------------------- */

static int awq_settings(const struct json *config, const char *module, struct stored_settings *out, struct err *err)
{
	const struct json *q = block(config);
	const char *version = json_get_string(q, "version", "gemm");
	char shown[UTF8_SHOWN_MAX];
	int64_t bits;

	if (strcmp(version, "gemm") != 0 && strcmp(version, "GEMM") != 0)
		return err_set(err, ERR_UNSUPPORTED, "config.json: awq version '%s' is not known; 'gemm' is",
			       utf8_show(shown, version));
	if (json_require_int(q, "bits", 4, 4, &bits, err) != 0 ||
	    json_require_int(q, "group_size", -1, INT32_MAX, &out->group_size, err) != 0)
		return err_prefix(err, "config.json, quantization_config");
	out->bits = (int)bits;
	out->quantized = true;
	for (const struct json *n = json_first(json_get(q, "modules_to_not_convert")); n; n = json_next(n))
		if (strstr(module, json_string(n, "?")))
			out->quantized = false;
	return 0;
}

/* Output channel n of a row of words: which nibble of which word. */
static double nibble(const struct stored_tensor *t, size_t row, size_t n)
{
	static const unsigned place[8] = { 0, 4, 1, 5, 2, 6, 3, 7 };

	return read_field(t->bytes, row * (size_t)t->shape[1] + n / 8, 1, 4 * place[n % 8], 4);
}

static int awq_read(const struct json *config, const char *module, struct stored_source source,
		    struct stored_module *out, struct err *err)
{
	struct transposed t = { 0 };
	uint64_t rows = 0;
	int rc = read_three(source, module, &t, err);

	(void)config;
	if (rc == 0)
		rc = read_codes_in(module, t.codes.shape[1], 4, &rows, err);
	if (rc == 0)
		rc = check_three(&t, module, rows, t.codes.shape[0], t.codes.shape[1], out, err);
	if (rc == 0)
		rc = read_scales(&t.scales, module, true, out, err);
	for (size_t n = 0; rc == 0 && n < out->rows; n++) {
		for (size_t k = 0; k < out->cols; k++)
			out->codes[n * out->cols + k] = (uint8_t)nibble(&t.codes, k, n);
		for (size_t g = 0; g < out->groups; g++)
			out->zeros[n * out->groups + g] = nibble(&t.zeros, g, n);
	}
	if (rc == 0)
		read_offsets_from_zeros(out);
	free_three(&t);
	return rc;
}

const struct stored_format read_awq = { "awq", awq_settings, awq_read };
