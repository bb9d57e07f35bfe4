#include "worker/model/layer_blob.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/half.h"
#include "common/json.h"
#include "common/packed.h"

enum { NAME_MAX_BYTES = 256 };

int layer_blob_open(struct layer_blob *b, const char *path, struct err *err)
{
	*b = (struct layer_blob){ .fd = -1 };
	b->path = mem_strdup(path);
	if (!b->path)
		return err_set_nomem(err, "a path");
	b->fd = file_open(path, O_RDONLY, 0, err);
	if (b->fd < 0 || st_header_read_path(&b->header, path, err) != 0) {
		layer_blob_close(b);
		return -1;
	}
	return 0;
}

void layer_blob_close(struct layer_blob *b)
{
	if (b->fd >= 0)
		close(b->fd);
	st_header_deinit(&b->header);
	mem_free(b->path);
	*b = (struct layer_blob){ .fd = -1 };
}

int layer_blob_read_raw(struct layer_blob *b, const struct st_tensor *t, uint64_t offset, void *bytes,
			size_t len, struct err *err)
{
	if (offset > t->end - t->begin || len > t->end - t->begin - offset)
		return err_set(err, ERR_CORRUPT, "%s: read past the end of %s", b->path, t->name);
	return file_pread(b->fd, bytes, len, b->header.data_start + t->begin + offset, b->path, err);
}

static uint64_t columns_of(const struct st_tensor *t)
{
	return t->ndim == 2 ? t->shape[1] : 1;
}

static int check_rows(const struct layer_blob *b, const struct st_tensor *t, uint64_t row, uint64_t rows,
		      struct err *err)
{
	if (t->ndim < 1 || t->ndim > 2 || row > t->shape[0] || rows > t->shape[0] - row)
		return err_set(err, ERR_CORRUPT, "%s: tensor %s does not have rows %" PRIu64 " to %" PRIu64,
			       b->path, t->name, row, row + rows);
	return 0;
}

static int convert(const struct st_tensor *t, const void *bytes, float *out, size_t n, struct err *err)
{
	if (t->dtype == ST_F32)
		memcpy(out, bytes, n * sizeof(float));
	else if (t->dtype == ST_BF16)
		bf16_to_f32_array(bytes, out, n);
	else if (t->dtype == ST_F16)
		f16_to_f32_array(bytes, out, n);
	else
		return err_set(err, ERR_CORRUPT, "tensor %s is %s; a float type is needed", t->name,
			       st_dtype_name(t->dtype));
	return 0;
}

static int read_stored(struct layer_blob *b, const struct st_tensor *t, uint64_t row, uint64_t rows,
		       float *out, struct err *err)
{
	size_t n = (size_t)(rows * columns_of(t));
	size_t element = st_dtype_bits(t->dtype) / 8;
	void *bytes;
	int rc;

	if (check_rows(b, t, row, rows, err) != 0)
		return -1;
	bytes = mem_alloc(n, element);
	if (!bytes)
		return err_set_nomem(err, t->name);
	rc = layer_blob_read_raw(b, t, row * columns_of(t) * element, bytes, n * element, err);
	if (rc == 0)
		rc = convert(t, bytes, out, n, err);
	mem_free(bytes);
	return rc;
}

/* --- packed modules --------------------------------------------------------------------------- */

struct packed_module {
	const struct st_tensor *codes, *scales, *zeros;
	int bits;
	size_t cols, groups, words;
};

static int module_bits(const struct layer_blob *b, const char *module, struct packed_module *m,
		       struct err *err)
{
	const char *text = st_meta(&b->header, module);
	struct err why = ERR_INIT;
	struct json *settings = text ? json_parse(text, strlen(text), &why) : NULL;
	int64_t bits = json_get_int(settings, "bits", 0), cols = json_get_int(settings, "cols", 0);

	json_free(settings);
	if (why.code == ERR_NOMEM)
		return err_set_nomem(err, "the settings of a module");
	if (bits < 1 || bits > 8 || cols < 1)
		return err_set(err, ERR_CORRUPT, "%s: the settings of %s are missing from the metadata", b->path,
			       module);
	m->bits = (int)bits;
	m->cols = (size_t)cols;
	return 0;
}

static const struct st_tensor *find_part(const struct layer_blob *b, const char *module, const char *part)
{
	char name[NAME_MAX_BYTES + 8];

	snprintf(name, sizeof(name), "%s.%s", module, part);
	return st_find(&b->header, name);
}

static int find_module(const struct layer_blob *b, const char *module, struct packed_module *m,
		       struct err *err)
{
	m->codes = find_part(b, module, "codes");
	m->scales = find_part(b, module, "scales");
	m->zeros = find_part(b, module, "zeros");
	if (!m->codes || !m->scales || !m->zeros)
		return err_set(err, ERR_CORRUPT, "%s holds no tensor %s.weight, packed or plain", b->path, module);
	if (module_bits(b, module, m, err) != 0)
		return -1;
	m->words = packed_row_words(m->cols, m->bits);
	m->groups = m->scales->ndim == 2 ? m->scales->shape[1] : 0;
	if (m->codes->dtype != ST_U32 || m->codes->ndim != 2 || m->codes->shape[1] != m->words ||
	    m->scales->dtype != ST_F32 || m->zeros->dtype != ST_F32 || m->groups == 0 ||
	    m->cols % m->groups != 0 || m->zeros->ndim != 2 || m->zeros->shape[1] != m->groups ||
	    m->scales->shape[0] != m->codes->shape[0] || m->zeros->shape[0] != m->codes->shape[0])
		return err_set(err, ERR_CORRUPT, "%s: codes, scales and zeros of %s do not fit together", b->path,
			       module);
	return 0;
}

