/* group_choice.h - the arithmetic of grid_snap.h and group_step.h, one home for C and CUDA.
 *
 * Backends make the same choices because they compile the same lines. Who includes this first says how functions are
 * declared, CHOICE_FN (static inline, or static __device__ inline), and how a float is rounded to a half,
 * CHOICE_HALF(x): the value of the half nearest to x, infinite beyond the halves. For grid_snap.c, group_step.c and
 * device code alone; everybody else calls grid_snap.h and group_step.h.
 *
 * Every candidate for (s, z) is rounded to float32 first and judged by what it wins then. Where codes hardly differ
 * the two unknowns are one, and only the position moves.
 */
#ifndef QUARRY_WORKER_BACKEND_GROUP_CHOICE_H
#define QUARRY_WORKER_BACKEND_GROUP_CHOICE_H

#include <float.h>
#include <math.h>

#include "worker/backend/group_step.h"

/* Codes of fewer bits travel in containers of 4. */
enum { CONTAINER_BITS = 4 };

CHOICE_FN bool choice_binds_zero(const struct grid *grid)
{
	return grid->symmetric || grid->integer_zero || grid->zero_parts > 0;
}

CHOICE_FN double choice_zero(const struct grid *grid, double z)
{
	const int levels = 1 << grid->bits;
	const double parts = grid->integer_zero ? 1 : grid->zero_parts;

	if (grid->symmetric)
		return levels / 2;
	if (parts > 0)
		return fmin(fmax(nearbyint(z * parts), 0.0), parts * levels - 1) / parts;
	return z;
}

/* The half nearest to `value`, or `value` itself when that is beyond the halves. */
CHOICE_FN float choice_half(float value)
{
	const float half = CHOICE_HALF(value);

	return isfinite(half) ? half : value;
}

CHOICE_FN float choice_divisor(const struct grid *grid)
{
	const unsigned container = grid->bits < CONTAINER_BITS ? 1u << (CONTAINER_BITS - grid->bits) : 1;

	if (!choice_binds_zero(grid))
		return 1;
	return (float)(grid->zero_parts > container ? grid->zero_parts : container);
}

CHOICE_FN void choice_snap(const struct grid *grid, float *s, float *z)
{
	const float least = 0x1p-24f, by = choice_divisor(grid);

	if (!grid->symmetric)
		*z = (float)choice_zero(grid, *z);
	if (!grid->half)
		return;
	*s = choice_half(fmaxf(*s / by, least)) * by;
	if (!choice_binds_zero(grid))
		*z = choice_half(*s * *z) / *s;
}

/* --- the step of one group ---------------------------------------------------------------------- */

/* The best so far of one group. */
struct choice {
	const struct grid *grid;
	const struct group_sums *sums;
	double s0, t0;          /* where it stands */
	double gain;
	float s, z;
};

/* Below this share of its terms the determinant is rounding noise. */
CHOICE_FN bool choice_singular(double determinant, double terms)
{
	return !(determinant > 1e-9 * terms);
}

/* Loss won by going to s (q - z). */
CHOICE_FN double choice_gain(const struct choice *c, double s, double z)
{
	const struct group_sums *m = c->sums;
	const double ds = s - c->s0, dt = -s * z - c->t0;

	return 2 * (ds * m->rq + dt * m->r1) - (ds * ds * m->qq + 2 * ds * dt * m->q1 + dt * dt * m->oo);
}

CHOICE_FN void choice_consider(struct choice *c, double scale, double zero)
{
	float s = (float)scale, z = (float)zero;
	double gain;

	if (s >= FLT_MIN && isfinite(s) && isfinite(z))
		choice_snap(c->grid, &s, &z);
	if (!(s >= FLT_MIN) || !isfinite(s) || !isfinite(z))
		return;
	gain = choice_gain(c, s, z);
	if (gain > c->gain) {
		c->gain = gain;
		c->s = s;
		c->z = z;
	}
}

/* The best s for a given z: v = q - z, s = v^T A f / v^T A v, f the group's values plus e. */
CHOICE_FN void choice_consider_zero(struct choice *c, double z)
{
	const struct group_sums *m = c->sums;
	const double vv = m->qq - 2 * z * m->q1 + z * z * m->oo;
	const double vf = m->rq - z * m->r1 + c->s0 * (m->qq - z * m->q1) + c->t0 * (m->q1 - z * m->oo);

	if (!choice_singular(vv, m->qq + z * z * m->oo))
		choice_consider(c, vf / vv, z);
}

/* The unbound optimum (s, t); false where it is no line with s > 0. */
CHOICE_FN bool choice_solve(const struct choice *c, double *s, double *t)
{
	const struct group_sums *m = c->sums;
	const double det = m->qq * m->oo - m->q1 * m->q1;

	if (choice_singular(det, m->qq * m->oo))
		return false;
	*s = c->s0 + (m->rq * m->oo - m->r1 * m->q1) / det;
	*t = c->t0 + (m->r1 * m->qq - m->rq * m->q1) / det;
	return *s >= FLT_MIN && isfinite(*s) && isfinite(*t);
}

/* The best position for a given s. */
CHOICE_FN void choice_consider_scale(struct choice *c, double s)
{
	const struct group_sums *m = c->sums;

	if (m->oo > 0)
		choice_consider(c, s, -(c->t0 + (m->r1 - (s - c->s0) * m->q1) / m->oo) / s);
}

/* Real z: the optimum, its position chosen once more for s as stored; or a shift where there is none. */
CHOICE_FN void choice_consider_line(struct choice *c)
{
	double s, t;

	if (choice_solve(c, &s, &t)) {
		float stored = (float)s, zero = (float)(-t / s);

		choice_consider(c, s, -t / (float)s);
		if (!c->grid->half || !isfinite(zero))
			return;
		choice_snap(c->grid, &stored, &zero);
		choice_consider_scale(c, stored);
	} else {
		choice_consider_scale(c, c->s0);
	}
}

/* z in steps of 1/n: loss falls towards the real optimum from both sides, so one of its neighbours is best. */
CHOICE_FN void choice_consider_steps(struct choice *c, double parts)
{
	double s, t;

	if (!choice_solve(c, &s, &t))
		return;
	choice_consider_zero(c, choice_zero(c->grid, floor(-t / s * parts) / parts));
	choice_consider_zero(c, choice_zero(c->grid, ceil(-t / s * parts) / parts));
}

/* group_step() */
CHOICE_FN double choice_step(const struct grid *grid, const struct group_sums *sums, double least, float *s, float *z)
{
	struct choice c;

	c.grid = grid;
	c.sums = sums;
	c.s0 = *s;
	c.t0 = -(double)*s * *z;
	c.gain = least;
	c.s = *s;
	c.z = *z;
	if (choice_binds_zero(grid))
		choice_consider_zero(&c, *z);
	else
		choice_consider_line(&c);
	if (choice_binds_zero(grid) && !grid->symmetric)
		choice_consider_steps(&c, grid->integer_zero ? 1 : grid->zero_parts);
	if (!(c.gain > least))
		return 0;
	*s = c.s;
	*z = c.z;
	return c.gain;
}

#endif
