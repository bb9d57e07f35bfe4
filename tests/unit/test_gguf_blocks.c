/* GGUF blocks: bytes made by hand, every type and setting through the reader's decoder, refusals, row order. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/half.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_read.h"
#include "formats/gguf_source.h"

/* --- a module ------------------------------------------------------------------------------------ */

struct module {
	struct codec_module m;
	struct codec_values v;
	uint8_t *codes;
	float *scales, *zeros;
	double *offsets;        /* s z, as the format stores it */
};

enum kind { FLOAT, INTEGER, SYMMETRIC, PARTS_4, PARTS_2 };

static unsigned next(unsigned *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

static double zero_of(enum kind kind, int bits, unsigned *seed, float s, double *offset)
{
	const unsigned top = (1u << bits) - 1;
	double z = 0;

	switch (kind) {
	case FLOAT: /* the offset is any half, of either sign */
		*offset = (double)f16_to_f32(f32_to_f16((float)((double)s * ((double)(next(seed) % 4000) / 100 - 10))));
		return *offset / (double)s;
	case INTEGER:
		z = next(seed) % (top + 1);
		break;
	case SYMMETRIC:
		z = 1u << (bits - 1);
		break;
	case PARTS_4:
		z = (double)(next(seed) % (4 * top + 1)) / 4;
		break;
	case PARTS_2:
		z = (double)(next(seed) % (2 * top + 1)) / 2;
		break;
	}
	*offset = z * (double)s;
	return z;
}

static void make(struct module *x, size_t rows, size_t cols, int bits, int64_t group, enum kind kind)
{
	const size_t g = group > 0 ? (size_t)group : cols, groups = cols / g;
	unsigned seed = (unsigned)(bits + 10 * kind) + (unsigned)cols;

	memset(x, 0, sizeof(*x));
	x->m = (struct codec_module){ .name = "model.layers.0.mlp.up_proj", .linear = LIN_UP, .rows = rows, .cols = cols,
				      .settings = { .bits = bits, .group_size = group },
				      .zero_parts = kind == PARTS_4 ? 4 : kind == PARTS_2 ? 2 : 0 };
	x->m.settings.zero_point = kind == INTEGER ? ZERO_INTEGER : ZERO_FLOAT;
	x->m.settings.symmetric = kind == SYMMETRIC;
	x->codes = malloc(rows * cols);
	x->scales = malloc(rows * groups * sizeof(float));
	x->zeros = malloc(rows * groups * sizeof(float));
	x->offsets = malloc(rows * groups * sizeof(double));
	for (size_t i = 0; i < rows * cols; i++)
		x->codes[i] = (uint8_t)(i < (1u << bits) ? i : next(&seed) & ((1u << bits) - 1));
	for (size_t i = 0; i < rows * groups; i++) {
		x->scales[i] = f16_to_f32((uint16_t)(0x1c00 + next(&seed) % 0x1800));
		x->zeros[i] = (float)zero_of(kind, bits, &seed, x->scales[i], &x->offsets[i]);
	}
	x->v = (struct codec_values){ .rows = rows, .cols = cols, .group = g, .bits = bits, .codes = x->codes,
				      .scales = x->scales, .zeros = x->zeros };
}

static void drop(struct module *x)
{
	free(x->codes);
	free(x->scales);
	free(x->zeros);
	free(x->offsets);
}

/* s q - s z, rounded to float32 once. */
static float expected(const struct module *x, size_t row, size_t col)
{
	const size_t g = row * (x->v.cols / x->v.group) + col / x->v.group;

	return (float)((double)x->scales[g] * x->codes[row * x->v.cols + col] - x->offsets[g]);
}

static void check_decoded(const struct module *x, enum gguf_type type, size_t heads, const unsigned char *bytes)
{
	const size_t row_bytes = gguf_row_bytes(type, x->v.cols), blocks = x->v.cols / gguf_block_elements(type);
	float *row = malloc(x->v.cols * sizeof(float));

	for (size_t r = 0; r < x->v.rows; r++) {
		gr_decode(type, bytes + r * row_bytes, blocks, row);
		for (size_t j = 0; j < x->v.cols; j++) {
			const float want = expected(x, gguf_row_source(x->v.rows, heads, r), j);

			if (row[j] != want)
				fail_msg("%s, %d bits, groups of %zu: row %zu, column %zu is %.9g, not %.9g", gguf_type_name(type),
					 x->v.bits, x->v.group, r, j, (double)row[j], (double)want);
		}
	}
	free(row);
}

/* Encodes between guard bytes, decodes, compares. */
static void round_trip(const struct module *x, enum gguf_type type, size_t heads)
{
	const size_t bytes = x->v.rows * gguf_row_bytes(type, x->v.cols);
	unsigned char *out = malloc(bytes + 64);
	struct err err = ERR_INIT;

	memset(out, 0xA5, bytes + 64);
	if (gguf_encode(&x->m, type, &x->v, heads, out + 32, &err) != 0)
		fail_msg("%s: %s", gguf_type_name(type), err.text);
	for (size_t i = 0; i < 32; i++) {
		assert_int_equal(out[i], 0xA5);
		assert_int_equal(out[bytes + 32 + i], 0xA5);
	}
	check_decoded(x, type, heads, out + 32);
	free(out);
}

/* --- by hand ------------------------------------------------------------------------------------- */

static void test_q4_1_bytes(void **state)
{
	static const unsigned char want[20] = {
		0x00, 0x38, 0x00, 0xbe, /* 0.5, -1.5 */
		0xf0, 0xe1, 0xd2, 0xc3, 0xb4, 0xa5, 0x96, 0x87, 0x78, 0x69, 0x5a, 0x4b, 0x3c, 0x2d, 0x1e, 0x0f,
	};
	struct err err = ERR_INIT;
	unsigned char got[20];
	struct module x;

	(void)state;
	make(&x, 1, 32, 4, 32, FLOAT);
	for (uint8_t i = 0; i < 16; i++) {
		x.codes[i] = i;
		x.codes[16 + i] = 15 - i;
	}
	x.scales[0] = 0.5f;
	x.zeros[0] = 3;
	assert_int_equal(gguf_encode(&x.m, GGUF_Q4_1, &x.v, 0, got, &err), 0);
	assert_memory_equal(got, want, sizeof(want));
	drop(&x);
}

static void test_q5_1_and_q8_0_bytes(void **state)
{
	struct err err = ERR_INIT;
	unsigned char got[34];
	struct module x;

	(void)state;
	make(&x, 1, 32, 5, 32, FLOAT);
	memset(x.codes, 0, 32);
	x.codes[0] = 31;
	x.codes[9] = 16;
	x.codes[31] = 17;
	x.scales[0] = 1;
	x.zeros[0] = -2;
	assert_int_equal(gguf_encode(&x.m, GGUF_Q5_1, &x.v, 0, got, &err), 0);
	assert_memory_equal(got, "\x00\x3c\x00\x40\x01\x02\x00\x80\x0f\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10", 24);
	drop(&x);

	make(&x, 1, 32, 8, 32, SYMMETRIC);
	memset(x.codes, 128, 32);
	x.codes[1] = 0;
	x.codes[2] = 255;
	x.codes[31] = 127;
	x.scales[0] = 2;
	assert_int_equal(gguf_encode(&x.m, GGUF_Q8_0, &x.v, 0, got, &err), 0);
	assert_memory_equal(got, "\x00\x40\x00\x80\x7f\0", 6);
	assert_int_equal(got[33], 0xff);
	drop(&x);
}

/* 6-bit minima of 31 in all eight sub-blocks: the low bits in bytes 4..7 and 8..11, the top two beside the former. */
static void test_super_block_heads(void **state)
{
	static const unsigned char five[16] = { 0x00, 0x38, 0x00, 0x38, 1, 1, 1, 1, 0x5f, 0x5f, 0x5f, 0x5f, 0xf1, 0xf1, 0xf1, 0xf1 };
	static const unsigned char four[16] = { 0x00, 0x38, 0x00, 0xbc, 1, 1, 1, 1, 1, 1, 1, 1, 0x11, 0x11, 0x11, 0x11 };
	struct err err = ERR_INIT;
	unsigned char got[210];
	struct module x;

	(void)state;
	make(&x, 1, 256, 5, -1, INTEGER);
	x.scales[0] = 0.5f;
	x.zeros[0] = 31;
	assert_int_equal(gguf_encode(&x.m, GGUF_Q5_K, &x.v, 0, got, &err), 0);
	assert_memory_equal(got, five, sizeof(five));
	drop(&x);

	make(&x, 1, 256, 4, 256, FLOAT);
	x.scales[0] = 0.5f;
	x.zeros[0] = -2;
	assert_int_equal(gguf_encode(&x.m, GGUF_Q4_K, &x.v, 0, got, &err), 0);
	assert_memory_equal(got, four, sizeof(four));
	drop(&x);

	make(&x, 1, 256, 2, 256, FLOAT);
	memset(x.codes, 0, 256);
	x.codes[0] = 3;
	x.codes[32] = 2;
	x.codes[64 + 31] = 1;
	x.codes[128] = 1;
	x.codes[255] = 3;
	x.scales[0] = 1;
	x.zeros[0] = 1;
	assert_int_equal(gguf_encode(&x.m, GGUF_Q2_K, &x.v, 0, got, &err), 0);
	for (size_t i = 0; i < 16; i++)
		assert_int_equal(got[i], 0x11);
	assert_int_equal(got[16], 3 | 2 << 2);
	assert_int_equal(got[16 + 31], 1 << 4);
	assert_int_equal(got[16 + 32], 1);
	assert_int_equal(got[16 + 63], 3 << 6);
	assert_memory_equal(got + 80, "\x00\x3c\x00\x3c", 4);
	drop(&x);
}

/* --- everything ---------------------------------------------------------------------------------- */

static const enum gguf_type all_types[] = {
	GGUF_Q2_K, GGUF_Q3_K, GGUF_Q4_K, GGUF_Q4_0, GGUF_Q4_1, GGUF_Q5_K, GGUF_Q5_0, GGUF_Q5_1, GGUF_Q6_K, GGUF_Q8_0,
};

static void test_every_setting(void **state)
{
	static const int64_t groups[] = { 32, 64, 96, 128, 256, 512, 768, -1 };
	unsigned used[16] = { 0 };

	(void)state;
	for (int bits = 1; bits <= 8; bits++) {
		for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++) {
			for (enum kind kind = FLOAT; kind <= PARTS_2; kind++) {
				struct module x;

				make(&x, 4, 1536, bits, groups[g], kind);
				for (size_t t = 0; t < sizeof(all_types) / sizeof(all_types[0]); t++) {
					if (!gguf_holds(&x.m, all_types[t]))
						continue;
					round_trip(&x, all_types[t], 0);
					used[t]++;
				}
				drop(&x);
			}
		}
	}
	for (size_t t = 0; t < sizeof(all_types) / sizeof(all_types[0]); t++)
		if (used[t] == 0)
			fail_msg("%s was never tried", gguf_type_name(all_types[t]));
}

