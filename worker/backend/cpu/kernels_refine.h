/* kernels_refine.h - the inner loops of refinement, one table per instruction-set level.
 *
 * Arrays run over the columns of one row, padded to a multiple of REFINE_LANES with zeros; sums have one order
 * and products are never contracted, so every level computes the same bits.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_KERNELS_REFINE_H
#define QUARRY_WORKER_BACKEND_CPU_KERNELS_REFINE_H

#include <stddef.h>
#include <stdint.h>

enum { REFINE_LANES = 32 };

/* One row of a sweep over the codes (ref/refine.c). A = H + damp I, r = A e. */
struct refine_row {
	size_t cols, stride;
	const float *a;         /* (cols, stride) A */
	const float *diagonal;  /* (stride) A_jj */
	const int32_t *perm;    /* (cols) order of the visits */
	float top;              /* 2^b - 1 */
	float nearly, least;    /* refine_nearly, refine_least_move */
	const float *s;         /* (stride) scale of each column, 0 in the padding */
	float *q, *r;           /* (stride) codes and A e, kept up to date */
	/* Scratch (stride): 1 / (s A_jj); s^2 A_jj / 2; s where the code may rise, -s where it may fall, else 0 */
	float *inverse, *half, *up, *down;
};

struct refine_kernels {
	/* Visits every column once. */
	void (*sweep)(const struct refine_row *row);
	/* q1 = sum of q a, rq of r q, r1 of r over n columns; a = A 1 of the group, r = A e. */
	void (*sums)(const float *q, const float *a, const float *r, size_t n, double *q1, double *rq,
		     double *r1);
	/* e = w inverse - s (q - z) over n columns, in double */
	void (*errors)(const float *w, const float *q, double inverse, double s, double z, size_t n, float *e);
	/* sum of x y over n */
	double (*dot)(const float *x, const float *y, size_t n);
};

#endif
