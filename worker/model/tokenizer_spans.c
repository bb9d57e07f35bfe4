/* What the five behaviours of a splitter do with delimiters. Removed drops them; Isolated makes each a
 * piece; Contiguous joins neighbouring ones; MergedWithPrevious and MergedWithNext join the first (the
 * last) delimiter of a row to the text on that side.
 */
#include "worker/model/tokenizer_spans.h"

#include <string.h>

#include "common/alloc.h"

void spans_deinit(struct spans *s)
{
	mem_free(s->items);
	*s = (struct spans){ 0 };
}

int spans_push(struct spans *s, size_t start, size_t end, bool match, struct err *err)
{
	if (s->count == s->cap) {
		size_t cap = s->cap ? s->cap * 2 : 64;
		struct span *grown = mem_realloc(s->items, cap, sizeof(*grown));

		if (!grown)
			return err_set_nomem(err, "pieces of the text");
		s->items = grown;
		s->cap = cap;
	}
	s->items[s->count++] = (struct span){ (uint32_t)start, (uint32_t)end, match, false };
	return 0;
}

int split_behavior_from_name(const char *name, enum split_behavior *out)
{
	static const struct { const char *name; enum split_behavior behavior; } names[] = {
		{ "Removed", SPLIT_REMOVED },
		{ "Isolated", SPLIT_ISOLATED },
		{ "MergedWithPrevious", SPLIT_MERGED_WITH_PREVIOUS },
		{ "MergedWithNext", SPLIT_MERGED_WITH_NEXT },
		{ "Contiguous", SPLIT_CONTIGUOUS },
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(name, names[i].name) == 0) {
			*out = names[i].behavior;
			return 0;
		}
	}
	return -1;
}

void spans_invert(struct spans *s)
{
	for (size_t i = 0; i < s->count; i++)
		s->items[i].match = !s->items[i].match;
}

/* Does a span join the group built so far? `before` is the match flag of its neighbour there. */
static bool joins(enum split_behavior behavior, bool match, bool before)
{
	return behavior == SPLIT_CONTIGUOUS ? match == before : match && !before;
}

static void merge_forward(struct spans *s, enum split_behavior behavior)
{
	size_t kept = 0;
	bool before = false;

	for (size_t i = 0; i < s->count; i++) {
		const struct span span = s->items[i];

		if (kept && joins(behavior, span.match, before))
			s->items[kept - 1].end = span.end;
		else
			s->items[kept++] = span;
		before = span.match;
	}
	s->count = kept;
}

static void merge_backward(struct spans *s)
{
	size_t kept = s->count; /* items[kept..) are done */
	bool before = false;

	for (size_t i = s->count; i-- > 0;) {
		const struct span span = s->items[i];

		if (kept < s->count && joins(SPLIT_MERGED_WITH_NEXT, span.match, before))
			s->items[kept].start = span.start;
		else
			s->items[--kept] = span;
		before = span.match;
	}
	memmove(s->items, s->items + kept, (s->count - kept) * sizeof(*s->items));
	s->count -= kept;
}

void spans_split(struct spans *s, enum split_behavior behavior)
{
	switch (behavior) {
	case SPLIT_REMOVED:
		for (size_t i = 0; i < s->count; i++)
			s->items[i].removed = s->items[i].match;
		break;
	case SPLIT_ISOLATED:
		break;
	case SPLIT_MERGED_WITH_PREVIOUS:
	case SPLIT_CONTIGUOUS:
		merge_forward(s, behavior);
		break;
	case SPLIT_MERGED_WITH_NEXT:
		if (s->count)
			merge_backward(s);
		break;
	}
}