static void test_type_table_agrees(void **state)
{
	(void)state;
	for (uint32_t type = 0; type < 64; type++) {
		uint32_t elements, bytes;

		if (!gr_type_block(type, &elements, &bytes)) {
			assert_null(gr_type_name(type));
			continue;
		}
		assert_int_equal(gguf_block_elements((enum gguf_type)type), elements);
		assert_int_equal(gguf_block_bytes((enum gguf_type)type), bytes);
		assert_string_equal(gguf_type_name((enum gguf_type)type), gr_type_name(type));
	}
}

/* --- choosing ------------------------------------------------------------------------------------ */

struct choice { int bits; int64_t group; enum kind kind; uint64_t cols; enum gguf_type type; double bpw; };

static void test_smallest_type(void **state)
{
	static const struct choice table[] = {
		{ 1, 256, FLOAT, 1024, GGUF_Q2_K, 2.625 },
		{ 2, -1, FLOAT, 1024, GGUF_Q2_K, 2.625 },
		{ 2, 512, INTEGER, 1024, GGUF_Q2_K, 2.625 },
		{ 2, 256, PARTS_4, 1024, GGUF_Q2_K, 2.625 },
		{ 2, 64, FLOAT, 1024, GGUF_Q4_1, 5.0 },
		{ 2, 64, INTEGER, 1024, GGUF_Q4_0, 4.5 },
		{ 2, 64, PARTS_4, 1024, GGUF_Q5_0, 5.5 },
		{ 2, -1, FLOAT, 896, GGUF_Q4_1, 5.0 },
		{ 3, -1, SYMMETRIC, 1024, GGUF_Q3_K, 3.4375 },
		{ 3, 128, SYMMETRIC, 1024, GGUF_Q4_0, 4.5 },
		{ 3, 128, INTEGER, 1024, GGUF_Q4_0, 4.5 },
		{ 3, 256, PARTS_2, 1024, GGUF_Q4_K, 4.5 },
		{ 3, 128, PARTS_2, 1024, GGUF_Q5_0, 5.5 },
		{ 4, 256, FLOAT, 1024, GGUF_Q4_K, 4.5 },
		{ 4, 256, INTEGER, 1024, GGUF_Q4_K, 4.5 },
		{ 4, 64, FLOAT, 1024, GGUF_Q4_1, 5.0 },
		{ 4, 64, SYMMETRIC, 1024, GGUF_Q4_0, 4.5 },
		{ 4, 64, INTEGER, 1024, GGUF_Q5_0, 5.5 },
		{ 5, -1, FLOAT, 1024, GGUF_Q5_K, 5.5 },
		{ 5, 64, FLOAT, 1024, GGUF_Q5_1, 6.0 },
		{ 5, 64, SYMMETRIC, 1024, GGUF_Q5_0, 5.5 },
		{ 5, 64, INTEGER, 1024, GGUF_Q8_0, 8.5 },
		{ 6, 256, SYMMETRIC, 1024, GGUF_Q6_K, 6.5625 },
		{ 6, 64, SYMMETRIC, 1024, GGUF_Q8_0, 8.5 },
		{ 7, 32, INTEGER, 1024, GGUF_Q8_0, 8.5 },
		{ 8, -1, SYMMETRIC, 1024, GGUF_Q8_0, 8.5 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct problems problems = { 0 };
		enum gguf_type got = GGUF_F32;
		struct module x;

		make(&x, 2, (size_t)table[i].cols, table[i].bits, table[i].group, table[i].kind);
		if (gguf_choose(&x.m, &got, &problems) != 0)
			fail_msg("row %zu is refused: %s", i, problems.items[0]);
		if (got != table[i].type)
			fail_msg("row %zu gets %s, not %s", i, gguf_type_name(got), gguf_type_name(table[i].type));
		assert_true(gguf_bits_per_weight(got) == table[i].bpw);
		drop(&x);
	}
}

struct refusal { int bits; int64_t group; enum kind kind; uint64_t cols; const char *part; };

static void test_refused_settings(void **state)
{
	static const struct refusal table[] = {
		{ 4, 16, FLOAT, 1024, "groups of a multiple of 32 columns or one per output channel, not 16" },
		{ 4, 48, FLOAT, 96, "a multiple of 32 columns" },
		{ 4, -1, FLOAT, 1000, "a multiple of 32 input channels, not 1000" },
		{ 4, 96, FLOAT, 1024, "groups of 96 do not" },
		{ 6, 64, FLOAT, 1024, "6 bits only with \"zero_point\": \"integer\" or \"symmetric\": true" },
		{ 7, -1, FLOAT, 1024, "7 bits only with" },
		{ 8, 64, FLOAT, 1024, "8 bits only with \"symmetric\": true" },
		{ 8, 64, INTEGER, 1024, "8 bits only with \"symmetric\": true" },
		{ 5, 64, PARTS_4, 1024, "not with multiples of 1/8" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		const struct codec_module m = {
			.name = "model.layers.7.mlp.down_proj", .layer = 7, .linear = LIN_DOWN, .rows = 8, .cols = table[i].cols,
			.settings = { .bits = table[i].bits, .group_size = table[i].group,
				      .zero_point = table[i].kind == INTEGER ? ZERO_INTEGER : ZERO_FLOAT },
			.zero_parts = table[i].kind == PARTS_4 ? 8 : 0,
		};
		struct problems problems = { 0 };
		enum gguf_type type;

		assert_int_equal(gguf_choose(&m, &type, NULL), -1);
		assert_int_equal(gguf_choose(&m, &type, &problems), -1);
		assert_int_equal(problems.count, 1);
		if (!strstr(problems.items[0], table[i].part) || !strstr(problems.items[0], "model.layers.7.mlp.down_proj") ||
		    !strstr(problems.items[0], "as it is"))
			fail_msg("row %zu: '%s' lacks '%s'", i, problems.items[0], table[i].part);
		problems_deinit(&problems);
	}
}

static void test_zero_parts(void **state)
{
	struct codec_module m = { .name = "m", .rows = 1, .cols = 1024, .settings = { .bits = 4, .group_size = 64 } };

	(void)state;
	assert_int_equal(gguf_zero_parts(&m), 0);
	m.settings.bits = 6;
	assert_int_equal(gguf_zero_parts(&m), 1);
	m.zero_parts = 1;
	assert_true(gguf_holds(&m, GGUF_Q8_0));
	m.zero_parts = 3; /* no power of two */
	assert_false(gguf_holds(&m, GGUF_Q8_0));
}

/* --- values that do not fit ---------------------------------------------------------------------- */

static void refused(const struct module *x, enum gguf_type type, size_t heads, enum err_code code, const char *part)
{
	unsigned char *out = malloc(x->v.rows * gguf_row_bytes(type, x->v.cols) + 1);
	struct err err = ERR_INIT;

	assert_int_equal(gguf_encode(&x->m, type, &x->v, heads, out, &err), -1);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, part))
		fail_msg("'%s' lacks '%s'", err.text, part);
	free(out);
}

