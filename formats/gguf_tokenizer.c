/* gguf_tokenizer.c - the vocabulary in id order. Special ids: gguf_tokens_special.c; kinds: gguf_tokens_kind.c; merges:
 * gguf_tokens_merges.c. */
#include "formats/gguf_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "formats/gguf_tokens.h"

enum { VOCAB_MAX = 1 << 24 };
#define ADDED_SCORE -1000.0f
#define WORD_START "\xe2\x96\x81" /* U+2581 stands for a space */

/* --- reading ------------------------------------------------------------------------------------- */

static int check_id(const struct vocabulary *v, const struct json *value, const char *text, int64_t *id,
		    struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (!json_int(value, id) || *id < 0)
		return err_set(err, ERR_INVALID, "tokenizer.json: the id of token '%s' is not a non-negative integer",
			       utf8_show(shown, text));
	if ((uint64_t)*id >= v->count)
		return err_set(err, ERR_REFUSED, "tokenizer.json: token '%s' has the id %lld, but the model's embedding has %zu "
			       "rows; gguf needs a row for each token", utf8_show(shown, text), (long long)*id, v->count);
	return 0;
}

static bool is_byte_token(const char *text)
{
	unsigned byte;
	int used = 0;

	return strlen(text) == 6 && sscanf(text, "<0x%2X>%n", &byte, &used) == 1 && used == 6;
}

static int read_vocab(struct vocabulary *v, const struct json *model, struct err *err)
{
	const struct json *vocab = json_get(model, "vocab");
	const char *unknown = json_get_string(model, "unk_token", NULL);
	char shown[UTF8_SHOWN_MAX];

	if (json_type(vocab) != JSON_OBJECT)
		return err_set(err, ERR_INVALID, "tokenizer.json: model.vocab is not an object of tokens and ids");
	for (const struct json *m = json_first(vocab); m; m = json_next(m)) {
		const char *text = json_key(m);
		struct token *t;
		int64_t id;

		if (check_id(v, m, text, &id, err) != 0)
			return -1;
		t = &v->tokens[id];
		if (t->type != TOKEN_ABSENT)
			return err_set(err, ERR_INVALID, "tokenizer.json: token '%s' has the id %lld of another one",
				       utf8_show(shown, text), (long long)id);
		t->text = text;
		t->type = unknown && strcmp(text, unknown) == 0 ? TOKEN_UNKNOWN
			: !v->pre && is_byte_token(text) ? TOKEN_BYTE : TOKEN_NORMAL;
	}
	return 0;
}

/* Looks like <|...|>. */
static bool looks_special(const char *text)
{
	const size_t len = strlen(text);

	return len >= 5 && memcmp(text, "<|", 2) == 0 && memcmp(text + len - 2, "|>", 2) == 0;
}

static int read_added(struct vocabulary *v, const struct json *added, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (const struct json *m = json_first(added); m; m = json_next(m)) {
		struct token *t;
		const char *text;
		int64_t id;

		if (json_require_string(m, "content", &text, err) != 0)
			return err_prefix(err, "tokenizer.json: added_tokens");
		if (check_id(v, json_get(m, "id"), text, &id, err) != 0)
			return -1;
		t = &v->tokens[id];
		if (t->type != TOKEN_ABSENT && strcmp(t->text, text) != 0)
			return err_set(err, ERR_INVALID, "tokenizer.json: added token '%s' has the id %lld of another one",
				       utf8_show(shown, text), (long long)id);
		t->text = text;
		if (t->type != TOKEN_UNKNOWN)
			t->type = json_get_bool(m, "special", false) || looks_special(text) ? TOKEN_CONTROL : TOKEN_USER;
		t->score = ADDED_SCORE;
	}
	return 0;
}

