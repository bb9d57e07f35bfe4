/* layer_blob.h - one quantized layer as it travels: a safetensors file in the packed form of
 * common/packed.h for quantized linears, source tensors for the rest, and per quantized module a metadata
 * entry "<module>" with its settings as JSON (bits among them).
 *
 * Reading gives either the stored bytes or float32 values (dequantized where packed); several threads may read an open
 * file at once. Writing is for one thread.
 */
#ifndef QUARRY_WORKER_MODEL_LAYER_BLOB_H
#define QUARRY_WORKER_MODEL_LAYER_BLOB_H

#include <stdint.h>

#include "common/err.h"
#include "common/safetensors.h"

/* --- reading --------------------------------------------------------------------------------- */

struct layer_blob {
	int fd;
	char *path;
	struct st_header header;
};

int layer_blob_open(struct layer_blob *b, const char *path, struct err *err);
void layer_blob_close(struct layer_blob *b);

/* Rows [row, row+rows) of "<module>.weight" (or elements of a 1-d tensor) as float32; a packed module is
 * dequantized: s * (q - z). */
int layer_blob_read_f32(struct layer_blob *b, const char *name, uint64_t row, uint64_t rows, float *out,
			struct err *err);
/* Columns of what layer_blob_read_f32() gives, 1 for a 1-d tensor. */
int layer_blob_columns(const struct layer_blob *b, const char *name, uint64_t *cols, struct err *err);
/* What a packed module holds: codes (rows, cols), scales and zeros (rows, groups). */
struct layer_module { int bits; size_t rows, cols, groups; };
/* ERR_CORRUPT when `module` is not packed here or its parts do not fit together. */
int layer_blob_module(const struct layer_blob *b, const char *module, struct layer_module *m, struct err *err);
/* The parts themselves, into arrays of those shapes. */
int layer_blob_read_module(struct layer_blob *b, const char *module, uint8_t *codes, float *scales, float *zeros,
			   struct err *err);
/* Stored bytes [offset, offset + len) of a tensor. */
int layer_blob_read_raw(struct layer_blob *b, const struct st_tensor *t, uint64_t offset, void *bytes,
			size_t len, struct err *err);

/* --- writing --------------------------------------------------------------------------------- */

struct layer_writer; /* opaque: collects tensors, then writes once */

struct layer_writer *layer_writer_new(void); /* NULL when out of memory */
void layer_writer_free(struct layer_writer *w);
/* Copies the bytes of an unquantized tensor. */
int layer_writer_add(struct layer_writer *w, const struct st_tensor *tensor, const void *bytes,
		     struct err *err);
/* Packs codes (rows, cols) and copies scales, zeros (rows, cols/group); settings_json is kept as metadata. */
int layer_writer_add_module(struct layer_writer *w, const char *module, int bits, size_t rows, size_t cols,
			    size_t group, const uint8_t *codes, const float *scales, const float *zeros,
			    const char *settings_json, struct err *err);
int layer_writer_write(struct layer_writer *w, const char *path, struct err *err);

#endif