static void test_refused_values(void **state)
{
	struct module x;

	(void)state;
	make(&x, 4, 512, 4, 64, FLOAT);
	refused(&x, GGUF_Q4_K, 0, ERR_REFUSED, "Q4_K does not hold");
	refused(&x, GGUF_F16, 0, ERR_REFUSED, "F16 does not hold");
	refused(&x, GGUF_Q4_1, 3, ERR_REFUSED, "3 heads");
	refused(&x, GGUF_Q4_1, 4, ERR_REFUSED, "even size");
	x.scales[2 * 8 + 3] = 0.1f;
	refused(&x, GGUF_Q4_1, 0, ERR_NUMERIC, "row 2, group 3 has the scale 0.1");
	x.scales[2 * 8 + 3] = 1;
	x.zeros[2 * 8 + 3] = 0.1f;
	refused(&x, GGUF_Q4_1, 0, ERR_NUMERIC, "row 2, group 3 has the offset");
	x.zeros[2 * 8 + 3] = 0;
	x.codes[511] = 16;
	refused(&x, GGUF_Q4_1, 0, ERR_NUMERIC, "row 0, group 7 holds the code 16");
	x.m.settings.skip = true;
	refused(&x, GGUF_Q4_1, 0, ERR_REFUSED, "does not hold");
	drop(&x);

	make(&x, 4, 512, 4, 64, INTEGER);
	x.zeros[31] = 16;
	refused(&x, GGUF_Q5_0, 0, ERR_NUMERIC, "row 3, group 7 has the zero-point 16");
	x.zeros[31] = 1.5f;
	refused(&x, GGUF_Q5_0, 0, ERR_NUMERIC, "an integer of 0 to 15");
	drop(&x);

	make(&x, 4, 512, 4, -1, SYMMETRIC);
	x.zeros[1] = 7;
	refused(&x, GGUF_Q4_0, 0, ERR_NUMERIC, "row 1, group 0 has the zero-point 7");
	x.v.group = 256;
	refused(&x, GGUF_Q4_0, 0, ERR_REFUSED, "groups of 256 were given");
	drop(&x);
}

