/* Byte-pair encoding of one pre-token.
 *
 * The text becomes a list of symbols, one per character (or byte, or unknown run); the pair with the
 * lowest rank, leftmost first, is merged until none is left. The symbols form a linked list inside
 * an array, the candidate pairs a heap, so n characters cost n log n steps; stale candidates are
 * recognized when they surface. Words repeat, so a direct-mapped cache keeps the ids of short ones;
 * it has a fixed size and is emptied when full.
 *
 * Texts in the Llama-2 style arrive in one piece. Where no merge reaches from a word into the
 * following U+2581, the piece is cut there first: the result is the same, and words repeat.
 */
#include <string.h>

#include "common/alloc.h"
#include "worker/model/tokenizer_parts.h"

enum {
	CACHE_SLOTS_MAX = 16384,        /* a power of two */
	CACHE_WORD_MAX = 64,            /* bytes of a cached word */
	CACHE_IDS = 24,                 /* ids of a cached word */
	QUEUE_ARITY = 4,
};

struct symbol { int32_t id, prev, next; uint32_t len; }; /* len 0 = merged away */
struct candidate { uint64_t order; int32_t id; };        /* rank << 32 | position */

struct cached {
	uint8_t len, count;     /* len 0 = free */
	char text[CACHE_WORD_MAX];
	int32_t ids[CACHE_IDS];
};

struct bpe_run {
	const struct bpe *bpe;
	struct symbol *symbols; size_t count, cap;
	struct candidate *queue; size_t queued, queue_cap;
	struct cached *cache; size_t mask;
};

struct bpe_run *bpe_run_new(const struct bpe *b, size_t text_len, struct err *err)
{
	struct bpe_run *r = mem_alloc(1, sizeof(*r));
	size_t slots = 16;

	while (slots < CACHE_SLOTS_MAX && slots < text_len / 8)
		slots *= 2;
	if (r) {
		r->bpe = b;
		r->mask = slots - 1;
		r->cache = mem_alloc(slots, sizeof(*r->cache));
	}
	if (r && r->cache)
		return r;
	bpe_run_free(r);
	err_set_nomem(err, "the cache of words");
	return NULL;
}

void bpe_run_free(struct bpe_run *r)
{
	if (!r)
		return;
	mem_free(r->symbols);
	mem_free(r->queue);
	mem_free(r->cache);
	mem_free(r);
}

/* --- symbols ------------------------------------------------------------------------------- */

static int add_symbol(struct bpe_run *r, int32_t id, size_t len, struct err *err)
{
	if (r->count == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 256;
		struct symbol *grown = cap <= INT32_MAX ? mem_realloc(r->symbols, cap, sizeof(*grown)) :
							  NULL;

		if (!grown)
			return err_set_nomem(err, "the symbols of a piece of text");
		r->symbols = grown;
		r->cap = cap;
	}
	r->symbols[r->count] = (struct symbol){ id, (int32_t)r->count - 1, (int32_t)r->count + 1,
						(uint32_t)len };
	r->count++;
	return 0;
}

static int32_t char_id(const struct bpe *b, const char *text, uint32_t cp, size_t len)
{
	return cp < CHAR_IDS ? b->char_id[cp] : vocab_find(&b->vocab, text, len);
}

static bool has_bytes(const struct bpe *b, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (b->byte_id[(unsigned char)text[i]] < 0)
			return false;
	}
	return true;
}

static int add_bytes(struct bpe_run *r, const char *text, size_t len, struct err *err)
{
	for (size_t i = 0; i < len; i++) {
		if (add_symbol(r, r->bpe->byte_id[(unsigned char)text[i]], 1, err) != 0)
			return -1;
	}
	return 0;
}

/* Writes the unknown run that waits, if any. */
static int flush_unknown(struct bpe_run *r, size_t *waiting, struct err *err)
{
	size_t len = *waiting;

	*waiting = 0;
	return len ? add_symbol(r, r->bpe->unk_id, len, err) : 0;
}

/* A character outside the vocabulary: bytes, the unknown token, or nothing. An unknown run stays
 * behind the bytes that follow it until a known character comes: so the reference has it. */
