/* shape.h - checks of shapes and finite values shared by the backends. Pure, thread-safe. */
#ifndef QUARRY_WORKER_BACKEND_SHAPE_H
#define QUARRY_WORKER_BACKEND_SHAPE_H

#include "worker/backend/backend.h"

/* Every dimension is 1 .. BACKEND_DIM_MAX, so that a product of two fits size_t and one fits a BLAS int. */
enum { BACKEND_DIM_MAX = 1 << 24 };

/* heads a multiple of kv_heads, head_dim even, dimensions and row counts in range (ERR_INVALID). */
int block_shape_check(const struct block_shape *shape, size_t n_seq, size_t seq_len, struct err *err);
/* No gradient is asked for of a bias or norm that the block does not have (ERR_INVALID names it). */
int block_grads_check(const struct block_weights *w, const struct block_grads *grads, struct err *err);
/* (rows, cols) with cols in range; rows * cols does not overflow. `what` names the operation. */
int matrix_shape_check(const char *what, size_t rows, size_t cols, struct err *err);
/* (cols, cols) as above, and rows at least 1. */
int gram_mean_check(size_t cols, uint64_t rows, struct err *err);
/* As matrix_shape_check(), and bits 1 .. 8, group dividing cols. */
int grid_shape_check(const char *what, const struct grid *grid, size_t rows, size_t cols, struct err *err);
/* step >= 1; betas in [0, 1); rate and epsilon finite and not negative. */
int adam_check(const struct adam *adam, struct err *err);
/* ERR_NUMERIC: "<what> gave a value that is not finite". Returns -1. */
int err_set_not_finite(struct err *err, const char *what);

#endif
