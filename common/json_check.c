/* json_check.c - the gate in front of the tree parser: the scanner's rules, plus what a tree of C
 * strings cannot hold (\u0000, numbers longer than its buffer) and keys that occur twice.
 *
 * Keys of the objects that are open are kept in one stack. When an object ends its keys are sorted
 * and compared with their neighbours: n log n whatever an attacker writes, no hash to collide. */
#include "common/json_scan.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"

enum { NUMBER_LITERAL_MAX = 63, NAME_SHOWN_MAX = 100 };

struct key {
	const char *text; /* into the document, or `owned` */
	size_t len;
	char *owned;      /* the key with its escapes resolved; NULL when it has none */
};

struct checker {
	struct json_scan scan;
	struct key *keys;
	size_t count, cap;
	size_t first[JSON_SCAN_DEPTH_MAX + 1]; /* per depth: the first key of the object open there */
};

static int compare_keys(const void *a, const void *b)
{
	const struct key *x = a, *y = b;
	size_t shorter = x->len < y->len ? x->len : y->len;
	int order = memcmp(x->text, y->text, shorter);

	return order ? order : (x->len > y->len) - (x->len < y->len);
}

static void drop_keys(struct checker *c, size_t from)
{
	for (size_t i = from; i < c->count; i++)
		mem_free(c->keys[i].owned);
	c->count = from;
}

static int grow_keys(struct checker *c, struct err *err)
{
	size_t cap = c->cap ? c->cap * 2 : 64;
	struct key *grown = mem_realloc(c->keys, cap, sizeof(*grown));

	if (!grown)
		return err_set_nomem(err, "the keys of a JSON object");
	c->keys = grown;
	c->cap = cap;
	return 0;
}

/* The tree holds C strings: an escaped NUL would cut them short unseen. */
static int refuse_nul(const struct json_scan *s, struct err *err)
{
	const char *end = s->token + s->token_len;

	if (!s->token_escaped)
		return 0;
	for (const char *p = s->token; p < end; p++) {
		if (*p != '\\')
			continue;
		if (p[1] == 'u' && memcmp(p + 2, "0000", 4) == 0)
			return err_set(err, ERR_INVALID, "the string that ends at byte %zu holds \\u0000",
				       s->pos);
		p++;
	}
	return 0;
}

static int add_key(struct checker *c, struct err *err)
{
	struct key key = { .text = c->scan.token, .len = c->scan.token_len };

	if (refuse_nul(&c->scan, err) != 0 || (c->count == c->cap && grow_keys(c, err) != 0))
		return -1;
	if (c->scan.token_escaped) {
		key.owned = json_scan_text(&c->scan, &key.len);
		if (!key.owned)
			return err_set_nomem(err, "a JSON key");
		key.text = key.owned;
	}
	c->keys[c->count++] = key;
	return 0;
}

static int end_object(struct checker *c, struct err *err)
{
	size_t first = c->first[c->scan.depth + 1];
	struct key *keys = c->keys + first;
	size_t count = c->count - first;

	if (count > 1)
		qsort(keys, count, sizeof(*keys), compare_keys);
	for (size_t i = 1; i < count; i++)
		if (compare_keys(&keys[i - 1], &keys[i]) == 0)
			return err_set(err, ERR_INVALID, "the key \"%.*s\" appears twice in one object",
				       (int)utf8_cut(keys[i].text, keys[i].len, NAME_SHOWN_MAX),
				       keys[i].text);
	drop_keys(c, first);
	return 0;
}

static int check_token(struct checker *c, enum json_token token, struct err *err)
{
	switch (token) {
	case JT_OBJECT_BEGIN:
		c->first[c->scan.depth] = c->count;
		return 0;
	case JT_OBJECT_END:
		return end_object(c, err);
	case JT_KEY:
		return add_key(c, err);
	case JT_STRING:
		return refuse_nul(&c->scan, err);
	case JT_NUMBER:
		if (c->scan.token_len > NUMBER_LITERAL_MAX)
			return err_set(err, ERR_INVALID, "the number that ends at byte %zu has more than %d "
				       "characters", c->scan.pos, NUMBER_LITERAL_MAX);
		return 0;
	case JT_ARRAY_BEGIN:
	case JT_ARRAY_END:
	case JT_TRUE:
	case JT_FALSE:
	case JT_NULL:
	case JT_END:
		return 0;
	}
	return 0;
}

int json_check(const char *text, size_t len, unsigned depth_limit, struct err *err)
{
	struct checker c = { 0 };
	enum json_token token;
	int rc;

	json_scan_init(&c.scan, text, len, depth_limit);
	do {
		rc = json_scan_next(&c.scan, &token, err);
		if (rc == 0)
			rc = check_token(&c, token, err);
	} while (rc == 0 && token != JT_END);
	drop_keys(&c, 0);
	mem_free(c.keys);
	return rc;
}