static int read_packed(struct layer_blob *b, const struct packed_module *m, uint64_t row, uint64_t rows,
		       float *out, struct err *err)
{
	size_t n = (size_t)rows;
	uint32_t *words = mem_alloc(n * m->words, 4);
	float *scales = mem_alloc(n * m->groups, 4), *zeros = mem_alloc(n * m->groups, 4);
	uint8_t *codes = mem_alloc(m->cols, 1);
	int rc = -1;

	if (!words || !scales || !zeros || !codes)
		err_set_nomem(err, "a packed module");
	else if (check_rows(b, m->codes, row, rows, err) == 0 &&
		 layer_blob_read_raw(b, m->codes, row * m->words * 4, words, n * m->words * 4, err) == 0 &&
		 layer_blob_read_raw(b, m->scales, row * m->groups * 4, scales, n * m->groups * 4, err) == 0 &&
		 layer_blob_read_raw(b, m->zeros, row * m->groups * 4, zeros, n * m->groups * 4, err) == 0)
		rc = 0;
	for (size_t r = 0; rc == 0 && r < n; r++) {
		packed_unpack_row(words + r * m->words, m->cols, m->bits, codes);
		packed_dequantize_row(codes, scales + r * m->groups, zeros + r * m->groups, m->cols,
				      m->cols / m->groups, out + r * m->cols);
	}
	mem_free(words);
	mem_free(scales);
	mem_free(zeros);
	mem_free(codes);
	return rc;
}

/* What "<module>.weight" is here: *stored, or NULL and *packed. */
static int find_values(const struct layer_blob *b, const char *name, const struct st_tensor **stored,
		       struct packed_module *packed, struct err *err)
{
	static const char suffix[] = ".weight";
	char module[NAME_MAX_BYTES];
	size_t len = strlen(name);

	*stored = st_find(&b->header, name);
	if (*stored)
		return 0;
	if (len < sizeof(suffix) || len >= sizeof(module) ||
	    strcmp(name + len - (sizeof(suffix) - 1), suffix) != 0)
		return err_set(err, ERR_CORRUPT, "%s holds no tensor %s", b->path, name);
	memcpy(module, name, len);
	module[len - (sizeof(suffix) - 1)] = '\0';
	return find_module(b, module, packed, err);
}

int layer_blob_columns(const struct layer_blob *b, const char *name, uint64_t *cols, struct err *err)
{
	const struct st_tensor *stored;
	struct packed_module m = { 0 };

	if (find_values(b, name, &stored, &m, err) != 0)
		return -1;
	*cols = stored ? columns_of(stored) : m.cols;
	return 0;
}

int layer_blob_read_f32(struct layer_blob *b, const char *name, uint64_t row, uint64_t rows, float *out,
			struct err *err)
{
	const struct st_tensor *stored;
	struct packed_module m = { 0 };

	if (find_values(b, name, &stored, &m, err) != 0)
		return -1;
	return stored ? read_stored(b, stored, row, rows, out, err) : read_packed(b, &m, row, rows, out, err);
}

int layer_blob_module(const struct layer_blob *b, const char *module, struct layer_module *m, struct err *err)
{
	struct packed_module p = { 0 };

	if (find_module(b, module, &p, err) != 0)
		return -1;
	*m = (struct layer_module){ .bits = p.bits, .rows = p.codes->shape[0], .cols = p.cols, .groups = p.groups };
	return 0;
}

int layer_blob_read_module(struct layer_blob *b, const char *module, uint8_t *codes, float *scales, float *zeros,
			   struct err *err)
{
	struct packed_module m = { 0 };
	uint32_t *words;
	size_t rows, part;
	int rc = -1;

	if (find_module(b, module, &m, err) != 0)
		return -1;
	rows = m.codes->shape[0];
	part = rows * m.groups * sizeof(float);
	words = mem_alloc(rows * m.words, sizeof(*words));
	if (!words)
		return err_set_nomem(err, "a packed module");
	if (layer_blob_read_raw(b, m.codes, 0, words, rows * m.words * sizeof(*words), err) == 0 &&
	    layer_blob_read_raw(b, m.scales, 0, scales, part, err) == 0 &&
	    layer_blob_read_raw(b, m.zeros, 0, zeros, part, err) == 0)
		rc = 0;
	for (size_t r = 0; rc == 0 && r < rows; r++)
		packed_unpack_row(words + r * m.words, m.cols, m.bits, codes + r * m.cols);
	mem_free(words);
	return rc;
}
