/* gguf_tokens_special.c - ids with a meaning, whether they are put around a text, and the chat template.
 *
 * tokenizer_config.json comes first, then config.json, then generation_config.json, as readers of the sources take them.
 */
#include <string.h>

#include "common/utf8.h"
#include "formats/gguf_tokens.h"

enum { TOKEN_NONE = -1 };

struct special {
	struct gguf_kv *kv;
	const struct vocabulary *v;
	const struct gguf_tokenizer *t;
	struct err *err;
};

/* A token in tokenizer_config.json: "text" or {"content": "text"}. */
static const char *token_text(const struct json *settings, const char *key)
{
	const struct json *value = json_get(settings, key);

	return json_type(value) == JSON_OBJECT ? json_get_string(value, "content", NULL) : json_string(value, NULL);
}

/* An id or the first of several, or TOKEN_NONE. */
static int64_t first_id(const struct json *object, const char *key)
{
	const struct json *value = json_get(object, key);
	int64_t id;

	if (json_type(value) == JSON_ARRAY)
		value = json_first(value);
	return json_int(value, &id) && id >= 0 ? id : TOKEN_NONE;
}

static int64_t id_of(const struct special *s, const char *text_key, const char *id_key)
{
	const char *text = token_text(s->t->settings, text_key);
	int64_t id = text ? tokens_find(s->v, text) : TOKEN_NONE;

	if (id == TOKEN_NONE)
		id = first_id(s->t->config, id_key);
	return id != TOKEN_NONE ? id : first_id(s->t->generation, id_key);
}

static int put_id(const struct special *s, const char *key, int64_t id)
{
	if (id == TOKEN_NONE)
		return 0;
	if ((uint64_t)id >= s->v->count)
		return err_set(s->err, ERR_REFUSED, "%s is %lld, but the model has %zu tokens", key, (long long)id, s->v->count);
	gguf_kv_u32(s->kv, key, (uint32_t)id);
	return 0;
}

/* Where a turn ends, if that is another token than the end of text: the other id of a list, or by name. */
static int64_t end_of_turn(const struct special *s, int64_t eos)
{
	static const char *const names[] = { "<|eot_id|>", "<|im_end|>", "<end_of_turn>", NULL };
	const struct json *lists[] = { json_get(s->t->generation, "eos_token_id"), json_get(s->t->config, "eos_token_id") };
	int64_t id;

	for (const char *const *name = names; *name; name++) {
		id = tokens_find(s->v, *name);
		if (id != TOKEN_NONE && s->v->tokens[id].type == TOKEN_CONTROL)
			return id != eos ? id : TOKEN_NONE;
	}
	for (size_t i = 0; i < 2; i++)
		for (const struct json *m = json_type(lists[i]) == JSON_ARRAY ? json_first(lists[i]) : NULL; m;
		     m = json_next(m))
			if (json_int(m, &id) && id >= 0 && id != eos)
				return id;
	return TOKEN_NONE;
}

/* --- put around a text --------------------------------------------------------------------------- */

static const struct json *template_of(const struct json *tokenizer)
{
	const struct json *post = json_get(tokenizer, "post_processor");
	const char *type = json_get_string(post, "type", "");

	if (strcmp(type, "TemplateProcessing") == 0)
		return json_get(post, "single");
	for (const struct json *p = json_first(json_get(post, "processors")); p; p = json_next(p))
		if (strcmp(json_get_string(p, "type", ""), "TemplateProcessing") == 0)
			return json_get(p, "single");
	return NULL;
}

/* The token that a template has at its begin or end, or NULL. */
static const char *template_token(const struct json *single, bool at_end)
{
	const size_t count = json_size(single);

	if (json_type(single) != JSON_ARRAY || count == 0)
		return NULL;
	return json_get_string(json_get(json_at(single, at_end ? count - 1 : 0), "SpecialToken"), "id", NULL);
}

static int put_ends(const struct special *s, const struct json *tokenizer)
{
	const struct json *single = template_of(tokenizer);
	const char *begin = template_token(single, false), *end = template_token(single, true);
	int64_t bos = id_of(s, "bos_token", "bos_token_id"), eos = id_of(s, "eos_token", "eos_token_id");

	if (bos == TOKEN_NONE && begin)
		bos = tokens_find(s->v, begin);
	if (eos == TOKEN_NONE && end)
		eos = tokens_find(s->v, end);
	gguf_kv_bool(s->kv, "tokenizer.ggml.add_bos_token",
		     bos != TOKEN_NONE && json_get_bool(s->t->settings, "add_bos_token", begin != NULL));
	gguf_kv_bool(s->kv, "tokenizer.ggml.add_eos_token",
		     eos != TOKEN_NONE && json_get_bool(s->t->settings, "add_eos_token", end != NULL));
	if (put_id(s, "tokenizer.ggml.bos_token_id", bos) != 0 || put_id(s, "tokenizer.ggml.eos_token_id", eos) != 0)
		return -1;
	return put_id(s, "tokenizer.ggml.eot_token_id", end_of_turn(s, eos));
}

static int put_others(const struct special *s, const struct json *tokenizer)
{
	const char *unknown = json_get_string(json_get(tokenizer, "model"), "unk_token", NULL);

	if (put_id(s, "tokenizer.ggml.padding_token_id", id_of(s, "pad_token", "pad_token_id")) != 0)
		return -1;
	return put_id(s, "tokenizer.ggml.unknown_token_id",
		      unknown ? tokens_find(s->v, unknown) : id_of(s, "unk_token", "unk_token_id"));
}

/* --- chat template ------------------------------------------------------------------------------- */

/* One text, or a list of named ones: "default", else the first. */
static const char *chat_template(const struct json *settings)
{
	const struct json *value = json_get(settings, "chat_template");
	const char *first = NULL;

	if (json_type(value) != JSON_ARRAY)
		return json_string(value, NULL);
	for (const struct json *m = json_first(value); m; m = json_next(m)) {
		const char *text = json_get_string(m, "template", NULL);

		if (strcmp(json_get_string(m, "name", ""), "default") == 0)
			return text;
		first = first ? first : text;
	}
	return first;
}

int tokens_special(struct gguf_kv *kv, const struct vocabulary *v, const struct json *tokenizer,
		   const struct gguf_tokenizer *t, struct err *err)
{
	const struct special s = { .kv = kv, .v = v, .t = t, .err = err };
	const char *text = t->chat_template ? t->chat_template : chat_template(t->settings);

	if (put_ends(&s, tokenizer) != 0 || put_others(&s, tokenizer) != 0)
		return -1;
	if (text)
		gguf_kv_string(kv, "tokenizer.chat_template", text);
	return 0;
}
