/* The table is cut into sets of WAYS places; an address belongs to one set, by a hash of its bytes. */
#include "server/rate.h"

#include <pthread.h>
#include <string.h>

#include "common/alloc.h"

enum { WAYS = 8, SETS = RATE_ADDRESSES / WAYS, BURST_SECONDS = 2 };

struct bucket {
	unsigned char address[16];
	uint64_t used;                  /* number of the request that used it last; 0 = the place is free */
	int64_t seen_ms;
	double tokens;
};

struct rate {
	pthread_mutex_t lock;
	double per_ms, most;
	uint64_t requests;
	struct bucket buckets[SETS][WAYS];
};

struct rate *rate_new(unsigned per_second)
{
	struct rate *r = mem_alloc(1, sizeof(*r));

	if (!r)
		return NULL;
	pthread_mutex_init(&r->lock, NULL);
	r->per_ms = per_second / 1000.0;
	r->most = (double)per_second * BURST_SECONDS;
	return r;
}

void rate_free(struct rate *r)
{
	if (!r)
		return;
	pthread_mutex_destroy(&r->lock);
	mem_free(r);
}

/* FNV-1a over the address. */
static unsigned set_of(const unsigned char address[16])
{
	uint32_t hash = 2166136261u;

	for (int i = 0; i < 16; i++)
		hash = (hash ^ address[i]) * 16777619u;
	return hash % SETS;
}

/* The address's bucket, or the one of its set that was used least lately, made anew. */
static struct bucket *find(struct rate *r, const unsigned char address[16], int64_t now_ms)
{
	struct bucket *set = r->buckets[set_of(address)], *oldest = set;

	for (int i = 0; i < WAYS; i++) {
		if (set[i].used != 0 && memcmp(set[i].address, address, 16) == 0)
			return &set[i];
		if (set[i].used < oldest->used)
			oldest = &set[i];
	}
	memcpy(oldest->address, address, 16);
	oldest->seen_ms = now_ms;
	oldest->tokens = r->most;
	return oldest;
}

bool rate_take(struct rate *r, const unsigned char address[16], int64_t now_ms)
{
	struct bucket *b;
	bool granted;

	if (r->most == 0)
		return true;
	pthread_mutex_lock(&r->lock);
	b = find(r, address, now_ms);
	if (now_ms > b->seen_ms)
		b->tokens += (double)(now_ms - b->seen_ms) * r->per_ms;
	if (b->tokens > r->most)
		b->tokens = r->most;
	b->seen_ms = now_ms;
	b->used = ++r->requests;
	granted = b->tokens >= 1;
	if (granted)
		b->tokens -= 1;
	pthread_mutex_unlock(&r->lock);
	return granted;
}
