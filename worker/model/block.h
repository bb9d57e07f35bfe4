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
	float *data;                    /* every tensor of the block, one allocation; NULL: not in ordinary memory */
	size_t floats;                  /* in data */
};

struct block_shape block_shape_of(const struct model_config *config);
/* Float32 elements of one block: its tensors in canonical order, linears with their biases, then norms. -1 when that
 * overflows. */
int block_floats(const struct model_config *config, size_t *floats, struct err *err);
/* Where the tensors of a block lie that begins at `data`, which may be memory of a backend. */
struct block_weights block_weights_at(const struct model_config *config, const float *data);
void block_free(struct block *block);

/* --- reading ------------------------------------------------------------------------------------------------ */

/* The tensors of one layer, cut by shape alone into pieces: some rows of one tensor each, one behind the other as they
 * lie in the block. */
struct block_tensor {
	char name[MODEL_NAME_MAX + 16];
	size_t rows, cols;
	size_t at;                      /* floats before it */
	size_t piece_rows, first_piece;
};

enum { BLOCK_TENSORS_MAX = 2 * LIN_COUNT + NORM_COUNT };

struct block_pieces {
	struct block_tensor tensor[BLOCK_TENSORS_MAX];
	size_t tensors, count, floats;
};

struct block_piece { const struct block_tensor *tensor; size_t row, rows, at, floats; };

/* Layer < config.layers in pieces of at most `most` floats, where a row is no longer than that. */
int block_pieces_init(struct block_pieces *p, const struct model_config *config, size_t layer, size_t most,
		      struct err *err);
/* i < p->count. */
struct block_piece block_piece_of(const struct block_pieces *p, size_t i);

/* Where a tensor of the block stands: the slot of a linear's weight or bias, or of a norm. */
const float **block_linear_slot(struct block_weights *w, enum block_linear which);
const float **block_bias_slot(struct block_weights *w, enum block_linear which);
const float **block_norm_slot(struct block_weights *w, enum block_norm which);

#endif
