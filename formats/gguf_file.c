#include "formats/gguf_file.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"

enum { VERSION = 3 };
#define META_BYTES_MAX ((size_t)1 << 30)

/* --- numbers, little-endian ---------------------------------------------------------------------- */

static void put(struct buf *b, uint64_t value, unsigned bytes)
{
	unsigned char le[8];

	for (unsigned i = 0; i < bytes; i++)
		le[i] = (unsigned char)(value >> 8 * i);
	buf_append(b, le, bytes);
}

static void put_float(struct buf *b, float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	put(b, bits, 4);
}

static void put_string(struct buf *b, const char *text, size_t len)
{
	put(b, len, 8);
	buf_append(b, text, len);
}

/* --- metadata ------------------------------------------------------------------------------------ */

void gguf_kv_init(struct gguf_kv *kv)
{
	memset(kv, 0, sizeof(*kv));
	buf_init(&kv->bytes, META_BYTES_MAX);
}

void gguf_kv_deinit(struct gguf_kv *kv)
{
	buf_deinit(&kv->bytes);
}

static bool has_key(const struct gguf_kv *kv, const char *key)
{
	const size_t len = strlen(key);

	if (buf_failed(&kv->bytes))
		return false;
	for (size_t i = 0; i < kv->count; i++) {
		uint64_t have;

		memcpy(&have, kv->bytes.data + kv->keys[i], 8);
		if (have == len && memcmp(kv->bytes.data + kv->keys[i] + 8, key, len) == 0)
			return true;
	}
	return false;
}

static void begin(struct gguf_kv *kv, const char *key, enum gguf_value type)
{
	if (has_key(kv, key)) {
		kv->twice = true;
		memcpy(kv->clash, key, strnlen(key, sizeof(kv->clash) - 1));
	}
	if (kv->count == GGUF_KEYS_MAX)
		kv->too_many = true;
	else
		kv->keys[kv->count++] = kv->bytes.len;
	put_string(&kv->bytes, key, strlen(key));
	put(&kv->bytes, type, 4);
}

void gguf_kv_u32(struct gguf_kv *kv, const char *key, uint32_t value)
{
	begin(kv, key, GGUF_VALUE_U32);
	put(&kv->bytes, value, 4);
}

void gguf_kv_f32(struct gguf_kv *kv, const char *key, float value)
{
	begin(kv, key, GGUF_VALUE_F32);
	put_float(&kv->bytes, value);
}

void gguf_kv_bool(struct gguf_kv *kv, const char *key, bool value)
{
	begin(kv, key, GGUF_VALUE_BOOL);
	put(&kv->bytes, value, 1);
}

void gguf_kv_text(struct gguf_kv *kv, const char *key, const char *text, size_t len)
{
	begin(kv, key, GGUF_VALUE_STRING);
	put_string(&kv->bytes, text, len);
}

void gguf_kv_string(struct gguf_kv *kv, const char *key, const char *text)
{
	gguf_kv_text(kv, key, text, strlen(text));
}

void gguf_kv_array(struct gguf_kv *kv, const char *key, enum gguf_value type, uint64_t count)
{
	begin(kv, key, GGUF_VALUE_ARRAY);
	put(&kv->bytes, type, 4);
	put(&kv->bytes, count, 8);
}

void gguf_element_string(struct gguf_kv *kv, const char *text, size_t len)
{
	put_string(&kv->bytes, text, len);
}

void gguf_element_i32(struct gguf_kv *kv, int32_t value)
{
	put(&kv->bytes, (uint32_t)value, 4);
}

void gguf_element_f32(struct gguf_kv *kv, float value)
{
	put_float(&kv->bytes, value);
}

static int check_meta(const struct gguf_kv *kv, struct err *err)
{
	if (kv->twice)
		return err_set(err, ERR_INTERNAL, "gguf metadata key %s is given twice", kv->clash);
	if (kv->too_many)
		return err_set(err, ERR_INTERNAL, "gguf metadata has more than %d keys", GGUF_KEYS_MAX);
	return buf_failed(&kv->bytes) ? err_set_nomem(err, "the metadata of a gguf file") : 0;
}

/* --- tensors ------------------------------------------------------------------------------------- */