/* --- row order ----------------------------------------------------------------------------------- */

static void test_row_order(void **state)
{
	const size_t heads = 3, size = 8;
	struct gs_tensor t = { .rows = heads * size, .ndim = 2, .heads = heads };
	struct module x;

	(void)state;
	for (size_t h = 0; h < heads; h++)
		for (size_t i = 0; i < size / 2; i++)
			for (size_t j = 0; j < 2; j++) {
				const size_t row = h * size + 2 * i + j;

				assert_int_equal(gguf_row_source(heads * size, heads, row), h * size + j * size / 2 + i);
				assert_int_equal(gs_row(&t, row), h * size + j * size / 2 + i);
			}
	t.heads = 0;
	assert_int_equal(gguf_row_source(24, 0, 17), 17);
	assert_int_equal(gs_row(&t, 17), 17);
	make(&x, 24, 256, 4, 64, FLOAT);
	round_trip(&x, GGUF_Q4_1, 3);
	drop(&x);
}

/* --- plain numbers ------------------------------------------------------------------------------- */

static void fill(float *values, size_t n)
{
	unsigned seed = 5;

	for (size_t i = 0; i < n; i++) {
		double sum = 0;

		for (int k = 0; k < 6; k++)
			sum += (double)(next(&seed) % 10000) / 10000 - 0.5;
		values[i] = (float)(sum / 10);
	}
	memset(values, 0, 32 * sizeof(float)); /* a block of zeros */
}

