/* layer_load.h - a block's weights from files to where the backend's operations read them.
 *
 * Pieces of rows, cut by shape alone, are read and made float32 by several threads at once. On a backend without memory
 * of its own they go into one array. On one with, they go through two buffers of at most 32 MiB, of which one travels
 * while the other fills, and ordinary memory never holds the block, unless it is asked for.
 *
 * Loading again uses the memory that is there when it has the right size: what costs most about a fresh array is to
 * touch it for the first time. Compute thread only; the threads that read live no longer than a call.
 */
#ifndef QUARRY_WORKER_LAYER_LOAD_H
#define QUARRY_WORKER_LAYER_LOAD_H

#include "worker/model/block.h"

/* A block's weights in memory of a backend. All zero: none, and always so on a backend without memory of its own. */
struct layer_room {
	struct backend *be;
	float *weights;
	size_t floats;
};

struct layer_load {
	struct backend *be;
	const struct model_config *config;
	size_t layer;
	struct tensor_reader reader;
	int threads;                            /* that read, the calling one among them; at most 16 do. 0 is 1 */
};

/* block and room: all zero, or of a block loaded before with the same backend. Loads the block to where
 * layer_room_weights() says. When several pieces fail, the error is that of the first. Nothing is held after a failure. */
int layer_load(const struct layer_load *l, struct block *block, struct layer_room *room, struct err *err);
/* Sees to it that a loaded block is in ordinary memory, too: block->w. A failure leaves it as it was. */
int layer_load_ordinary(const struct model_config *config, struct block *block, const struct layer_room *room,
			struct err *err);
/* Where operations best read a loaded block. */
struct block_weights layer_room_weights(const struct model_config *config, const struct block *block,
					const struct layer_room *room);
void layer_room_free(struct layer_room *room);

#endif
