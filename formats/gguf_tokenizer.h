/* gguf_tokenizer.h - tokenizer.json as GGUF metadata.
 *
 * Two kinds: byte-level BPE ("gpt2", with the name of its way to split text) and BPE over characters with byte
 * fallback ("llama", SentencePiece-like: a piece's score is minus the rank of the merge that makes it). Others, and
 * ways to split that no reader has a name for, are refused (ERR_UNSUPPORTED) with what was found.
 * Ids that the vocabulary leaves out become "[PAD<id>]", so that there are as many tokens as embedding rows.
 * Input is untrusted. Thread-safe.
 */
#ifndef QUARRY_FORMATS_GGUF_TOKENIZER_H
#define QUARRY_FORMATS_GGUF_TOKENIZER_H

#include "common/err.h"
#include "common/json.h"
#include "formats/gguf_file.h"

struct gguf_tokenizer {
	const char *text;               /* tokenizer.json */
	size_t len;
	const struct json *settings;    /* tokenizer_config.json, or NULL */
	const struct json *generation;  /* generation_config.json, or NULL */
	const struct json *config;      /* config.json */
	const char *chat_template;      /* chat_template.jinja; NULL = what tokenizer_config.json has, if anything */
	size_t vocab;                   /* rows of the embedding */
};

/* Adds tokenizer.* to the metadata. 0 or -1; sentences name tokenizer.json. */
int gguf_meta_tokenizer(struct gguf_kv *kv, const struct gguf_tokenizer *t, struct err *err);

#endif