/* Root of the mean squared error over that of the numbers. */
static double relative_error(enum gguf_type type, const float *values, size_t n)
{
	unsigned char *bytes = malloc(gguf_row_bytes(type, n));
	float *back = malloc(n * sizeof(float));
	struct err err = ERR_INIT;
	double off = 0, all = 0;

	assert_int_equal(gguf_encode_floats("token_embd.weight", type, values, 1, n, bytes, &err), 0);
	gr_decode(type, bytes, n / gguf_block_elements(type), back);
	for (size_t i = 0; i < n; i++) {
		off += pow((double)back[i] - (double)values[i], 2);
		all += pow((double)values[i], 2);
	}
	free(bytes);
	free(back);
	return sqrt(off / all);
}

static void test_plain_numbers(void **state)
{
	enum { N = 4096 };
	static float values[N];

	(void)state;
	fill(values, N);
	assert_true(relative_error(GGUF_F32, values, N) == 0);
	assert_true(relative_error(GGUF_F16, values, N) < 3e-4);
	assert_true(relative_error(GGUF_BF16, values, N) < 3e-3);
	assert_true(relative_error(GGUF_Q8_0, values, N) < 6e-3);
	assert_true(relative_error(GGUF_Q6_K, values, N) < 2.2e-2);
	for (size_t i = 0; i < N; i++)
		values[i] *= 1e-12f;
	assert_true(relative_error(GGUF_Q8_0, values, N) <= 1); /* too small for a half: zeros */
	assert_true(relative_error(GGUF_Q6_K, values, N) <= 1);
}

