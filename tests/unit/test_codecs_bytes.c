/* Bytes worked out by hand from the description of each format, for modules small enough to do so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/codec_case.h"

#define MODULE "model.layers.0.self_attn.q_proj"

static void make(struct codec_case *c, const char *format, uint64_t rows, uint64_t cols, int bits, int64_t group,
		 enum zero_kind kind)
{
	codec_case_init(c, codec_case_module(MODULE, rows, cols, bits, group, kind), 1);
	codec_case_room(c, codec_find(format));
}

static void encode(struct codec_case *c)
{
	struct err err = ERR_INIT;

	if (codec_case_encode(c, &err) != 0)
		fail_msg("%s: %s", c->codec->name, err.text);
}

static const uint32_t *words(const struct codec_case *c, const char *suffix)
{
	assert_non_null(codec_case_tensor(c, suffix));
	return codec_case_tensor(c, suffix);
}

/* Input rows 32m..32m+31 are words 3m..3m+2: codes 0-9 at bit 3j and the low two bits of code 10 at bit 30; its top bit,
 * codes 11-20 at 1+3j and the low bit of code 21 at bit 31; its top two bits and codes 22-31 at 2+3j. */
static void test_gptq_three_bits(void **state)
{
	struct codec_case c;
	const uint32_t *w;

	(void)state;
	make(&c, "gptq", 32, 64, 3, -1, KIND_INTEGER);
	for (size_t n = 0; n < 32; n++)
		for (size_t k = 0; k < 64; k++)
			c.codes[64 * n + k] = (uint8_t)(n == 5 ? k % 8 : k < 32 ? 0 : 7);
	for (size_t n = 0; n < 32; n++)
		c.zeros[n] = (float)(n % 8); /* version 2: as they are */
	encode(&c);
	w = words(&c, ".qweight"); /* (6, 32) */
	assert_int_equal(w[0 * 32 + 5], (uint32_t)(01076543210 | 2u << 30));
	assert_int_equal(w[1 * 32 + 5], 0u | 3u << 1 | 4u << 4 | 5u << 7 | 6u << 10 | 7u << 13 | 0u << 16 | 1u << 19 |
						2u << 22 | 3u << 25 | 4u << 28 | 1u << 31);
	assert_int_equal(w[2 * 32 + 5], 2u | 6u << 2 | 7u << 5 | 0u << 8 | 1u << 11 | 2u << 14 | 3u << 17 | 4u << 20 |
						5u << 23 | 6u << 26 | 7u << 29);
	assert_int_equal(w[3 * 32 + 5], w[0 * 32 + 5]);
	assert_int_equal(w[0], 0);
	assert_int_equal(w[3 * 32], 0xFFFFFFFF);
	w = words(&c, ".qzeros"); /* (1, 3) */
	assert_int_equal(w[0], 0x88FAC688);
	assert_int_equal(w[1], 0xC688FAC6);
	assert_int_equal(w[2], 0xFAC688FA);
	codec_case_deinit(&c);
}

/* Symmetric: version 1, one less than the middle in every field. */
static void test_gptq_symmetric_zeros(void **state)
{
	static const struct { int bits; uint32_t word[3]; } expected[] = {
		{ 2, { 0x55555555, 0x55555555, 0x55555555 } }, { 3, { 0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D } },
		{ 4, { 0x77777777, 0x77777777, 0x77777777 } }, { 8, { 0x7F7F7F7F, 0x7F7F7F7F, 0x7F7F7F7F } },
	};

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		struct codec_case c;

		make(&c, "gptq", 64, 32, expected[i].bits, 32, KIND_SYMMETRIC);
		encode(&c);
		for (size_t w = 0; w < 2 * (size_t)expected[i].bits; w++)
			assert_int_equal(words(&c, ".qzeros")[w], expected[i].word[w % 3]);
		assert_string_equal(json_get_string(json_get(c.config, "quantization_config"), "checkpoint_format", ""), "gptq");
		codec_case_deinit(&c);
	}
}

