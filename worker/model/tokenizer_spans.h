/* tokenizer_spans.h - a text cut into consecutive spans, and what a splitter makes of them. */
#ifndef QUARRY_WORKER_MODEL_TOKENIZER_SPANS_H
#define QUARRY_WORKER_MODEL_TOKENIZER_SPANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* Texts and their rewritten forms stay below this, so that positions fit 32 bits. */
#define TOKENIZER_TEXT_MAX ((size_t)1 << 30)

struct span {
	uint32_t start, end;    /* bytes */
	bool match;             /* the delimiter */
	bool removed;
};

/* A growing list: zero-initialize, spans_deinit(). */
struct spans { struct span *items; size_t count, cap; };
void spans_deinit(struct spans *s);
int spans_push(struct spans *s, size_t start, size_t end, bool match, struct err *err);

enum split_behavior {
	SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_MERGED_WITH_PREVIOUS, SPLIT_MERGED_WITH_NEXT,
	SPLIT_CONTIGUOUS,
};
/* Name as in tokenizer.json; -1 when unknown. */
int split_behavior_from_name(const char *name, enum split_behavior *out);

/* Swaps matches and what lies between. */
void spans_invert(struct spans *s);
/* Applies the behaviour: merges neighbours, marks removed ones. */
void spans_split(struct spans *s, enum split_behavior behavior);

#endif
