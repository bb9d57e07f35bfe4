/* gguf_read.c - the head of a file, read piece by piece into one buffer; everything points into that. */
#include "formats/gguf_read.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"

enum { READ_AHEAD = 1 << 18, KEY_BYTES_MAX = 65535, ALIGNMENT_DEFAULT = 32, ALIGNMENT_MAX = 1 << 24, FORMAT_VERSION = 3 };

struct parser {
	struct gr_file *g;
	const char *path;
	gr_read_fn read;
	void *ctx;
	struct err *err;
	uint64_t at;            /* next byte */
};

/* --- bytes --------------------------------------------------------------------------------------- */

static int corrupt(struct parser *p, const char *what)
{
	return err_set(p->err, ERR_CORRUPT, "%s, byte %llu: %s", p->path, (unsigned long long)p->at, what);
}

/* At least `len` bytes from p->at on are in the buffer. */
static int need(struct parser *p, uint64_t len)
{
	struct buf *head = &p->g->head;
	uint64_t end, want;
	char *piece;
	int rc;

	if (!u64_add(p->at, len, &end) || end > p->g->size)
		return corrupt(p, "the file ends inside its head");
	if (end <= head->len)
		return 0;
	if (end > GR_HEAD_MAX)
		return err_set(p->err, ERR_TOO_LARGE, "%s: the head has more than %zu bytes", p->path, GR_HEAD_MAX);
	want = end - head->len < READ_AHEAD ? READ_AHEAD : end - head->len;
	if (want > p->g->size - head->len)
		want = p->g->size - head->len;
	piece = mem_alloc_aligned((size_t)want, 1);
	if (!piece)
		return err_set_nomem(p->err, "the head of a gguf file");
	rc = p->read(p->ctx, head->len, piece, (size_t)want, p->err);
	if (rc == 0 && buf_append(head, piece, (size_t)want) != 0)
		rc = err_set_nomem(p->err, "the head of a gguf file");
	mem_free(piece);
	return rc;
}

static uint64_t number_at(const struct gr_file *g, size_t at, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value |= (uint64_t)(unsigned char)g->head.data[at + i] << 8 * i;
	return value;
}

static int take(struct parser *p, unsigned bytes, uint64_t *value)
{
	if (need(p, bytes) != 0)
		return -1;
	*value = number_at(p->g, (size_t)p->at, bytes);
	p->at += bytes;
	return 0;
}

/* A string's place in the buffer. */
static int take_string(struct parser *p, uint64_t limit, size_t *at, size_t *len)
{
	uint64_t bytes;

	if (take(p, 8, &bytes) != 0)
		return -1;
	if (bytes > limit)
		return corrupt(p, "a string is longer than it may be");
	if (need(p, bytes) != 0)
		return -1;
	*at = (size_t)p->at;
	*len = (size_t)bytes;
	p->at += bytes;
	return 0;
}

/* --- metadata ------------------------------------------------------------------------------------ */

static const unsigned char value_bytes[GR_VALUES] = {
	[GR_U8] = 1, [GR_I8] = 1, [GR_U16] = 2, [GR_I16] = 2, [GR_U32] = 4, [GR_I32] = 4, [GR_F32] = 4, [GR_BOOL] = 1,
	[GR_U64] = 8, [GR_I64] = 8, [GR_F64] = 8,
};

static int skip_strings(struct parser *p, uint64_t count)
{
	size_t at, len;

	for (uint64_t i = 0; i < count; i++)
		if (take_string(p, GR_HEAD_MAX, &at, &len) != 0)
			return -1;
	return 0;
}

static int skip_numbers(struct parser *p, enum gr_value type, uint64_t count)
{
	uint64_t bytes;

	if (!u64_mul(count, value_bytes[type], &bytes))
		return corrupt(p, "an array has too many elements");
	if (need(p, bytes) != 0)
		return -1;
	for (uint64_t i = 0; type == GR_BOOL && i < count; i++)
		if ((unsigned char)p->g->head.data[p->at + i] > 1)
			return corrupt(p, "a boolean is neither 0 nor 1");
	p->at += bytes;
	return 0;
}

