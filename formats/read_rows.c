/* read_rows.c - the two formats whose codes run along rows and whose offsets are floats: packed and mlx. */
#include <math.h>
#include <string.h>

#include "common/utf8.h"
#include "formats/read_parts.h"

/* Words are taken in one after another, codes out from the low end. */
static void read_row(const void *words, size_t first, size_t cols, int bits, uint8_t *codes)
{
	const uint64_t mask = ((uint64_t)1 << bits) - 1;
	uint64_t held = 0;
	int count = 0;

	for (size_t k = 0; k < cols; k++) {
		if (count < bits) {
			held |= (uint64_t)read_field(words, first++, 1, 0, 32) << count;
			count += 32;
		}
		codes[k] = (uint8_t)(held & mask);
		held >>= bits;
		count -= bits;
	}
}

static void read_codes(const struct stored_tensor *t, struct stored_module *m)
{
	for (size_t n = 0; n < m->rows; n++)
		read_row(t->bytes, n * (size_t)t->shape[1], m->cols, m->settings.bits, m->codes + n * m->cols);
}

/* --- packed -------------------------------------------------------------------------------------- */

static int packed_settings(const struct json *config, const char *module, struct stored_settings *out,
			   struct err *err)
{
	const struct json *s = json_get(json_get(json_get(config, "quantization_config"), "modules"), module);
	int64_t bits;

	if (!s || json_get_bool(s, "skip", false))
		return 0;
	if (json_require_int(s, "bits", 1, 8, &bits, err) != 0 ||
	    json_require_int(s, "group_size", -1, INT32_MAX, &out->group_size, err) != 0)
		return err_prefix(err, "config.json, module settings");
	out->quantized = true;
	out->bits = (int)bits;
	out->symmetric = json_get_bool(s, "symmetric", false);
	return 0;
}

/* The number of columns is not stored: the groups tell; where one group is the whole row the model does, or
 * else the words, which then must be full. */
static int packed_cols(const struct stored_module *m, const char *module, const struct stored_tensor *codes,
		       uint64_t groups, uint64_t *cols, struct err *err)
{
	const struct stored_settings *s = &m->settings;
	const uint64_t bits = (uint64_t)s->bits;
	char shown[UTF8_SHOWN_MAX];

	if (s->group_size == -1 && m->cols == 0 && groups == 1)
		return read_codes_in(module, codes->shape[1], s->bits, cols, err);
	*cols = s->group_size == -1 ? (groups == 1 ? m->cols : 0) :
		groups <= UINT32_MAX ? groups * (uint64_t)s->group_size : 0;
	if (*cols > 0 && *cols / 32 * bits + (*cols % 32 * bits + 31) / 32 == codes->shape[1])
		return 0;
	return err_set(err, ERR_CORRUPT, "%s has %llu groups of %lld columns, which do not fill its rows of %llu words",
		       utf8_show(shown, module), (unsigned long long)groups, (long long)s->group_size,
		       (unsigned long long)codes->shape[1]);
}

static int packed_values(const struct stored_tensor *zeros, const char *module, struct stored_module *m,
			 struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (size_t i = 0; i < m->rows * m->groups; i++) {
		m->zeros[i] = read_number(zeros, i);
		if (!isfinite(m->zeros[i]))
			return err_set(err, ERR_CORRUPT, "%s: the zero-point of row %zu, group %zu is not finite",
				       utf8_show(shown, module), i / m->groups, i % m->groups);
	}
	read_offsets_from_zeros(m);
	return 0;
}

static int packed_read(const struct json *config, const char *module, struct stored_source source,
		       struct stored_module *out, struct err *err)
{
	struct stored_tensor codes = { 0 }, scales = { 0 }, zeros = { 0 };
	uint64_t cols;
	int rc;

