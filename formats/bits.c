#include "formats/bits.h"

#include "common/packed.h"

enum { COLUMN_STRIP = 512, WORD_TILE = 16, DEPTH_TILE = 64 };

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

void bits_along_rows(const uint8_t *codes, size_t rows, size_t cols, int bits, int shift, uint32_t *out)
{
	const size_t words = packed_row_words(cols, bits);

	for (size_t r = 0; r < rows; r++, codes += cols, out += words) {
		packed_pack_row(codes, cols, bits, out);
		for (size_t w = 0; shift && w < words; w++)
			out[w] <<= shift;
	}
}

void bits_down_columns(const uint8_t *codes, size_t rows, size_t cols, int bits, uint32_t *out)
{
	uint32_t tile[TILE_ROWS][COLUMN_STRIP / 4]; /* at most 8 bits: four codes a word */

	for (size_t r = 0; r < rows; r += TILE_ROWS) {
		for (size_t k = 0; k < cols; k += COLUMN_STRIP) {
			const size_t strip = least(cols - k, COLUMN_STRIP), words = packed_row_words(strip, bits);
			uint32_t *to = out + packed_row_words(k, bits) * rows + r;

			for (size_t i = 0; i < TILE_ROWS; i++)
				packed_pack_row(codes + (r + i) * cols + k, strip, bits, tile[i]);
			for (size_t w = 0; w < words; w++, to += rows)
				for (size_t i = 0; i < TILE_ROWS; i++)
					to[i] = tile[i][w];
		}
	}
}

uint32_t bits_interleave_word(const uint8_t v[8])
{
	return (uint32_t)v[0] | (uint32_t)v[2] << 4 | (uint32_t)v[4] << 8 | (uint32_t)v[6] << 12 |
	       (uint32_t)v[1] << 16 | (uint32_t)v[3] << 20 | (uint32_t)v[5] << 24 | (uint32_t)v[7] << 28;
}

/* words[j] = the codes of eight rows, `cols` apart, in column j. */
static void interleave(const uint8_t *restrict codes, size_t cols, size_t count, uint32_t *restrict words)
{
	const uint8_t *restrict r0 = codes, *restrict r1 = r0 + cols, *restrict r2 = r1 + cols,
		*restrict r3 = r2 + cols, *restrict r4 = r3 + cols, *restrict r5 = r4 + cols,
		*restrict r6 = r5 + cols, *restrict r7 = r6 + cols;

	for (size_t j = 0; j < count; j++) {
		const uint16_t even = (uint16_t)((uint8_t)(r0[j] | r2[j] << 4) | (uint8_t)(r4[j] | r6[j] << 4) << 8);
		const uint16_t odd = (uint16_t)((uint8_t)(r1[j] | r3[j] << 4) | (uint8_t)(r5[j] | r7[j] << 4) << 8);

		words[j] = even | (uint32_t)odd << 16;
	}
}

void bits_interleaved(const uint8_t *codes, size_t rows, size_t cols, uint32_t *out)
{
	const size_t words = rows / 8;
	uint32_t tile[WORD_TILE][DEPTH_TILE];

	for (size_t c = 0; c < words; c += WORD_TILE) {
		const size_t width = least(words - c, WORD_TILE);

		for (size_t k = 0; k < cols; k += DEPTH_TILE) {
			const size_t depth = least(cols - k, DEPTH_TILE);

			for (size_t i = 0; i < width; i++)
				interleave(codes + 8 * (c + i) * cols + k, cols, depth, tile[i]);
			for (size_t j = 0; j < depth; j++)
				for (size_t i = 0; i < width; i++)
					out[(k + j) * words + c + i] = tile[i][j];
		}
	}
}