int64_t tokens_find(const struct vocabulary *v, const char *text)
{
	for (size_t i = 0; i < v->count; i++)
		if (v->tokens[i].type != TOKEN_ABSENT && strcmp(v->tokens[i].text, text) == 0)
			return (int64_t)i;
	return -1;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Readers stop when two ids have one text. */
static int check_unique(const struct vocabulary *v, struct err *err)
{
	const char **texts = mem_alloc(v->count, sizeof(*texts));
	char shown[UTF8_SHOWN_MAX];
	size_t n = 0;
	int rc = 0;

	if (!texts)
		return err_set_nomem(err, "the tokens of tokenizer.json");
	for (size_t i = 0; i < v->count; i++)
		if (v->tokens[i].type != TOKEN_ABSENT)
			texts[n++] = v->tokens[i].text;
	qsort(texts, n, sizeof(*texts), by_text);
	for (size_t i = 1; rc == 0 && i < n; i++)
		if (strcmp(texts[i - 1], texts[i]) == 0)
			rc = err_set(err, ERR_INVALID, "tokenizer.json: token '%s' has two ids", utf8_show(shown, texts[i]));
	mem_free(texts);
	return rc;
}

/* --- writing ------------------------------------------------------------------------------------- */

static void put_padding(struct gguf_kv *kv, size_t id)
{
	char text[32];
	const int len = snprintf(text, sizeof(text), "[PAD%zu]", id);

	gguf_element_string(kv, text, (size_t)len);
}

/* Added tokens that are no control tokens are matched in the text itself, where a space is a space. */
static int put_user_token(struct gguf_kv *kv, const char *text, struct err *err)
{
	char *copy = mem_strdup(text);
	size_t len = 0;

	if (!copy)
		return err_set_nomem(err, "a token of tokenizer.json");
	for (const char *at = text; *at;) {
		const bool space = strncmp(at, WORD_START, 3) == 0;

		copy[len++] = space ? ' ' : *at;
		at += space ? 3 : 1;
	}
	gguf_element_string(kv, copy, len);
	mem_free(copy);
	return 0;
}

static int put_tokens(struct gguf_kv *kv, const struct vocabulary *v, struct err *err)
{
	gguf_kv_array(kv, "tokenizer.ggml.tokens", GGUF_VALUE_STRING, v->count);
	for (size_t i = 0; i < v->count; i++) {
		const struct token *t = &v->tokens[i];

		if (t->type == TOKEN_ABSENT)
			put_padding(kv, i);
		else if (t->type != TOKEN_USER)
			gguf_element_string(kv, t->text, strlen(t->text));
		else if (put_user_token(kv, t->text, err) != 0)
			return -1;
	}
	return 0;
}

static void put_types(struct gguf_kv *kv, const struct vocabulary *v)
{
	gguf_kv_array(kv, "tokenizer.ggml.token_type", GGUF_VALUE_I32, v->count);
	for (size_t i = 0; i < v->count; i++)
		gguf_element_i32(kv, v->tokens[i].type == TOKEN_ABSENT ? TOKEN_UNUSED : (int32_t)v->tokens[i].type);
}

static void put_scores(struct gguf_kv *kv, const struct vocabulary *v)
{
	gguf_kv_array(kv, "tokenizer.ggml.scores", GGUF_VALUE_F32, v->count);
	for (size_t i = 0; i < v->count; i++)
		gguf_element_f32(kv, v->tokens[i].score);
}

static int put_vocabulary(struct gguf_kv *kv, struct vocabulary *v, const struct json *merges, struct err *err)
{
	gguf_kv_string(kv, "tokenizer.ggml.model", v->pre ? "gpt2" : "llama");
	gguf_kv_string(kv, "tokenizer.ggml.pre", v->pre ? v->pre : "default");
	if (put_tokens(kv, v, err) != 0)
		return -1;
	put_types(kv, v);
	if (v->pre)
		return tokens_put_merges(kv, merges, err);
	put_scores(kv, v);
	gguf_kv_bool(kv, "tokenizer.ggml.add_space_prefix", v->space_prefix);
	return 0;
}

static int convert(struct gguf_kv *kv, struct vocabulary *v, const struct json *root, const struct gguf_tokenizer *t,
		   struct err *err)
{
	const struct json *model = json_get(root, "model"), *merges = json_get(model, "merges");

	if (tokens_kind(v, root, err) != 0 || read_vocab(v, model, err) != 0 ||
	    (!v->pre && tokens_score(v, merges, err) != 0) ||
	    read_added(v, json_get(root, "added_tokens"), err) != 0 || check_unique(v, err) != 0)
		return -1;
	if (put_vocabulary(kv, v, merges, err) != 0)
		return -1;
	return tokens_special(kv, v, root, t, err);
}

int gguf_meta_tokenizer(struct gguf_kv *kv, const struct gguf_tokenizer *t, struct err *err)
{
	struct vocabulary v = { .count = t->vocab };
	struct json *root;
	int rc = -1;

	if (t->vocab == 0 || t->vocab > VOCAB_MAX)
		return err_set(err, ERR_REFUSED, "gguf holds 1 to %d tokens, not %zu", VOCAB_MAX, t->vocab);
	root = json_parse(t->text, t->len, err);
	if (!root)
		return err_prefix(err, "tokenizer.json");
	v.tokens = mem_alloc(v.count, sizeof(*v.tokens));
	if (!v.tokens)
		err_set_nomem(err, "the tokens of tokenizer.json");
	else
		rc = convert(kv, &v, root, t, err);
	mem_free(v.tokens);
	json_free(root);
	return rc;
}