	(void)config;
	rc = read_tensor(source, module, (struct wanted){ ".codes", READ_U32, 2, true }, &codes, err);
	if (rc == 0)
		rc = read_tensor(source, module, (struct wanted){ ".scales", READ_F32, 2, false }, &scales, err);
	if (rc == 0)
		rc = read_tensor(source, module, (struct wanted){ ".zeros", READ_F32, 2, false }, &zeros, err);
	if (rc == 0)
		rc = read_expect_shape(&scales, module, ".scales", codes.shape[0], scales.shape[1], err);
	if (rc == 0)
		rc = read_expect_shape(&zeros, module, ".zeros", codes.shape[0], scales.shape[1], err);
	if (rc == 0)
		rc = packed_cols(out, module, &codes, scales.shape[1], &cols, err);
	if (rc == 0)
		rc = read_room(out, module, codes.shape[0], cols, scales.shape[1], err);
	if (rc == 0) {
		read_codes(&codes, out);
		rc = read_scales(&scales, module, false, out, err);
	}
	if (rc == 0)
		rc = packed_values(&zeros, module, out, err);
	read_tensor_free(&codes);
	read_tensor_free(&scales);
	read_tensor_free(&zeros);
	return rc;
}

const struct stored_format read_packed = { "packed", packed_settings, packed_read };

/* --- mlx ----------------------------------------------------------------------------------------- */

static int mlx_settings(const struct json *config, const char *module, struct stored_settings *out, struct err *err)
{
	const struct json *top = json_get(config, "quantization"), *own = json_get(top, module);
	const char *mode = json_get_string(top, "mode", "affine");
	int64_t bits;

	if (json_type(own) == JSON_BOOL && !json_bool(own, false))
		return 0;
	if (json_type(own) == JSON_OBJECT) {
		top = own;
		mode = json_get_string(own, "mode", mode);
	}
	if (strcmp(mode, "affine") != 0)
		return err_set(err, ERR_UNSUPPORTED, "config.json: quantization mode '%s' is not known; 'affine' is", mode);
	if (json_require_int(top, "bits", 1, 8, &bits, err) != 0 ||
	    json_require_int(top, "group_size", 1, INT32_MAX, &out->group_size, err) != 0)
		return err_prefix(err, "config.json, quantization");
	out->quantized = true;
	out->bits = (int)bits;
	return 0;
}

/* zeros = -offset / scale; a group of equal weights may have scale 0, and then no zero-point. */
static int mlx_offsets(const struct stored_tensor *biases, const char *module, struct stored_module *m,
		       struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (size_t i = 0; i < m->rows * m->groups; i++) {
		m->offsets[i] = read_number(biases, i);
		if (!isfinite(m->offsets[i]))
			return err_set(err, ERR_CORRUPT, "%s: the bias of row %zu, group %zu is not finite",
				       utf8_show(shown, module), i / m->groups, i % m->groups);
		m->zeros[i] = m->scales[i] != 0 ? 0 - m->offsets[i] / m->scales[i] : 0;
	}
	return 0;
}

static int mlx_read(const struct json *config, const char *module, struct stored_source source,
		    struct stored_module *out, struct err *err)
{
	struct stored_tensor codes = { 0 }, scales = { 0 }, biases = { 0 };
	uint64_t cols, groups;
	int rc;

	(void)config;
	rc = read_tensor(source, module, (struct wanted){ ".scales", READ_FLOATS, 2, true }, &scales, err);
	if (rc == 0)
		rc = read_tensor(source, module, (struct wanted){ ".weight", READ_U32, 2, false }, &codes, err);
	if (rc == 0)
		rc = read_tensor(source, module, (struct wanted){ ".biases", READ_FLOATS, 2, false }, &biases, err);
	if (rc == 0)
		rc = read_codes_in(module, codes.shape[1], out->settings.bits, &cols, err);
	if (rc == 0)
		rc = read_groups(&out->settings, module, cols, &groups, err);
	if (rc == 0)
		rc = read_expect_shape(&scales, module, ".scales", codes.shape[0], groups, err);
	if (rc == 0)
		rc = read_expect_shape(&biases, module, ".biases", codes.shape[0], groups, err);
	if (rc == 0)
		rc = read_room(out, module, codes.shape[0], cols, groups, err);
	if (rc == 0) {
		read_codes(&codes, out);
		rc = read_scales(&scales, module, false, out, err);
	}
	if (rc == 0)
		rc = mlx_offsets(&biases, module, out, err);
	read_tensor_free(&codes);
	read_tensor_free(&scales);
	read_tensor_free(&biases);
	return rc;
}

const struct stored_format read_mlx = { "mlx", mlx_settings, mlx_read };
