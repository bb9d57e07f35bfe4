/* Embeddings and heads in 8, 6 and 4 bits: against the definition in double, and against what readers of mlx and gguf
 * checkpoints make of the bytes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/half.h"
#include "formats/embedding.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_read.h"
#include "tests/lib/forward_case.h"

enum { COLS = 512, GROUP = 32, GROUPS = COLS / GROUP, ROWS = 24 };

static const char name[] = "model.embed_tokens.weight";

/* Rows as tables have them, and rows that none should have: sizes from 1e-9 to 6e4, one sign alone, an outlier, zeros,
 * one value throughout. */
static float *make_rows(void)
{
	static const float sizes[] = { 1, 0.02f, 1e-3f, 1e-5f, 1e-6f, 1e-7f, 1e-9f, 100, 6e4f };
	float *x = case_random((size_t)ROWS * COLS, 1, 91);

	for (size_t r = 0; r < ROWS; r++)
		for (size_t k = 0; k < COLS; k++) {
			float *w = &x[r * COLS + k];

			*w *= r < 9 ? sizes[r] : 0.05f;
			*w = r == 9 ? fabsf(*w) : r == 10 ? -fabsf(*w) - 3 : r == 11 ? fabsf(*w) + 0.75f : *w;
			*w = r == 12 && k % 40 == 0 ? *w * 3e4f : *w;
			*w = r == 13 ? 0 : r == 14 ? 0.1f : r == 15 ? -0.1f : r == 16 ? -0.0f : *w;
			*w = r == 17 ? 64000 : r == 18 ? -64000 : *w;
			*w = r == 19 ? bf16_to_f32(f32_to_bf16(*w)) : r == 20 ? (float)(int)(k % 3) - 1 : *w;
		}
	return x;
}

struct quantized { uint8_t codes[COLS]; float scales[GROUPS], zeros[GROUPS]; };

static struct quantized quantize(int bits, const float *row)
{
	struct quantized q;
	struct err err = ERR_INIT;

	if (embedding_quantize(bits, name, 7, row, COLS, q.codes, q.scales, q.zeros, &err) != 0)
		fail_msg("%s", err.text);
	return q;
}

static float *rounded(int bits, const float *x, size_t rows)
{
	float *y = case_copy(x, rows * COLS * sizeof(*x));
	struct err err = ERR_INIT;

	if (embedding_round(bits, name, 0, y, rows, COLS, &err) != 0)
		fail_msg("%s", err.text);
	return y;
}

static double as_half(double value)
{
	return (double)f16_to_f32(f32_to_f16((float)value));
}

/* --- the definition ------------------------------------------------------------------------------ */

struct want { double scale, offset, middle, top; };    /* value = scale * q - offset, q = 0 .. top */

static struct want define(int bits, const float *x)
{
	double least = x[0], most = x[0], largest = 0;

	for (int i = 0; i < GROUP; i++) {
		least = fmin(least, (double)x[i]);
		most = fmax(most, (double)x[i]);
		largest = fmax(largest, fabs((double)x[i]));
	}
	if (bits == 8) {
		const double s = as_half(largest / 127);

		return (struct want){ s, 128 * s, 128, 255 };
	}
	return (struct want){ as_half(fmax((double)(float)(most - as_half(least)) / 15, 0)), -as_half(least), 0, 15 };
}

/* A code is the nearest; which of two as near is left open, and so what rounding of a quotient to float decides. */
static void check_code(const struct want *w, double x, int code, size_t row)
{
	const double at = w->scale > 0 ? (x + (w->middle > 0 ? 0 : w->offset)) / w->scale + w->middle : w->middle;
	const double best = fmin(fmax(at, 0), w->top);

	if (code < 0 || code > (int)w->top || !(fabs(code - best) <= 0.5 + 1e-5 * w->top))
		fail_msg("row %zu: %.9g has code %d, not %.9g rounded", row, x, code, best);
}

static void check_definition(int bits, const float *x, const float *round, size_t row)
{
	const struct quantized q = quantize(bits, x);

	for (int g = 0; g < GROUPS; g++) {
		const struct want w = define(bits, x + g * GROUP);
		const double s = (double)q.scales[g], z = (double)q.zeros[g];

		if (s != (w.scale > 0 ? w.scale : 1))
			fail_msg("row %zu, group %d: scale %.9g, not %.9g", row, g, s, w.scale);
		if (w.scale > 0 && fabs(s * z - w.offset) > 1e-7 * fabs(w.offset))
			fail_msg("row %zu, group %d: offset %.9g, not %.9g", row, g, s * z, w.offset);
		for (int i = 0; i < GROUP; i++) {
			const size_t k = (size_t)(g * GROUP + i);
			const double value = w.scale * (q.codes[k] - w.middle) - (w.middle > 0 ? 0 : w.offset);

			check_code(&w, (double)x[k], q.codes[k], row);
			if (round[k] != (float)value)
				fail_msg("row %zu, column %zu is %.9g, not %.9g", row, k, (double)round[k], value);
			assert_false(round[k] == 0 && signbit(round[k]));
		}
	}
}

