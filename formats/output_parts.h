/* output_parts.h - private to formats/output*.c.
 *
 * A table is an embedding or a head in fewer than 16 bits: a module of layer -1. Its values are made of the
 * source's rows while they are written; modules of the blocks come as codes.
 */
#ifndef QUARRY_FORMATS_OUTPUT_PARTS_H
#define QUARRY_FORMATS_OUTPUT_PARTS_H

#include "formats/output.h"

#define OUTPUT_TEXT_MAX ((size_t)1 << 28)

static inline bool output_is_table(const struct codec_module *m)
{
	return m->layer < 0;
}

/* What a format does with tables; gguf codes them. */
enum codec_tables output_tables(const struct output_format *f);
/* The table whose weight this tensor of the source is, or SIZE_MAX. */
size_t output_table_of(const struct output_model *m, const char *tensor);
/* 0 when the format holds the table; else -1 and a sentence. */
int output_table_check(const struct output_format *f, const struct codec_module *m, struct problems *problems);
/* Bits of the tables "model.embed_tokens" and "lm_head" (of a tied model: the embedding's); 16 when they are as in
 * the source. */
struct output_table_bits { int embeddings, head; };
struct output_table_bits output_table_bits(const struct output_model *m);
/* How many of the model's modules the codec's functions are shown: all, or those before tables that it does not code. */
size_t output_codec_count(const struct output_format *f, const struct output_model *m);

/* --- writing ------------------------------------------------------------------------------------- */

enum { OUTPUT_PIECE_BYTES = 4 << 20 };

/* Memory that is kept from one module to the next: fresh pages cost as much as filling them. */
struct output_room { void *bytes; size_t size; };
/* At least `size` bytes, their content undefined; NULL when out of memory. */
void *output_room_get(struct output_room *room, size_t size);

struct output_work {
	const struct output_plan *plan;
	const struct output_file *file;
	const struct output_source *source;
	const struct output_sink *sink;
	struct output_stats *stats;
	uint64_t done, total;           /* bytes of tensor data */
	struct output_room codes, scales, zeros, out[CODEC_TENSORS_MAX];
};

int output_put(struct output_work *w, uint64_t offset, const void *bytes, uint64_t len, struct err *err);
/* `bytes` more of tensor data are written. */
int output_advance(struct output_work *w, uint64_t bytes, struct err *err);

/* Rows of a tensor of the source in float32. */
struct output_rows { const char *tensor; uint64_t first, count, cols; };
int output_read_floats(struct output_work *w, struct output_rows rows, float *out, struct err *err);
/* Rows that fit a piece when each takes so many bytes; at least 1, at most `rows`. */
uint64_t output_piece_rows(uint64_t rows, uint64_t row_bytes);

/* A quantized module of a block, in the rooms of `w`. */
int output_values_read(struct output_work *w, size_t module, struct codec_values *out, struct err *err);

/* output_round.c: `n` numbers to F16, BF16 or F32; ERR_NUMERIC naming the tensor when one does not fit. */
int output_round(const char *tensor, const float *values, size_t n, enum st_dtype dtype, void *out, struct err *err);
/* The largest of `most` and |stored - value| / |value| over a module of a dense format. */
double output_rounding(const struct codec_values *v, enum st_dtype dtype, const void *stored, double most);

/* output_tables.c. `at`: where each tensor of the table begins in the file, in the order of the codec. */
int output_table_write(struct output_work *w, const struct output_tensor *first, const uint64_t *at, struct err *err);
/* The gguf type of a table, and its rows. */
enum gguf_type output_table_type(const struct codec_module *m);
int output_table_encode(const struct codec_module *m, enum gguf_type type, uint64_t row, float *values, size_t rows,
			void *out, struct err *err);

/* output_gguf.c, output_tensors.c: one file. */
int output_write_gguf(struct output_work *w, struct err *err);
int output_write_tensors(struct output_work *w, struct err *err);

#endif
