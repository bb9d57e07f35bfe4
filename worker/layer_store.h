/* layer_store.h - a quantized layer to its file: packed modules, then what no module replaces.
 *
 * Norms and biases that were trained are rounded to the type that the checkpoint has them in; everything else
 * is copied byte by byte.
 */
#ifndef QUARRY_WORKER_LAYER_STORE_H
#define QUARRY_WORKER_LAYER_STORE_H

#include "common/checkpoint.h"
#include "worker/layer_plan.h"
#include "worker/quant/quantize.h"
#include "worker/quant/tuned.h"

/* results[lin] of every module that is not skipped; tuned NULL when nothing was trained. */
int layer_store(const struct layer_plan *plan, struct checkpoint *ck,
		const struct quant_result results[LIN_COUNT], const struct tuned *tuned, const char *path,
		struct err *err);

/* The type of a tensor in the checkpoint; it must be there. */
int layer_source_dtype(const struct checkpoint *ck, const char *name, enum st_dtype *dtype, struct err *err);
/* n values to `dtype` (F32, BF16 or F16; nearest, ties to even); bytes has n elements of it. */
void layer_to_dtype(const float *values, size_t n, enum st_dtype dtype, void *bytes);

#endif
