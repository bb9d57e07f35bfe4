/* sampler.h - from a text to fixed-length token sequences.
 *
 * .jsonl: one object a line with `text` (tokenized on its own, special tokens as tokenizer.json says) or
 * `input_ids`. Calibration takes the first `wanted` lines that have at least seq_len tokens, the first
 * seq_len tokens of each. Evaluation joins all lines' tokens.
 * Plain text: tokenized as a whole, cut into consecutive windows of seq_len; a rest is dropped.
 * A seed other than 0 takes `wanted` of all long enough sequences at random instead of the first ones; the same
 * seed takes the same ones everywhere.
 */
#ifndef QUARRY_WORKER_SAMPLER_H
#define QUARRY_WORKER_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "worker/model/tokenizer.h"

struct sampler {
	const struct tokenizer *tokenizer;      /* borrowed */
	const char *name;                       /* of the text, for messages; borrowed */
	size_t seq_len;
	size_t wanted;                          /* sequences at most; 0 = all there are */
	size_t vocab;                           /* ids must be below */
	uint64_t seed;                          /* 0 = the first sequences */
	struct token_list ids;                  /* the sequences so far, seq_len ids each */
	size_t sequences;
	size_t lines, text_tokens;              /* lines read, tokens seen */
};

void sampler_deinit(struct sampler *s);
/* Calibration from .jsonl text. Too few long lines is ERR_REFUSED with what there is. */
int sampler_take_lines(struct sampler *s, const char *text, size_t len, struct err *err);
/* Windows over the whole text; at least one, else ERR_REFUSED. When `exact`, fewer than wanted is refused too. */
int sampler_take_windows(struct sampler *s, const char *text, size_t len, bool jsonl, bool exact,
			 struct err *err);

#endif