static int take_type(struct parser *p, enum gr_value *type)
{
	uint64_t number;

	if (take(p, 4, &number) != 0)
		return -1;
	if (number >= GR_VALUES)
		return corrupt(p, "a metadata value is of an unknown type");
	*type = (enum gr_value)number;
	return 0;
}

static int take_value(struct parser *p, struct gr_pair *pair)
{
	if (take_type(p, &pair->type) != 0)
		return -1;
	pair->count = 1;
	pair->is_array = pair->type == GR_ARRAY;
	if (pair->is_array) {
		if (take_type(p, &pair->type) != 0 || take(p, 8, &pair->count) != 0)
			return -1;
		if (pair->type == GR_ARRAY)
			return corrupt(p, "an array of arrays");
	}
	pair->at = (size_t)p->at;
	if ((pair->type == GR_STRING ? skip_strings(p, pair->count) : skip_numbers(p, pair->type, pair->count)) != 0)
		return -1;
	pair->len = (size_t)p->at - pair->at;
	return 0;
}

static int take_pair(struct parser *p, struct gr_pair *pair)
{
	if (take_string(p, KEY_BYTES_MAX, &pair->key_at, &pair->key.len) != 0)
		return -1;
	if (pair->key.len == 0 || memchr(p->g->head.data + pair->key_at, 0, pair->key.len))
		return corrupt(p, "a metadata key is empty or holds a NUL");
	return take_value(p, pair);
}

