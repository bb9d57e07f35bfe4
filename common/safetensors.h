/* safetensors.h - reading and laying out safetensors files.
 *
 * File = u64 LE n, n bytes of JSON header, data. The reader rejects everything the format's
 * reference implementation rejects (docs/formats.md lists the rules) plus duplicate names and
 * more than ST_TENSORS_MAX tensors or ST_DIMS_MAX dimensions, duplicate or null metadata, and NULs
 * in names and metadata. It never trusts a size: all products are checked.
 */
#ifndef QUARRY_COMMON_SAFETENSORS_H
#define QUARRY_COMMON_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

enum { ST_TENSORS_MAX = 65536, ST_DIMS_MAX = 8 };
#define ST_HEADER_MAX 100000000u

enum st_dtype {
	ST_BOOL, ST_F4, ST_F6_E2M3, ST_F6_E3M2, ST_U8, ST_I8, ST_F8_E5M2, ST_F8_E4M3, ST_F8_E8M0,
	ST_F8_E4M3FNUZ, ST_F8_E5M2FNUZ, ST_I16, ST_U16, ST_F16, ST_BF16, ST_I32, ST_U32, ST_F32,
	ST_C64, ST_F64, ST_I64, ST_U64,
};

const char *st_dtype_name(enum st_dtype dtype);
unsigned st_dtype_bits(enum st_dtype dtype);
int st_dtype_from_name(const char *name, enum st_dtype *out); /* -1 when unknown */

struct st_tensor {
	char *name;                  /* owned by the header */
	enum st_dtype dtype;
	unsigned ndim;               /* 0 = one element */
	uint64_t shape[ST_DIMS_MAX];
	uint64_t begin, end;         /* bytes in the data section */
};

struct st_header {
	struct st_tensor *tensors;   /* sorted by name (bytewise) */
	size_t count;
	uint64_t data_start;         /* 8 + n */
	char **meta_keys, **meta_values;
	size_t meta_count;
};

/* Reads `len` bytes at `offset` of one file; 0 or -1. */
typedef int (*st_read_fn)(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err);

/* Reads and checks the header of a file of `file_size` bytes. `path` is used in messages only.
 * On success the header is owned by the caller: st_header_deinit(). */
int st_header_read(struct st_header *h, const char *path, uint64_t file_size,
		   st_read_fn read, void *ctx, struct err *err);
int st_header_read_path(struct st_header *h, const char *path, struct err *err);
void st_header_deinit(struct st_header *h);
/* NULL when absent. O(log n). */
const struct st_tensor *st_find(const struct st_header *h, const char *name);
const char *st_meta(const struct st_header *h, const char *key); /* NULL when absent */

/* --- writing: lay out first, then stream data in layout order ------------------------------ */

/* Sorts tensors into file order (alignment descending, then name), assigns begin/end from 0 and
 * appends the whole head of the file (u64 and padded JSON) to `out`. tensors[i].name is borrowed.
 * meta: `meta_count` key/value pairs, keys unique. */
int st_layout(struct st_tensor *tensors, size_t count, const char *const *meta_keys,
	      const char *const *meta_values, size_t meta_count, struct buf *out, struct err *err);

/* Whole small file in one go: tensors with data[i] pointing at their bytes (data follows its
 * tensor through the sort). Not durable: the caller syncs and renames. */
struct st_item { struct st_tensor tensor; const void *data; };
int st_write_file(const char *path, struct st_item *items, size_t count,
		  const char *const *meta_keys, const char *const *meta_values, size_t meta_count,
		  struct err *err);

#endif
