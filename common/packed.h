/* packed.h - quantized linears as Quarry stores them: the lossless intermediate.
 *
 * For a module P of N rows, K columns, b bits, G groups per row, value = s * (q - z):
 *   P.codes  U32 (N, ceil(K*b/32))  per row a bit stream: code j in bits b*j .. b*j+b-1, LSB first,
 *                                   little-endian words, the tail of the last word zero
 *   P.scales F32 (N, G)             s > 0
 *   P.zeros  F32 (N, G)             z in code units
 * The bit stream is that of docs/formats.md (GPTQ, MLX and compressed-tensors share it).
 * Pure functions, thread-safe.
 */
#ifndef QUARRY_COMMON_PACKED_H
#define QUARRY_COMMON_PACKED_H

#include <stddef.h>
#include <stdint.h>

/* Words of one packed row. */
size_t packed_row_words(size_t cols, int bits);
/* codes: `cols` bytes -> words[packed_row_words(cols, bits)] (fully written). */
void packed_pack_row(const uint8_t *codes, size_t cols, int bits, uint32_t *words);
void packed_unpack_row(const uint32_t *words, size_t cols, int bits, uint8_t *codes);
/* out[j] = s[j/group] * (codes[j] - z[j/group]), computed in float32: subtract, then multiply. */
void packed_dequantize_row(const uint8_t *codes, const float *scales, const float *zeros,
			   size_t cols, size_t group, float *out);

#endif
