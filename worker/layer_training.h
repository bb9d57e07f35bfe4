/* layer_training.h - distillation of one layer inside the quantize task (worker/quant/distill_block.h).
 *
 * Targets are the original block's outputs, put aside by the statistics pass (layer_sequences.h). Memory of the backend: the
 * training state of one block (three floats per weight when codes are trained), its values and gradients (two more), the
 * best parameters (one more); and a few sequences. In ordinary memory the original weights are dropped meanwhile unless
 * a module is skipped.
 */
#ifndef QUARRY_WORKER_LAYER_TRAINING_H
#define QUARRY_WORKER_LAYER_TRAINING_H

#include "worker/forward.h"
#include "worker/layer_plan.h"
#include "worker/layer_sequences.h"
#include "worker/quant/quantize.h"

struct layer_training {
	struct tuned tuned;             /* biases and norms as they are to be stored */
	struct distill_result result;
	struct tuned_cells cells;       /* what tuned looks into: of every weight, gone once trained */
	float *small;                   /* and the rest */
	struct backend *backend;
};

/* Bytes of memory of the backend that training such a layer takes beside its sequences: about, and rather more. */
uint64_t layer_training_bytes(const struct layer_plan *plan, const struct layer_forward *f);

/* Trains from `results`, which get what training gave. `sequences` holds plan->training.sequences.
 * f holds the original block before and after. Progress goes from `from` to `to`. */
int layer_training_run(struct layer_training *d, const struct layer_plan *plan, struct layer_forward *f,
		      const struct layer_sequences *sequences, struct quant_result results[LIN_COUNT], double from,
		      double to, struct err *err);
void layer_training_deinit(struct layer_training *d);
/* The `distill` object of the task's result; NULL when out of memory. */
struct json *layer_training_json(const struct layer_training *d);

#endif
