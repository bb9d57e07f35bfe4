/* safetensors.c - reads and checks the head of a safetensors file.
 *
 * Invariants of a header that was accepted:
 *  1. Names are unique C strings; tensors are sorted by name (bytewise).
 *  2. Each tensor's bytes = product of its shape * bits of its dtype / 8 = end - begin, no overflow.
 *  3. The tensors tile the data section: from 0 to its end, no gap, no overlap.
 *  4. data_start + last end = size of the file.
 * The JSON text becomes entries in safetensors_parse.c.
 */
#include "common/safetensors.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/safetensors_parse.h"
#include "common/utf8.h"

static const struct { const char *name; unsigned bits; } dtypes[] = {
	[ST_BOOL] = { "BOOL", 8 }, [ST_F4] = { "F4", 4 }, [ST_F6_E2M3] = { "F6_E2M3", 6 },
	[ST_F6_E3M2] = { "F6_E3M2", 6 }, [ST_U8] = { "U8", 8 }, [ST_I8] = { "I8", 8 },
	[ST_F8_E5M2] = { "F8_E5M2", 8 }, [ST_F8_E4M3] = { "F8_E4M3", 8 },
	[ST_F8_E8M0] = { "F8_E8M0", 8 }, [ST_F8_E4M3FNUZ] = { "F8_E4M3FNUZ", 8 },
	[ST_F8_E5M2FNUZ] = { "F8_E5M2FNUZ", 8 }, [ST_I16] = { "I16", 16 }, [ST_U16] = { "U16", 16 },
	[ST_F16] = { "F16", 16 }, [ST_BF16] = { "BF16", 16 }, [ST_I32] = { "I32", 32 },
	[ST_U32] = { "U32", 32 }, [ST_F32] = { "F32", 32 }, [ST_C64] = { "C64", 64 },
	[ST_F64] = { "F64", 64 }, [ST_I64] = { "I64", 64 }, [ST_U64] = { "U64", 64 },
};

enum { DTYPE_COUNT = sizeof(dtypes) / sizeof(dtypes[0]) };

const char *st_dtype_name(enum st_dtype dtype)
{
	return dtypes[dtype].name;
}

unsigned st_dtype_bits(enum st_dtype dtype)
{
	return dtypes[dtype].bits;
}

int st_dtype_from_name(const char *name, enum st_dtype *out)
{
	for (int i = 0; i < DTYPE_COUNT; i++) {
		if (strcmp(dtypes[i].name, name) == 0) {
			*out = (enum st_dtype)i;
			return 0;
		}
	}
	return -1;
}

int st_tensor_bytes(const struct st_tensor *t, uint64_t *bytes, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	uint64_t bits = 1;

	for (unsigned i = 0; i < t->ndim; i++)
		if (!u64_mul(bits, t->shape[i], &bits))
			return err_set(err, ERR_CORRUPT, "tensor \"%s\": the product of its shape overflows",
				       utf8_show(shown, t->name));
	if (!u64_mul(bits, st_dtype_bits(t->dtype), &bits))
		return err_set(err, ERR_CORRUPT, "tensor \"%s\": its size in bits overflows",
			       utf8_show(shown, t->name));
	if (bits % 8 != 0)
		return err_set(err, ERR_CORRUPT, "tensor \"%s\": its %llu bits are not whole bytes",
			       utf8_show(shown, t->name), (unsigned long long)bits);
	*bytes = bits / 8;
	return 0;
}

/* --- checks ------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	return strcmp(x->name, y->name);
}

static void sort(struct st_header *h, int (*order)(const void *, const void *))
{
	if (h->count > 1)
		qsort(h->tensors, h->count, sizeof(*h->tensors), order);
}

static int check_size(const struct st_tensor *t, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	uint64_t bytes;

	if (t->end < t->begin)
		return err_set(err, ERR_CORRUPT, "tensor \"%s\": its data_offsets end before they begin",
			       utf8_show(shown, t->name));
	if (st_tensor_bytes(t, &bytes, err) != 0)
		return -1;
	if (bytes != t->end - t->begin)
		return err_set(err, ERR_CORRUPT, "tensor \"%s\": its shape and dtype need %llu bytes, its "
			       "data_offsets hold %llu", utf8_show(shown, t->name),
			       (unsigned long long)bytes, (unsigned long long)(t->end - t->begin));
	return 0;
}

/* Leaves the tensors sorted by offset; *data_bytes = end of the last one. */
static int check_tiling(struct st_header *h, uint64_t *data_bytes, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	uint64_t next = 0;

	sort(h, by_offset);
	for (size_t i = 0; i < h->count; i++) {
		const struct st_tensor *t = &h->tensors[i];

		if (check_size(t, err) != 0)
			return -1;
		if (t->begin != next)
			return err_set(err, ERR_CORRUPT, "tensor \"%s\" begins at byte %llu of the data; "
				       "without gap or overlap it would be byte %llu",
				       utf8_show(shown, t->name), (unsigned long long)t->begin,
				       (unsigned long long)next);
		next = t->end;
	}
	*data_bytes = next;
	return 0;
}

