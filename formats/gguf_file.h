/* gguf_file.h - the head of a GGUF file, and where each tensor's bytes go after it.
 *
 *   struct gguf_kv meta; gguf_kv_init(&meta); gguf_kv_string(&meta, "general.architecture", "llama"); ...
 *   gguf_layout(&meta, tensors, count, &head, err)
 * then a file is `head`, and for each tensor its bytes at head.len + offset; the gaps (gguf_padded()) are zeros, after the
 * last tensor too: the file ends at head.len + gguf_data_bytes(). Tensors may be written in any order.
 * A failure (memory, a key given twice) sticks in the struct gguf_kv, and gguf_layout() returns it.
 */
#ifndef QUARRY_FORMATS_GGUF_FILE_H
#define QUARRY_FORMATS_GGUF_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"
#include "formats/gguf_types.h"

enum { GGUF_ALIGNMENT = 32, GGUF_NAME_MAX = 63, GGUF_DIMS_MAX = 4, GGUF_KEYS_MAX = 256 };

enum gguf_value {
	GGUF_VALUE_U32 = 4, GGUF_VALUE_I32 = 5, GGUF_VALUE_F32 = 6, GGUF_VALUE_BOOL = 7, GGUF_VALUE_STRING = 8,
	GGUF_VALUE_ARRAY = 9,
};

/* Metadata, in the order in which it is added. */
struct gguf_kv {
	struct buf bytes;                       /* as in the file */
	size_t keys[GGUF_KEYS_MAX];             /* where each pair begins in `bytes` */
	size_t count;
	bool twice, too_many;                   /* failures beside those of `bytes` */
	char clash[64];                         /* the key given twice */
};

void gguf_kv_init(struct gguf_kv *kv);
void gguf_kv_deinit(struct gguf_kv *kv);
void gguf_kv_u32(struct gguf_kv *kv, const char *key, uint32_t value);
void gguf_kv_f32(struct gguf_kv *kv, const char *key, float value);
void gguf_kv_bool(struct gguf_kv *kv, const char *key, bool value);
void gguf_kv_string(struct gguf_kv *kv, const char *key, const char *text);
void gguf_kv_text(struct gguf_kv *kv, const char *key, const char *text, size_t len); /* any bytes */
/* Announces an array; exactly `count` elements of that type must follow at once. */
void gguf_kv_array(struct gguf_kv *kv, const char *key, enum gguf_value type, uint64_t count);
void gguf_element_string(struct gguf_kv *kv, const char *text, size_t len);
void gguf_element_i32(struct gguf_kv *kv, int32_t value);
void gguf_element_f32(struct gguf_kv *kv, float value);

struct gguf_tensor {
	const char *name;               /* borrowed; at most GGUF_NAME_MAX bytes */
	enum gguf_type type;
	unsigned ndim;                  /* 1..4 */
	uint64_t ne[GGUF_DIMS_MAX];     /* ne[0] = columns, contiguous; ne[1] = rows */
	uint64_t offset, bytes;         /* set by gguf_layout() */
};

/* Appends the whole head, padded to the alignment, to `out`; sets offset and bytes of every tensor, in the order given. */
int gguf_layout(const struct gguf_kv *kv, struct gguf_tensor *tensors, size_t count, struct buf *out,
		struct err *err);
uint64_t gguf_padded(uint64_t bytes);
/* Bytes of the data section after gguf_layout(). */
uint64_t gguf_data_bytes(const struct gguf_tensor *tensors, size_t count);

#endif
