/* ref.h - the reference backend: plain C, double precision inside, one thread.
 *
 * It is the specification: each operation says in the simplest way what backend.h promises, sums run in
 * index order, and only inputs and outputs are float32. It calls no library but libm. Speed matters
 * only so far as tests on tiny models must end.
 */
#ifndef QUARRY_WORKER_BACKEND_REF_REF_H
#define QUARRY_WORKER_BACKEND_REF_REF_H

#include "worker/backend/backend.h"

struct ref_backend { struct backend base; };

extern const struct backend_ops ref_ops;

/* forward.c, head.c, gram.c */
int ref_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
		 size_t cols, float *y, struct err *err);
int ref_block_forward(struct backend *be, const struct block_shape *shape,
		      const struct block_weights *w, const struct rope_table *rope, const float *x,
		      size_t n_seq, size_t seq_len, float *y, block_tap tap, void *tap_ctx,
		      struct err *err);
int ref_head_tile(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w,
		  size_t tile_rows, int32_t first_id, const int32_t *targets,
		  struct head_state *state, struct err *err);
int ref_head_kl_tile(struct backend *be, const float *x, const float *x_ref, size_t rows, size_t hidden,
		     const float *w, const float *w_ref, size_t tile_rows, const struct head_state *state,
		     const struct head_state *ref_state, double *kl, float *dx, struct err *err);
int ref_gram_add(struct backend *be, const float *x, size_t rows, size_t cols, double *h,
		 struct err *err);
int ref_gram_mean(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal,
		  struct err *err);

/* backward.c, train.c */
int ref_rms_norm_backward(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
			  size_t cols, const float *dy, float *dx, struct err *err);
int ref_block_backward(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
		       const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len,
		       block_loss loss, void *loss_ctx, float *dx, const struct block_grads *grads,
		       struct err *err);
int ref_squared_error(struct backend *be, const float *y, const float *target, size_t n, double scale, float *dy,
		      double *sum, struct err *err);
int ref_grid_values(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		    size_t cols, const float *scales, const float *zeros, float *w, struct err *err);
int ref_grid_gradients(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		       size_t cols, const float *scales, const float *zeros, const float *dw,
		       float *dscales, float *dzeros, float *dlatents, struct err *err);
int ref_adam_step(struct backend *be, const struct adam *adam, size_t n, float *p, const float *g, float *m,
		  float *v, struct err *err);

/* the quantization half */
int ref_factor(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp,
	       float *u, double *pivots, struct err *err);
int ref_fit_groups(struct backend *be, enum fit_method method, const struct grid *grid,
		   const float *w, size_t rows, size_t cols, const double *h, float *scales,
		   float *zeros, double *objective, struct err *err);
int ref_round_nearest(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		      size_t cols, const float *scales, const float *zeros, uint8_t *codes,
		      struct err *err);
int ref_round_ldlq(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const int32_t *perm, const float *u, const double *pivots,
		   const float *scales, const float *zeros, uint8_t *codes, double *row_loss,
		   struct err *err);
int ref_refine(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
	       const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales,
	       float *zeros, double *row_loss, struct err *err);
int ref_proxy_loss(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const double *h, double damp, const uint8_t *codes,
		   const float *scales, const float *zeros, double *loss, double *energy,
		   struct err *err);

#endif
