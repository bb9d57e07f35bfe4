/* layer_keep.h - the block that the last task loaded, for the next one that wants the same.
 *
 * Tasks of one layer follow each other: its shards are captured, its statistics gathered. Reading the layer, making it
 * float32 and sending it to the backend costs more than pushing a shard through it. One layer at most is held, and it is
 * given up before another one is loaded, so the memory of a worker does not grow. Compute thread only.
 */
#ifndef QUARRY_WORKER_LAYER_KEEP_H
#define QUARRY_WORKER_LAYER_KEEP_H

#include "worker/backend/place.h"
#include "worker/model/block.h"

/* All zero: nothing kept. */
struct layer_keep {
	char model[128];        /* the id of the model that tasks are about now */
	size_t layer;           /* of `block`, as the checkpoint has it */
	struct block block;     /* data NULL: nothing kept */
	struct placed placed;   /* its weights */
};

/* Before each task: what is kept of another model goes. An id that is too long is not kept for. */
void layer_keep_model(struct layer_keep *k, const char *id);
/* Moves the kept block out when it is that layer; else drops it. k may be NULL. */
bool layer_keep_take(struct layer_keep *k, size_t layer, struct block *block, struct placed *placed);
/* Moves a block, unchanged since it was loaded from the checkpoint, in. k NULL: false, and nothing is moved. */
bool layer_keep_put(struct layer_keep *k, size_t layer, struct block *block, struct placed *placed);
void layer_keep_drop(struct layer_keep *k);

#endif
