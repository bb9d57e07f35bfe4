/* linear.h - linear maps on tiles, with what follows them while the tile is in cache.
 *
 * Internal to the cpu backend. A tile that holds a value which is not finite sets *bad.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_LINEAR_H
#define QUARRY_WORKER_BACKEND_CPU_LINEAR_H

#include <stdatomic.h>
#include <stdbool.h>

#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/tiles.h"

/* out (rows, n) = x (rows, k) w' + bias + residual; w (n, k); bias, residual (rows, n) may be NULL,
 * residual may be out. Then, when rope is set, per head of head_dim columns: RMSNorm by norm
 * (may be NULL) and the turn by the row's position. */
struct linear {
	const float *w, *bias, *residual;
	float *out;
	size_t n;
	const struct rope_table *rope;
	const float *norm;
	float eps;
	size_t head_dim;
};

/* `count` maps of the same x (tiles' rows, k). */
void cpu_linear(struct cpu_backend *cpu, const struct row_tiles *tiles, const float *x, size_t k,
		const struct linear *maps, size_t count, atomic_bool *bad);

/* d (rows, n) = silu(x gate' + gate_bias) * (x up' + up_bias); biases may be NULL.
 * scratch: pool workers * cpu_swiglu_scratch() floats. */
struct swiglu { const float *gate, *up, *gate_bias, *up_bias; size_t n; };
void cpu_swiglu(struct cpu_backend *cpu, const struct row_tiles *tiles, const float *x, size_t k,
		const struct swiglu *mlp, float *d, float *scratch, atomic_bool *bad);
size_t cpu_swiglu_scratch(void);

#endif
