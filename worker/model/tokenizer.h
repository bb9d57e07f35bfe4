/* tokenizer.h - tokenizer.json (Hugging Face) to token ids.
 *
 * Supports byte-level BPE (Split regex + ByteLevel; Llama-3, Qwen and GPT-2 kinds) and the Llama-2
 * kind (Prepend/Replace normalizers, byte_fallback), added tokens with their lstrip/rstrip/
 * single_word/normalized flags, NFC/NFD/NFKC/NFKD and Sequence normalizers, TemplateProcessing and
 * Sequence post-processors, ignore_merges, merges as pairs or "a b" strings. Anything else is refused
 * by name (ERR_UNSUPPORTED). Immutable after loading; encoding is thread-safe.
 */
#ifndef QUARRY_WORKER_MODEL_TOKENIZER_H
#define QUARRY_WORKER_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct tokenizer;

/* text: contents of tokenizer.json. */
struct tokenizer *tokenizer_new(const char *text, size_t len, struct err *err);
void tokenizer_free(struct tokenizer *t);
size_t tokenizer_vocab(const struct tokenizer *t); /* highest id + 1 */

struct token_list { int32_t *ids; size_t count, cap; };
void token_list_deinit(struct token_list *l);

/* Appends the ids of UTF-8 `text` (invalid UTF-8: ERR_INVALID with the offset). special: run the
 * post-processor (e.g. put <bos> in front). */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool special,
		     struct token_list *out, struct err *err);

#endif
