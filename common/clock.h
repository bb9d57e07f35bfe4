/* clock.h - time and randomness as a struct, so that lease logic is tested in microseconds. */
#ifndef QUARRY_COMMON_CLOCK_H
#define QUARRY_COMMON_CLOCK_H

#include <stddef.h>
#include <stdint.h>

struct clock {
	/* Milliseconds since the Unix epoch; persistent deadlines are in this unit. */
	int64_t (*wall_ms)(void *ctx);
	/* Milliseconds of a clock that never goes back. */
	int64_t (*mono_ms)(void *ctx);
	/* 2*bytes hex characters and NUL; -1 on failure. */
	int (*random_hex)(void *ctx, char *out, size_t bytes);
	void *ctx;
};

/* The real clocks and the system's random source. */
extern const struct clock clock_system;

#endif
