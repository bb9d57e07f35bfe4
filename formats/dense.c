/* dense.c - quantized weights written out: s (q - z) in float32, rounded once. BF16, F16 or F32. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "common/utf8.h"
#include "formats/codecs.h"
#include "formats/rules.h"
#include "formats/values.h"

enum { STRIP = 256, TABLE_BITS = 4 }; /* weights at a time */

static const struct format_rule rule = {
	.format = "dense", .bits = 0x1fe, .bits_text = "1 to 8 bits", .outside = "*",
};

static int check(const struct codec_module *m, struct problems *problems)
{
	return rule_check(&rule, m, problems);
}

static unsigned one_tensor(const struct codec_module *m, enum st_dtype dtype, struct codec_tensor *out)
{
	out[0] = (struct codec_tensor){ ".weight", dtype, 2, { m->rows, m->cols } };
	return 1;
}

static unsigned tensors_bf16(const struct codec_module *m, struct codec_tensor *out)
{
	return one_tensor(m, ST_BF16, out);
}

static unsigned tensors_f16(const struct codec_module *m, struct codec_tensor *out)
{
	return one_tensor(m, ST_F16, out);
}

static unsigned tensors_f32(const struct codec_module *m, struct codec_tensor *out)
{
	return one_tensor(m, ST_F32, out);
}

/* --- one group's weights ------------------------------------------------------------------------- */

typedef void (*store_fn)(const float *values, size_t n, void *out);

static void store_bf16(const float *restrict values, size_t n, void *restrict out)
{
	uint16_t *restrict to = out;

	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, &values[i], sizeof(bits));
		to[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
	}
}

static void store_f16(const float *restrict values, size_t n, void *restrict out)
{
	uint16_t *restrict to = out;

	for (size_t i = 0; i < n; i++)
		to[i] = values_half_of(values[i]);
}

static void dequantize(const uint8_t *restrict codes, size_t n, float s, float z, float *restrict out)
{
	for (size_t i = 0; i < n; i++)
		out[i] = s * ((float)codes[i] - z);
}

static int too_large(const struct codec_module *m, size_t row, size_t group, float value, const char *dtype,
		     struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	return err_set(err, ERR_NUMERIC, "%s: row %zu, group %zu has the weight %g, which %s cannot hold; %s",
		       utf8_show(shown, m->name), row, group, (double)value, dtype,
		       strcmp(dtype, "F16") == 0 ? "dense and dense-f32 can" : "no format can");
}

/* store == NULL: float32 as computed. table: halves of few bits are looked up, faster than rounding each weight. */
struct target { store_fn store; size_t element; float largest; const char *dtype; bool table; };

/* The ends of the grid bound every weight of the group: only when one is beyond the type are the codes
 * looked at. */
static int check_range(const struct codec_module *m, const struct codec_values *v, const struct target *t,
		       size_t row, size_t group, struct err *err)
{
	const size_t i = row * (v->cols / v->group) + group;
	const uint8_t *codes = v->codes + row * v->cols + group * v->group;
	const float s = v->scales[i], z = v->zeros[i], top = (float)((1 << v->bits) - 1);

	if (fabsf(s * (0 - z)) <= t->largest && fabsf(s * (top - z)) <= t->largest)
		return 0;
	for (size_t j = 0; j < v->group; j++)
		if (!(fabsf(s * ((float)codes[j] - z)) <= t->largest))
			return too_large(m, row, group, s * ((float)codes[j] - z), t->dtype, err);
	return 0;
}

/* Entries beyond the group's codes are not looked at. */
static inline void fill_table(float s, float z, const int entries, uint16_t *restrict table)
{
	for (int c = 0; c < entries; c++)
		table[c] = values_half_of(s * ((float)c - z));
}

static void look_up(const uint8_t *restrict codes, size_t n, float s, float z, int bits, uint16_t *restrict out)
{
	uint16_t table[1 << TABLE_BITS];

	if (bits <= 2)
		fill_table(s, z, 4, table);
	else
		fill_table(s, z, 1 << TABLE_BITS, table);
	for (size_t i = 0; i < n; i++)
		out[i] = table[codes[i]];
}

static void put_group(const uint8_t *codes, size_t n, float s, float z, const struct target *t, int bits, char *out)
{
	float strip[STRIP];

	if (t->table && bits <= TABLE_BITS && n >= (size_t)2 << bits) {
		look_up(codes, n, s, z, bits, (uint16_t *)(void *)out);
		return;
	}
	if (!t->store) {
		dequantize(codes, n, s, z, (float *)(void *)out);
		return;
	}
	for (size_t now; n > 0; n -= now, codes += now, out += now * t->element) {
		now = n < STRIP ? n : STRIP;
		dequantize(codes, now, s, z, strip);
		t->store(strip, now, out);
	}
}

static int encode(const struct codec_module *m, const struct codec_values *v, const struct target *t, void *out,
		  struct err *err)
{
	size_t groups, step;

	if (values_check(m, v, err) != 0)
		return -1;
	groups = v->cols / v->group;
	step = v->group * t->element;
	for (size_t i = 0; i < v->rows * groups; i++) {
		if (check_range(m, v, t, i / groups, i % groups, err) != 0)
			return -1;
		put_group(v->codes + i * v->group, v->group, v->scales[i], v->zeros[i], t, v->bits,
			  (char *)out + i * step);
	}
	return 0;
}

static int encode_bf16(const struct codec_module *m, const struct codec_values *v, void *const *out,
		       struct err *err)
{
	static const struct target t = { store_bf16, 2, 0x1.fep127f, "BF16", false };

	return encode(m, v, &t, out[0], err);
}

static int encode_f16(const struct codec_module *m, const struct codec_values *v, void *const *out,
		      struct err *err)
{
	static const struct target t = { store_f16, 2, 65504, "F16", true };

	return encode(m, v, &t, out[0], err);
}

static int encode_f32(const struct codec_module *m, const struct codec_values *v, void *const *out,
		      struct err *err)
{
	static const struct target t = { NULL, 4, FLT_MAX, "F32", false };

	return encode(m, v, &t, out[0], err);
}

const struct codec codec_dense = {
	.name = "dense", .config_dtype = "bfloat16", .meta_format = "pt", .tables = CODEC_TABLES_ROUNDED,
	.about = "quantized weights written out as BF16; loads wherever the original model does",
	.check = check, .tensors = tensors_bf16, .encode = encode_bf16,
};

const struct codec codec_dense_f16 = {
	.name = "dense-f16", .config_dtype = "float16", .other_dtype = "F16", .meta_format = "pt", .tables = CODEC_TABLES_ROUNDED,
	.about = "quantized weights written out as F16, for runtimes without BF16",
	.check = check, .tensors = tensors_f16, .encode = encode_f16,
};

const struct codec codec_dense_f32 = {
	.name = "dense-f32", .config_dtype = "float32", .other_dtype = "F32", .meta_format = "pt", .tables = CODEC_TABLES_ROUNDED,
	.about = "quantized weights written out as F32, without any rounding; for comparisons",
	.check = check, .tensors = tensors_f32, .encode = encode_f32,
};
