#include "server/park.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"

enum { PARK_BUCKETS = 64 }; /* jobs share generations; a false "changed" costs one more look */

struct park {
	pthread_mutex_t lock;
	struct park_slot *first, *last;
	uint64_t lease_generation, job_generation[PARK_BUCKETS];
	int misses_left;
	unsigned count;
	bool closed;
};

struct park *park_new(void)
{
	struct park *p = mem_alloc(1, sizeof(*p));

	if (p)
		pthread_mutex_init(&p->lock, NULL);
	return p;
}

void park_free(struct park *p)
{
	if (!p)
		return;
	pthread_mutex_destroy(&p->lock);
	mem_free(p);
}

static uint64_t *generation_of(struct park *p, enum park_kind kind, const char *id)
{
	unsigned hash = 5381;

	if (kind == PARK_LEASE)
		return &p->lease_generation;
	for (; *id; id++)
		hash = hash * 33 + (unsigned char)*id;
	return &p->job_generation[hash % PARK_BUCKETS];
}

uint64_t park_generation(struct park *p, enum park_kind kind, const char *id)
{
	uint64_t generation;

	pthread_mutex_lock(&p->lock);
	generation = *generation_of(p, kind, id);
	pthread_mutex_unlock(&p->lock);
	return generation;
}

/* --- the list; the lock is held --------------------------------------------------- */

static void append(struct park *p, struct park_slot *slot)
{
	slot->prev = p->last;
	slot->next = NULL;
	if (p->last)
		p->last->next = slot;
	else
		p->first = slot;
	p->last = slot;
	p->count++;
}

static void wake(struct park *p, struct park_slot *slot)
{
	if (slot->prev)
		slot->prev->next = slot->next;
	else
		p->first = slot->next;
	if (slot->next)
		slot->next->prev = slot->prev;
	else
		p->last = slot->prev;
	p->count--;
	http_resume(slot->x); /* from here the slot may be gone */
}

/* Wakes up to `wanted` leases, longest waiting first, that have not looked since the last change. */
static void wake_leases(struct park *p, int wanted)
{
	struct park_slot *next;

	for (struct park_slot *slot = p->first; slot && wanted > 0; slot = next) {
		next = slot->next;
		if (slot->kind != PARK_LEASE || slot->generation == p->lease_generation)
			continue;
		wake(p, slot);
		wanted--;
	}
}

static void wake_job(struct park *p, const char *id)
{
	struct park_slot *next;

	for (struct park_slot *slot = p->first; slot; slot = next) {
		next = slot->next;
		if (slot->kind == PARK_JOB && strcmp(slot->id, id) == 0)
			wake(p, slot);
	}
}

/* --- requests ------------------------------------------------------------------------ */

enum park_result park_add(struct park *p, struct park_slot *slot, struct http_exchange *x,
			  enum park_kind kind,
			  const char *id, uint64_t generation, int64_t deadline_ms)
{
	enum park_result result = PARKED;

	pthread_mutex_lock(&p->lock);
	if (p->closed) {
		result = PARK_CLOSED;
	} else if (*generation_of(p, kind, id) != generation) {
		result = PARK_CHANGED;
	} else {
		slot->kind = kind;
		snprintf(slot->id, sizeof(slot->id), "%s", id);
		slot->generation = generation;
		slot->deadline_ms = deadline_ms;
		slot->x = x;
		http_suspend(x);
		append(p, slot);
	}
	pthread_mutex_unlock(&p->lock);
	return result;
}

void park_changed(struct park *p, enum park_kind kind, const char *id)
{
	pthread_mutex_lock(&p->lock);
	++*generation_of(p, kind, id);
	if (kind == PARK_LEASE) {
		p->misses_left = LEASE_MISSES;
		wake_leases(p, LEASE_WAVE);
	} else {
		wake_job(p, id);
	}
	pthread_mutex_unlock(&p->lock);
}

void park_lease_tried(struct park *p, enum park_try what)
{
	pthread_mutex_lock(&p->lock);
	if (what == LEASE_TAKEN)
		wake_leases(p, LEASE_WAVE);
	else if (what == LEASE_LEFT || (p->misses_left > 0 && p->misses_left--))
		wake_leases(p, 1);
	pthread_mutex_unlock(&p->lock);
}

void park_tick(struct park *p, int64_t now_ms, bool check_peers)
{
	struct park_slot *next;

	pthread_mutex_lock(&p->lock);
	for (struct park_slot *slot = p->first; slot; slot = next) {
		next = slot->next;
		if (now_ms >= slot->deadline_ms || (check_peers && http_peer_gone(slot->x)))
			wake(p, slot);
	}
	pthread_mutex_unlock(&p->lock);
}

void park_close(struct park *p)
{
	pthread_mutex_lock(&p->lock);
	p->closed = true;
	while (p->first)
		wake(p, p->first);
	pthread_mutex_unlock(&p->lock);
}

unsigned park_count(struct park *p)
{
	unsigned count;

	pthread_mutex_lock(&p->lock);
	count = p->count;
	pthread_mutex_unlock(&p->lock);
	return count;
}
