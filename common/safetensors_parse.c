/* safetensors_parse.c - the JSON text of a safetensors header, streamed into entries.
 *
 * Never a tree: headers of 100 MB are legal. Stricter than the reference in three points: no
 * duplicate keys in __metadata__, no null for it, no NUL inside a name or a metadata string.
 */
#include "common/safetensors_parse.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/json_scan.h"
#include "common/utf8.h"

enum { HEADER_DEPTH = 128 };

struct parser {
	struct json_scan scan;
	struct st_header *h;
	size_t tensor_cap, meta_cap;
	bool meta_seen;
};

static int next(struct parser *p, enum json_token *token, struct err *err)
{
	if (json_scan_next(&p->scan, token, err) == 0)
		return 0;
	if (err && err->code == ERR_INVALID)
		err->code = ERR_CORRUPT;
	return err_prefix(err, "its header");
}

/* The current key or string as a C string; NULL with err set. */
static char *take_text(struct parser *p, struct err *err)
{
	size_t len;
	char *text = json_scan_text(&p->scan, &len);

	if (!text) {
		err_set_nomem(err, "a safetensors header");
	} else if (strlen(text) != len) {
		err_set(err, ERR_CORRUPT, "its header holds a name or text with a NUL character");
		mem_free(text);
		text = NULL;
	}
	return text;
}

static int expect(struct parser *p, enum json_token wanted, const char *what, struct err *err)
{
	enum json_token token;

	if (next(p, &token, err) != 0)
		return -1;
	return token == wanted ? 0 : err_set(err, ERR_CORRUPT, "its header: %s (byte %zu)", what,
					     p->scan.pos);
}

/* --- tensors ------------------------------------------------------------------ */

/* Reads an array of at most `max` unsigned integers. */
static int read_integers(struct parser *p, const char *field, uint64_t *out, unsigned max,
			 unsigned *count, struct err *err)
{
	enum json_token token;

	if (expect(p, JT_ARRAY_BEGIN, "shape and data_offsets must be arrays", err) != 0)
		return -1;
	*count = 0;
	for (;;) {
		if (next(p, &token, err) != 0)
			return -1;
		if (token == JT_ARRAY_END)
			return 0;
		if (*count == max)
			return err_set(err, ERR_CORRUPT, "%s has more than %u numbers", field, max);
		if (token != JT_NUMBER || !json_scan_u64(&p->scan, &out[*count]))
			return err_set(err, ERR_CORRUPT, "%s may hold only plain integers from 0 to 2^64-1",
				       field);
		++*count;
	}
}

static int read_dtype(struct parser *p, struct st_tensor *t, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	char *name;
	int rc;

	if (expect(p, JT_STRING, "dtype must be a string", err) != 0)
		return -1;
	name = take_text(p, err);
	if (!name)
		return -1;
	rc = st_dtype_from_name(name, &t->dtype);
	if (rc != 0)
		err_set(err, ERR_CORRUPT, "unknown dtype \"%s\"", utf8_show(shown, name));
	mem_free(name);
	return rc;
}

static int read_offsets(struct parser *p, struct st_tensor *t, struct err *err)
{
	uint64_t pair[2];
	unsigned count;

	if (read_integers(p, "data_offsets", pair, 2, &count, err) != 0)
		return -1;
	if (count != 2)
		return err_set(err, ERR_CORRUPT, "data_offsets must hold two numbers, not %u", count);
	t->begin = pair[0];
	t->end = pair[1];
	return 0;
}

enum field { FIELD_DTYPE, FIELD_SHAPE, FIELD_OFFSETS, FIELD_OTHER };

static int current_field(struct parser *p, enum field *field, struct err *err)
{
	static const char *const names[] = { "dtype", "shape", "data_offsets" };
	size_t len;
	char *key = json_scan_text(&p->scan, &len);

	if (!key)
		return err_set_nomem(err, "a safetensors header");
	for (*field = FIELD_DTYPE; *field < FIELD_OTHER; ++*field)
		if (len == strlen(names[*field]) && memcmp(names[*field], key, len) == 0)
			break;
	mem_free(key);
	return 0;
}

static int read_field(struct parser *p, struct st_tensor *t, unsigned *seen, struct err *err)
{
	enum field field = FIELD_OTHER;

	if (current_field(p, &field, err) != 0)
		return -1;
	if (field != FIELD_OTHER && (*seen & 1u << field))
		return err_set(err, ERR_CORRUPT, "dtype, shape and data_offsets may each be given once");
	*seen |= 1u << field;
	switch (field) {
	case FIELD_DTYPE:
		return read_dtype(p, t, err);
	case FIELD_SHAPE:
		return read_integers(p, "shape", t->shape, ST_DIMS_MAX, &t->ndim, err);
	case FIELD_OFFSETS:
		return read_offsets(p, t, err);
	case FIELD_OTHER:
		break;
	}
	if (json_scan_skip(&p->scan, err) == 0)
		return 0;
	if (err && err->code == ERR_INVALID)
		err->code = ERR_CORRUPT;
	return err_prefix(err, "its header");
}

