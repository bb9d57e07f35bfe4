/* Least squares for (s, z) of one group; see group_step.h.
 *
 * Every candidate is rounded to float32 first and judged by what it wins then. Where codes hardly differ
 * the two unknowns are one, and only the position moves.
 */
#include "worker/backend/group_step.h"

#include <float.h>
#include <math.h>

/* Below this share of its terms the determinant is rounding noise. */
static const double singular = 1e-9;

/* The best so far of one group. */
struct choice {
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
	const float s = (float)scale, z = (float)zero;
	double gain;

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

/* Real z: the optimum, or a shift where there is none. */
static void consider_line(struct choice *c)
{
	double s, t;

	if (solve(c, &s, &t))
		consider(c, s, -t / (float)s);
	else if (c->sums->oo > 0)
		consider(c, c->s0, -(c->t0 + c->sums->r1 / c->sums->oo) / c->s0);
}

/* Integer z: loss falls towards the real optimum from both sides, so one of its neighbours is best. */
static void consider_integers(struct choice *c, double top)
{
	double s, t;

	if (!solve(c, &s, &t))
		return;
	consider_zero(c, fmin(fmax(floor(-t / s), 0), top));
	consider_zero(c, fmin(fmax(ceil(-t / s), 0), top));
}

double group_step(const struct grid *grid, const struct group_sums *sums, double least, float *s,
		  float *z)
{
	struct choice c = { .sums = sums, .s0 = *s, .t0 = -(double)*s * *z, .gain = least, .s = *s,
			    .z = *z };

	if (grid->symmetric || grid->integer_zero)
		consider_zero(&c, *z);
	else
		consider_line(&c);
	if (grid->integer_zero && !grid->symmetric)
		consider_integers(&c, (1 << grid->bits) - 1);
	if (!(c.gain > least))
		return 0;
	*s = c.s;
	*z = c.z;
	return c.gain;
}