static int compare_texts(struct gr_text a, struct gr_text b)
{
	const int order = memcmp(a.at, b.at, a.len < b.len ? a.len : b.len);

	return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int by_key(const void *a, const void *b)
{
	return compare_texts(((const struct gr_pair *)a)->key, ((const struct gr_pair *)b)->key);
}

/* "path: metadata key 'x' is there twice" */
static int check_keys(struct parser *p)
{
	struct gr_file *g = p->g;

	for (size_t i = 0; i < g->pair_count; i++) /* now that the buffer no longer moves */
		g->pairs[i].key.at = g->head.data + g->pairs[i].key_at;
	qsort(g->pairs, g->pair_count, sizeof(*g->pairs), by_key);
	for (size_t i = 1; i < g->pair_count; i++) {
		char text[UTF8_SHOWN_MAX], shown[UTF8_SHOWN_MAX];
		const struct gr_text key = g->pairs[i].key;
		const size_t len = key.len < sizeof(text) - 1 ? key.len : sizeof(text) - 1;

		if (by_key(&g->pairs[i - 1], &g->pairs[i]) != 0)
			continue;
		memcpy(text, key.at, len);
		text[len] = '\0';
		return err_set(p->err, ERR_CORRUPT, "%s: metadata key '%s' is there twice", p->path, utf8_show(shown, text));
	}
	return 0;
}

static int read_pairs(struct parser *p, uint64_t count)
{
	struct gr_file *g = p->g;

	if (count > GR_KEYS_MAX)
		return err_set(p->err, ERR_TOO_LARGE, "%s has %llu metadata keys; at most %d are read", p->path,
			       (unsigned long long)count, GR_KEYS_MAX);
	g->pairs = mem_alloc((size_t)count, sizeof(*g->pairs));
	if (!g->pairs)
		return err_set_nomem(p->err, "the metadata of a gguf file");
	for (; g->pair_count < count; g->pair_count++)
		if (take_pair(p, &g->pairs[g->pair_count]) != 0)
			return -1;
	return 0;
}

/* --- tensors ------------------------------------------------------------------------------------- */

static int bad_tensor(struct parser *p, const struct gr_tensor *t, const char *what)
{
	char shown[UTF8_SHOWN_MAX];

	return err_set(p->err, ERR_CORRUPT, "%s: tensor %s %s", p->path, utf8_show(shown, t->name), what);
}

static int take_name(struct parser *p, struct gr_tensor *t)
{
	size_t at = 0, len = 0;

	if (take_string(p, GR_HEAD_MAX, &at, &len) != 0)
		return -1;
	if (len == 0 || len > GR_NAME_MAX || memchr(p->g->head.data + at, 0, len))
		return corrupt(p, "a tensor name is empty, longer than 63 bytes, or holds a NUL");
	memcpy(t->name, p->g->head.data + at, len);
	return 0;
}

static int take_shape(struct parser *p, struct gr_tensor *t)
{
	uint64_t ndim;

	if (take(p, 4, &ndim) != 0)
		return -1;
	if (ndim < 1 || ndim > GR_DIMS_MAX)
		return bad_tensor(p, t, "does not have 1 to 4 dimensions");
	t->ndim = (unsigned)ndim;
	for (unsigned d = 0; d < GR_DIMS_MAX; d++) {
		t->ne[d] = 1;
		if (d < t->ndim && take(p, 8, &t->ne[d]) != 0)
			return -1;
		if (t->ne[d] == 0)
			return bad_tensor(p, t, "has a dimension of 0");
	}
	return 0;
}

static int measure(struct parser *p, struct gr_tensor *t)
{
	uint32_t elements, bytes;
	uint64_t blocks;

	if (!gr_type_block(t->type, &elements, &bytes))
		return err_set(p->err, ERR_UNSUPPORTED, "%s: tensor %s is of type %u, which is not known here", p->path, t->name,
			       (unsigned)t->type);
	if (t->ne[0] % elements != 0)
		return bad_tensor(p, t, "has columns that are no whole blocks of its type");
	blocks = t->ne[0] / elements;
	for (unsigned d = 1; d < GR_DIMS_MAX; d++)
		if (!u64_mul(blocks, t->ne[d], &blocks))
			return bad_tensor(p, t, "has too many elements");
	if (!u64_mul(blocks, bytes, &t->bytes) || t->bytes > INT64_MAX)
		return bad_tensor(p, t, "has too many elements");
	return 0;
}

/* t->begin holds the offset until the data's place is known. */
static int take_tensor(struct parser *p, struct gr_tensor *t)
{
	uint64_t type;

	if (take_name(p, t) != 0 || take_shape(p, t) != 0 || take(p, 4, &type) != 0 || take(p, 8, &t->begin) != 0)
		return -1;
	t->type = (uint32_t)type;
	return measure(p, t);
}

static bool round_up(uint64_t value, uint64_t alignment, uint64_t *out)
{
	if (!u64_add(value, alignment - 1, out))
		return false;
	*out &= ~(alignment - 1);
	return true;
}

static int place_tensors(struct parser *p)
{
	struct gr_file *g = p->g;
	uint64_t at = 0, end;

	for (size_t i = 0; i < g->tensor_count; i++) {
		struct gr_tensor *t = &g->tensors[i];

		if (t->begin != at)
			return bad_tensor(p, t, "does not begin where the one before it ends");
		if (!u64_add(g->data_start, at, &t->begin) || !u64_add(t->begin, t->bytes, &end) || end > g->size)
			return bad_tensor(p, t, "reaches beyond the end of the file");
		if (!round_up(at + t->bytes, g->alignment, &at))
			return bad_tensor(p, t, "reaches beyond the end of the file");
	}
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(const struct gr_tensor *const *)a)->name, (*(const struct gr_tensor *const *)b)->name);
}

static int check_names(struct parser *p)
{
	struct gr_file *g = p->g;
	const struct gr_tensor **sorted = mem_alloc(g->tensor_count, sizeof(*sorted));
	int rc = 0;

	if (!sorted)
		return err_set_nomem(p->err, "the tensors of a gguf file");
	for (size_t i = 0; i < g->tensor_count; i++)
		sorted[i] = &g->tensors[i];
	qsort(sorted, g->tensor_count, sizeof(*sorted), by_name);
	for (size_t i = 1; rc == 0 && i < g->tensor_count; i++)
		if (by_name(&sorted[i - 1], &sorted[i]) == 0)
			rc = bad_tensor(p, sorted[i], "is there twice");
	mem_free(sorted);
	return rc;
}

