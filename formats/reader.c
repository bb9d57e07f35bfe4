/* reader.c - which format a config.json speaks of, and the steps that all readers share. */
#include "formats/reader.h"

#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "formats/read_parts.h"

static const struct stored_format *const readers[] = {
	&read_packed, &read_mlx, &read_gptq, &read_awq, &read_compressed_tensors,
};

/* quant_method of quantization_config, and the format that it means. */
static const struct { const char *method, *format; } methods[] = {
	{ "quarry", "packed" }, { "gptq", "gptq" }, { "awq", "awq" }, { "compressed-tensors", "compressed-tensors" },
};

const char *codec_detect(const struct json *config, struct err *err)
{
	const struct json *q = json_get(config, "quantization_config");
	const char *method = json_get_string(q, "quant_method", NULL);
	char shown[UTF8_SHOWN_MAX];

	if (json_type(json_get(config, "quantization")) == JSON_OBJECT)
		return "mlx";
	if (json_type(q) == JSON_NULL)
		return "dense";
	for (size_t i = 0; method && i < sizeof(methods) / sizeof(methods[0]); i++)
		if (strcmp(method, methods[i].method) == 0)
			return methods[i].format;
	err_set(err, ERR_UNSUPPORTED, "config.json names the quantization method '%s'; mlx, gptq, awq, compressed-tensors and "
		"quarry are known", utf8_show(shown, method ? method : "(none)"));
	return NULL;
}

/* 0 with *out == NULL for dense. */
static int find_reader(const struct json *config, const struct stored_format **out, struct err *err)
{
	const char *name = codec_detect(config, err);

	*out = NULL;
	for (size_t i = 0; name && i < sizeof(readers) / sizeof(readers[0]); i++)
		if (strcmp(readers[i]->name, name) == 0)
			*out = readers[i];
	return name ? 0 : -1;
}

static int check_settings(const struct stored_settings *s, const char *module, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (!s->quantized || (s->bits >= 1 && s->bits <= 8 && (s->group_size == -1 || s->group_size > 0)))
		return 0;
	return err_set(err, ERR_CORRUPT, "config.json gives %s %d bits and groups of %lld; 1 to 8 bits and groups of -1 or "
		       "more columns are possible", utf8_show(shown, module), s->bits, (long long)s->group_size);
}

int stored_settings_of(const struct json *config, const char *module, struct stored_settings *out, struct err *err)
{
	const struct stored_format *format;

	*out = (struct stored_settings){ 0 };
	if (find_reader(config, &format, err) != 0)
		return -1;
	if (!format)
		return 0;
	if (format->settings(config, module, out, err) != 0)
		return -1;
	return check_settings(out, module, err);
}

static int check_sizes(const struct stored_module *m, const char *module, uint64_t rows, uint64_t cols,
		       struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if ((rows == 0 || m->rows == rows) && (cols == 0 || m->cols == cols))
		return 0;
	return err_set(err, ERR_CORRUPT, "%s is stored with %zu x %zu weights; the model has %llu x %llu",
		       utf8_show(shown, module), m->rows, m->cols, (unsigned long long)rows, (unsigned long long)cols);
}

int stored_module_read(const struct json *config, const char *module, uint64_t rows, uint64_t cols,
		       struct stored_source source, struct stored_module *out, struct err *err)
{
	const struct stored_format *format;
	int rc;

	*out = (struct stored_module){ .rows = (size_t)rows, .cols = (size_t)cols };
	if (find_reader(config, &format, err) != 0 || stored_settings_of(config, module, &out->settings, err) != 0)
		return -1;
	if (!format || !out->settings.quantized)
		return 1;
	rc = format->read(config, module, source, out, err);
	if (rc == 0)
		rc = check_sizes(out, module, rows, cols, err);
	if (rc != 0)
		stored_module_deinit(out);
	return rc;
}

void stored_module_deinit(struct stored_module *m)
{
	mem_free(m->codes);
	mem_free(m->group_of);
	mem_free(m->scales);
	mem_free(m->offsets);
	mem_free(m->zeros);
	*m = (struct stored_module){ 0 };
}

void stored_module_row(const struct stored_module *m, size_t row, double *out)
{
	const uint8_t *codes = m->codes + row * m->cols;
	const double *scales = m->scales + row * m->groups, *offsets = m->offsets + row * m->groups;

	for (size_t k = 0; k < m->cols; k++)
		out[k] = scales[m->group_of[k]] * codes[k] + offsets[m->group_of[k]];
}
