/* packed.c - the bit stream of codes, eight at a time: eight codes of b bits are b whole bytes. Little-endian
 * hosts only, as everything that stores words. */
#include "common/packed.h"

#include <stdint.h>
#include <string.h>

size_t packed_row_words(size_t cols, int bits)
{
	size_t whole = cols / 32 * (size_t)bits; /* 32 codes fill `bits` words; no overflow this way */

	return whole + (cols % 32 * (size_t)bits + 31) / 32;
}

/* Eight bytes of `bits` bits each, the first the lowest, to 8 * bits bits and back: neighbours join, then
 * pairs of them, then halves. */
static inline uint64_t squeeze(uint64_t x, const int bits)
{
	const int gap = 8 - bits;

	x = (x & 0x00FF00FF00FF00FF) | (x & 0xFF00FF00FF00FF00) >> gap;
	x = (x & 0x0000FFFF0000FFFF) | (x & 0xFFFF0000FFFF0000) >> 2 * gap;
	return (x & 0x00000000FFFFFFFF) | (x & 0xFFFFFFFF00000000) >> 4 * gap;
}

static inline uint64_t spread(uint64_t x, const int bits)
{
	const int gap = 8 - bits;
	const uint64_t four = ((uint64_t)1 << 4 * bits) - 1, two = ((uint64_t)1 << 2 * bits) - 1,
		       one = ((uint64_t)1 << bits) - 1;

	x = (x & four) | (x & four << 4 * bits) << 4 * gap;
	x = (x & (two | two << 32)) | (x & (two | two << 32) << 2 * bits) << 2 * gap;
	return (x & one * 0x0001000100010001) | (x & one * 0x0001000100010001 << bits) << gap;
}

static inline __attribute__((always_inline)) void pack_bits(const uint8_t *codes, size_t cols, const int bits,
							    uint32_t *words)
{
	const uint64_t mask = (((uint64_t)1 << bits) - 1) * 0x0101010101010101;
	uint8_t *out = (uint8_t *)words, *const end = out + 4 * packed_row_words(cols, bits);
	uint64_t x = 0;
	size_t j = 0;

	for (; cols - j >= 8 && end - out >= 8; j += 8, out += bits) {
		memcpy(&x, codes + j, 8);
		x = squeeze(x & mask, bits);
		memcpy(out, &x, 8); /* what is too much comes from the next eight codes, or is cleared below */
	}
	memset(out, 0, (size_t)(end - out));
	for (; j < cols; j += 8, out += bits) {
		size_t left = cols - j < 8 ? cols - j : 8;

		x = 0;
		memcpy(&x, codes + j, left);
		x = squeeze(x & mask, bits);
		memcpy(out, &x, (left * (size_t)bits + 7) / 8);
	}
}

static inline __attribute__((always_inline)) void unpack_bits(const uint32_t *words, size_t cols, const int bits,
							      uint8_t *codes)
{
	const uint8_t *in = (const uint8_t *)words, *const end = in + 4 * packed_row_words(cols, bits);
	uint64_t x = 0;
	size_t j = 0;

	for (; cols - j >= 8 && end - in >= 8; j += 8, in += bits) {
		memcpy(&x, in, 8);
		x = spread(x, bits);
		memcpy(codes + j, &x, 8);
	}
	for (; j < cols; j += 8, in += bits) {
		size_t left = cols - j < 8 ? cols - j : 8;

		x = 0;
		memcpy(&x, in, (left * (size_t)bits + 7) / 8);
		x = spread(x, bits);
		memcpy(codes + j, &x, left);
	}
}

/* One copy of the loop for each width: shifts and masks are constants in it. */
void packed_pack_row(const uint8_t *codes, size_t cols, int bits, uint32_t *words)
{
	switch (bits) {
	case 1: pack_bits(codes, cols, 1, words); break;
	case 2: pack_bits(codes, cols, 2, words); break;
	case 3: pack_bits(codes, cols, 3, words); break;
	case 4: pack_bits(codes, cols, 4, words); break;
	case 5: pack_bits(codes, cols, 5, words); break;
	case 6: pack_bits(codes, cols, 6, words); break;
	case 7: pack_bits(codes, cols, 7, words); break;
	case 8: pack_bits(codes, cols, 8, words); break;
	}
}

void packed_unpack_row(const uint32_t *words, size_t cols, int bits, uint8_t *codes)
{
	switch (bits) {
	case 1: unpack_bits(words, cols, 1, codes); break;
	case 2: unpack_bits(words, cols, 2, codes); break;
	case 3: unpack_bits(words, cols, 3, codes); break;
	case 4: unpack_bits(words, cols, 4, codes); break;
	case 5: unpack_bits(words, cols, 5, codes); break;
	case 6: unpack_bits(words, cols, 6, codes); break;
	case 7: unpack_bits(words, cols, 7, codes); break;
	case 8: unpack_bits(words, cols, 8, codes); break;
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