uint64_t gguf_padded(uint64_t bytes)
{
	return (bytes + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
}

uint64_t gguf_data_bytes(const struct gguf_tensor *tensors, size_t count)
{
	return count == 0 ? 0 : tensors[count - 1].offset + gguf_padded(tensors[count - 1].bytes);
}

static int measure(struct gguf_tensor *t, struct err *err)
{
	const uint64_t block = gguf_block_elements(t->type);
	char shown[UTF8_SHOWN_MAX];
	uint64_t bytes;

	utf8_show(shown, t->name);
	if (strlen(t->name) > GGUF_NAME_MAX)
		return err_set(err, ERR_REFUSED, "tensor %s: gguf names have at most %d bytes", shown, GGUF_NAME_MAX);
	if (t->ndim < 1 || t->ndim > GGUF_DIMS_MAX)
		return err_set(err, ERR_REFUSED, "tensor %s has %u dimensions; gguf holds 1 to %d", shown, t->ndim,
			       GGUF_DIMS_MAX);
	if (t->ne[0] % block != 0)
		return err_set(err, ERR_REFUSED, "tensor %s: gguf type %s needs a multiple of %llu columns, not %llu", shown,
			       gguf_type_name(t->type), (unsigned long long)block, (unsigned long long)t->ne[0]);
	bytes = t->ne[0] / block;
	for (unsigned d = 1; d < t->ndim; d++)
		if (!u64_mul(bytes, t->ne[d], &bytes))
			return err_set(err, ERR_TOO_LARGE, "tensor %s has too many elements", shown);
	if (!u64_mul(bytes, gguf_block_bytes(t->type), &t->bytes) || t->bytes > INT64_MAX / 2)
		return err_set(err, ERR_TOO_LARGE, "tensor %s has too many elements", shown);
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(const struct gguf_tensor *const *)a)->name, (*(const struct gguf_tensor *const *)b)->name);
}

static int check_names(const struct gguf_tensor *tensors, size_t count, struct err *err)
{
	const struct gguf_tensor **sorted = mem_alloc(count, sizeof(*sorted));
	char shown[UTF8_SHOWN_MAX];
	int rc = 0;

	if (!sorted)
		return err_set_nomem(err, "the tensor names of a gguf file");
	for (size_t i = 0; i < count; i++)
		sorted[i] = &tensors[i];
	qsort(sorted, count, sizeof(*sorted), by_name);
	for (size_t i = 1; rc == 0 && i < count; i++)
		if (by_name(&sorted[i - 1], &sorted[i]) == 0)
			rc = err_set(err, ERR_INTERNAL, "two gguf tensors are named %s", utf8_show(shown, sorted[i]->name));
	mem_free(sorted);
	return rc;
}

static int place(struct gguf_tensor *tensors, size_t count, struct err *err)
{
	uint64_t at = 0;

	for (size_t i = 0; i < count; i++) {
		if (measure(&tensors[i], err) != 0)
			return -1;
		tensors[i].offset = at;
		if (!u64_add(at, gguf_padded(tensors[i].bytes), &at) || at > INT64_MAX / 2)
			return err_set(err, ERR_TOO_LARGE, "a gguf file of so many bytes cannot be addressed");
	}
	return check_names(tensors, count, err);
}

static void put_info(struct buf *out, const struct gguf_tensor *t)
{
	put_string(out, t->name, strlen(t->name));
	put(out, t->ndim, 4);
	for (unsigned d = 0; d < t->ndim; d++)
		put(out, t->ne[d], 8);
	put(out, t->type, 4);
	put(out, t->offset, 8);
}

int gguf_layout(const struct gguf_kv *kv, struct gguf_tensor *tensors, size_t count, struct buf *out,
		struct err *err)
{
	static const char zeros[GGUF_ALIGNMENT];
	const size_t start = out->len;
	size_t len;

	if (check_meta(kv, err) != 0 || place(tensors, count, err) != 0)
		return -1;
	buf_append(out, "GGUF", 4);
	put(out, VERSION, 4);
	put(out, count, 8);
	put(out, kv->count, 8);
	buf_append(out, buf_text(&kv->bytes), kv->bytes.len);
	for (size_t i = 0; i < count; i++)
		put_info(out, &tensors[i]);
	len = out->len - start;
	buf_append(out, zeros, (size_t)gguf_padded(len) - len);
	return buf_failed(out) ? err_set_nomem(err, "the head of a gguf file") : 0;
}
