/* forward.h - pushing sequences through one block, in pieces whose size depends on shape alone, or is what the task is told.
 *
 * A "piece" is a fixed number of sequences: what memory is free and how many threads there are does not change it, only a
 * task that ran out of memory is run again with smaller ones, which its worker reports (compute.h). The
 * order in which taps see rows is the order of the sequences. Weights and rotary tables are sent to the backend once
 * (layer_load.h, worker/backend/place.h) and serve every piece.
 */
#ifndef QUARRY_WORKER_FORWARD_H
#define QUARRY_WORKER_FORWARD_H

#include "worker/backend/place.h"
#include "worker/layer_keep.h"
#include "worker/layer_load.h"
#include "worker/model/block.h"
#include "worker/model/rope.h"
#include "worker/task.h"
#include "worker/tensor_file.h"

/* What a layer's forward pass needs, opened once a task. */
struct layer_forward {
	struct checkpoint ck;
	struct block block;             /* its weights in ordinary memory are there after layer_forward_load */
	struct block_weights weights;   /* where the backend's operations best read them */
	struct rope rope;
	struct rope_table rope_table;   /* the same, for the backend */
	struct backend *backend;
	struct layer_keep *keep;        /* or NULL */
	int threads;                    /* that read weights */
	bool original;                  /* the block is the checkpoint's, and unchanged */
	size_t layer;                   /* which */
	struct layer_room room;
	struct placed rope_placed;
	size_t seq_len, hidden, piece;  /* piece: sequences per block_forward call */
};

/* Opens the model's headers and makes the rotary tables. */
int layer_forward_init(struct layer_forward *f, struct task_env *env, size_t seq_len, struct err *err);
void layer_forward_deinit(struct layer_forward *f);
/* No run of this task is given more sequences than that: then no piece is larger. */
void layer_forward_most(struct layer_forward *f, struct task_env *env, size_t sequences);
/* Loads block `layer`, from the checkpoint or, when layer_path is not NULL, from a quantized layer, to where operations
 * read it: f->weights. What a pass forwards needs. */
int layer_forward_place(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err);
/* The same, and to ordinary memory: f->block.w, which costs a copy on a backend with memory of its own. */
int layer_forward_load(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err);
/* Lets go of the block, if one is loaded; the checkpoint's own may be kept for the next task (layer_keep.h). */
void layer_forward_drop(struct layer_forward *f);
/* The same, and its memory is free afterwards. */
void layer_forward_discard(struct layer_forward *f);
/* x, y: (count, seq_len, hidden); y may be x, or NULL for taps only. */
int layer_forward_run(struct layer_forward *f, const float *x, size_t count, float *y, block_tap tap,
		      void *tap_ctx, struct err *err);

/* Sequences per piece: as many as fill the task's piece_tokens, or else the backend's, at least 1. */
size_t forward_piece(const struct task_env *env, size_t seq_len);

#endif