static void test_definition(void **state)
{
	float *x = make_rows();

	(void)state;
	for (int bits = 4; bits <= 8; bits += 4) {
		float *y = rounded(bits, x, ROWS);

		for (size_t r = 0; r < ROWS; r++)
			check_definition(bits, x + r * COLS, y + r * COLS, r);
		free(y);
	}
	free(x);
}

static double error_of(int bits, const float *x, size_t row)
{
	float *y = rounded(bits, x + row * COLS, 1);
	double error = 0, energy = 0;

	for (size_t k = 0; k < COLS; k++) {
		const double w = (double)x[row * COLS + k], d = (double)y[k] - w;

		error += d * d;
		energy += w * w;
	}
	free(y);
	return sqrt(error / energy);
}

/* More bits are closer, and as close as uniform numbers in so many steps can be: 1/sqrt(12) of a step. Scales of rows below
 * 1e-4 are subnormal halves. */
static void test_errors(void **state)
{
	float *x = make_rows();

	(void)state;
	for (size_t r = 0; r < 3; r++) {
		const double e8 = error_of(8, x, r), e6 = error_of(6, x, r), e4 = error_of(4, x, r);

		print_message("# size %zu: relative error %.4f %.4f %.4f in 8, 6 and 4 bits\n", r, e8, e6, e4);
		assert_true(e8 < 0.01 && e8 < e6 && e6 < e4 && e4 < 0.08);
	}
	free(x);
}

/* --- readers ------------------------------------------------------------------------------------- */

static struct codec_module module_of(int bits, uint64_t rows)
{
	struct codec_module m = { .name = "model.embed_tokens", .layer = -1, .rows = rows, .cols = COLS };

	embedding_settings(bits, &m.settings);
	return m;
}

static struct codec_values values_of(int bits, const struct quantized *q)
{
	return (struct codec_values){ 1, COLS, GROUP, bits, q->codes, q->scales, q->zeros };
}

static float half_at(const uint16_t *halves, size_t i)
{
	return f16_to_f32(halves[i]);
}