static int add_unknown(struct bpe_run *r, const char *text, size_t len, size_t *waiting,
		       struct err *err)
{
	const struct bpe *b = r->bpe;

	if (b->byte_fallback && has_bytes(b, text, len))
		return add_bytes(r, text, len, err);
	if (b->unk_missing)
		return err_set(err, ERR_REFUSED,
			       "the text has a character outside the vocabulary, and the tokenizer's "
			       "unk_token is not in the vocabulary either");
	if (b->unk_id < 0)
		return 0;
	if (!b->fuse_unk && flush_unknown(r, waiting, err) != 0)
		return -1;
	*waiting += len;
	return 0;
}

static int add_symbols(struct bpe_run *r, const char *text, size_t len, struct err *err)
{
	size_t waiting = 0, n;

	r->count = 0;
	for (size_t at = 0; at < len; at += n) {
		uint32_t cp = uni_decode(text + at, &n);
		int32_t id = char_id(r->bpe, text + at, cp, n);

		if (id < 0) {
			if (add_unknown(r, text + at, n, &waiting, err) != 0)
				return -1;
		} else if (flush_unknown(r, &waiting, err) != 0 || add_symbol(r, id, n, err) != 0) {
			return -1;
		}
	}
	if (flush_unknown(r, &waiting, err) != 0)
		return -1;
	if (r->count)
		r->symbols[r->count - 1].next = -1;
	return 0;
}

/* --- the queue of candidate pairs ----------------------------------------------------------- */

static void sift_down(struct candidate *queue, size_t count, size_t at)
{
	const struct candidate moving = queue[at];

	for (;;) {
		size_t child = at * QUEUE_ARITY + 1, best = child;
		size_t end = child + QUEUE_ARITY < count ? child + QUEUE_ARITY : count;

		if (child >= count)
			break;
		for (size_t c = child + 1; c < end; c++) {
			if (queue[c].order < queue[best].order)
				best = c;
		}
		if (moving.order <= queue[best].order)
			break;
		queue[at] = queue[best];
		at = best;
	}
	queue[at] = moving;
}

static void sift_up(struct candidate *queue, size_t at)
{
	const struct candidate moving = queue[at];

	while (at && moving.order < queue[(at - 1) / QUEUE_ARITY].order) {
		queue[at] = queue[(at - 1) / QUEUE_ARITY];
		at = (at - 1) / QUEUE_ARITY;
	}
	queue[at] = moving;
}

/* Appends the pair that begins at symbol `left`, if it can merge. */
static int enqueue(struct bpe_run *r, int32_t left, struct err *err)
{
	const struct symbol *s = &r->symbols[left];
	const struct merge *merge = merges_find(&r->bpe->merges, s->id, r->symbols[s->next].id);

	if (!merge)
		return 0;
	if (r->queued == r->queue_cap) {
		size_t cap = r->queue_cap ? r->queue_cap * 2 : 256;
		struct candidate *grown = mem_realloc(r->queue, cap, sizeof(*grown));

		if (!grown)
			return err_set_nomem(err, "the merges of a piece of text");
		r->queue = grown;
		r->queue_cap = cap;
	}
	r->queue[r->queued++] = (struct candidate){ (uint64_t)merge->rank << 32 | (uint32_t)left,
						    merge->id };
	return 0;
}

static int enqueue_all(struct bpe_run *r, struct err *err)
{
	r->queued = 0;
	for (size_t i = 0; i + 1 < r->count; i++) {
		if (enqueue(r, (int32_t)i, err) != 0)
			return -1;
	}
	for (size_t i = r->queued / QUEUE_ARITY + 1; i-- > 0;) {
		if (i < r->queued)
			sift_down(r->queue, r->queued, i);
	}
	return 0;
}

static struct candidate dequeue(struct bpe_run *r)
{
	const struct candidate top = r->queue[0];

	r->queue[0] = r->queue[--r->queued];
	if (r->queued)
		sift_down(r->queue, r->queued, 0);
	return top;
}

/* --- merging ------------------------------------------------------------------------------- */

