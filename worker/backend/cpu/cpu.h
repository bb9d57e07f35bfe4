/* cpu.h - the cpu backend: OpenBLAS on fixed tiles, vector kernels, a thread pool.
 *
 * Invariants:
 *  1. OpenBLAS runs with one thread per call; all parallelism is pool_run() over tiles whose borders
 *     come from shapes alone, so the bits do not depend on the number of threads.
 *  2. Scratch is allocated per operation, bounded by tile sizes times workers plus what the
 *     operation's header names. Nothing is kept between operations but one block of scratch
 *     memory without meaning, at most CPU_KEEP_BYTES, until the backend closes: training steps are many
 *     and short, and fresh pages for each would cost as much as a tenth of one.
 *  3. The instruction-set level is fixed when the backend opens; QUARRY_CPU_LEVEL=base|v3|v4 in the
 *     environment asks for a lower one.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_CPU_H
#define QUARRY_WORKER_BACKEND_CPU_CPU_H

#include "worker/backend/backend.h"
#include "worker/backend/cpu/levels.h"
#include "worker/backend/pool.h"

struct forward_kernels;
struct train_kernels;

enum { CPU_KEEP_BYTES = 256 << 20 };

struct cpu_backend {
	struct backend base;
	struct pool *pool;
	enum cpu_level level;
	const struct forward_kernels *forward;  /* kernels of the forward half at `level` */
	const struct train_kernels *train;      /* and of the training half */
	float *scratch;                         /* what cpu_scratch_take() gives out, or NULL */
	size_t scratch_floats;
	char identity[128];
};

extern const struct backend_ops cpu_ops;

static inline struct cpu_backend *cpu_of(struct backend *be)
{
	return (struct cpu_backend *)be;
}

/* `floats` floats, 64-byte aligned, contents undefined; NULL with err set: no memory for `what`. Taken by one
 * operation at a time, which gives it back before it returns. */
float *cpu_scratch_take(struct cpu_backend *cpu, size_t floats, const char *what, struct err *err);
void cpu_scratch_give(struct cpu_backend *cpu);

/* forward.c, norm.c, head.c, gram.c */
int cpu_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
		 size_t cols, float *y, struct err *err);
int cpu_block_forward(struct backend *be, const struct block_shape *shape,
		      const struct block_weights *w, const struct rope_table *rope, const float *x,
		      size_t n_seq, size_t seq_len, float *y, block_tap tap, void *tap_ctx,
		      struct err *err);
int cpu_head_tile(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w,
		  size_t tile_rows, int32_t first_id, const int32_t *targets,
		  struct head_state *state, struct err *err);
int cpu_gram_add(struct backend *be, const float *x, size_t rows, size_t cols, double *h,
		 struct err *err);
int cpu_gram_mean(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal,
		  struct err *err);

/* the training half: backward.c, loss.c, train.c, head_kl.c */
int cpu_block_backward(struct backend *be, const struct block_shape *shape,
		       const struct block_weights *w, const struct rope_table *rope, const float *x,
		       size_t n_seq, size_t seq_len, block_loss loss, void *loss_ctx, float *dx,
		       const struct block_grads *grads, struct err *err);
int cpu_rms_norm_backward(struct backend *be, const float *x, const float *weight, float eps,
			  size_t rows, size_t cols, const float *dy, float *dx, struct err *err);
int cpu_squared_error(struct backend *be, const float *y, const float *target, size_t n, double scale, float *dy,
		      double *sum, struct err *err);
int cpu_grid_values(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		    size_t cols, const float *scales, const float *zeros, float *w, struct err *err);
int cpu_grid_gradients(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		       size_t cols, const float *scales, const float *zeros, const float *dw,
		       float *dscales, float *dzeros, float *dlatents, struct err *err);
int cpu_adam_step(struct backend *be, const struct adam *adam, size_t n, float *p, const float *g,
		  float *m, float *v, struct err *err);
int cpu_head_kl_tile(struct backend *be, const float *x, const float *x_ref, size_t rows, size_t hidden,
		     const float *w, const float *w_ref, size_t tile_rows, const struct head_state *state,
		     const struct head_state *ref_state, double *kl, float *dx, struct err *err);

/* the quantization half */
int cpu_factor(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp,
	       float *u, double *pivots, struct err *err);
int cpu_fit_groups(struct backend *be, enum fit_method method, const struct grid *grid,
		   const float *w, size_t rows, size_t cols, const double *h, float *scales,
		   float *zeros, double *objective, struct err *err);
int cpu_round_nearest(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		      size_t cols, const float *scales, const float *zeros, uint8_t *codes,
		      struct err *err);
int cpu_round_ldlq(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const int32_t *perm, const float *u, const double *pivots,
		   const float *scales, const float *zeros, uint8_t *codes, double *row_loss,
		   struct err *err);
int cpu_refine(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
	       const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales,
	       float *zeros, double *row_loss, struct err *err);
int cpu_proxy_loss(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const double *h, double damp, const uint8_t *codes,
		   const float *scales, const float *zeros, double *loss, double *energy,
		   struct err *err);

#endif
