/* packed.c - the bit stream of codes. A 64-bit accumulator holds the bits that do not fill a word
 * yet: at most 31 of them, so that a code of at most 8 bits always fits. */
#include "common/packed.h"

#include <stdint.h>

size_t packed_row_words(size_t cols, int bits)
{
	size_t whole = cols / 32 * (size_t)bits; /* 32 codes fill `bits` words; no overflow this way */

	return whole + (cols % 32 * (size_t)bits + 31) / 32;
}

void packed_pack_row(const uint8_t *codes, size_t cols, int bits, uint32_t *words)
{
	uint32_t mask = (1u << bits) - 1;
	uint64_t held = 0;
	int count = 0;

	for (size_t j = 0; j < cols; j++) {
		held |= (uint64_t)(codes[j] & mask) << count;
		count += bits;
		if (count >= 32) {
			*words++ = (uint32_t)held;
			held >>= 32;
			count -= 32;
		}
	}
	if (count > 0)
		*words = (uint32_t)held;
}

void packed_unpack_row(const uint32_t *words, size_t cols, int bits, uint8_t *codes)
{
	uint32_t mask = (1u << bits) - 1;
	uint64_t held = 0;
	int count = 0;

	for (size_t j = 0; j < cols; j++) {
		if (count < bits) {
			held |= (uint64_t)*words++ << count;
			count += 32;
		}
		codes[j] = (uint8_t)(held & mask);
		held >>= bits;
		count -= bits;
	}
}

void packed_dequantize_row(const uint8_t *codes, const float *scales, const float *zeros,
			   size_t cols, size_t group, float *out)
{
	for (size_t begin = 0, g = 0; begin < cols; begin += group, g++) {
		size_t end = cols - begin < group ? cols : begin + group;
		float s = scales[g], z = zeros[g];

		for (size_t j = begin; j < end; j++)
			out[j] = s * ((float)codes[j] - z);
	}
}
