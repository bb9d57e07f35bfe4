/* order.h - the order in which training takes its sequences: a random permutation from a seed.
 *
 * SplitMix64 (Steele, Lea, Flood 2014) started at seed + 1 + epoch * 2^32 drives a Fisher-Yates shuffle of
 * 0 .. n-1, from the last place down; place i changes with place (next mod i + 1). Same seed and epoch, same
 * order everywhere.
 */
#ifndef QUARRY_WORKER_QUANT_ORDER_H
#define QUARRY_WORKER_QUANT_ORDER_H

#include <stddef.h>
#include <stdint.h>

/* order (n) is written; epoch counts from 0. */
void training_order(uint64_t seed, uint64_t epoch, size_t n, uint32_t *order);

#endif
