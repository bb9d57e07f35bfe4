/* A loaded tokenizer, and one text's way through its parts.
 *
 * What an encoding needs beside the tokenizer lives in struct encoding, made for each call: so the
 * tokenizer stays immutable and threads share it. "truncation", "padding" and "decoder" of
 * tokenizer.json do not apply: they concern batches and the way back to text.
 */
#include "worker/model/tokenizer.h"

#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "worker/model/tokenizer_parts.h"

struct tokenizer {
	struct bpe bpe;
	struct normalizers normalizers;
	struct added added;
	struct stages stages;
	struct post post;
};

/* --- shared by the loaders ------------------------------------------------------------------ */

int part_unsupported(const char *where, const char *what, const char *known, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	return err_set(err, ERR_UNSUPPORTED, "%s '%s' is not supported; supported: %s", where,
		       utf8_show(shown, what), known);
}

const char *part_type(const struct json *object, const char *where, struct err *err)
{
	const char *type = json_get_string(object, "type", NULL);

	if (!type)
		err_set(err, ERR_INVALID, "%s: must be an object with the field 'type'", where);
	return type;
}

int part_bool(const struct json *object, const char *key, const char *where, bool *out,
	      struct err *err)
{
	const struct json *value = json_get(object, key);

	if (json_type(value) != JSON_BOOL)
		return err_set(err, ERR_INVALID, "%s: field '%s' must be true or false", where, key);
	*out = json_bool(value, false);
	return 0;
}

struct pattern *part_pattern(const struct json *pattern, const char *where, struct err *err)
{
	const char *text = json_get_string(pattern, "String", NULL);
	const char *regex = json_get_string(pattern, "Regex", NULL);
	struct pattern *p;

	if (regex) {
		p = pattern_new(regex, err);
		if (!p)
			err_prefix(err, "%s", where);
		return p;
	}
	if (text && *text)
		return pattern_new_literal(text, strlen(text), err);
	err_set(err, ERR_INVALID, "%s: field 'pattern' must be {\"String\": text} or {\"Regex\": text}",
		where);
	return NULL;
}

/* --- loading -------------------------------------------------------------------------------- */

static int load(struct tokenizer *t, const struct json *root, struct err *err)
{
	const struct json *version = json_get(root, "version");

	if (json_type(root) != JSON_OBJECT)
		return err_set(err, ERR_INVALID, "must be a JSON object");
	if (version && strcmp(json_string(version, ""), "1.0") != 0)
		return err_set(err, ERR_UNSUPPORTED, "field 'version' must be \"1.0\"");
	if (bpe_load(&t->bpe, json_get(root, "model"), err) != 0 ||
	    normalizers_load(&t->normalizers, json_get(root, "normalizer"), err) != 0 ||
	    added_load(&t->added, json_get(root, "added_tokens"), &t->bpe, &t->normalizers, err) != 0 ||
	    stages_load(&t->stages, json_get(root, "pre_tokenizer"), t->normalizers.count > 0, err) != 0)
		return -1;
	return post_load(&t->post, json_get(root, "post_processor"), err);
}

struct tokenizer *tokenizer_new(const char *text, size_t len, struct err *err)
{
	struct tokenizer *t = mem_alloc(1, sizeof(*t));
	struct json *root = NULL;
	int rc = -1;

	if (!t)
		err_set_nomem(err, "a tokenizer");
	else
		root = json_parse(text, len, err);
	if (root)
		rc = load(t, root, err);
	json_free(root);
	if (rc == 0)
		return t;
	tokenizer_free(t);
	return NULL;
}

void tokenizer_free(struct tokenizer *t)
{
	if (!t)
		return;
	post_deinit(&t->post);
	stages_deinit(&t->stages);
	added_deinit(&t->added);
	normalizers_deinit(&t->normalizers);
	bpe_deinit(&t->bpe);
	mem_free(t);
}

size_t tokenizer_vocab(const struct tokenizer *t)
{
	int32_t max = t->bpe.max_id;

	if (t->added.max_id > max)
		max = t->added.max_id;
	if (t->post.max_id > max)
		max = t->post.max_id;
	return (size_t)(max + 1);
}

/* --- token lists ---------------------------------------------------------------------------- */

void token_list_deinit(struct token_list *l)
{
	mem_free(l->ids);
	*l = (struct token_list){ 0 };
}

static int reserve(struct token_list *l, size_t more, struct err *err)
{
	size_t cap = l->cap ? l->cap : 256, need;
	int32_t *grown;

	if (!size_add(l->count, more, &need))
		return err_set_nomem(err, "a list of tokens");
	if (need <= l->cap)
		return 0;
	while (cap < need)
		cap = cap > SIZE_MAX / 2 ? need : cap * 2;
	grown = mem_realloc(l->ids, cap, sizeof(*grown));
	if (!grown)
		return err_set_nomem(err, "a list of tokens");
	l->ids = grown;
	l->cap = cap;
	return 0;
}

