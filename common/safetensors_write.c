/* safetensors_write.c - the head of a safetensors file, and small files in one go.
 *
 * Tensors are ordered by dtype, widest first (the order of enum st_dtype read from the end), then
 * by name, so that each is aligned to its element; the head is padded to a multiple of 8 bytes.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/json.h"
#include "common/safetensors_parse.h"
#include "common/utf8.h"

static int file_order(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	if (x->dtype != y->dtype)
		return x->dtype > y->dtype ? -1 : 1;
	return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int check_names(const struct st_tensor *tensors, size_t count, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	const char **names = mem_alloc(count, sizeof(*names));
	int rc = 0;

	if (!names)
		return err_set_nomem(err, "a safetensors header");
	for (size_t i = 0; i < count; i++)
		names[i] = tensors[i].name;
	if (count > 1)
		qsort(names, count, sizeof(*names), compare_names);
	for (size_t i = 0; rc == 0 && i < count; i++)
		if (strcmp(names[i], ST_META_NAME) == 0 || (i > 0 && strcmp(names[i - 1], names[i]) == 0))
			rc = err_set(err, ERR_INVALID, "cannot write a tensor named \"%s\": the name is %s",
				     utf8_show(shown, names[i]),
				     strcmp(names[i], ST_META_NAME) == 0 ? "reserved" : "used twice");
	mem_free(names);
	return rc;
}

static int assign_offsets(struct st_tensor *tensors, size_t count, struct err *err)
{
	uint64_t next = 0, bytes;

	for (size_t i = 0; i < count; i++) {
		if (st_tensor_bytes(&tensors[i], &bytes, err) != 0)
			return -1;
		tensors[i].begin = next;
		if (!u64_add(next, bytes, &next))
			return err_set(err, ERR_INVALID, "the tensors of one file exceed 2^64 bytes");
		tensors[i].end = next;
	}
	return 0;
}

static void print_tensor(struct buf *out, const struct st_tensor *t)
{
	json_append_string(out, t->name);
	buf_printf(out, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(t->dtype));
	for (unsigned i = 0; i < t->ndim; i++)
		buf_printf(out, i ? ",%llu" : "%llu", (unsigned long long)t->shape[i]);
	buf_printf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin,
		   (unsigned long long)t->end);
}

static void print_meta(struct buf *out, const char *const *keys, const char *const *values,
		       size_t count)
{
	buf_puts(out, "\"" ST_META_NAME "\":{");
	for (size_t i = 0; i < count; i++) {
		if (i)
			buf_puts(out, ",");
		json_append_string(out, keys[i]);
		buf_puts(out, ":");
		json_append_string(out, values[i]);
	}
	buf_puts(out, "}");
}

/* u64 length and JSON text; what is short of 8 bytes is filled with spaces. */
static void append_head(struct buf *out, struct buf *text)
{
	unsigned char raw[8];

	while (text->len % 8 != 0 && buf_puts(text, " ") == 0)
		;
	for (int i = 0; i < 8; i++)
		raw[i] = (unsigned char)(text->len >> 8 * i);
	buf_append(out, raw, sizeof(raw));
	buf_append(out, buf_text(text), text->len);
}

int st_layout(struct st_tensor *tensors, size_t count, const char *const *meta_keys,
	      const char *const *meta_values, size_t meta_count, struct buf *out, struct err *err)
{
	struct buf text;
	int rc = 0;

	if (count > ST_TENSORS_MAX)
		return err_set(err, ERR_INVALID, "a safetensors file holds at most %d tensors, not %zu",
			       ST_TENSORS_MAX, count);
	if (check_names(tensors, count, err) != 0)
		return -1;
	if (count > 1)
		qsort(tensors, count, sizeof(*tensors), file_order);
	if (assign_offsets(tensors, count, err) != 0)
		return -1;
	buf_init(&text, ST_HEADER_MAX);
	buf_puts(&text, "{");
	if (meta_count)
		print_meta(&text, meta_keys, meta_values, meta_count);
	for (size_t i = 0; i < count; i++) {
		if (i || meta_count)
			buf_puts(&text, ",");
		print_tensor(&text, &tensors[i]);
	}
	buf_puts(&text, "}");
	append_head(out, &text);
	if (buf_failed(&text) || buf_failed(out))
		rc = err_set_nomem(err, "a safetensors header (at most 100 MB)");
	buf_deinit(&text);
	return rc;
}

/* --- whole files -------------------------------------------------------------- */

static int item_order(const void *a, const void *b)
{
	const struct st_item *x = a, *y = b;

	return file_order(&x->tensor, &y->tensor);
}

/* Sorts the items and copies the offsets of their layout back into them. */
static int lay_out_items(struct st_item *items, size_t count, const char *const *meta_keys,
			 const char *const *meta_values, size_t meta_count, struct buf *head,
			 struct err *err)
{
	struct st_tensor *tensors = mem_alloc(count, sizeof(*tensors));
	int rc;

	if (!tensors)
		return err_set_nomem(err, "a safetensors header");
	if (count > 1)
		qsort(items, count, sizeof(*items), item_order);
	for (size_t i = 0; i < count; i++)
		tensors[i] = items[i].tensor;
	rc = st_layout(tensors, count, meta_keys, meta_values, meta_count, head, err);
	for (size_t i = 0; i < count; i++) /* names are unique, so the order is the same */
		items[i].tensor = tensors[i];
	mem_free(tensors);
	return rc;
}

static int write_items(const char *path, const struct st_item *items, size_t count,
		       const struct buf *head, struct err *err)
{
	int fd = file_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644, err);
	int rc;

	if (fd < 0)
		return -1;
	rc = file_pwrite(fd, head->data, head->len, 0, path, err);
	for (size_t i = 0; rc == 0 && i < count; i++)
		rc = file_pwrite(fd, items[i].data, items[i].tensor.end - items[i].tensor.begin,
				 head->len + items[i].tensor.begin, path, err);
	if (close(fd) != 0 && rc == 0)
		rc = err_set(err, ERR_IO, "cannot finish writing %s", path);
	if (rc != 0)
		unlink(path);
	return rc;
}

int st_write_file(const char *path, struct st_item *items, size_t count,
		  const char *const *meta_keys, const char *const *meta_values, size_t meta_count,
		  struct err *err)
{
	struct buf head;
	int rc;

	buf_init(&head, (size_t)ST_HEADER_MAX + 16);
	rc = lay_out_items(items, count, meta_keys, meta_values, meta_count, &head, err);
	if (rc == 0)
		rc = write_items(path, items, count, &head, err);
	buf_deinit(&head);
	return rc;
}
