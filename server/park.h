/* park.h - requests that wait for something to happen: long polls and event streams.
 *
 * A parked exchange is suspended (http.h) and listed here until it is woken: by a change, by its deadline,
 * because its client hung up, or because the server stops. Waking only resumes the exchange; its
 * step then looks at the world again.
 *
 * No wake is lost: whoever wants to wait reads a generation first, then looks, then parks with
 * that generation; if a change came in between, park_add() refuses and the caller looks again.
 *
 * Leases do not stampede: a change wakes LEASE_WAVE of them, each that got a task wakes as many more, each
 * that got none wakes one more, at most LEASE_MISSES times a change; those that left what there is to faster workers wake one
 * more each, so that these hear of it.
 * Thread-safe. park_changed() may be called from the engine's writer thread: it does not block.
 */
#ifndef QUARRY_SERVER_PARK_H
#define QUARRY_SERVER_PARK_H

#include <stdbool.h>
#include <stdint.h>

#include "server/http.h"

enum { LEASE_WAVE = 2, LEASE_MISSES = 8 };

enum park_kind { PARK_LEASE, PARK_JOB };
enum park_try { LEASE_TAKEN, LEASE_LEFT, LEASE_MISSED };

/* Embedded in the request; private. */
struct park_slot {
	enum park_kind kind;
	char id[128];
	uint64_t generation;
	int64_t deadline_ms;
	struct http_exchange *x;
	struct park_slot *prev, *next;
};

enum park_result { PARKED, PARK_CHANGED, PARK_CLOSED };

struct park;

struct park *park_new(void);
void park_free(struct park *p);
/* What to give to park_add() later. */
uint64_t park_generation(struct park *p, enum park_kind kind, const char *id);
/* Suspends and lists the exchange (PARKED), or says why not; then nothing was suspended. */
enum park_result park_add(struct park *p, struct park_slot *slot, struct http_exchange *x,
			  enum park_kind kind,
			  const char *id, uint64_t generation, int64_t deadline_ms);
/* Tasks may be leasable (PARK_LEASE), or job `id` changed. */
void park_changed(struct park *p, enum park_kind kind, const char *id);
/* A lease request came back from the engine. */
void park_lease_tried(struct park *p, enum park_try what);
/* Wakes those past their deadline or without a client. */
void park_tick(struct park *p, int64_t now_ms, bool check_peers);
/* Wakes all; nothing parks any more. */
void park_close(struct park *p);
unsigned park_count(struct park *p);

#endif
