/* layer_keep.h - the block that the last task loaded, for the next one that wants the same.
 *
 * Tasks of one layer follow each other: its shards are captured, its statistics gathered. Reading the layer, making it
 * float32 and sending it to the backend costs more than pushing a shard through it. One layer at most is held, and
 * another one is loaded into its memory, so the memory of a worker does not grow. Compute thread only.
 */
#ifndef QUARRY_WORKER_LAYER_KEEP_H
#define QUARRY_WORKER_LAYER_KEEP_H

#include "worker/layer_load.h"

/* All zero: nothing kept. */
struct layer_keep {
	char model[128];        /* the id of the model that tasks are about now */
	size_t layer;           /* of `block`, as the checkpoint has it */
	bool holds;             /* `block` and `room` are a layer that was put in */
	struct block block;
	struct layer_room room;
};

/* Before each task: what is kept of another model goes. An id that is too long is not kept for. */
void layer_keep_model(struct layer_keep *k, const char *id);
/* Moves what is kept out, to *block and *room, which hold nothing: true when it is that layer, else it is memory to load
 * into (layer_load.h), if anything was kept. k may be NULL. */
bool layer_keep_take(struct layer_keep *k, size_t layer, struct block *block, struct layer_room *room);
/* Moves a block, unchanged since it was loaded from the checkpoint, in. k NULL: false, and nothing is moved. */
bool layer_keep_put(struct layer_keep *k, size_t layer, struct block *block, struct layer_room *room);
void layer_keep_drop(struct layer_keep *k);

#endif
