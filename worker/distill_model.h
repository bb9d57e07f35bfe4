/* distill_model.h - a whole quantized model forwards and backwards, one layer in memory at a time.
 *
 * Beside the parts of one layer (its state, its dequantized weights, their gradients) memory holds the hidden states
 * between the layers, (layers + 1) of a batch or one of every probe sequence, whichever is more, and what
 * the head needs. Activations inside a layer are recomputed in the backward pass. Layers come from and go to a distill_state.
 * Single-threaded.
 */
#ifndef QUARRY_WORKER_DISTILL_MODEL_H
#define QUARRY_WORKER_DISTILL_MODEL_H

#include "worker/backend/place.h"
#include "worker/distill_feed.h"
#include "worker/distill_layer.h"
#include "worker/distill_state.h"
#include "worker/model/head_kl.h"
#include "worker/model/rope.h"

struct distill_model {
	struct backend *be;
	struct checkpoint *ck;          /* borrowed, as the next three */
	const struct distill_layer *layers;
	struct distill_feed *feed;
	struct distill_state *state;
	size_t count;                   /* layers */
	size_t sequence;                /* floats of one: seq_len * hidden */
	size_t batch, probe;            /* sequences a step, of a probe */
	double weight_hidden;
	struct rope rope;
	struct placed rope_placed;
	struct tuned_scratch scratch;
	float *floats, *constants;      /* the layer at work */
	float *hidden, *target, *dy, *dx;
	struct head_kl head;
	/* Asked between layers, with how much of the pass is done; non-zero gives up. May be NULL. */
	int (*tick)(void *ctx, double part, struct err *err);
	void *tick_ctx;
};

struct distill_sizes { size_t batch, probe; double weight_hidden; int head_bits; /* table.h */ };

/* After distill_feed_open(); everything is borrowed. */
int distill_model_init(struct distill_model *m, struct backend *be, struct checkpoint *ck,
		       const struct distill_layer *layers, struct distill_feed *feed, struct distill_state *state,
		       const struct distill_sizes *sizes, struct err *err);
void distill_model_deinit(struct distill_model *m);

/* The state before the first step, from layer files and checkpoint. */
int distill_model_begin(struct distill_model *m, struct err *err);

/* One training step, counted from 1, on `n` <= batch sequences. */
struct distill_step {
	const uint32_t *sequences;
	size_t n;
	struct tuned_rates rates;
	float schedule;
	int64_t step;
	bool commit_follows;
};
/* *loss: before the step. ERR_NUMERIC when numbers are not finite any more: the state is of no use then. */
int distill_model_step(struct distill_model *m, const struct distill_step *step, struct distill_loss *loss,
		       struct err *err);
/* Loss of the first `probe` sequences with norms and biases as they will be stored. */
int distill_model_probe(struct distill_model *m, struct distill_loss *loss, struct err *err);
/* Writes every layer file as the next best of the state. */
int distill_model_keep(struct distill_model *m, struct err *err);

#endif
