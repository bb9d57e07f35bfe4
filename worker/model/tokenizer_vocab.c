/* Two hash tables: strings to ids, and pairs of ids to merges. Both are filled once, then read. */
#include <string.h>

#include "common/alloc.h"
#include "worker/model/tokenizer_parts.h"

/* Multiplies to 128 bits and folds the halves together. */
static uint64_t fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t load(const char *text, size_t len)
{
	uint64_t word = 0;

	memcpy(&word, text, len);
	return word;
}

uint64_t text_hash(uint64_t seed, const char *text, size_t len)
{
	uint64_t h = seed ^ len;

	for (; len > 8; text += 8, len -= 8)
		h = fold(h ^ load(text, 8), UINT64_C(0x9E3779B97F4A7C15) ^ seed);
	return fold(h ^ load(text, len), UINT64_C(0xD1B54A32D192ED03) ^ seed);
}

static size_t table_size(size_t expected)
{
	size_t size = 16;

	while (size / 2 <= expected)
		size *= 2;
	return size;
}

int vocab_init(struct vocab *v, size_t expected, struct err *err)
{
	size_t size = table_size(expected);

	*v = (struct vocab){ .mask = size - 1 };
	v->table = mem_alloc(size, sizeof(*v->table));
	if (!v->table)
		return err_set_nomem(err, "the vocabulary");
	v->seed = (uint64_t)(uintptr_t)v->table * UINT64_C(0x9E3779B97F4A7C15);
	return 0;
}

void vocab_deinit(struct vocab *v)
{
	mem_free(v->bytes);
	mem_free(v->entries);
	mem_free(v->table);
	*v = (struct vocab){ 0 };
}

/* The slot that holds the string, or the free one where it belongs. */
static size_t slot_of(const struct vocab *v, const char *text, size_t len)
{
	size_t slot = (size_t)text_hash(v->seed, text, len) & v->mask;

	for (; v->table[slot]; slot = (slot + 1) & v->mask) {
		const struct vocab_entry *e = &v->entries[v->table[slot] - 1];

		if (e->len == len && memcmp(v->bytes + e->text, text, len) == 0)
			break;
	}
	return slot;
}

int32_t vocab_find(const struct vocab *v, const char *text, size_t len)
{
	size_t slot;

	if (!v->table)
		return -1;
	slot = slot_of(v, text, len);
	return v->table[slot] ? v->entries[v->table[slot] - 1].id : -1;
}

static int grow_bytes(struct vocab *v, size_t len)
{
	size_t cap = v->bytes_cap ? v->bytes_cap : 4096, need;
	char *grown;

	if (!size_add(v->bytes_len, len, &need))
		return -1;
	if (v->bytes && need <= v->bytes_cap)
		return 0;
	while (cap < need) {
		if (!size_mul(cap, 2, &cap))
			return -1;
	}
	grown = mem_realloc(v->bytes, cap, 1);
	if (!grown)
		return -1;
	v->bytes = grown;
	v->bytes_cap = cap;
	return 0;
}

static int grow_entries(struct vocab *v)
{
	size_t cap = v->cap ? v->cap * 2 : 64;
	struct vocab_entry *grown;

	if (v->count < v->cap)
		return 0;
	grown = mem_realloc(v->entries, cap, sizeof(*grown));
	if (!grown)
		return -1;
	v->entries = grown;
	v->cap = cap;
	return 0;
}

int vocab_add(struct vocab *v, const char *text, size_t len, int32_t id, struct err *err)
{
	if (len > UINT32_MAX || v->count >= v->mask / 2 || grow_bytes(v, len) != 0 ||
	    grow_entries(v) != 0)
		return err_set_nomem(err, "the vocabulary");
	v->table[slot_of(v, text, len)] = (uint32_t)v->count + 1;
	v->entries[v->count++] = (struct vocab_entry){ v->bytes_len, (uint32_t)len, id };
	memcpy(v->bytes + v->bytes_len, text, len);
	v->bytes_len += len;
	return 0;
}

/* --- merges -------------------------------------------------------------------------------- */

int merges_init(struct merges *m, size_t expected, struct err *err)
{
	size_t size = table_size(expected);

	m->mask = size - 1;
	m->table = mem_alloc(size, sizeof(*m->table));
	if (!m->table)
		return err_set_nomem(err, "the merges");
	for (size_t i = 0; i < size; i++)
		m->table[i].id = -1;
	return 0;
}

void merges_deinit(struct merges *m)
{
	mem_free(m->table);
	*m = (struct merges){ 0 };
}

static struct merge *merge_slot(const struct merges *m, uint64_t pair)
{
	size_t slot = (size_t)fold(pair ^ UINT64_C(0x2545F4914F6CDD1D), UINT64_C(0x9E3779B97F4A7C15)) &
		      m->mask;

	while (m->table[slot].id >= 0 && m->table[slot].pair != pair)
		slot = (slot + 1) & m->mask;
	return &m->table[slot];
}

static uint64_t pair_of(int32_t left, int32_t right)
{
	return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

const struct merge *merges_find(const struct merges *m, int32_t left, int32_t right)
{
	const struct merge *found = merge_slot(m, pair_of(left, right));

	return found->id >= 0 ? found : NULL;
}

void merges_put(struct merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
	uint64_t pair = pair_of(left, right);

	*merge_slot(m, pair) = (struct merge){ pair, rank, id };
}
