/* tokenizer_unicode.h - what the tokenizer needs to know about code points.
 *
 * The answers are those of the Hugging Face `tokenizers` package (Unicode 16 for categories, 10 for
 * normalization), whatever version the system's libraries carry: newer code points come from
 * tokenizer_unicode_data.c. The only files that know utf8proc. Pure, thread-safe.
 */
#ifndef QUARRY_WORKER_MODEL_TOKENIZER_UNICODE_H
#define QUARRY_WORKER_MODEL_TOKENIZER_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

struct uni_range { uint32_t first, last; char category[3]; };

/* Sorted by code point. See tokenizer_unicode_data.c. */
extern const struct uni_range uni_recent[];
extern const size_t uni_recent_count;
extern const struct uni_range uni_norm_unknown[];
extern const size_t uni_norm_unknown_count;

/* White_Space: what \s means. */
extern const struct uni_range uni_space[];
extern const size_t uni_space_count;
/* Alphabetic symbols (category So) and joiners, which \w includes beside L, M, Nd, Nl and Pc. */
extern const struct uni_range uni_word_symbol[];
extern const size_t uni_word_symbol_count;

/* "Lu" and so on; "Cn" when unassigned. */
const char *uni_category(uint32_t cp);
bool uni_is_space(uint32_t cp);
bool uni_is_word(uint32_t cp);
bool uni_is_numeric(uint32_t cp);

/* The code point at well-formed `text`; *len = its length in bytes. */
uint32_t uni_decode(const char *text, size_t *len);

struct uni_form { bool compose, compat; }; /* NFC = {true, false}, NFKD = {false, true}, ... */
/* Appends the normalization form of well-formed UTF-8. Linear in len. */
int uni_normalize(struct uni_form form, const char *text, size_t len, struct buf *out,
		  struct err *err);

#endif
