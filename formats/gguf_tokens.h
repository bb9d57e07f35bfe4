/* gguf_tokens.h - private to formats/gguf_token*.c: the vocabulary while it becomes metadata. */
#ifndef QUARRY_FORMATS_GGUF_TOKENS_H
#define QUARRY_FORMATS_GGUF_TOKENS_H

#include "formats/gguf_tokenizer.h"

/* The numbers are the file format's. 0 = no token of this id. */
enum token_type {
	TOKEN_ABSENT = 0, TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_USER = 4, TOKEN_UNUSED = 5,
	TOKEN_BYTE = 6,
};

struct token {
	const char *text;               /* borrowed from the JSON */
	enum token_type type;
	float score;
};

struct vocabulary {
	struct token *tokens;           /* by id */
	size_t count;
	const char *pre;                /* byte-level: how text is split; NULL: SentencePiece-like */
	bool space_prefix;              /* SentencePiece-like: a space is put before the text */
};

/* Which kind it is, or ERR_UNSUPPORTED: sets pre and space_prefix. */
int tokens_kind(struct vocabulary *v, const struct json *tokenizer, struct err *err);
/* Id of the token of this text; -1 when there is none. O(n). */
int64_t tokens_find(const struct vocabulary *v, const char *text);
/* bos, eos and other ids, whether they are added, the chat template. */
int tokens_special(struct gguf_kv *kv, const struct vocabulary *v, const struct json *tokenizer,
		   const struct gguf_tokenizer *t, struct err *err);
/* Scores of a SentencePiece-like vocabulary, from the merges. */
int tokens_score(struct vocabulary *v, const struct json *merges, struct err *err);
/* tokenizer.ggml.merges, "left right" each. */
int tokens_put_merges(struct gguf_kv *kv, const struct json *merges, struct err *err);
/* The two pieces of a merge: "left right" or ["left", "right"]; lengths in bytes. -1 when it is neither. */
struct merge_pair { const char *left, *right; size_t left_len, right_len; };
int tokens_merge(const struct json *merge, struct merge_pair *out);

#endif