int token_list_push(struct token_list *l, int32_t id, struct err *err)
{
	if (l->count == l->cap && reserve(l, 1, err) != 0)
		return -1;
	l->ids[l->count++] = id;
	return 0;
}

/* --- encoding ------------------------------------------------------------------------------- */

struct encoding {
	const struct tokenizer *t;
	struct err *err;
	struct pattern_state *state;
	struct bpe_run *bpe;
	struct normalize_run normalize;
	struct added_parts written, normalized;
	struct stages_run stages;
};

static int encoding_init(struct encoding *e, const struct tokenizer *t, size_t len,
			 struct token_list *out, struct err *err)
{
	*e = (struct encoding){ .t = t, .err = err };
	for (size_t i = 0; i < 2; i++)
		buf_init(&e->normalize.buf[i], TOKENIZER_TEXT_MAX);
	stages_run_init(&e->stages, &t->stages);
	e->state = pattern_state_new(err);
	if (e->state)
		e->bpe = bpe_run_new(&t->bpe, len, err);
	e->stages.state = e->state;
	e->stages.bpe = e->bpe;
	e->stages.out = out;
	e->stages.err = err;
	return e->bpe ? 0 : -1;
}

static void encoding_deinit(struct encoding *e)
{
	stages_run_deinit(&e->stages);
	spans_deinit(&e->normalize.spans);
	for (size_t i = 0; i < 2; i++)
		buf_deinit(&e->normalize.buf[i]);
	mem_free(e->written.items);
	mem_free(e->normalized.items);
	bpe_run_free(e->bpe);
	pattern_state_free(e->state);
}

/* Text between added tokens as written. */
static int encode_between(struct encoding *e, const char *text, size_t len, bool at_start)
{
	const char *norm;
	size_t norm_len;

	if (normalizers_run(&e->t->normalizers, &e->normalize, e->state, text, len, &norm, &norm_len,
			    e->err) != 0 ||
	    added_find(&e->t->added.normalized, norm, norm_len, &e->normalized, e->err) != 0)
		return -1;
	for (size_t i = 0; i < e->normalized.count; i++) {
		const struct added_part *p = &e->normalized.items[i];
		int rc;

		if (p->id >= 0)
			rc = token_list_push(e->stages.out, p->id, e->err);
		else
			rc = stages_encode(&e->stages, norm + p->start, p->end - p->start,
					   at_start && p->start == 0);
		if (rc != 0)
			return -1;
	}
	return 0;
}

static int encode_text(struct encoding *e, const char *text, size_t len)
{
	if (added_find(&e->t->added.written, text, len, &e->written, e->err) != 0)
		return -1;
	for (size_t i = 0; i < e->written.count; i++) {
		const struct added_part *p = &e->written.items[i];
		int rc;

		if (p->id >= 0)
			rc = token_list_push(e->stages.out, p->id, e->err);
		else
			rc = encode_between(e, text + p->start, p->end - p->start, p->start == 0);
		if (rc != 0)
			return -1;
	}
	return 0;
}

/* A template that names the sequence again gets the same ids again. */
static int repeat(struct token_list *out, size_t begin, size_t count, struct err *err)
{
	if (reserve(out, count, err) != 0)
		return -1;
	if (count)
		memcpy(out->ids + out->count, out->ids + begin, count * sizeof(*out->ids));
	out->count += count;
	return 0;
}

static int encode_template(struct encoding *e, const char *text, size_t len, bool special)
{
	struct token_list *out = e->stages.out;
	size_t begin = 0, count = 0;
	bool encoded = false;

	for (size_t i = 0; i < e->t->post.count; i++) {
		const struct post_piece *piece = &e->t->post.pieces[i];
		int rc = 0;

		if (!piece->sequence) {
			rc = special ? token_list_push(out, piece->id, e->err) : 0;
		} else if (encoded) {
			rc = repeat(out, begin, count, e->err);
		} else {
			begin = out->count;
			rc = encode_text(e, text, len);
			count = out->count - begin;
			encoded = true;
		}
		if (rc != 0)
			return -1;
	}
	return 0;
}

static int check_text(const char *text, size_t len, struct err *err)
{
	if (len > TOKENIZER_TEXT_MAX / 4)
		return err_set(err, ERR_TOO_LARGE, "a text to tokenize may have at most %zu bytes",
			       TOKENIZER_TEXT_MAX / 4);
	for (size_t at = 0; at < len;) {
		size_t n = (unsigned char)text[at] < 0x80 ? 1 : utf8_sequence(text + at, len - at);

		if (n == 0)
			return err_set(err, ERR_INVALID, "the text is not valid UTF-8 at byte %zu", at);
		at += n;
	}
	return 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool special,
		     struct token_list *out, struct err *err)
{
	struct encoding e;
	size_t before = out->count;
	int rc;

	if (check_text(text, len, err) != 0)
		return -1;
	rc = encoding_init(&e, t, len, out, err);
	if (rc == 0)
		rc = encode_template(&e, text, len, special);
	encoding_deinit(&e);
	if (rc != 0)
		out->count = before;
	return rc;
}