/* mlx: scales * q + biases, as halves say. */
static void check_mlx(int bits, const float *x, const float *round)
{
	const struct codec *mlx = codec_find("mlx");
	const struct codec_module m = module_of(bits, 1);
	const struct quantized q = quantize(bits, x);
	const struct codec_values v = values_of(bits, &q);
	uint16_t scales[GROUPS], biases[GROUPS];
	uint32_t codes[COLS / 4];
	struct codec_tensor t[CODEC_TENSORS_MAX];
	struct err err = ERR_INIT;

	assert_int_equal(mlx->check(&m, NULL), 0);
	assert_int_equal(mlx->tensors(&m, t), 3);
	assert_int_equal(t[1].dtype, ST_F16);
	assert_int_equal(t[1].shape[1], GROUPS);
	if (mlx->encode(&m, &v, (void *[]){ codes, scales, biases }, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t k = 0; k < COLS; k++) {
		const unsigned each = 32 / (unsigned)bits;
		const uint32_t code = codes[k / each] >> (unsigned)bits * (k % each) & ((1u << bits) - 1);
		const float value = half_at(scales, k / GROUP) * (float)code + half_at(biases, k / GROUP);

		if (value != round[k])
			fail_msg("mlx, %d bits: column %zu is %.9g, not %.9g", bits, k, (double)value, (double)round[k]);
	}
}

static void check_gguf(int bits, const float *x, const float *round)
{
	const enum gguf_type type = bits == 8 ? GGUF_Q8_0 : bits == 6 ? GGUF_Q6_K : GGUF_Q4_1;
	const struct codec_module m = module_of(bits, 1);
	_Alignas(16) uint8_t bytes[2 * COLS];
	float value[COLS];
	struct err err = ERR_INIT;
	int rc;

	if (bits == 4) {
		const struct quantized q = quantize(bits, x);
		const struct codec_values v = values_of(bits, &q);

		assert_true(gguf_holds(&m, type));
		rc = gguf_encode(&m, type, &v, 0, bytes, &err);
	} else {
		rc = gguf_encode_floats(name, type, x, 1, COLS, bytes, &err);
	}
	if (rc != 0)
		fail_msg("%s", err.text);
	gr_decode(type, bytes, COLS / gguf_block_elements(type), value);
	for (size_t k = 0; k < COLS; k++)
		if (value[k] != round[k])
			fail_msg("gguf, %d bits: column %zu is %.9g, not %.9g", bits, k, (double)value[k], (double)round[k]);
}

/* 8 bits also through the block type that modules of the blocks would take. */
static void check_signed(const float *x, const float *round)
{
	const struct codec_module m = module_of(8, 1);
	const struct quantized q = quantize(8, x);
	const struct codec_values v = values_of(8, &q);
	_Alignas(16) uint8_t bytes[2 * COLS];
	enum gguf_type type;
	float value[COLS];
	struct err err = ERR_INIT;

	assert_int_equal(gguf_choose(&m, &type, NULL), 0);
	assert_int_equal(type, GGUF_Q8_0);
	if (gguf_encode(&m, type, &v, 0, bytes, &err) != 0)
		fail_msg("%s", err.text);
	gr_decode(type, bytes, COLS / GROUP, value);
	for (size_t k = 0; k < COLS; k++)
		assert_true(value[k] == round[k]);
}

static void test_readers(void **state)
{
	float *x = make_rows(), *y8 = rounded(8, x, ROWS), *y6 = rounded(6, x, ROWS), *y4 = rounded(4, x, ROWS);

	(void)state;
	for (size_t r = 0; r < ROWS; r++) {
		check_mlx(8, x + r * COLS, y8 + r * COLS);
		check_mlx(4, x + r * COLS, y4 + r * COLS);
		check_gguf(8, x + r * COLS, y8 + r * COLS);
		check_gguf(6, x + r * COLS, y6 + r * COLS);
		check_gguf(4, x + r * COLS, y4 + r * COLS);
		check_signed(x + r * COLS, y8 + r * COLS);
	}
	free(x);
	free(y8);
	free(y6);
	free(y4);
}

/* A row is the same alone and in company, and 16 bits leave it alone. */
static void test_rows_alone(void **state)
{
	float *x = make_rows(), *same = rounded(16, x, ROWS);

	(void)state;
	assert_memory_equal(same, x, (size_t)ROWS * COLS * sizeof(*x));
	for (int bits = 4; bits <= 8; bits += 2) {
		float *all = rounded(bits, x, ROWS);

		for (size_t r = 0; r < ROWS; r++) {
			float *alone = rounded(bits, x + r * COLS, 1);

			assert_memory_equal(alone, all + r * COLS, COLS * sizeof(*x));
			free(alone);
		}
		free(all);
	}
	free(x);
	free(same);
}

/* --- what is refused ----------------------------------------------------------------------------- */

static void check_refused_value(int bits, float value, const char *says)
{
	float row[COLS] = { 0 }, rows[3 * COLS] = { 0 };
	struct quantized q;
	struct err err = ERR_INIT;

	row[33] = rows[2 * COLS + 33] = value;
	if (bits != 6) {
		assert_int_equal(embedding_quantize(bits, name, 70, row, COLS, q.codes, q.scales, q.zeros, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_non_null(strstr(err.text, "row 70, column 33"));
	}
	assert_int_equal(embedding_round(bits, name, 5, rows, 3, COLS, &err), -1);
	if (err.code != ERR_NUMERIC || !strstr(err.text, "model.embed_tokens.weight: row 7, column 33 is ") ||
	    !strstr(err.text, says))
		fail_msg("%g in %d bits: %s: %s", (double)value, bits, err_name(err.code), err.text);
}

static void test_values_refused(void **state)
{
	float row[COLS] = { 0 }, *most;

	(void)state;
	for (int bits = 4; bits <= 8; bits += 2) {
		check_refused_value(bits, NAN, bits == 8 ? "8 bits hold numbers to 64992.2" : "bits hold numbers to 65504");
		check_refused_value(bits, -INFINITY, "bits hold numbers to");
		check_refused_value(bits, 65505, "bits hold numbers to");
	}
	check_refused_value(8, 64993, "is 64993; 8 bits hold numbers to 64992.2");
	check_refused_value(8, -65504, "is -65504; 8 bits");
	row[1] = 65504;
	row[40] = -65504;
	most = rounded(4, row, 1);
	check_gguf(4, row, most);
	free(most);
	row[1] = 64992.25f;
	row[40] = -64992.25f;
	most = rounded(8, row, 1);
	check_mlx(8, row, most);
	free(most);
}

static void test_shapes_refused(void **state)
{
	static const struct { int bits; uint64_t cols; const char *says; } cases[] = {
		{ 16, 7, NULL }, { 8, 64, NULL }, { 4, 96, NULL }, { 6, 512, NULL },
		{ 8, 48, "\"lm_head\" 8 needs a multiple of 32 columns, and the model has 48; 16 fits" },
		{ 4, 33, "\"lm_head\" 4 needs a multiple of 32 columns, and the model has 33; 16 fits" },
		{ 6, 192, "\"lm_head\" 6 needs a multiple of 256 columns, and the model has 192; 16, 8 and 4 fit" },
		{ 6, 100, "\"lm_head\" 6 needs a multiple of 256 columns, and the model has 100; 16 fits" },
		{ 5, 256, "\"lm_head\" is 5; it must be 16, 8, 6 or 4" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct problems p = { 0 };
		struct err err = ERR_INIT;
		float row[512] = { 0 };
		const int want = cases[i].says ? -1 : 0;

		assert_int_equal(embedding_check(cases[i].bits, cases[i].cols, "lm_head", NULL), want);
		assert_int_equal(embedding_check(cases[i].bits, cases[i].cols, "lm_head", &p), want);
		assert_int_equal(p.count, cases[i].says ? 1 : 0);
		if (cases[i].says)
			assert_string_equal(p.items[0], cases[i].says);
		problems_deinit(&p);
		assert_int_equal(embedding_round(cases[i].bits, "t", 0, row, 1, cases[i].cols, &err), want);
		assert_int_equal(err.code, cases[i].says ? ERR_REFUSED : ERR_NONE);
	}
}

/* 16 and 6 have no codes of one affine kind. */
static void test_quantize_refuses_bits(void **state)
{
	static const int bits[] = { 16, 6, 5 };
	float row[256] = { 0 }, scales[8], zeros[8];
	uint8_t codes[256];

	(void)state;
	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
		struct err err = ERR_INIT;

		assert_int_equal(embedding_quantize(bits[i], "t", 0, row, 256, codes, scales, zeros, &err), -1);
		assert_int_equal(err.code, ERR_REFUSED);
	}
}

static void test_formats(void **state)
{
	static const struct { const char *format; int bits; const char *says; } cases[] = {
		{ "packed", 4, NULL }, { "packed", 6, NULL }, { "dense", 6, NULL }, { "dense-f16", 4, NULL },
		{ "mlx", 16, NULL }, { "mlx", 8, NULL }, { "mlx", 4, NULL }, { "gguf", 8, NULL }, { "gguf", 6, NULL },
		{ "gguf", 4, NULL }, { "gptq", 16, NULL }, { "awq", 16, NULL }, { "compressed-tensors", 16, NULL },
		{ "mlx", 6, "format mlx does not hold \"embeddings\" 6; ask for \"embeddings\" 16, 8 or 4, or for another "
		  "format: gguf and dense hold 6 bits" },
		{ "gptq", 8, "format gptq does not hold \"embeddings\" 8; ask for \"embeddings\" 16, or for another format: "
		  "mlx, gguf and dense hold 8 bits" },
		{ "awq", 4, "format awq does not hold \"embeddings\" 4; ask for \"embeddings\" 16, or for another format: mlx, "
		  "gguf and dense hold 4 bits" },
		{ "compressed-tensors", 6, "format compressed-tensors does not hold \"embeddings\" 6; ask for \"embeddings\" "
		  "16, or for another format: gguf and dense hold 6 bits" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct problems p = { 0 };
		const int want = cases[i].says ? -1 : 0;

		assert_int_equal(embedding_check_format(cases[i].format, cases[i].bits, "embeddings", NULL), want);
		assert_int_equal(embedding_check_format(cases[i].format, cases[i].bits, "embeddings", &p), want);
		assert_int_equal(p.count, cases[i].says ? 1 : 0);
		if (cases[i].says)
			assert_string_equal(p.items[0], cases[i].says);
		problems_deinit(&p);
	}
}

static void test_bits_known(void **state)
{
	(void)state;
	for (int64_t bits = -20; bits < 40; bits++)
		assert_int_equal(embedding_bits_known(bits), bits == 16 || bits == 8 || bits == 6 || bits == 4);
	assert_false(embedding_bits_known((int64_t)1 << 32 | 8));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_definition), cmocka_unit_test(test_errors), cmocka_unit_test(test_readers),
		cmocka_unit_test(test_rows_alone), cmocka_unit_test(test_values_refused),
		cmocka_unit_test(test_shapes_refused), cmocka_unit_test(test_quantize_refuses_bits),
		cmocka_unit_test(test_formats), cmocka_unit_test(test_bits_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