/* Is the candidate still what stands at its position? */
static bool current(const struct bpe_run *r, const struct candidate *c)
{
	const struct symbol *s = &r->symbols[(uint32_t)c->order];
	const struct merge *merge;

	if (s->len == 0 || s->next < 0)
		return false;
	merge = merges_find(&r->bpe->merges, s->id, r->symbols[s->next].id);
	return merge && merge->id == c->id;
}

/* Puts the pair at `left` into the queue as a member of the heap. */
static int requeue(struct bpe_run *r, int32_t left, struct err *err)
{
	size_t before = r->queued;

	if (enqueue(r, left, err) != 0)
		return -1;
	if (r->queued > before)
		sift_up(r->queue, before);
	return 0;
}

static int merge_all(struct bpe_run *r, struct err *err)
{
	if (enqueue_all(r, err) != 0)
		return -1;
	while (r->queued) {
		const struct candidate top = dequeue(r);
		struct symbol *s = &r->symbols[(uint32_t)top.order], *right;

		if (!current(r, &top))
			continue;
		right = &r->symbols[s->next];
		s->id = top.id;
		s->len += right->len;
		s->next = right->next;
		right->len = 0;
		if (s->next >= 0)
			r->symbols[s->next].prev = (int32_t)(uint32_t)top.order;
		if (s->prev >= 0 && requeue(r, s->prev, err) != 0)
			return -1;
		if (s->next >= 0 && requeue(r, (int32_t)(uint32_t)top.order, err) != 0)
			return -1;
	}
	return 0;
}

/* --- words --------------------------------------------------------------------------------- */

static int emit_cached(const struct cached *c, struct token_list *out, struct err *err)
{
	for (size_t i = 0; i < c->count; i++) {
		if (token_list_push(out, c->ids[i], err) != 0)
			return -1;
	}
	return 0;
}

static void remember(struct cached *c, const char *text, size_t len, const int32_t *ids, size_t count)
{
	if (count > CACHE_IDS)
		return;
	c->len = (uint8_t)len;
	c->count = (uint8_t)count;
	memcpy(c->text, text, len);
	memcpy(c->ids, ids, count * sizeof(*ids));
}

static int encode_word(struct bpe_run *r, const char *text, size_t len, struct token_list *out,
		       struct err *err)
{
	struct cached *slot = NULL;
	size_t before = out->count;

	if (len <= CACHE_WORD_MAX) {
		slot = &r->cache[(size_t)text_hash(r->bpe->vocab.seed, text, len) & r->mask];
		if (slot->len == len && memcmp(slot->text, text, len) == 0)
			return emit_cached(slot, out, err);
	}
	if (add_symbols(r, text, len, err) != 0 || merge_all(r, err) != 0)
		return -1;
	for (int32_t i = r->count ? 0 : -1; i >= 0; i = r->symbols[i].next) {
		if (token_list_push(out, r->symbols[i].id, err) != 0)
			return -1;
	}
	if (slot && out->count > before)
		remember(slot, text, len, out->ids + before, out->count - before);
	return 0;
}

/* The end of the word that begins at `at`: the next U+2581 behind another character. */
static size_t word_end(const char *text, size_t len, size_t at)
{
	static const char mark[] = "\xE2\x96\x81";

	while (len - at >= 3 && memcmp(text + at, mark, 3) == 0)
		at += 3;
	while (at < len) {
		const char *next = memchr(text + at, mark[0], len - at);

		if (!next || (size_t)(text + len - next) < 3)
			return len;
		if (memcmp(next, mark, 3) == 0)
			return (size_t)(next - text);
		at = (size_t)(next - text) + 1;
	}
	return len;
}

int bpe_encode(struct bpe_run *r, const char *text, size_t len, struct token_list *out,
	       struct err *err)
{
	size_t end;

	if (r->bpe->ignore_merges) {
		int32_t id = vocab_find(&r->bpe->vocab, text, len);

		if (id >= 0)
			return token_list_push(out, id, err);
	}
	if (!r->bpe->cut_at_words)
		return encode_word(r, text, len, out, err);
	for (size_t at = 0; at < len; at = end) {
		end = word_end(text, len, at);
		if (encode_word(r, text + at, end - at, out, err) != 0)
			return -1;
	}
	return 0;
}
