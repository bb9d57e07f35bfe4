/* tuned_parts.h - how the state of tuned.h is laid out, for tuned_state.c, tuned_memory.c and tuned.c. */
#ifndef QUARRY_WORKER_QUANT_TUNED_PARTS_H
#define QUARRY_WORKER_QUANT_TUNED_PARTS_H

#include "worker/quant/tuned.h"

/* Floats of each kind in a block: weights of quantized modules, their groups, zero-points that are trained
 * and that are not, biases and norms. */
struct tuned_runs { size_t cells, groups, zeros, fixed_zeros, dense; };

struct tuned_runs tuned_runs(const struct tuned_plan *plan);
size_t tuned_cells_of(const struct tuned_module *m);    /* 0 for a skipped module */
size_t tuned_groups(const struct tuned_module *m);
bool tuned_trains_zeros(const struct tuned_module *m);
/* The next n floats of a run. */
float *tuned_take(float **at, size_t n);

/* Floats between a view, which may be memory of the backend, and ordinary memory. */
int tuned_move(const struct tuned *t, float *to, const float *from, size_t n, struct err *err);
/* Latents pass through ordinary memory in pieces of so many. */
enum { TUNED_PIECE = 1 << 18 };

/* Parameters changed: factors stay positive, scales follow. */
void tuned_follow(struct tuned *t);

#endif
