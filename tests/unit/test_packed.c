/* The bit stream of codes: known words, every width, every row length, and dequantization. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/packed.h"

static void test_known_words(void **state)
{
	static const uint8_t three[] = { 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 7, 1 };
	static const uint8_t four[] = { 1, 2, 3, 4, 5, 6, 7, 8, 15 };
	uint32_t words[2] = { 0xDEADBEEF, 0xDEADBEEF };

	(void)state;
	packed_pack_row(four, 9, 4, words);
	assert_int_equal(words[0], 0x87654321);
	assert_int_equal(words[1], 0xF);
	packed_pack_row(three, 12, 3, words);
	/* codes 0..9 at bits 3j, the low two bits of code 10 at bit 30, its top bit in the next word */
	assert_int_equal(words[0], 1u | 2u << 3 | 3u << 6 | 4u << 9 | 5u << 12 | 6u << 15 | 7u << 18 |
				   0u << 21 | 1u << 24 | 2u << 27 | 3u << 30);
	assert_int_equal(words[1], 1u | 1u << 1);
}

static void test_row_words(void **state)
{
	(void)state;
	assert_int_equal(packed_row_words(0, 3), 0);
	assert_int_equal(packed_row_words(1, 1), 1);
	assert_int_equal(packed_row_words(32, 3), 3);
	assert_int_equal(packed_row_words(33, 3), 4);
	assert_int_equal(packed_row_words(4096, 8), 1024);
	assert_int_equal(packed_row_words((size_t)1 << 62, 8), (size_t)1 << 60);
}

/* Bit by bit, as the format is defined. */
static uint32_t bit_at(const uint32_t *words, size_t bit)
{
	return words[bit / 32] >> bit % 32 & 1;
}

static void test_every_width(void **state)
{
	(void)state;
	for (int bits = 1; bits <= 8; bits++) {
		for (size_t cols = 0; cols <= 200; cols++) {
			size_t count = packed_row_words(cols, bits);
			uint8_t *codes = malloc(cols ? cols : 1), *back = malloc(cols ? cols : 1);
			uint32_t *words = malloc(4 * count + 1);

			memset(words, 0xA5, 4 * count);
			for (size_t j = 0; j < cols; j++)
				codes[j] = (uint8_t)((j * 2654435761u >> 13) & ((1u << bits) - 1));
			packed_pack_row(codes, cols, bits, words);
			for (size_t bit = 0; bit < 32 * count; bit++) {
				uint32_t expected = bit < cols * (size_t)bits
					? codes[bit / (size_t)bits] >> bit % (size_t)bits & 1u : 0;

				if (bit_at(words, bit) != expected)
					fail_msg("%d bits, %zu columns: bit %zu", bits, cols, bit);
			}
			packed_unpack_row(words, cols, bits, back);
			assert_memory_equal(codes, back, cols);
			free(codes);
			free(back);
			free(words);
		}
	}
}

static void test_dequantize(void **state)
{
	static const uint8_t codes[] = { 0, 1, 2, 3, 3, 2, 1, 0 };
	static const float scales[] = { 0.1f, 3.0f }, zeros[] = { 1.3f, -0.5f };
	volatile float difference;
	float out[8];

	(void)state;
	packed_dequantize_row(codes, scales, zeros, 8, 4, out);
	for (int j = 0; j < 8; j++) {
		difference = (float)codes[j] - zeros[j / 4]; /* each step rounded to float32 */
		difference = scales[j / 4] * difference;
		assert_true(out[j] == difference);
	}
	packed_dequantize_row(codes, scales, zeros, 8, 8, out);
	difference = 0 - 1.3f;
	assert_true(out[7] == 0.1f * difference);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_words),
		cmocka_unit_test(test_row_words),
		cmocka_unit_test(test_every_width),
		cmocka_unit_test(test_dequantize),
	};

	return cmocka_run_group_tests_name("packed", tests, NULL, NULL);
}
