/* "added_tokens" of tokenizer.json: strings that become one id each, wherever they occur.
 *
 * Ids follow the reference, not the file: a token that the vocabulary knows has that id, the others
 * are numbered on from the size of the vocabulary in file order; of two tokens with one id the later
 * stays. Tokens with normalized=true are looked for in normalized text, in their normalized form.
 */
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "worker/model/tokenizer_parts.h"

enum { CONTENT_MAX = 4096 };

static int load_flags(struct added_token *token, const struct json *json, struct err *err)
{
	bool special;

	if (part_bool(json, "single_word", "added token", &token->single_word, err) != 0 ||
	    part_bool(json, "lstrip", "added token", &token->lstrip, err) != 0 ||
	    part_bool(json, "rstrip", "added token", &token->rstrip, err) != 0 ||
	    part_bool(json, "normalized", "added token", &token->normalized, err) != 0)
		return -1;
	return part_bool(json, "special", "added token", &special, err);
}

static int load_token(struct added_token *token, const struct json *json, struct err *err)
{
	const char *content;
	int64_t id;

	if (json_type(json) != JSON_OBJECT)
		return err_set(err, ERR_INVALID, "added_tokens: each entry must be an object");
	if (json_require_int(json, "id", 0, INT32_MAX - 1, &id, err) != 0 ||
	    json_require_string(json, "content", &content, err) != 0)
		return err_prefix(err, "added_tokens");
	token->len = strlen(content);
	if (token->len > CONTENT_MAX)
		return err_set(err, ERR_UNSUPPORTED,
			       "added_tokens: a token of more than %d bytes is not supported", CONTENT_MAX);
	if (load_flags(token, json, err) != 0)
		return -1;
	token->text = mem_strndup(content, token->len);
	return token->text ? 0 : err_set_nomem(err, "an added token");
}

/* While loading: which contents and which ids there are. */
struct seen {
	struct vocab contents;
	struct merges ids;      /* "pair" (id, 0) to the token's index, as rank */
};

/* Takes the place of an earlier token with the same id. */
static void keep(struct added *a, struct seen *seen, struct added_token token)
{
	const struct merge *earlier = merges_find(&seen->ids, token.id, 0);
	size_t at = earlier ? earlier->rank : a->count;

	if (earlier) {
		mem_free(a->tokens[at].text);
	} else {
		a->count++;
		merges_put(&seen->ids, token.id, 0, (uint32_t)at, 0);
	}
	a->tokens[at] = token;
	if (token.id > a->max_id)
		a->max_id = token.id;
}

/* The id by the rules above; -1 when none is left. */
static int32_t assign_id(const struct added_token *token, const struct vocab *contents,
			 const struct bpe *model, size_t *next)
{
	int32_t id = vocab_find(contents, token->text, token->len);

	if (id < 0)
		id = vocab_find(&model->vocab, token->text, token->len);
	if (id >= 0)
		return id;
	return *next < INT32_MAX ? (int32_t)(*next)++ : -1;
}

/* Gives the token its id and keeps it; `token.text` is taken over. */
static int add_token(struct added *a, struct seen *seen, struct added_token token,
		     const struct bpe *model, size_t *next, struct err *err)
{
	bool fresh = vocab_find(&seen->contents, token.text, token.len) < 0;
	int rc = 0;

	token.id = assign_id(&token, &seen->contents, model, next);
	if (token.id < 0)
		rc = err_set(err, ERR_INVALID, "added_tokens: no id is left for another token");
	else if (fresh)
		rc = vocab_add(&seen->contents, token.text, token.len, token.id, err);
	if (rc == 0)
		keep(a, seen, token);
	else
		mem_free(token.text);
	return rc;
}

static int load_tokens(struct added *a, struct seen *seen, const struct json *json,
		       const struct bpe *model, struct err *err)
{
	size_t next = model->vocab.count;

	for (const struct json *item = json_first(json); item; item = json_next(item)) {
		struct added_token token = { 0 };

		if (load_token(&token, item, err) != 0)
			return -1;
		if (token.len == 0)
			mem_free(token.text);
		else if (add_token(a, seen, token, model, &next, err) != 0)
			return -1;
	}
	return 0;
}

