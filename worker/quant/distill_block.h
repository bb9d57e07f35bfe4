/* distill_block.h - training a quantized block to the output of the original one (docs/algorithm.md,
 * "Distillation of a block").
 *
 * Loss: the mean squared difference of the block's output to the target, over the elements of a batch. What
 * is reported is relative: divided by the mean square of y - x, the change that the original block makes, over
 * the probe. The probe is the first min(8, n) sequences, forward only, at the start and after each epoch,
 * with biases and norms as they would be stored; the best state stays, so the result never loses more on the
 * probe than the start. A step that leaves the range of float32 ends the training with the best state so far.
 * Pure: sequences, progress and storage types come through callbacks. Same inputs, same bytes.
 */
#ifndef QUARRY_WORKER_QUANT_DISTILL_BLOCK_H
#define QUARRY_WORKER_QUANT_DISTILL_BLOCK_H

#include "worker/quant/tuned.h"

enum { DISTILL_PROBE = 8, DISTILL_CURVE = 64 };

struct distill_settings {
	size_t sequences, epochs, batch;        /* each at least 1; an epoch may end with a smaller batch */
	uint64_t seed;                          /* of the order, worker/quant/order.h */
	struct tuned_rates rates;
};

struct distill_progress {
	size_t epoch, epochs;   /* epoch from 0 */
	double fraction;        /* of the training, 0 .. 1 */
	double loss;            /* relative, of the latest batch, before it of the probe; < 0: not known yet */
};

/* Where the block's sequences come from and what the surroundings want. Functions return -1, or NULL, with err set to
 * stop. */
struct distill_data {
	size_t seq_len;
	const struct rope_table *rope;
	/* (seq_len, hidden) of sequence i: the block's input, the original block's output. Either fills `room`, which is memory
	 * of the backend, and returns it, or returns memory of the backend that has it already and keeps it until the same
	 * function is called again. They may call the backend's memory functions. */
	const float *(*input)(void *ctx, size_t i, float *room, struct err *err);
	const float *(*target)(void *ctx, size_t i, float *room, struct err *err);
	/* Called once per sequence; may be NULL. */
	int (*progress)(void *ctx, const struct distill_progress *p, struct err *err);
	/* Rounds the values of a bias (of a module) or a norm to what is stored; may be NULL. */
	void (*stored_bias)(void *ctx, int module, float *values, size_t n);
	void (*stored_norm)(void *ctx, int norm, float *values, size_t n);
	void *ctx;
};

struct distill_result {
	double before, after;   /* relative loss on the probe */
	bool kept;              /* false: nothing was better than the start, which is what is left */
	int64_t steps;          /* taken */
	/* Relative, each the mean of the steps since the point before. */
	struct { int64_t step; double loss; } curve[DISTILL_CURVE];
	size_t points;
};

/* t holds the start and is left with the best state, biases and norms as stored. Takes memory of the backend for a copy of
 * the trained parameters and for batch + 2 sequences. */
int distill_block(struct tuned *t, const struct distill_settings *settings, const struct distill_data *data,
		  struct distill_result *out, struct err *err);

#endif
