#include "worker/quant/order.h"

static uint64_t next(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

void training_order(uint64_t seed, uint64_t epoch, size_t n, uint32_t *order)
{
	uint64_t state = seed + 1 + (epoch << 32);

	for (size_t i = 0; i < n; i++)
		order[i] = (uint32_t)i;
	for (size_t i = n; i-- > 1;) {
		const size_t other = (size_t)(next(&state) % (i + 1));
		const uint32_t kept = order[i];

		order[i] = order[other];
		order[other] = kept;
	}
}
