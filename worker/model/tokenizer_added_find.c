/* Finds added tokens in a text.
 *
 * The longest token at the leftmost place wins; the search goes on behind what it found, even when
 * single_word then discards the find. Candidates are a range of the sorted set that narrows byte by
 * byte, so a place where no token begins costs one look-up.
 */
#include "common/alloc.h"
#include "worker/model/tokenizer_parts.h"

/* First of items[low..high) whose byte at `depth` is at least `byte`; all are longer than depth. */
static size_t lower(const struct added_set *set, size_t low, size_t high, size_t depth, unsigned byte)
{
	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if ((unsigned char)set->items[mid]->text[depth] < byte)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* The longest token that begins the text (its first byte is one of the set's), or NULL. */
static const struct added_token *longest(const struct added_set *set, const char *text, size_t len)
{
	const struct added_token *found = NULL;
	size_t low = set->first[(unsigned char)text[0]];
	size_t high = set->first[(unsigned char)text[0] + 1];

	for (size_t depth = 1; low < high; depth++) {
		unsigned byte;

		if (set->items[low]->len == depth)
			found = set->items[low++];
		if (depth == len)
			break;
		byte = (unsigned char)text[depth];
		low = lower(set, low, high, depth, byte);
		high = lower(set, low, high, depth, byte + 1);
	}
	return found;
}

static bool word_before(const char *text, size_t at)
{
	size_t n;

	if (at == 0)
		return false;
	do
		at--;
	while (((unsigned char)text[at] & 0xC0) == 0x80);
	return uni_is_word(uni_decode(text + at, &n));
}

static bool word_after(const char *text, size_t len, size_t at)
{
	size_t n;

	return at < len && uni_is_word(uni_decode(text + at, &n));
}

static size_t spaces_before(const char *text, size_t at)
{
	while (at) {
		size_t begin = at - 1, n;

		while (((unsigned char)text[begin] & 0xC0) == 0x80)
			begin--;
		if (!uni_is_space(uni_decode(text + begin, &n)))
			break;
		at = begin;
	}
	return at;
}

static size_t spaces_after(const char *text, size_t len, size_t at)
{
	size_t n;

	while (at < len && uni_is_space(uni_decode(text + at, &n)))
		at += n;
	return at;
}

static int push(struct added_parts *parts, size_t start, size_t end, int32_t id, struct err *err)
{
	if (start >= end)
		return 0;
	if (parts->count == parts->cap) {
		size_t cap = parts->cap ? parts->cap * 2 : 16;
		struct added_part *grown = mem_realloc(parts->items, cap, sizeof(*grown));

		if (!grown)
			return err_set_nomem(err, "the added tokens of a text");
		parts->items = grown;
		parts->cap = cap;
	}
	parts->items[parts->count++] = (struct added_part){ start, end, id };
	return 0;
}

/* One find at [start, end). *done = how far the text is dealt with; with rstrip it may lie behind
 * the start of the next find, whose strips then begin there. */
static int take(const struct added_token *token, const char *text, size_t len, size_t start,
		size_t end, size_t *done, struct added_parts *out, struct err *err)
{
	if (token->single_word && (word_before(text, start) || word_after(text, len, end)))
		return 0;
	if (token->lstrip) {
		start = spaces_before(text, start);
		if (start < *done)
			start = *done;
	}
	if (token->rstrip)
		end = spaces_after(text, len, end);
	if (push(out, *done, start, -1, err) != 0 || push(out, start, end, token->id, err) != 0)
		return -1;
	*done = end;
	return 0;
}

int added_find(const struct added_set *set, const char *text, size_t len, struct added_parts *out,
	       struct err *err)
{
	size_t done = 0;

	out->count = 0;
	for (size_t at = 0; set->count && at < len;) {
		const struct added_token *token = longest(set, text + at, len - at);

		if (!token) {
			at++;
			continue;
		}
		if (take(token, text, len, at, at + token->len, &done, out, err) != 0)
			return -1;
		at += token->len;
	}
	return push(out, done, len, -1, err);
}