static void refused_numbers(enum gguf_type type, float value, size_t cols, enum err_code code, const char *part)
{
	float values[512] = { 0 };
	unsigned char out[2048];
	struct err err = ERR_INIT;

	values[259] = value;
	assert_int_equal(gguf_encode_floats("lm_head.weight", type, values, 512 / cols, cols, out, &err), -1);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, part) || !strstr(err.text, "lm_head.weight"))
		fail_msg("'%s' lacks '%s'", err.text, part);
}

static void test_refused_numbers(void **state)
{
	(void)state;
	refused_numbers(GGUF_F32, NAN, 256, ERR_NUMERIC, "row 1, column 3");
	refused_numbers(GGUF_F16, 70000, 256, ERR_NUMERIC, "F16 holds numbers to 65520");
	refused_numbers(GGUF_BF16, INFINITY, 256, ERR_NUMERIC, "BF16");
	refused_numbers(GGUF_Q8_0, 1e9f, 256, ERR_NUMERIC, "Q8_0");
	refused_numbers(GGUF_Q6_K, -1e9f, 256, ERR_NUMERIC, "Q6_K");
	refused_numbers(GGUF_Q6_K, 1, 128, ERR_REFUSED, "a multiple of 256 columns, not 128");
	refused_numbers(GGUF_Q4_K, 1, 256, ERR_UNSUPPORTED, "not as Q4_K");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_q4_1_bytes),
		cmocka_unit_test(test_q5_1_and_q8_0_bytes),
		cmocka_unit_test(test_super_block_heads),
		cmocka_unit_test(test_every_setting),
		cmocka_unit_test(test_type_table_agrees),
		cmocka_unit_test(test_smallest_type),
		cmocka_unit_test(test_refused_settings),
		cmocka_unit_test(test_zero_parts),
		cmocka_unit_test(test_refused_values),
		cmocka_unit_test(test_row_order),
		cmocka_unit_test(test_plain_numbers),
		cmocka_unit_test(test_refused_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
