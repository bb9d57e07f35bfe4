/* group_step.h - what the backends share of refinement: the choice of one group's scale and zero-point
 * for the codes it has, all else fixed, and the limits of the sweep over the codes.
 *
 * The sums differ in how a backend makes them, the choice does not.
 * Metric A = H + damp I, e = w - s (q - z) of the whole row, r = A e. With t = -s z the group's values are
 * s q + t, so the loss is a quadratic in (s, t), known from five sums over the group's columns.
 */
#ifndef QUARRY_WORKER_BACKEND_GROUP_STEP_H
#define QUARRY_WORKER_BACKEND_GROUP_STEP_H

#include "worker/backend/backend.h"

/* |t| from which a code is worth trying with a partner (ref/refine.c): above 0.4 fewer pairs are found, below
 * it hardly any more, for up to twice the time. */
static const double refine_nearly = 0.4;
/* A move must win this share of s^2 A_jj, a group's step this share of the row's loss: no backend takes
 * rounding for a win. */
static const double refine_least_move = 1e-3, refine_least_step = 1e-6;

struct group_sums {
	double qq, q1, oo;      /* q^T A q, 1^T A q, 1^T A 1 */
	double rq, r1;          /* r^T q, r^T 1 */
};

/* Sets *s and *z to the best ones that `grid` allows (float32, s > 0 and finite) and returns by how much the
 * row's loss falls; 0 with both unchanged when that is not more than `least`. */
double group_step(const struct grid *grid, const struct group_sums *sums, double least, float *s,
		  float *z);

#endif
