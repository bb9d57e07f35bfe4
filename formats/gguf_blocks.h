/* gguf_blocks.h - GGUF tensor data: which block type holds a module's setting exactly, and its bytes.
 *
 * value = s (q - z) of the intermediate goes into a block type in one of three ways:
 *   offset   d q + m           d = s, m = -s z                   Q4_1 Q5_1
 *   super    d sc q - dmin mn  sc = mn = 1, d = s, dmin = s z; or, where z is a multiple of 1/n,
 *                              dmin = s/n, mn = n z              Q2_K Q4_K Q5_K
 *   signed   d (q' - bias)     z a multiple of 1/n: d = s/n, q' = n q - n z + bias
 *                                                                Q4_0 Q5_0 Q8_0 Q3_K Q6_K (sub-scale 1)
 * Nothing is rounded: what does not fit is refused, when planning by the settings, when encoding by the
 * values (d, m, dmin that are no half values, n z out of range).
 * Pure; thread-safe; encoders allocate nothing.
 */
#ifndef QUARRY_FORMATS_GGUF_BLOCKS_H
#define QUARRY_FORMATS_GGUF_BLOCKS_H

#include "formats/codec.h"
#include "formats/gguf_types.h"

enum gguf_way { GGUF_WAY_OFFSET, GGUF_WAY_SUPER, GGUF_WAY_SIGNED };
enum gguf_way gguf_way_of(enum gguf_type type); /* of a type that gguf_choose() knows */

/* 0 and the type with the fewest bits per weight that holds every value the module's settings allow; else -1 and
 * the reason with what would fit (problems may be NULL). A skipped module has no type: do not ask. */
int gguf_choose(const struct codec_module *m, enum gguf_type *type, struct problems *problems);
/* Whether this type does. */
bool gguf_holds(const struct codec_module *m, enum gguf_type type);
/* As in struct codec: 0 when any z will do; n when z must be a multiple of 1/n for a type to hold the module. */
unsigned gguf_zero_parts(const struct codec_module *m);

/* All rows of a module that the type holds, into rows * gguf_row_bytes() bytes (aligned to 2). Row i of the output
 * is row gguf_row_source(heads, ...) of the module; heads = 0 keeps the order. ERR_NUMERIC naming module, row and
 * group when a value does not fit exactly, ERR_REFUSED when the values are not those of the module. */
int gguf_encode(const struct codec_module *m, enum gguf_type type, const struct codec_values *v, size_t heads,
		void *out, struct err *err);

/* The row permutation of q and k in files of architecture "llama": the rotary pairs of a head, halves of
 * it in the source, become neighbours. `rows` = heads x an even head size. */
size_t gguf_row_source(size_t rows, size_t heads, size_t row);

/* Rows of plain numbers: F32 as they are, F16 and BF16 rounded to nearest even, Q8_0 and Q6_K by the smallest squared
 * error that their search finds. `cols` is a multiple of the block. ERR_NUMERIC when a value is not finite or
 * beyond the type; `name` is for that sentence. Other types: ERR_UNSUPPORTED. */
int gguf_encode_floats(const char *name, enum gguf_type type, const float *values, size_t rows, size_t cols,
		       void *out, struct err *err);

#endif
