/* tokenizer.h - tokenizer.json (Hugging Face) to token ids, the same as the `tokenizers` package's.
 *
 * Supports BPE models: byte-level ones (Llama-3, Qwen and GPT-2 kinds) and the Llama-2 kind
 * (byte_fallback, fuse_unk, unk_token); ignore_merges; merges as pairs or "a b" strings; normalizers
 * NFC, NFD, NFKC, NFKD, Prepend, Replace; pre-tokenizers Split, ByteLevel, Digits, Metaspace;
 * post-processors TemplateProcessing, ByteLevel; Sequences of each; added tokens with their lstrip,
 * rstrip, single_word and normalized flags. Anything else is refused by name (ERR_UNSUPPORTED).
 * "truncation", "padding" and "decoder" do not apply. Immutable after loading; encoding is
 * thread-safe, and its time grows as n log n (the file's own patterns aside, whose steps are bounded).
 */
#ifndef QUARRY_WORKER_MODEL_TOKENIZER_H
#define QUARRY_WORKER_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct tokenizer;

/* text: contents of tokenizer.json. NULL with err set; messages name the part, not the file. */
struct tokenizer *tokenizer_new(const char *text, size_t len, struct err *err);
void tokenizer_free(struct tokenizer *t);
size_t tokenizer_vocab(const struct tokenizer *t); /* highest id + 1 */

struct token_list { int32_t *ids; size_t count, cap; };
void token_list_deinit(struct token_list *l);

/* Appends the ids of UTF-8 `text` (invalid UTF-8: ERR_INVALID with the offset; more than 256 MiB:
 * ERR_TOO_LARGE). special: put the post-processor's special tokens around it (e.g. <bos> in front).
 * On failure `out` keeps the ids it had. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool special,
		     struct token_list *out, struct err *err);

#endif
