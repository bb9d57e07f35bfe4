/* backward_linear.h - gradients of linear maps, SwiGLU and RMSNorm over the rows of one sequence, on tiles.
 *
 * Internal to the cpu backend. d_x stands for dLoss/dx. Gradients of parameters are summed over all rows in
 * one item per tile of theirs, `add` onto what is there (the sequences before), else written.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_BACKWARD_LINEAR_H
#define QUARRY_WORKER_BACKEND_CPU_BACKWARD_LINEAR_H

#include <stdatomic.h>
#include <stdbool.h>

#include "worker/backend/cpu/cpu.h"

/* Rows of a tile of activations: smaller than forward's, since there is one sequence at a time. */
enum { BACK_ROWS = 256, NORM_ROWS = 64 };

/* One linear map y (rows, n) = x (rows, k) w' + bias, w (n, k). */
struct linear_back {
	const float *w, *dy, *x;
	float *dw, *dbias;      /* NULL: not wanted */
	size_t n, k;
};

/* dx (rows, k) = sum over the maps, all of one k, of dy w. */
void cpu_linear_back(struct cpu_backend *cpu, const struct linear_back *maps, size_t count, size_t rows,
		     float *dx);
/* Every dw and dbias of the maps. `last`: a value that is not finite sets *bad. */
void cpu_linear_gradients(struct cpu_backend *cpu, const struct linear_back *maps, size_t count, size_t rows,
			  bool add, bool last, atomic_bool *bad);

/* gate, up, d (rows, n): d = silu(gate) * up with gate and up kept. */
struct swiglu_back {
	const float *w_gate, *w_up, *gate_bias, *up_bias;       /* (n, hidden), (n) or NULL */
	const float *w_down;                                    /* (hidden, n) */
	size_t n, hidden;
	float *gate, *up, *d;
	float *scratch;         /* pool workers * cpu_swiglu_back_scratch() floats */
};
/* x (rows, hidden) to gate, up and d. */
void cpu_swiglu_keep(struct cpu_backend *cpu, const struct swiglu_back *mlp, const float *x, size_t rows,
		     atomic_bool *bad);
/* From dy (rows, hidden), the gradient of d w_down': gate and up become their own gradients. */
void cpu_swiglu_back(struct cpu_backend *cpu, const struct swiglu_back *mlp, const float *dy, size_t rows);
size_t cpu_swiglu_back_scratch(void);

/* dx = add + the gradient through y = RMSNorm(x) * weight from dy; x, dy, add, dx (rows, cols), add may be
 * NULL, dx may be dy. shares (norm_back_shares(rows), cols) receives what each run of rows gives to dweight;
 * NULL: not wanted. */
struct norm_back {
	const float *x, *weight, *dy, *add;
	float eps;
	size_t cols;
	float *dx, *shares;
};
void cpu_norm_back(struct cpu_backend *cpu, const struct norm_back *norm, size_t rows, atomic_bool *bad);
size_t norm_back_shares(size_t rows);
/* total (n) = or += the sum of the `count` rows of shares, in their order. */
void cpu_sum_shares(const float *shares, size_t count, size_t n, bool add, float *total, atomic_bool *bad);

#endif