static int normalize_token(struct added_token *token, const struct normalizers *normalizers,
			   struct normalize_run *w, struct pattern_state *state, struct err *err)
{
	const char *text;
	char *copy;
	size_t len;

	if (!token->normalized)
		return 0;
	if (normalizers_run(normalizers, w, state, token->text, token->len, &text, &len, err) != 0)
		return -1;
	copy = mem_strndup(text, len);
	if (!copy)
		return err_set_nomem(err, "an added token");
	mem_free(token->text);
	token->text = copy;
	token->len = len;
	return 0;
}

static int normalize_tokens(struct added *a, const struct normalizers *normalizers, struct err *err)
{
	struct normalize_run w = { 0 };
	struct pattern_state *state;
	int rc = 0;

	if (normalizers->count == 0)
		return 0;
	state = pattern_state_new(err);
	if (!state)
		return -1;
	for (size_t i = 0; i < 2; i++)
		buf_init(&w.buf[i], TOKENIZER_TEXT_MAX);
	for (size_t i = 0; i < a->count && rc == 0; i++)
		rc = normalize_token(&a->tokens[i], normalizers, &w, state, err);
	for (size_t i = 0; i < 2; i++)
		buf_deinit(&w.buf[i]);
	spans_deinit(&w.spans);
	pattern_state_free(state);
	return rc;
}

static int by_text(const void *left, const void *right)
{
	const struct added_token *a = *(const struct added_token *const *)left;
	const struct added_token *b = *(const struct added_token *const *)right;
	int order = memcmp(a->text, b->text, a->len < b->len ? a->len : b->len);

	return order ? order : (a->len > b->len) - (a->len < b->len);
}

static int check_unique(const struct added_set *set, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (size_t i = 1; i < set->count; i++) {
		if (by_text(&set->items[i - 1], &set->items[i]) == 0)
			return err_set(err, ERR_UNSUPPORTED,
				       "added_tokens: ids %d and %d have the same normalized form '%s'",
				       (int)set->items[i - 1]->id, (int)set->items[i]->id,
				       utf8_show(shown, set->items[i]->text));
	}
	return 0;
}

static int build_set(struct added_set *set, const struct added *a, bool normalized, struct err *err)
{
	size_t at = 0;

	set->items = mem_alloc(a->count, sizeof(*set->items));
	if (!set->items)
		return err_set_nomem(err, "the added tokens");
	for (size_t i = 0; i < a->count; i++) {
		if (a->tokens[i].normalized == normalized && a->tokens[i].len)
			set->items[set->count++] = &a->tokens[i];
	}
	qsort(set->items, set->count, sizeof(*set->items), by_text);
	for (unsigned byte = 0; byte < 256; byte++) {
		set->first[byte] = at;
		while (at < set->count && (unsigned char)set->items[at]->text[0] == byte)
			at++;
	}
	set->first[256] = at;
	return check_unique(set, err);
}

int added_load(struct added *a, const struct json *json, const struct bpe *model,
	       const struct normalizers *normalizers, struct err *err)
{
	struct seen seen = { 0 };
	int rc;

	*a = (struct added){ .max_id = -1 };
	if (json_type(json) != JSON_NULL && json_type(json) != JSON_ARRAY)
		return err_set(err, ERR_INVALID, "field 'added_tokens' must be a list");
	a->tokens = mem_alloc(json_size(json), sizeof(*a->tokens));
	if (!a->tokens)
		return err_set_nomem(err, "the added tokens");
	rc = vocab_init(&seen.contents, json_size(json), err);
	if (rc == 0)
		rc = merges_init(&seen.ids, json_size(json), err);
	if (rc == 0)
		rc = load_tokens(a, &seen, json, model, err);
	vocab_deinit(&seen.contents);
	merges_deinit(&seen.ids);
	if (rc != 0 || normalize_tokens(a, normalizers, err) != 0)
		return -1;
	if (build_set(&a->written, a, false, err) != 0)
		return -1;
	return build_set(&a->normalized, a, true, err);
}

void added_deinit(struct added *a)
{
	for (size_t i = 0; i < a->count; i++)
		mem_free(a->tokens[i].text);
	mem_free(a->tokens);
	mem_free(a->written.items);
	mem_free(a->normalized.items);
	*a = (struct added){ 0 };
}
