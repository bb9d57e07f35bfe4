/* distill_layer.h - one layer of a model in training: from a quantized layer file to a state (tuned.h) and back.
 *
 * What is quantized and how is read off the file's own metadata; norms and biases start from the file too (block
 * distillation may have moved them), latent codes lean towards the checkpoint's weights. What goes out has the
 * tensors, dtypes and metadata of what came in. Single-threaded.
 */
#ifndef QUARRY_WORKER_DISTILL_LAYER_H
#define QUARRY_WORKER_DISTILL_LAYER_H

#include "common/checkpoint.h"
#include "worker/quant/tuned.h"

struct distill_layer {
	struct tuned_plan plan;
	size_t index;
	const char *path;               /* the quantized layer, borrowed */
	struct tuned_sizes sizes;       /* of its state, and of the scratch it needs */
	size_t constants;               /* floats of the weights that are not quantized */
	enum st_dtype bias_dtype[LIN_COUNT], norm_dtype[NORM_COUNT]; /* as stored; of those that exist */
};

/* Reads the header of the layer file; ERR_CORRUPT when it does not fit the model. */
int distill_layer_plan(struct distill_layer *l, const struct model_config *config, size_t index, const char *path,
		       bool train_codes, struct err *err);
/* Fills a new state; t is open on it. */
int distill_layer_begin(const struct distill_layer *l, struct checkpoint *ck, struct tuned *t, struct err *err);
/* Gives t the weights that are not quantized, read into `constants`. Nothing to do when there are none. */
int distill_layer_constants(const struct distill_layer *l, const struct model_config *config, struct tuned *t,
			    float *constants, struct err *err);
/* Norms and biases of t become what they will be when stored. */
void distill_layer_round(const struct distill_layer *l, struct tuned *t);
/* Writes the layer file. */
int distill_layer_export(const struct distill_layer *l, const struct model_config *config, const struct tuned *t,
			 const char *path, struct err *err);

#endif
