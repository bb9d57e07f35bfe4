/* tuned.h - one quantized block while it is trained (docs/algorithm.md, "Distillation").
 *
 * Trained parameters: per quantized module the latent codes u (N,K) in code units (the code is
 * clamp(round-half-even(u))), a factor f (N,G) on the scales it began with (s = s0 f, kept > 0), zero-points
 * z (N,G) where the grid has a float zero-point; every norm and every bias of the block. Skipped modules
 * keep their weights. Adam keeps two moments per trained parameter.
 *
 * All of that is the state. The caller provides it, either as one array of floats, which may be a file mapping
 * and may be copied to be kept (tuned_open), or in two parts (tuned_open_apart): what there is of every weight, the
 * cells, in memory of the backend, and the small rest in ordinary memory. Both train to the same bytes: nothing else
 * is remembered from step to step. Modules are numbered as enum block_linear (q, k, v, o, gate, up, down), norms as enum
 * block_norm (attn, mlp, q, k). Pure: no I/O, clock, threads or logging. One thread at a time.
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

/* Floats that a block needs; a scratch serves every block that needs no more of each. */
struct tuned_sizes {
	size_t state;           /* the state as one array */
	size_t cells, small;    /* the state in two parts: each array of the cells; the rest */
	size_t stored, grads;   /* of the scratch, beside its two arrays of cells */
};

/* Arrays that one block needs while it is at work; shared by all blocks of a model. */
struct tuned_scratch {
	struct backend *be;
	float *values;          /* (cells) dequantized weights of the quantized modules; memory of the backend */
	float *weight_grads;    /* (cells) their gradients; memory of the backend */
	float *stored;          /* (s, z) of every module as stored */
	float *grads;           /* gradients of everything else that is trained */
};

/* What there is of every weight of the quantized modules, module after module. */
struct tuned_cells {
	float *latents;
	float *moments1, *moments2; /* NULL when the codes are fixed */
	size_t n;
};

/* Views into the state, set by tuned_open(). */
struct tuned {
	struct tuned_plan plan;
	struct backend *be;
	struct tuned_scratch scratch;
	struct tuned_cells cells;
	struct {
		float *latents; /* among the cells */
		float *base, *factors, *zeros, *bias; /* bias NULL when there is none */
		float *scales;  /* (N,G) s0 f, kept up to date */
	} module[TUNED_MODULES];
	float *norm[TUNED_NORMS];
	const float *constant[TUNED_MODULES]; /* weights of skipped modules, borrowed */
	/* The trained parameters that are no latents are one run of floats. */
	struct { float *params, *moments1, *moments2; size_t n; } rest;
};

/* -1 (ERR_TOO_LARGE) on overflow, ERR_INVALID for a grid that does not fit. */
int tuned_measure(const struct tuned_plan *plan, struct tuned_sizes *sizes, struct err *err);
/* *a becomes the larger of both, size by size. */
void tuned_sizes_cover(struct tuned_sizes *a, const struct tuned_sizes *b);
/* Adam's moments in a state that is one array: floats *begin to *end. */
void tuned_moments(const struct tuned_plan *plan, size_t *begin, size_t *end);

int tuned_scratch_init(struct tuned_scratch *s, struct backend *be, const struct tuned_sizes *sizes,
		       struct err *err);
void tuned_scratch_deinit(struct tuned_scratch *s);
int tuned_cells_init(struct tuned_cells *c, struct backend *be, const struct tuned_plan *plan, struct err *err);
void tuned_cells_deinit(struct tuned_cells *c, struct backend *be);

/* Sets the views; reads and writes nothing of the state. State and scratch stay the caller's. */
void tuned_open(struct tuned *t, const struct tuned_plan *plan, struct backend *be, float *state,
		const struct tuned_scratch *scratch);
void tuned_open_apart(struct tuned *t, const struct tuned_plan *plan, struct backend *be,
		      const struct tuned_cells *cells, float *small, const struct tuned_scratch *scratch);

/* Filling a new state; each module, norm and bias once, and tuned_reset() before. */
int tuned_reset(struct tuned *t, struct err *err);      /* everything trained 0, moments included */
/* codes (N,K), scales, zeros (N,G) as quantized; w (N,K) the weights before, all in ordinary memory: with train_codes
 * a latent starts between the code and w / s + z, half of the way, at most 0.49 from the code. */
int tuned_set_module(struct tuned *t, int module, const uint8_t *codes, const float *scales,
		     const float *zeros, const float *w, struct err *err);
/* Borrows w, which may be memory of the backend; also needed after tuned_open() of an old state. */
void tuned_set_constant(struct tuned *t, int module, const float *w);
void tuned_set_bias(struct tuned *t, int module, const float *bias);
void tuned_set_norm(struct tuned *t, int norm, const float *weight);

/* The block's weights as they are now: values are computed into the scratch. Valid until the scratch is
 * used for another block or tuned_step(). */
int tuned_weights(struct tuned *t, struct block_weights *w, struct err *err);
/* Where block_backward() should put its gradients: in the scratch. */
void tuned_grads(struct tuned *t, struct block_grads *g);
/* From those gradients to new parameters, after tuned_weights() of the parameters as they are: step counts from 1,
 * `schedule` multiplies every rate. Uses values and grads up. */
int tuned_step(struct tuned *t, const struct tuned_rates *rates, float schedule, int64_t step,
	       struct err *err);

/* What would be stored of a module: codes (N,K), scales and zeros (N,G). Norms and biases are read from the
 * views. */
int tuned_result(const struct tuned *t, int module, uint8_t *codes, float *scales, float *zeros, struct err *err);

/* A copy of the trained parameters, to go back to: latents in memory of the backend. */
struct tuned_copy { float *latents, *rest; };
int tuned_copy_init(struct tuned_copy *c, const struct tuned *t, struct err *err);
void tuned_copy_deinit(struct tuned_copy *c, struct backend *be);
int tuned_keep(const struct tuned *t, struct tuned_copy *c, struct err *err);
/* Scales follow, moments stay. */
int tuned_return(struct tuned *t, const struct tuned_copy *c, struct err *err);

/* Linear warm-up over the first tenth of `steps` (rounded up), then half a cosine that would reach 0 at
 * steps + 1, so that no step is lost; step counts from 1. */
float tuned_schedule(int64_t step, int64_t steps);

#endif
