/* bits.h - private to formats/: where codes go. One bit stream (common/packed.h) serves every format but AWQ; only
 * the axis differs. Codes are (N,K), one byte each, and fit their bits. Outputs are written completely.
 * Work goes by tiles that stay in the first-level cache; nothing is allocated.
 */
#ifndef QUARRY_FORMATS_BITS_H
#define QUARRY_FORMATS_BITS_H

#include <stddef.h>
#include <stdint.h>

enum { TILE_ROWS = 32, TILE_GROUPS = 32 };

/* (N, ceil(K bits / 32)): a stream along each row. Every code is shifted left by `shift`, within its bits. */
void bits_along_rows(const uint8_t *codes, size_t rows, size_t cols, int bits, int shift, uint32_t *out);
/* (K bits / 32, N): a stream down each column n, over k. N and K multiples of 32. */
void bits_down_columns(const uint8_t *codes, size_t rows, size_t cols, int bits, uint32_t *out);
/* (K, N/8): nibble i of word c in row k is code (8 c + order[i], k), order 0 2 4 6 1 3 5 7. N a multiple of 8. */
void bits_interleaved(const uint8_t *codes, size_t rows, size_t cols, uint32_t *out);
/* The same order for eight values of one row. */
uint32_t bits_interleave_word(const uint8_t values[8]);

#endif
