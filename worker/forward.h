/* forward.h - pushing sequences through one block, in pieces whose size depends on shape alone.
 *
 * A "piece" is a fixed number of sequences: results must not depend on memory or threads, and the
 * order in which taps see rows is the order of the sequences.
 */
#ifndef QUARRY_WORKER_FORWARD_H
#define QUARRY_WORKER_FORWARD_H

#include "worker/model/block.h"
#include "worker/model/rope.h"
#include "worker/task.h"
#include "worker/tensor_file.h"

/* What a layer's forward pass needs, opened once a task. */
struct layer_forward {
	struct checkpoint ck;
	struct block block;             /* loaded by layer_forward_load */
	struct rope rope;
	struct backend *backend;
	size_t seq_len, hidden, piece;  /* piece: sequences per block_forward call */
};

/* Opens the model's headers and makes the rotary tables. */
int layer_forward_init(struct layer_forward *f, struct task_env *env, size_t seq_len, struct err *err);
void layer_forward_deinit(struct layer_forward *f);
/* Loads block `layer`, from the checkpoint or, when layer_path is not NULL, from a quantized layer. */
int layer_forward_load(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err);
/* x, y: (count, seq_len, hidden); y may be x, or NULL for taps only. */
int layer_forward_run(struct layer_forward *f, const float *x, size_t count, float *y, block_tap tap,
		      void *tap_ctx, struct err *err);

/* Sequences per piece: as many as fill 2048 tokens, at least 1. */
size_t forward_piece(size_t seq_len);

#endif
