/* tuned_parts.h - how the state of tuned.h is laid out, for tuned_state.c and tuned.c. */
#ifndef QUARRY_WORKER_QUANT_TUNED_PARTS_H
#define QUARRY_WORKER_QUANT_TUNED_PARTS_H

#include "worker/quant/tuned.h"

/* Floats of each kind in a block: weights of quantized modules, their groups, zero-points that are trained
 * and that are not, biases and norms. */
struct tuned_runs { size_t cells, groups, zeros, fixed_zeros, dense; };

struct tuned_runs tuned_runs(const struct tuned_plan *plan);
size_t tuned_cells(const struct tuned_module *m);       /* 0 for a skipped module */
size_t tuned_groups(const struct tuned_module *m);
size_t tuned_groups_most(const struct tuned_plan *plan); /* of one module */
bool tuned_trains_zeros(const struct tuned_module *m);
/* The next n floats of a run. */
float *tuned_take(float **at, size_t n);

#endif
