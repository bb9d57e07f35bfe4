#include "common/clock.h"

#include <time.h>

#include "common/digest.h"

static int64_t read_ms(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t system_wall_ms(void *ctx)
{
	(void)ctx;
	return read_ms(CLOCK_REALTIME);
}

static int64_t system_mono_ms(void *ctx)
{
	(void)ctx;
	return read_ms(CLOCK_MONOTONIC);
}

static int system_random_hex(void *ctx, char *out, size_t bytes)
{
	(void)ctx;
	return random_hex(out, bytes);
}

const struct clock clock_system = {
	.wall_ms = system_wall_ms,
	.mono_ms = system_mono_ms,
	.random_hex = system_random_hex,
};