static int check_names(struct st_header *h, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	sort(h, by_name);
	for (size_t i = 1; i < h->count; i++)
		if (strcmp(h->tensors[i - 1].name, h->tensors[i].name) == 0)
			return err_set(err, ERR_CORRUPT, "tensor \"%s\" appears twice",
				       utf8_show(shown, h->tensors[i].name));
	return 0;
}

static int check_header(struct st_header *h, uint64_t file_size, struct err *err)
{
	uint64_t data_bytes, total;

	if (check_names(h, err) != 0 || check_tiling(h, &data_bytes, err) != 0)
		return -1;
	sort(h, by_name);
	if (!u64_add(h->data_start, data_bytes, &total) || total != file_size)
		return err_set(err, ERR_CORRUPT, "the header describes %llu bytes of data, but %llu follow "
			       "it (%s)", (unsigned long long)data_bytes,
			       (unsigned long long)(file_size - h->data_start),
			       total > file_size ? "truncated?" : "something was appended?");
	return 0;
}

/* --- reading ------------------------------------------------------------------ */

/* The length of the JSON text, from the first 8 bytes. */
static int read_length(uint64_t file_size, st_read_fn read, void *ctx, uint64_t *len, struct err *err)
{
	unsigned char raw[8];

	if (file_size < sizeof(raw))
		return err_set(err, ERR_CORRUPT, "it has %llu bytes; a safetensors file has at least 8",
			       (unsigned long long)file_size);
	if (read(ctx, 0, raw, sizeof(raw), err) != 0)
		return -1;
	*len = 0;
	for (int i = 7; i >= 0; i--)
		*len = *len << 8 | raw[i];
	if (*len > ST_HEADER_MAX)
		return err_set(err, ERR_CORRUPT, "its header claims %llu bytes; at most %u are accepted (is "
			       "this a safetensors file?)", (unsigned long long)*len, ST_HEADER_MAX);
	if (*len > file_size - sizeof(raw))
		return err_set(err, ERR_CORRUPT, "its header claims %llu bytes, but only %llu follow "
			       "(truncated?)", (unsigned long long)*len,
			       (unsigned long long)(file_size - sizeof(raw)));
	return 0;
}

static int read_header(struct st_header *h, uint64_t file_size, st_read_fn read, void *ctx,
		       struct err *err)
{
	uint64_t len = 0;
	char *text;
	int rc = -1;

	if (read_length(file_size, read, ctx, &len, err) != 0)
		return -1;
	text = mem_alloc((size_t)len, 1);
	if (!text)
		return err_set_nomem(err, "a safetensors header");
	h->data_start = 8 + len;
	if (read(ctx, 8, text, (size_t)len, err) == 0 && st_parse_header(h, text, (size_t)len, err) == 0)
		rc = check_header(h, file_size, err);
	mem_free(text);
	return rc;
}

int st_header_read(struct st_header *h, const char *path, uint64_t file_size,
		   st_read_fn read, void *ctx, struct err *err)
{
	*h = (struct st_header){ 0 };
	if (read_header(h, file_size, read, ctx, err) == 0)
		return 0;
	st_header_deinit(h);
	return err_prefix(err, "%s", path);
}

struct path_reader { int fd; const char *path; };

static int read_path(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err)
{
	struct path_reader *r = ctx;

	return file_pread(r->fd, bytes, len, offset, r->path, err);
}

int st_header_read_path(struct st_header *h, const char *path, struct err *err)
{
	struct path_reader r = { .path = path };
	uint64_t bytes;
	int rc;

	*h = (struct st_header){ 0 };
	if (file_size(path, &bytes, err) != 0)
		return -1;
	r.fd = file_open(path, O_RDONLY, 0, err);
	if (r.fd < 0)
		return -1;
	rc = st_header_read(h, path, bytes, read_path, &r, err);
	close(r.fd);
	return rc;
}

void st_header_deinit(struct st_header *h)
{
	for (size_t i = 0; i < h->count; i++)
		mem_free(h->tensors[i].name);
	for (size_t i = 0; i < h->meta_count; i++) {
		mem_free(h->meta_keys[i]);
		mem_free(h->meta_values[i]);
	}
	mem_free(h->tensors);
	mem_free(h->meta_keys);
	mem_free(h->meta_values);
	*h = (struct st_header){ 0 };
}

const struct st_tensor *st_find(const struct st_header *h, const char *name)
{
	struct st_tensor wanted = { .name = (char *)(uintptr_t)name };

	if (h->count == 0)
		return NULL;
	return bsearch(&wanted, h->tensors, h->count, sizeof(wanted), by_name);
}

const char *st_meta(const struct st_header *h, const char *key)
{
	for (size_t i = 0; i < h->meta_count; i++)
		if (strcmp(h->meta_keys[i], key) == 0)
			return h->meta_values[i];
	return NULL;
}
