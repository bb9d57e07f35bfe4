/* kernels_refine.h - device code of one round of refinement (ref/refine.c is the specification).
 *
 * Four files of kernels: _metric makes A in its two forms, _rows the errors and losses of rows, _sweep the sweep over the
 * codes, _fit the least squares of group after group. Every array is on the device. Internal to worker/backend/cuda.
 *
 * Units: A is in units of a power of two near its largest diagonal entry, e and r = A e of a row in units of one near its
 * largest scale: products stay within float32 for weights of any size. Scales and zero-points are
 * as they are given.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_REFINE_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_REFINE_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/backend/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Columns that a thread takes at once in the sweep; rows of its arrays are a multiple of it apart. */
enum { REFINE_CHUNK = 8 };
/* From so many columns on the sweep reads correlations of 16 bits, below as float32: a move that falls the other way by
 * rounding is one of many there, and shows in the loss of few columns. */
enum { REFINE_BRIEF_COLUMNS = 2304 };
/* Groups of at most so many columns are fitted several at a time, in blocks of at most so many. */
enum { REFINE_BLOCK = 128 };

/* A = (H + damp I) / unit, of one operation. */
struct refine_metric {
	const double *h;                /* (cols, cols) */
	double damp;
	size_t cols, stride, group;     /* stride: cols, rounded up to a multiple of REFINE_CHUNK */
	const int32_t *perm;            /* (cols) */
	double *unit;                   /* one; out, as everything below */
	float *a;                       /* (cols, cols) A */
	double *ones;                   /* (cols) A 1 of each column's own group */
	double *group_ones;             /* (cols / group) 1^T A 1 of each group */
	/* In the order of perm, zero in the padding: sqrt(A_jj), its inverse (0 where it is 0), and the correlations
	 * C_ij = A_ij / sqrt(A_ii A_jj), float32, or 16 bits that stand for 32767 C_ij + 32768. */
	float *root, *inverse;          /* (stride) */
	void *likeness;                 /* (cols, stride) */
};
static inline bool refine_is_brief(size_t cols)
{
	return cols >= REFINE_BRIEF_COLUMNS;
}
cudaError_t refine_metric_launch(cudaStream_t stream, const struct refine_metric *m);

/* Rows at work. codes, scales and zeros are the caller's until refine_store_launch(). */
struct refine_rows {
	size_t rows, cols, group, groups;
	const float *w;                 /* (rows, cols) */
	uint8_t *codes;                 /* (rows, cols) */
	float *scales, *zeros;          /* (rows, groups) */
	double *row_loss;               /* (rows) */
	uint8_t *q;                     /* (rows, cols) what is being made of them */
	float *s, *z;                   /* (rows, groups) */
	float *e, *r;                   /* (rows, cols) */
	double *unit;                   /* (rows) */
	double *before, *after;         /* (rows) losses, in units of A and of the row */
	const double *metric_unit;
	int *bad;
};
/* q, s, z, unit; a scale that is not above 0, or not finite, is bad. */
cudaError_t refine_load_launch(cudaStream_t stream, const struct refine_rows *o);
/* e = w - s (q - z) */
cudaError_t refine_errors_launch(cudaStream_t stream, const struct refine_rows *o);
/* to (rows) = e r, sums in double; what is not finite is bad when `watch`. */
cudaError_t refine_losses_launch(cudaStream_t stream, const struct refine_rows *o, double *to, bool watch);
/* Rows that lose less go to codes, scales and zeros; row_loss of all. Nothing goes anywhere when something was bad. */
cudaError_t refine_store_launch(cudaStream_t stream, const struct refine_rows *o);

/* One sweep over the codes: q and nothing else changes. */
struct refine_sweep {
	size_t rows, cols, stride, group, groups;
	const int32_t *perm;
	const void *likeness;           /* and root, inverse: struct refine_metric */
	const float *root, *inverse;
	const float *r, *s;             /* struct refine_rows */
	const double *unit;
	uint8_t *q;
	int top;                        /* 2^b - 1 */
	float *space;                   /* refine_sweep_space() bytes, or NULL for none */
};
/* Device memory that a sweep of rows needs beside shared memory. */
size_t refine_sweep_space(size_t rows, size_t stride);
cudaError_t refine_sweep_launch(cudaStream_t stream, const struct refine_sweep *o);

/* The steps of the groups in columns first .. first + wide - 1. */
struct refine_fit {
	size_t rows, cols, group, groups, first, wide;
	const float *a;                 /* and ones, group_ones: struct refine_metric */
	const double *ones, *group_ones;
	const uint8_t *q;               /* struct refine_rows */
	const float *r;
	float *s, *z;
	const double *unit, *before;
	float *product;                 /* (rows, wide) A q of the group, when it is wider than REFINE_BLOCK */
	float *x;                       /* (rows, wide) out: change of the values s (q - z), in units of the row */
	struct grid grid;
};
/* x = q of the columns, as numbers. */
cudaError_t refine_codes_launch(cudaStream_t stream, const struct refine_fit *o);
/* One group, from x = q and product. */
cudaError_t refine_fit_wide_launch(cudaStream_t stream, const struct refine_fit *o);
/* Whole groups in at most REFINE_BLOCK columns. */
cudaError_t refine_fit_block_launch(cudaStream_t stream, const struct refine_fit *o);

#ifdef __cplusplus
}
#endif

#endif
