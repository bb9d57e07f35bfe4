#include "worker/tensor_file.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "common/safetensors.h"

enum { ELEMENT_BYTES = 4 }; /* I32 and F32 alike */

void tensor_file_close(struct tensor_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	mem_free(f->path);
	*f = (struct tensor_file)TENSOR_FILE_CLOSED;
}

static int open_fd(struct tensor_file *f, const char *path, int flags, struct err *err)
{
	*f = (struct tensor_file)TENSOR_FILE_CLOSED;
	f->path = mem_strdup(path);
	if (!f->path)
		return err_set_nomem(err, "a path");
	f->fd = file_open(path, flags, 0644, err);
	return f->fd < 0 ? -1 : 0;
}

static int open_tensor(struct tensor_file *f, const char *path, const char *name, enum st_dtype dtype,
		       unsigned ndim, struct err *err)
{
	struct st_header header = { 0 };
	const struct st_tensor *t;
	int rc = -1;

	if (open_fd(f, path, O_RDONLY, err) != 0 || st_header_read_path(&header, path, err) != 0)
		goto out;
	t = st_find(&header, name);
	if (!t || t->dtype != dtype || t->ndim != ndim) {
		err_set(err, ERR_CORRUPT, "%s does not hold a %s tensor '%s' of %u dimensions", path,
			st_dtype_name(dtype), name, ndim);
		goto out;
	}
	f->data_start = header.data_start + t->begin;
	f->sequences = t->shape[0];
	f->seq_len = t->shape[1];
	f->width = ndim == 3 ? t->shape[2] : 1;
	if (f->seq_len > 0 && f->width > 0)
		rc = 0;
	else
		err_set(err, ERR_CORRUPT, "%s holds sequences of (%zu, %zu); both must be at least 1", path, f->seq_len,
			f->width);
out:
	st_header_deinit(&header);
	if (rc != 0)
		tensor_file_close(f);
	return rc;
}

int hidden_file_open(struct tensor_file *f, const char *path, struct err *err)
{
	return open_tensor(f, path, "hidden", ST_F32, 3, err);
}

int tokens_file_open(struct tensor_file *f, const char *path, struct err *err)
{
	return open_tensor(f, path, "input_ids", ST_I32, 2, err);
}

/* key and value: one entry of metadata, or NULL. */
static int create_tensor(struct tensor_file *f, const char *path, struct st_tensor tensor, const char *key,
			 const char *value, struct err *err)
{
	struct buf head;
	int rc = -1;

	buf_init(&head, 1 << 16);
	if (open_fd(f, path, O_RDWR | O_CREAT | O_TRUNC, err) == 0 &&
	    st_layout(&tensor, 1, &key, &value, key ? 1 : 0, &head, err) == 0)
		rc = file_pwrite(f->fd, head.data, head.len, 0, path, err);
	f->data_start = head.len;
	f->sequences = tensor.shape[0];
	f->seq_len = tensor.shape[1];
	f->width = tensor.ndim == 3 ? tensor.shape[2] : 1;
	buf_deinit(&head);
	if (rc != 0)
		tensor_file_close(f);
	return rc;
}

int hidden_file_create_with(struct tensor_file *f, const char *path, size_t sequences, size_t seq_len,
			    size_t hidden, const char *key, const char *value, struct err *err)
{
	struct st_tensor tensor = { .name = (char *)"hidden", .dtype = ST_F32, .ndim = 3,
				    .shape = { sequences, seq_len, hidden } };

	return create_tensor(f, path, tensor, key, value, err);
}

int hidden_file_create(struct tensor_file *f, const char *path, size_t sequences, size_t seq_len,
		       size_t hidden, struct err *err)
{
	return hidden_file_create_with(f, path, sequences, seq_len, hidden, NULL, NULL, err);
}

int tensor_file_has_meta(const char *path, const char *key, const char *value, bool *same, struct err *err)
{
	struct st_header header = { 0 };
	const char *there;

	if (st_header_read_path(&header, path, err) != 0)
		return -1;
	there = st_meta(&header, key);
	*same = there && strcmp(there, value) == 0;
	st_header_deinit(&header);
	return 0;
}

static uint64_t sequence_bytes(const struct tensor_file *f)
{
	return (uint64_t)f->seq_len * f->width * ELEMENT_BYTES;
}

static int check_range(const struct tensor_file *f, size_t first, size_t count, struct err *err)
{
	if (first > f->sequences || count > f->sequences - first)
		return err_set(err, ERR_CORRUPT, "%s holds %zu sequences; %zu from %zu on were asked for",
			       f->path, f->sequences, count, first);
	return 0;
}

static int read_sequences(struct tensor_file *f, size_t first, size_t count, void *out, struct err *err)
{
	if (check_range(f, first, count, err) != 0)
		return -1;
	return file_pread(f->fd, out, count * sequence_bytes(f), f->data_start + first * sequence_bytes(f),
			  f->path, err);
}

static int write_sequences(struct tensor_file *f, size_t first, size_t count, const void *rows,
			   struct err *err)
{
	if (check_range(f, first, count, err) != 0)
		return -1;
	return file_pwrite(f->fd, rows, count * sequence_bytes(f), f->data_start + first * sequence_bytes(f),
			   f->path, err);
}

int hidden_file_read(struct tensor_file *f, size_t first, size_t count, float *out, struct err *err)
{
	return read_sequences(f, first, count, out, err);
}

int hidden_file_write(struct tensor_file *f, size_t first, size_t count, const float *rows, struct err *err)
{
	return write_sequences(f, first, count, rows, err);
}

static int check_part(const struct tensor_file *f, size_t first, uint64_t from, size_t len, struct err *err)
{
	const uint64_t there = first <= f->sequences ? (f->sequences - first) * sequence_bytes(f) : 0;

	if (first > f->sequences || from > there || len > there - from)
		return err_set(err, ERR_CORRUPT, "%s holds %zu sequences; %zu bytes at byte %llu from sequence %zu on were "
			       "asked for", f->path, f->sequences, len, (unsigned long long)from, first);
	return 0;
}

int hidden_file_read_part(struct tensor_file *f, size_t first, uint64_t from, size_t len, void *out, struct err *err)
{
	if (check_part(f, first, from, len, err) != 0)
		return -1;
	return file_pread(f->fd, out, len, f->data_start + first * sequence_bytes(f) + from, f->path, err);
}

int hidden_file_write_part(struct tensor_file *f, size_t first, uint64_t from, size_t len, const void *bytes,
			   struct err *err)
{
	if (check_part(f, first, from, len, err) != 0)
		return -1;
	return file_pwrite(f->fd, bytes, len, f->data_start + first * sequence_bytes(f) + from, f->path, err);
}

int tokens_file_read(struct tensor_file *f, size_t first, size_t count, int32_t *out, struct err *err)
{
	return read_sequences(f, first, count, out, err);
}

int tokens_file_write(const char *path, const int32_t *ids, size_t sequences, size_t seq_len,
		      struct err *err)
{
	struct st_tensor tensor = { .name = (char *)"input_ids", .dtype = ST_I32, .ndim = 2,
				    .shape = { sequences, seq_len } };
	struct tensor_file f;
	int rc;

	if (create_tensor(&f, path, tensor, NULL, NULL, err) != 0)
		return -1;
	rc = write_sequences(&f, 0, sequences, ids, err);
	tensor_file_close(&f);
	return rc;
}
