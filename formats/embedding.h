/* embedding.h - embeddings and output heads in fewer than 16 bits.
 *
 * Each row is rounded to nearest by itself, so that what a checkpoint stores, what evaluation computes with, and what a
 * later conversion makes of the original rows are the same numbers:
 *
 *   8   symmetric, groups of 32: s = max|w| / 127 as a half, z = 128, q = round(w/s) + 128      mlx, GGUF Q8_0
 *   6   GGUF Q6_K as gguf_encode_floats() makes it                                               GGUF only
 *   4   groups of 32: -s z = min w as a half, s = (max w + s z) / 15 as a half                   mlx, GGUF Q4_1
 *
 * 16 = the source's values, untouched. Pure; thread-safe.
 */
#ifndef QUARRY_FORMATS_EMBEDDING_H
#define QUARRY_FORMATS_EMBEDDING_H

#include "formats/codec.h"

bool embedding_bits_known(int64_t bits); /* 16, 8, 6, 4 */
/* Settings of the codec module that stands for such a table; bits 8, 6 or 4. 6 is no affine module: only gguf takes it. */
void embedding_settings(int bits, struct module_settings *out);
/* 0 when rows of `cols` columns can be stored so; else -1 and a sentence that names `option` ("embeddings", "lm_head"). */
int embedding_check(int bits, uint64_t cols, const char *option, struct problems *problems);
/* 0 when checkpoints of `format` (a word of the recipe's `formats`) can carry such a table; else -1 and a sentence that
 * says what would fit. packed and dense hold every number of bits. */
int embedding_check_format(const char *format, int bits, const char *option, struct problems *problems);
/* bits 8 or 4: codes (cols), scales and zeros (cols/32). ERR_NUMERIC, naming `name` and `row`, for a value beyond a half. */
int embedding_quantize(int bits, const char *name, uint64_t row, const float *values, size_t cols, uint8_t *codes,
		       float *scales, float *zeros, struct err *err);
/* bits 8, 6 or 4: each of `rows` rows becomes what a reader of the checkpoint computes from it, in float32; in place. */
int embedding_round(int bits, const char *name, uint64_t row, float *values, size_t rows, size_t cols, struct err *err);

#endif