static int read_tensors(struct parser *p, uint64_t count)
{
	struct gr_file *g = p->g;

	if (count > GR_TENSORS_MAX)
		return err_set(p->err, ERR_TOO_LARGE, "%s has %llu tensors; at most %d are read", p->path,
			       (unsigned long long)count, GR_TENSORS_MAX);
	g->tensors = mem_alloc((size_t)count, sizeof(*g->tensors));
	if (!g->tensors)
		return err_set_nomem(p->err, "the tensors of a gguf file");
	for (; g->tensor_count < count; g->tensor_count++)
		if (take_tensor(p, &g->tensors[g->tensor_count]) != 0)
			return -1;
	return check_names(p);
}

/* --- files --------------------------------------------------------------------------------------- */

static int read_alignment(struct parser *p)
{
	struct gr_file *g = p->g;
	const struct gr_pair *pair = gr_pair(g, "general.alignment");

	g->alignment = ALIGNMENT_DEFAULT;
	if (!pair)
		return 0;
	if (pair->type != GR_U32 || pair->is_array)
		return err_set(p->err, ERR_CORRUPT, "%s: general.alignment is not a 32-bit unsigned integer", p->path);
	g->alignment = number_at(g, pair->at, 4);
	if (g->alignment == 0 || (g->alignment & (g->alignment - 1)) != 0 || g->alignment > ALIGNMENT_MAX)
		return err_set(p->err, ERR_CORRUPT, "%s: general.alignment is %llu, not a power of two of at most %d", p->path,
			       (unsigned long long)g->alignment, ALIGNMENT_MAX);
	return 0;
}

static int read_head(struct parser *p)
{
	uint64_t version, tensors, pairs;

	if (need(p, 4) != 0)
		return -1;
	if (memcmp(p->g->head.data, "GGUF", 4) != 0)
		return err_set(p->err, ERR_CORRUPT, "%s does not begin with \"GGUF\": it is no gguf file", p->path);
	p->at = 4;
	if (take(p, 4, &version) != 0)
		return -1;
	if (version != FORMAT_VERSION)
		return err_set(p->err, ERR_UNSUPPORTED, "%s is of gguf version %llu; version %d is read", p->path,
			       (unsigned long long)version, FORMAT_VERSION);
	if (take(p, 8, &tensors) != 0 || take(p, 8, &pairs) != 0 || read_pairs(p, pairs) != 0)
		return -1;
	return read_tensors(p, tensors);
}

int gr_open(struct gr_file *g, const char *path, uint64_t size, gr_read_fn read, void *ctx, struct err *err)
{
	struct parser p = { .g = g, .path = path, .read = read, .ctx = ctx, .err = err };
	int rc;

	memset(g, 0, sizeof(*g));
	buf_init(&g->head, GR_HEAD_MAX + READ_AHEAD);
	g->size = size;
	rc = read_head(&p);
	if (rc == 0)
		rc = check_keys(&p);
	if (rc == 0)
		rc = read_alignment(&p);
	if (rc == 0 && !round_up(p.at, g->alignment, &g->data_start))
		rc = corrupt(&p, "the head is too long");
	if (rc == 0)
		rc = place_tensors(&p);
	if (rc != 0)
		gr_close(g);
	return rc;
}

struct open_file { int fd; const char *path; };

static int read_fd(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err)
{
	const struct open_file *f = ctx;

	return file_pread(f->fd, bytes, len, offset, f->path, err);
}

int gr_open_path(struct gr_file *g, const char *path, struct err *err)
{
	struct open_file f = { .path = path };
	uint64_t size;
	int rc;

	memset(g, 0, sizeof(*g));
	if (file_size(path, &size, err) != 0)
		return -1;
	f.fd = file_open(path, O_RDONLY, 0, err);
	if (f.fd < 0)
		return -1;
	rc = gr_open(g, path, size, read_fd, &f, err);
	close(f.fd);
	return rc;
}

void gr_close(struct gr_file *g)
{
	buf_deinit(&g->head);
	mem_free(g->pairs);
	mem_free(g->tensors);
	memset(g, 0, sizeof(*g));
}
