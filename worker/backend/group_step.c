/* Least squares for (s, z) of one group; see group_step.h.
 *
 * Every candidate is rounded to float32 first and judged by what it wins then. Where codes hardly differ
 * the two unknowns are one, and only the position moves.
 */
#include "worker/backend/group_step.h"

#include <float.h>
#include <math.h>

#include "worker/backend/grid_snap.h"

/* Below this share of its terms the determinant is rounding noise. */
static const double singular = 1e-9;

/* The best so far of one group. */
struct choice {
	const struct grid *grid;
	const struct group_sums *sums;
	double s0, t0;          /* where it stands */
	double gain;
	float s, z;
};

/* Loss won by going to s (q - z). */
static double gain_of(const struct choice *c, double s, double z)
{
	const struct group_sums *m = c->sums;
	const double ds = s - c->s0, dt = -s * z - c->t0;

	return 2 * (ds * m->rq + dt * m->r1) - (ds * ds * m->qq + 2 * ds * dt * m->q1 + dt * dt * m->oo);
}

static void consider(struct choice *c, double scale, double zero)
{
	float s = (float)scale, z = (float)zero;
	double gain;

	if (s >= FLT_MIN && isfinite(s) && isfinite(z))
		grid_snap(c->grid, &s, &z);
	if (!(s >= FLT_MIN) || !isfinite(s) || !isfinite(z))
		return;
	gain = gain_of(c, s, z);
	if (gain > c->gain) {
		c->gain = gain;
		c->s = s;
		c->z = z;
	}
}

/* The best s for a given z: v = q - z, s = v^T A f / v^T A v, f the group's values plus e. */
static void consider_zero(struct choice *c, double z)
{
	const struct group_sums *m = c->sums;
	const double vv = m->qq - 2 * z * m->q1 + z * z * m->oo;
	const double vf = m->rq - z * m->r1 + c->s0 * (m->qq - z * m->q1) + c->t0 * (m->q1 - z * m->oo);

	if (vv > singular * (m->qq + z * z * m->oo))
		consider(c, vf / vv, z);
}

/* The unbound optimum (s, t); false where it is no line with s > 0. */
static bool solve(const struct choice *c, double *s, double *t)
{
	const struct group_sums *m = c->sums;
	const double det = m->qq * m->oo - m->q1 * m->q1;

	if (!(det > singular * m->qq * m->oo))
		return false;
	*s = c->s0 + (m->rq * m->oo - m->r1 * m->q1) / det;
	*t = c->t0 + (m->r1 * m->qq - m->rq * m->q1) / det;
	return *s >= FLT_MIN && isfinite(*s) && isfinite(*t);
}

/* The best position for a given s. */
static void consider_scale(struct choice *c, double s)
{
	const struct group_sums *m = c->sums;

	if (m->oo > 0)
		consider(c, s, -(c->t0 + (m->r1 - (s - c->s0) * m->q1) / m->oo) / s);
}

/* Real z: the optimum, its position chosen once more for s as stored; or a shift where there is none. */
static void consider_line(struct choice *c)
{
	double s, t;

	if (solve(c, &s, &t)) {
		float stored = (float)s, zero = (float)(-t / s);

		consider(c, s, -t / (float)s);
		if (!c->grid->half || !isfinite(zero))
			return;
		grid_snap(c->grid, &stored, &zero);
		consider_scale(c, stored);
	} else {
		consider_scale(c, c->s0);
	}
}

/* z in steps of 1/n: loss falls towards the real optimum from both sides, so one of its neighbours is best. */
static void consider_steps(struct choice *c, double parts)
{
	double s, t;

	if (!solve(c, &s, &t))
		return;
	consider_zero(c, grid_zero(c->grid, floor(-t / s * parts) / parts));
	consider_zero(c, grid_zero(c->grid, ceil(-t / s * parts) / parts));
}

double group_step(const struct grid *grid, const struct group_sums *sums, double least, float *s,
		  float *z)
{
	struct choice c = { .grid = grid, .sums = sums, .s0 = *s, .t0 = -(double)*s * *z, .gain = least, .s = *s,
			    .z = *z };

	if (grid_binds_zero(grid))
		consider_zero(&c, *z);
	else
		consider_line(&c);
	if (grid_binds_zero(grid) && !grid->symmetric)
		consider_steps(&c, grid->integer_zero ? 1 : grid->zero_parts);
	if (!(c.gain > least))
		return 0;
	*s = c.s;
	*z = c.z;
	return c.gain;
}
