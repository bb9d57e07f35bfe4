/* gguf_read.h - reading GGUF files.
 *
 * Written from the description of the format and not from the writer: nothing is shared with it, so that one checks the
 * other. Input is untrusted. Refused: another version, more than GR_TENSORS_MAX tensors, GR_KEYS_MAX keys or
 * GR_HEAD_MAX bytes of head, unknown value or tensor types, arrays of arrays, booleans other than 0 and 1, names that
 * are empty, too long or hold a NUL, duplicates, empty dimensions, sizes that overflow, columns that are no whole
 * blocks, an alignment that is no power of two, offsets with holes or overlaps, data beyond the file. Bytes after the
 * data are accepted, as everywhere.
 * Not thread-safe while opening; reading an open one from several threads is.
 */
#ifndef QUARRY_FORMATS_GGUF_READ_H
#define QUARRY_FORMATS_GGUF_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

enum { GR_TENSORS_MAX = 65536, GR_KEYS_MAX = 4096, GR_NAME_MAX = 63, GR_DIMS_MAX = 4 };
#define GR_HEAD_MAX ((size_t)256 << 20)

/* Text in the file: not NUL-terminated, may be any bytes. */
struct gr_text { const char *at; size_t len; };

enum gr_value {
	GR_U8, GR_I8, GR_U16, GR_I16, GR_U32, GR_I32, GR_F32, GR_BOOL, GR_STRING, GR_ARRAY, GR_U64, GR_I64, GR_F64,
	GR_VALUES,
};

struct gr_pair {
	struct gr_text key;
	size_t key_at;                  /* its place in the head */
	enum gr_value type;             /* of an array: of its elements */
	bool is_array;
	uint64_t count;                 /* elements; 1 when not an array */
	size_t at, len;                 /* the elements' bytes in the head */
};

struct gr_tensor {
	char name[GR_NAME_MAX + 1];
	uint32_t type;                  /* the file's number; see gr_type_name() */
	unsigned ndim;                  /* 1..4 */
	uint64_t ne[GR_DIMS_MAX];       /* ne[0] contiguous; the rest 1 where there are fewer dimensions */
	uint64_t begin, bytes;          /* in the file */
};

struct gr_file {
	struct buf head;
	uint64_t size;                  /* bytes of the file */
	uint64_t alignment, data_start;
	struct gr_pair *pairs;
	size_t pair_count;
	struct gr_tensor *tensors;      /* in file order */
	size_t tensor_count;
};

/* Reads `len` bytes at `offset`; 0 or -1. */
typedef int (*gr_read_fn)(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err);

/* `path` is used in messages only. On success the caller owns *g: gr_close(). */
int gr_open(struct gr_file *g, const char *path, uint64_t size, gr_read_fn read, void *ctx, struct err *err);
int gr_open_path(struct gr_file *g, const char *path, struct err *err);
void gr_close(struct gr_file *g);

const struct gr_tensor *gr_find(const struct gr_file *g, const char *name);      /* NULL when absent */
const struct gr_pair *gr_pair(const struct gr_file *g, const char *key);         /* NULL when absent */

/* One value: false when absent, of another type, or out of range. */
bool gr_u64(const struct gr_file *g, const char *key, uint64_t *out);            /* any integer type, not negative */
bool gr_number(const struct gr_file *g, const char *key, double *out);           /* F32, F64 or integer */
bool gr_bool(const struct gr_file *g, const char *key, bool *out);
bool gr_string(const struct gr_file *g, const char *key, struct gr_text *out);
/* Elements of an array one after another; *at begins at 0. False at the end, or when the type is another. */
bool gr_next_string(const struct gr_file *g, const struct gr_pair *p, size_t *at, struct gr_text *out);
bool gr_next_number(const struct gr_file *g, const struct gr_pair *p, size_t *at, double *out);

/* --- tensor types -------------------------------------------------------------------------------- */

const char *gr_type_name(uint32_t type); /* "Q4_K"; NULL when unknown */
/* Elements and bytes of a block; false when the type is unknown. */
bool gr_type_block(uint32_t type, uint32_t *elements, uint32_t *bytes);
/* `blocks` blocks into blocks * elements numbers. The type is known. */
void gr_decode(uint32_t type, const void *bytes, size_t blocks, float *out);

#endif
