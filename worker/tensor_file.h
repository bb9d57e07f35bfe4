/* tensor_file.h - one-tensor safetensors files that travel between tasks: tokens and hidden states.
 *
 * Tokens: `input_ids` I32 (sequences, seq_len). Hidden states: `hidden` F32 (sequences, seq_len, hidden).
 * Both are read and written in pieces of whole sequences, hidden states also by bytes. One thread at a time.
 */
#ifndef QUARRY_WORKER_TENSOR_FILE_H
#define QUARRY_WORKER_TENSOR_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct tensor_file {
	int fd;                 /* -1 when closed */
	char *path;
	uint64_t data_start;
	size_t sequences, seq_len, width;       /* width 1 for tokens */
};

#define TENSOR_FILE_CLOSED { .fd = -1 }

int hidden_file_open(struct tensor_file *f, const char *path, struct err *err);
int hidden_file_create(struct tensor_file *f, const char *path, size_t sequences, size_t seq_len,
		       size_t hidden, struct err *err);
/* The same, with one entry of metadata. */
int hidden_file_create_with(struct tensor_file *f, const char *path, size_t sequences, size_t seq_len,
			    size_t hidden, const char *key, const char *value, struct err *err);
/* Whether a file's metadata hold exactly this entry; -1 when the file cannot be read, else *same. */
int tensor_file_has_meta(const char *path, const char *key, const char *value, bool *same, struct err *err);
/* rows = count sequences of seq_len * width floats. */
int hidden_file_read(struct tensor_file *f, size_t first, size_t count, float *out, struct err *err);
int hidden_file_write(struct tensor_file *f, size_t first, size_t count, const float *rows, struct err *err);
/* Bytes [from, from + len) of what begins with sequence `first`. */
int hidden_file_read_part(struct tensor_file *f, size_t first, uint64_t from, size_t len, void *out, struct err *err);
int hidden_file_write_part(struct tensor_file *f, size_t first, uint64_t from, size_t len, const void *bytes,
			   struct err *err);

int tokens_file_write(const char *path, const int32_t *ids, size_t sequences, size_t seq_len, struct err *err);
int tokens_file_open(struct tensor_file *f, const char *path, struct err *err);
int tokens_file_read(struct tensor_file *f, size_t first, size_t count, int32_t *out, struct err *err);

/* Closes; harmless on a closed one. */
void tensor_file_close(struct tensor_file *f);

#endif