static int read_fields(struct parser *p, struct st_tensor *t, struct err *err)
{
	enum json_token token;
	unsigned seen = 0;

	if (expect(p, JT_OBJECT_BEGIN, "each tensor's entry must be an object", err) != 0)
		return -1;
	for (;;) {
		if (next(p, &token, err) != 0)
			return -1;
		if (token == JT_OBJECT_END)
			break;
		if (read_field(p, t, &seen, err) != 0)
			return -1;
	}
	if ((seen & 7) != 7)
		return err_set(err, ERR_CORRUPT, "its entry lacks dtype, shape or data_offsets");
	return 0;
}

static int grow_tensors(struct parser *p, struct err *err)
{
	size_t cap = p->tensor_cap ? p->tensor_cap * 2 : 64;
	struct st_tensor *grown;

	if (p->h->count == ST_TENSORS_MAX)
		return err_set(err, ERR_CORRUPT, "it holds more than %d tensors", ST_TENSORS_MAX);
	grown = mem_realloc(p->h->tensors, cap, sizeof(*grown));
	if (!grown)
		return err_set_nomem(err, "a safetensors header");
	p->h->tensors = grown;
	p->tensor_cap = cap;
	return 0;
}

/* Takes over `name`. */
static int read_tensor(struct parser *p, char *name, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	struct st_tensor *t;

	if (p->h->count == p->tensor_cap && grow_tensors(p, err) != 0) {
		mem_free(name);
		return -1;
	}
	t = &p->h->tensors[p->h->count++];
	*t = (struct st_tensor){ .name = name };
	if (read_fields(p, t, err) != 0)
		return err_prefix(err, "tensor \"%s\"", utf8_show(shown, name));
	return 0;
}

/* --- metadata ----------------------------------------------------------------- */

static int grow_meta(struct parser *p, struct err *err)
{
	size_t cap = p->meta_cap ? p->meta_cap * 2 : 8;
	char **keys, **values;

	if (p->h->meta_count == ST_TENSORS_MAX)
		return err_set(err, ERR_CORRUPT, "__metadata__ holds more than %d entries", ST_TENSORS_MAX);
	keys = mem_realloc(p->h->meta_keys, cap, sizeof(*keys));
	if (keys)
		p->h->meta_keys = keys;
	values = mem_realloc(p->h->meta_values, cap, sizeof(*values));
	if (values)
		p->h->meta_values = values;
	if (!keys || !values)
		return err_set_nomem(err, "a safetensors header");
	p->meta_cap = cap;
	return 0;
}

/* The current token is the key. */
static int read_meta_entry(struct parser *p, struct err *err)
{
	struct st_header *h = p->h;
	char *key, *value = NULL;

	if (h->meta_count == p->meta_cap && grow_meta(p, err) != 0)
		return -1;
	key = take_text(p, err);
	if (key && expect(p, JT_STRING, "the values of __metadata__ must be strings", err) == 0)
		value = take_text(p, err);
	if (!value) {
		mem_free(key);
		return -1;
	}
	h->meta_keys[h->meta_count] = key;
	h->meta_values[h->meta_count++] = value;
	return 0;
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int check_meta_unique(const struct st_header *h, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	const char **sorted;
	int rc = 0;

	if (h->meta_count < 2)
		return 0;
	sorted = mem_alloc(h->meta_count, sizeof(*sorted));
	if (!sorted)
		return err_set_nomem(err, "a safetensors header");
	memcpy(sorted, h->meta_keys, h->meta_count * sizeof(*sorted));
	qsort(sorted, h->meta_count, sizeof(*sorted), compare_texts);
	for (size_t i = 1; rc == 0 && i < h->meta_count; i++)
		if (strcmp(sorted[i - 1], sorted[i]) == 0)
			rc = err_set(err, ERR_CORRUPT, "__metadata__ holds \"%s\" twice",
				     utf8_show(shown, sorted[i]));
	mem_free(sorted);
	return rc;
}

static int read_meta(struct parser *p, struct err *err)
{
	enum json_token token;

	if (p->meta_seen)
		return err_set(err, ERR_CORRUPT, "__metadata__ appears twice");
	p->meta_seen = true;
	if (expect(p, JT_OBJECT_BEGIN, "__metadata__ must be an object of strings", err) != 0)
		return -1;
	for (;;) {
		if (next(p, &token, err) != 0)
			return -1;
		if (token == JT_OBJECT_END)
			return check_meta_unique(p->h, err);
		if (read_meta_entry(p, err) != 0)
			return -1;
	}
}

/* --- the whole ---------------------------------------------------------------- */

static int read_member(struct parser *p, struct err *err)
{
	char *name = take_text(p, err);

	if (!name)
		return -1;
	if (strcmp(name, ST_META_NAME) != 0)
		return read_tensor(p, name, err);
	mem_free(name);
	return read_meta(p, err);
}

int st_parse_header(struct st_header *h, const char *text, size_t len, struct err *err)
{
	struct parser p = { .h = h };
	enum json_token token;

	json_scan_init(&p.scan, text, len, HEADER_DEPTH);
	if (expect(&p, JT_OBJECT_BEGIN, "it must be a JSON object", err) != 0)
		return -1;
	for (;;) {
		if (next(&p, &token, err) != 0)
			return -1;
		if (token == JT_OBJECT_END)
			return next(&p, &token, err);
		if (read_member(&p, err) != 0)
			return -1;
	}
}
