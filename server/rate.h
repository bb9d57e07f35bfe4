/* rate.h - how many requests an address may make: one token bucket each, in a table of fixed size.
 *
 * A bucket refills at the rate and holds two seconds of it. When the table is full the address heard of least
 * lately gives up its place, so memory is bounded and a flood of addresses costs nobody but new ones.
 * Thread-safe.
 */
#ifndef QUARRY_SERVER_RATE_H
#define QUARRY_SERVER_RATE_H

#include <stdbool.h>
#include <stdint.h>

enum { RATE_ADDRESSES = 4096 };

struct rate;

/* per_second 0 = no limit. NULL when out of memory. */
struct rate *rate_new(unsigned per_second);
void rate_free(struct rate *r); /* NULL is fine */
/* Takes one token of the address (its 16 bytes, IPv4 mapped); false when it has none left. now_ms: monotonic. */
bool rate_take(struct rate *r, const unsigned char address[16], int64_t now_ms);

#endif
