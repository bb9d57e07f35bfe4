/* refine.h - rounds of refinement of a rounded module; internal to worker/quant. */
#ifndef QUARRY_WORKER_QUANT_REFINE_H
#define QUARRY_WORKER_QUANT_REFINE_H

#include "worker/quant/quantize.h"

/* Up to options->refine rounds on codes, scales and zero-points in place; sets loss and refine_rounds.
 * `out` comes with loss = loss_rounded and keeps both with its old state when nothing was won. */
int refine_module(struct quant_result *out, struct backend *be, const struct quant_site *site,
		  const struct quant_options *options, const struct quant_weights *w, struct err *err);

#endif
