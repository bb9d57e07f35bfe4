/* gguf_tokens_kind.c - which of the kinds that readers know a tokenizer.json is. */
#include <string.h>

#include "common/utf8.h"
#include "formats/gguf_tokens.h"

/* How byte-level tokenizers split text, by the regular expression in tokenizer.json. */
static const struct { const char *regex, *pre; } splits[] = {
	{ "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
	  "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", "llama-bpe" },
	{ "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
	  "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", "qwen2" },
};
#define SPLITS_TEXT "byte-level tokenizers are those that split as Llama 3, Qwen 2 or GPT-2 do"

static bool is_type(const struct json *part, const char *type)
{
	return strcmp(json_get_string(part, "type", ""), type) == 0;
}

/* The part of this type: `part` itself, or one of the parts of a Sequence in member `list`. */
static const struct json *find_part(const struct json *part, const char *list, const char *type)
{
	if (is_type(part, type))
		return part;
	if (!is_type(part, "Sequence"))
		return NULL;
	for (const struct json *p = json_first(json_get(part, list)); p; p = json_next(p))
		if (is_type(p, type))
			return p;
	return NULL;
}

/* A lone ByteLevel that splits by itself splits as GPT-2. */
static const char *plain_split(const struct json *pre, const struct json *bytes)
{
	const bool alone = pre == bytes || json_size(json_get(pre, "pretokenizers")) == 1;

	return alone && json_get_bool(bytes, "use_regex", true) ? "gpt-2" : NULL;
}

static int byte_level(struct vocabulary *v, const struct json *pre, struct err *err)
{
	const struct json *bytes = find_part(pre, "pretokenizers", "ByteLevel");
	const struct json *split = find_part(pre, "pretokenizers", "Split");
	const char *regex = json_get_string(json_get(split, "pattern"), "Regex", NULL);
	char shown[UTF8_SHOWN_MAX];

	if (json_get_bool(bytes, "add_prefix_space", false))
		return err_set(err, ERR_UNSUPPORTED, "tokenizer.json puts a space before the text (add_prefix_space), which gguf cannot "
			       "say of a byte-level tokenizer");
	v->pre = split ? NULL : plain_split(pre, bytes);
	for (size_t i = 0; regex && i < sizeof(splits) / sizeof(splits[0]); i++)
		if (json_size(json_get(pre, "pretokenizers")) == 2 && !json_get_bool(bytes, "use_regex", true) &&
		    strcmp(regex, splits[i].regex) == 0)
			v->pre = splits[i].pre;
	if (v->pre)
		return 0;
	return err_set(err, ERR_UNSUPPORTED, "tokenizer.json splits text by '%s', for which gguf has no name that is known here; "
		       SPLITS_TEXT, utf8_show(shown, regex ? regex : "several rules"));
}

static bool puts_space_first(const struct json *root)
{
	const struct json *meta = find_part(json_get(root, "pre_tokenizer"), "pretokenizers", "Metaspace");

	if (meta && json_get(meta, "prepend_scheme"))
		return strcmp(json_get_string(meta, "prepend_scheme", ""), "never") != 0;
	if (meta)
		return json_get_bool(meta, "add_prefix_space", true);
	return find_part(json_get(root, "normalizer"), "normalizers", "Prepend") != NULL;
}

int tokens_kind(struct vocabulary *v, const struct json *tokenizer, struct err *err)
{
	const struct json *model = json_get(tokenizer, "model"), *pre = json_get(tokenizer, "pre_tokenizer");
	char shown[UTF8_SHOWN_MAX];

	if (!is_type(model, "BPE"))
		return err_set(err, ERR_UNSUPPORTED, "tokenizer.json: the model is of type '%s'; gguf is written for BPE",
			       utf8_show(shown, json_get_string(model, "type", "")));
	if (find_part(pre, "pretokenizers", "ByteLevel"))
		return byte_level(v, pre, err);
	if (!json_get_bool(model, "byte_fallback", false))
		return err_set(err, ERR_UNSUPPORTED, "tokenizer.json is neither byte-level nor has it byte_fallback; gguf is written "
			       "for these two");
	v->space_prefix = puts_space_first(tokenizer);
	return 0;
}
