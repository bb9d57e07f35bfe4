/* tuned.h - one quantized block while it is trained (docs/algorithm.md, "Distillation").
 *
 * Trained parameters: per quantized module the latent codes u (N,K) in code units (the code is
 * clamp(round-half-even(u))), a factor f (N,G) on the scales it began with (s = s0 f, kept > 0), zero-points
 * z (N,G) where the grid has a float zero-point; every norm and every bias of the block. Skipped modules
 * keep their weights. Adam keeps two moments per trained parameter.
 *
 * All of that lies in one array of floats, the state, which the caller provides: it may be a file mapping, it
 * may be copied to be kept. Same state, same bytes: nothing else is remembered from step to step. Modules are
 * numbered as enum block_linear (q, k, v, o, gate, up, down), norms as enum block_norm (attn, mlp, q, k).
 * Pure: no I/O, clock, threads or logging. One thread at a time.
 */
#ifndef QUARRY_WORKER_QUANT_TUNED_H
#define QUARRY_WORKER_QUANT_TUNED_H

#include "worker/backend/backend.h"

enum { TUNED_MODULES = 7, TUNED_NORMS = 4 };

/* What the state of a block looks like. */
struct tuned_plan {
	struct block_shape shape;
	struct tuned_module {
		bool quantized;         /* false: skipped, its weights are constants */
		bool bias;
		struct grid grid;
		size_t rows, cols;
	} module[TUNED_MODULES];
	size_t norm[TUNED_NORMS];       /* elements; 0 = the family has none */
	bool train_codes;               /* false: u holds the codes and never changes */
};

/* Adam's rates at the top of the schedule; scale is relative to the scale at the start. */
struct tuned_rates { float code, scale, zero, norm; };

/* Dense arrays that one block needs while it is at work; shared by all blocks of a model. */
struct tuned_scratch {
	float *values;          /* dequantized weights of the quantized modules, then (s, z) as stored of one */
	float *grads;           /* gradients of every trained tensor */
};

/* Views into the state, set by tuned_open(). */
struct tuned {
	struct tuned_plan plan;
	struct backend *be;
	struct tuned_scratch scratch;
	struct {
		float *latents, *base, *factors, *zeros, *bias; /* bias NULL when there is none */
		float *scales;  /* (N,G) s0 f, kept up to date */
	} module[TUNED_MODULES];
	float *norm[TUNED_NORMS];
	const float *constant[TUNED_MODULES]; /* weights of skipped modules, borrowed */
	float *params, *moments1, *moments2;  /* the trained parameters are one run of floats */
	size_t trained;                       /* their number */
};

/* Floats of a block's state and of a scratch big enough for it. -1 (ERR_TOO_LARGE) on overflow. */
int tuned_sizes(const struct tuned_plan *plan, size_t *state, size_t *values, size_t *grads,
		struct err *err);
int tuned_scratch_init(struct tuned_scratch *s, size_t values, size_t grads, struct err *err);
void tuned_scratch_deinit(struct tuned_scratch *s);

/* Sets the views; reads and writes nothing of the state. state and scratch stay the caller's. */
void tuned_open(struct tuned *t, const struct tuned_plan *plan, struct backend *be, float *state,
		const struct tuned_scratch *scratch);

/* Filling a new state; each module, norm and bias once, and tuned_reset() before. */
void tuned_reset(struct tuned *t);      /* everything 0, moments included */
/* codes (N,K), scales, zeros (N,G) as quantized; w (N,K) the weights before: with train_codes a latent
 * starts between the code and w / s + z, half of the way, at most 0.49 from the code. */
void tuned_set_module(struct tuned *t, int module, const uint8_t *codes, const float *scales,
		      const float *zeros, const float *w);
/* Borrows w; also needed after tuned_open() of an old state. */
void tuned_set_constant(struct tuned *t, int module, const float *w);
void tuned_set_bias(struct tuned *t, int module, const float *bias);
void tuned_set_norm(struct tuned *t, int norm, const float *weight);

/* The block's weights as they are now: values are computed into the scratch. Valid until the scratch is
 * used for another block or tuned_step(). */
int tuned_weights(struct tuned *t, struct block_weights *w, struct err *err);
/* Where block_backward() should put its gradients: in the scratch. */
void tuned_grads(struct tuned *t, struct block_grads *g);
/* From those gradients to new parameters: step counts from 1, `schedule` multiplies every rate. Uses
 * values and grads up. */
int tuned_step(struct tuned *t, const struct tuned_rates *rates, float schedule, int64_t step,
	       struct err *err);

/* What would be stored of a module: codes (N,K), scales and zeros (N,G). Norms and biases are read from the
 * views. */
void tuned_result(const struct tuned *t, int module, uint8_t *codes, float *scales, float *zeros);
/* Takes `trained` parameters kept earlier (a copy of t->params); scales follow, moments stay. */
void tuned_set_params(struct tuned *t, const float *params);

/* Linear warm-up over the first tenth of `steps` (rounded up), then half a cosine that would reach 0 at
 * steps + 1, so that no step is lost; step counts from 1. */
float tuned_schedule(int64_t step, int64_t steps);

#endif
