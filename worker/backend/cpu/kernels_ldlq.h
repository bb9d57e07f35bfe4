/* kernels_ldlq.h - the inner loops of LDLQ and of the proxy loss, one table per instruction-set
 * level. Sums have one order fixed by shape and products are never contracted.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_KERNELS_LDLQ_H
#define QUARRY_WORKER_BACKEND_CPU_KERNELS_LDLQ_H

#include <stddef.h>
#include <stdint.h>

enum { LDLQ_LANES = 64, LDLQ_BLOCK = 128 };

/* `columns` consecutive columns (in rounding order) of `stride` rows, transposed: (columns, stride)
 * arrays with the rows side by side; stride is a multiple of LDLQ_LANES. */
struct ldlq_block {
	size_t columns, stride;
	const float *u;         /* (columns, columns): entry (j, k) = U_kj, k < j, within the block */
	const float *target;    /* w plus the feedback of the columns before the block */
	const float *w;
	float *e;               /* out: w - what */
	const int32_t *column;  /* (columns) natural column of each */
	size_t group;
	const float *scale, *inverse, *zero; /* (G, stride) */
	float top;              /* 2^b - 1 */
	uint8_t *codes;         /* (K, stride), natural columns */
	const double *pivots;   /* (columns), or NULL: no loss wanted */
	double *loss;           /* (stride) += pivot * (target - what)^2 */
};

struct ldlq_kernels {
	void (*block)(const struct ldlq_block *b);
	/* out = w - s (q - z), n weights of one group */
	void (*error)(const float *w, const uint8_t *codes, float s, float z, size_t n, float *out);
	/* sum of h * x */
	double (*dot)(const double *h, const float *x, size_t n);
};

#endif
