/* start.h - the first state of a module: fitted scales and zero-points, nearest codes; internal to worker/quant. */
#ifndef QUARRY_WORKER_QUANT_START_H
#define QUARRY_WORKER_QUANT_START_H

#include "worker/quant/quantize.h"

/* Fills codes, scales and zeros of `out` (allocated), init_objective, loss_exact, loss_nearest and energy. */
int quant_start(struct quant_result *out, struct backend *be, const struct quant_site *site,
		const struct quant_options *options, const struct quant_weights *w, struct err *err);

#endif