static void test_gptq_asymmetric_zeros(void **state)
{
	static const struct { int bits; uint32_t word; } expected[] = {
		{ 2, 0xAAAAAAAA }, { 4, 0x88888888 }, { 8, 0x80808080 },
	};

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct codec_case c;

		make(&c, "gptq", 32, 32, expected[i].bits, -1, KIND_INTEGER);
		for (size_t n = 0; n < 32; n++)
			c.zeros[n] = (float)(1 << (expected[i].bits - 1));
		encode(&c);
		assert_int_equal(words(&c, ".qzeros")[0], expected[i].word);
		codec_case_deinit(&c);
	}
}

/* scales (G, N), g_idx, and 4-bit words: eight input rows to a word. */
static void test_gptq_four_bits(void **state)
{
	struct codec_case c;
	const uint16_t *scales;

	(void)state;
	make(&c, "gptq", 32, 64, 4, 32, KIND_INTEGER);
	for (size_t k = 0; k < 8; k++)
		c.codes[64 * 31 + 8 + k] = (uint8_t)(k + 1);
	c.scales[2 * 31 + 1] = 0.5f;
	c.scales[2 * 30 + 0] = 3;
	encode(&c);
	assert_int_equal(words(&c, ".qweight")[1 * 32 + 31], 0x87654321);
	scales = codec_case_tensor(&c, ".scales");
	assert_int_equal(scales[1 * 32 + 31], 0x3800);
	assert_int_equal(scales[0 * 32 + 30], 0x4200);
	for (uint32_t k = 0; k < 64; k++)
		assert_int_equal(words(&c, ".g_idx")[k], k / 32);
	codec_case_deinit(&c);
}

/* Nibbles from the lowest: output channels 0 2 4 6 1 3 5 7. */
static void test_awq_order(void **state)
{
	struct codec_case c;

	(void)state;
	make(&c, "awq", 16, 64, 4, 32, KIND_INTEGER);
	for (size_t n = 0; n < 16; n++) {
		c.codes[64 * n + 33] = (uint8_t)n;
		c.zeros[2 * n + 1] = (float)(15 - n);
		c.scales[2 * n + 1] = (float)n + 1;
	}
	encode(&c);
	assert_int_equal(words(&c, ".qweight")[33 * 2 + 0], 0x75316420); /* (64, 2) */
	assert_int_equal(words(&c, ".qweight")[33 * 2 + 1], 0xFDB9ECA8);
	assert_int_equal(words(&c, ".qzeros")[1 * 2 + 0], 0x8ACE9BDF); /* (2, 2) */
	assert_int_equal(words(&c, ".qzeros")[1 * 2 + 1], 0x02461357);
	assert_int_equal(((const uint16_t *)codec_case_tensor(&c, ".scales"))[16 + 2], 0x4200);
	codec_case_deinit(&c);
}

static void test_compressed_four_bits(void **state)
{
	struct codec_case c;

	(void)state;
	make(&c, "compressed-tensors", 9, 12, 4, -1, KIND_INTEGER);
	for (size_t n = 0; n < 9; n++) {
		for (size_t k = 0; k < 12; k++)
			c.codes[12 * n + k] = (uint8_t)(k + n < 16 ? k + n : 0);
		c.zeros[n] = (float)n + 1;
	}
	c.scales[3] = 0.25f;
	encode(&c);
	assert_int_equal(words(&c, ".weight_packed")[2 * 1 + 0], 0x87654321); /* (9, 2), row 1 */
	assert_int_equal(words(&c, ".weight_packed")[2 * 1 + 1], 0xCBA9); /* the rest is zero */
	assert_int_equal(words(&c, ".weight_zero_point")[0], 0x87654321); /* (2, 1): down the rows */
	assert_int_equal(words(&c, ".weight_zero_point")[1], 0x9);
	assert_int_equal(((const uint16_t *)codec_case_tensor(&c, ".weight_scale"))[3], 0x3400);
	assert_int_equal(((const int64_t *)codec_case_tensor(&c, ".weight_shape"))[0], 9);
	assert_int_equal(((const int64_t *)codec_case_tensor(&c, ".weight_shape"))[1], 12);
	codec_case_deinit(&c);
}

