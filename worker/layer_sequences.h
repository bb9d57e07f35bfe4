/* layer_sequences.h - the inputs and outputs of a block that it is trained on, from the statistics pass to the training.
 *
 * On a backend with memory of its own both stay in it when there is room beside the training. Else the outputs go to the
 * task's scratch file, and the inputs are read from their shards once more. What is trained is the same. Single-threaded.
 */
#ifndef QUARRY_WORKER_LAYER_SEQUENCES_H
#define QUARRY_WORKER_LAYER_SEQUENCES_H

#include "worker/backend/backend.h"
#include "worker/hidden_shards.h"
#include "worker/scratch_file.h"

/* All zero: nothing held. */
struct layer_sequences {
	struct backend *be;             /* borrowed, as the next two */
	struct hidden_shards *shards;
	struct scratch_file *file;      /* outputs, one sequence behind the other from its start */
	size_t count, floats;           /* sequences; floats of one: seq_len * hidden */
	float *x, *y;                   /* (count) sequences each, memory of the backend; NULL: shards and file */
	float *passing;                 /* one sequence between file and backend, in ordinary memory; NULL: not needed */
};

/* The first `count` sequences of the shards. `beside`: bytes of memory of the backend that must be left. The file may be
 * opened later. What is held on failure belongs to layer_sequences_deinit(). */
int layer_sequences_init(struct layer_sequences *q, struct backend *be, struct hidden_shards *shards,
			 struct scratch_file *file, size_t count, uint64_t beside, struct err *err);
void layer_sequences_deinit(struct layer_sequences *q);

/* The output() of a layer_pass; ctx is the struct layer_sequences. */
int layer_sequences_put(void *ctx, size_t first, size_t count, const float *x, const float *y, struct err *err);
/* Bytes from the file's start that belong to the outputs of that many sequences. */
uint64_t layer_sequences_bytes(const struct layer_sequences *q, size_t count);

/* input() and target() of a distill_data: the block's input and output, each in memory of the backend. */
const float *layer_sequences_input(const struct layer_sequences *q, size_t i, float *room, struct err *err);
const float *layer_sequences_output(const struct layer_sequences *q, size_t i, float *room, struct err *err);

#endif
