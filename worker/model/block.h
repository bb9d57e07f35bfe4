/* block.h - the weights of one transformer block as float32, from a checkpoint or a quantized layer.
 *
 * A worker holds one block at a time. Which norms and biases exist is model_config.h's knowledge; what a
 * family does not have stays NULL, as backend.h wants it.
 */
#ifndef QUARRY_WORKER_MODEL_BLOCK_H
#define QUARRY_WORKER_MODEL_BLOCK_H

#include <stddef.h>

#include "common/model_config.h"
#include "worker/backend/backend.h"
#include "worker/model/tensor_reader.h"

struct block {
	struct block_shape shape;
	struct block_weights w;         /* borrows `data`; pointers may be replaced by the caller */
	float *data;                    /* every tensor of the block, one allocation */
	size_t floats;                  /* in data */
};

struct block_shape block_shape_of(const struct model_config *config);
/* Float32 elements of one block: what block_load() allocates. -1 when that overflows. */
int block_floats(const struct model_config *config, size_t *floats, struct err *err);

/* Reads the tensors of block `layer` < config.layers by name. On failure the block is empty. */
int block_load(struct block *block, const struct model_config *config, size_t layer,
	       const struct tensor_reader *reader, struct err *err);
void block_free(struct block *block);

/* Where a tensor of the block stands: the slot of a linear's weight or bias, or of a norm. */
const float **block_linear_slot(struct block_weights *w, enum block_linear which);
const float **block_bias_slot(struct block_weights *w, enum block_linear which);
const float **block_norm_slot(struct block_weights *w, enum block_norm which);

#endif