/* t = 4: codes and zero-points four times as large, scales a quarter. Symmetric: no zero-point tensor. */
static void test_compressed_container(void **state)
{
	struct codec_case c;

	(void)state;
	make(&c, "compressed-tensors", 2, 8, 2, -1, KIND_QUARTERS);
	for (size_t k = 0; k < 8; k++)
		c.codes[k] = (uint8_t)(k % 4);
	c.zeros[0] = 1.25f;
	c.zeros[1] = 3;
	c.scales[0] = 1;
	encode(&c);
	assert_int_equal(words(&c, ".weight_packed")[0], 0xC840C840);
	assert_int_equal(words(&c, ".weight_zero_point")[0], 0xC5);
	assert_int_equal(((const uint16_t *)codec_case_tensor(&c, ".weight_scale"))[0], 0x3400);
	codec_case_deinit(&c);
	make(&c, "compressed-tensors", 2, 8, 3, -1, KIND_SYMMETRIC);
	for (size_t k = 0; k < 8; k++)
		c.codes[k] = (uint8_t)k;
	encode(&c);
	assert_int_equal(words(&c, ".weight_packed")[0], 0xECA86420);
	assert_null(codec_case_tensor(&c, ".weight_zero_point"));
	codec_case_deinit(&c);
}

static void test_mlx(void **state)
{
	struct codec_case c;
	const uint16_t *half;

	(void)state;
	make(&c, "mlx", 1, 256, 2, -1, KIND_FLOAT); /* one group, written as two of 128 */
	for (size_t k = 0; k < 256; k++)
		c.codes[k] = (uint8_t)(k % 4);
	c.scales[0] = 0.5f;
	c.zeros[0] = 1.5f;
	encode(&c);
	for (size_t w = 0; w < 16; w++)
		assert_int_equal(words(&c, ".weight")[w], 0xE4E4E4E4);
	assert_int_equal(c.tensors[1].shape[1], 2);
	half = codec_case_tensor(&c, ".scales");
	assert_int_equal(half[0], 0x3800);
	assert_int_equal(half[1], 0x3800);
	half = codec_case_tensor(&c, ".biases");
	assert_int_equal(half[0], 0xBA00); /* -0.75 */
	assert_int_equal(half[1], 0xBA00);
	codec_case_deinit(&c);
}

/* Four codes of 6 bits are three bytes; integer zero-points make scales and biases float32. */
static void test_mlx_six_bits(void **state)
{
	static const uint8_t codes[4] = { 1, 2, 62, 63 };
	const float *biases;
	struct codec_case c;

	(void)state;
	make(&c, "mlx", 1, 32, 6, 32, KIND_INTEGER);
	for (size_t k = 0; k < 32; k++)
		c.codes[k] = codes[k % 4];
	c.scales[0] = 1.0009765625f; /* 1025 / 1024 */
	c.zeros[0] = 63;
	encode(&c);
	for (size_t i = 0; i < 24; i += 3) {
		const uint8_t *b = (const uint8_t *)words(&c, ".weight") + i;

		assert_int_equal(b[0], 1 | (2 & 3) << 6);
		assert_int_equal(b[1], 2 >> 2 | (62 & 15) << 4);
		assert_int_equal(b[2], 62 >> 4 | 63 << 2);
	}
	assert_int_equal(c.tensors[2].dtype, ST_F32);
	biases = codec_case_tensor(&c, ".biases");
	assert_true(biases[0] == -63.0f * 1025 / 1024);
	codec_case_deinit(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gptq_three_bits),
		cmocka_unit_test(test_gptq_symmetric_zeros),
		cmocka_unit_test(test_gptq_asymmetric_zeros),
		cmocka_unit_test(test_gptq_four_bits),
		cmocka_unit_test(test_awq_order),
		cmocka_unit_test(test_compressed_four_bits),
		cmocka_unit_test(test_compressed_container),
		cmocka_unit_test(test_mlx),
		cmocka_unit_test(test_mlx_six_bits),
	};

	return cmocka_run_group_tests_name("codecs_bytes", tests, NULL, NULL);
}
