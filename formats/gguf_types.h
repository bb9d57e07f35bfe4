/* gguf_types.h - private to formats/: the tensor types of GGUF files, as the writer needs them.
 *
 * The numbers are the file format's own and never change. The reader has its own table (gguf_read.c), so that
 * a mistake here does not hide itself. Layouts: docs/formats.md.
 */
#ifndef QUARRY_FORMATS_GGUF_TYPES_H
#define QUARRY_FORMATS_GGUF_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum gguf_type {
	GGUF_F32 = 0, GGUF_F16 = 1, GGUF_Q4_0 = 2, GGUF_Q4_1 = 3, GGUF_Q5_0 = 6, GGUF_Q5_1 = 7, GGUF_Q8_0 = 8,
	GGUF_Q2_K = 10, GGUF_Q3_K = 11, GGUF_Q4_K = 12, GGUF_Q5_K = 13, GGUF_Q6_K = 14, GGUF_BF16 = 30,
};

const char *gguf_type_name(enum gguf_type type);        /* "Q4_K" */
/* Elements and bytes of one block. */
size_t gguf_block_elements(enum gguf_type type);
size_t gguf_block_bytes(enum gguf_type type);
/* Bytes of a row of `cols` elements, a multiple of the block; there is no padding between rows. */
size_t gguf_row_bytes(enum gguf_type type, size_t cols);
double gguf_bits_per_weight(enum gguf_type type);
/* The value of general.file_type for a model that is mostly of this type. */
uint32_t gguf_file_type(enum gguf_type most);

#endif
