/* Loops that the compiler turns into vector code, compiled once per level (levels.h).
 *
 * A sweep visits columns one by one, since a move changes r everywhere; what is long is done in
 * lanes: the search of a partner and the update of r, each one pass over a row of A (two rows for a pair).
 */
#include "worker/backend/cpu/kernels_refine.h"

#include <math.h>
#include <string.h>

#include "worker/backend/cpu/levels.h"

enum { SUM_LANES = 16, WIN_LANES = 16 };

static void allow(const struct refine_row *o, size_t j)
{
	o->up[j] = o->q[j] < o->top ? o->s[j] : 0;
	o->down[j] = o->q[j] > 0 ? -o->s[j] : 0;
}

static void prepare(const struct refine_row *o)
{
	const float *restrict s = o->s, *restrict d = o->diagonal, *restrict q = o->q;
	float *restrict inverse = o->inverse, *restrict half = o->half;
	float *restrict up = o->up, *restrict down = o->down;
	const size_t n = o->stride;
	const float top = o->top;

	for (size_t j = 0; j < n; j++) {
		inverse[j] = 1 / (s[j] * d[j]);
		half[j] = s[j] * s[j] * d[j] / 2;
	}
	for (size_t j = 0; j < n; j++) {
		const float rise = s[j], fall = -rise;

		up[j] = q[j] < top ? rise : 0;
		down[j] = q[j] > 0 ? fall : 0;
	}
}

/* Half of what column k wins by moving by 1 once e_j has grown by d; 0 or less where it may not. */
static inline float win(float r, float a, float d, float up, float down, float half)
{
	const float moved = r + d * a, rise = moved * up, fall = moved * down;

	return (rise > fall ? rise : fall) - half;
}

/* The most that win() gives over all columns, and a column where it does; 0 where nothing wins. */
static float best_win(const struct refine_row *o, const float *restrict a, float d, size_t *column)
{
	const float *restrict r = o->r, *restrict up = o->up, *restrict down = o->down;
	const float *restrict half = o->half;
	float best[WIN_LANES] = { 0 }, most = 0;
	int32_t at[WIN_LANES] = { 0 };
	const int32_t n = (int32_t)o->stride;

	for (int32_t k = 0; k < n; k += WIN_LANES)
		for (int l = 0; l < WIN_LANES; l++) {
			const float x = win(r[k + l], a[k + l], d, up[k + l], down[k + l], half[k + l]);
			const int32_t more = -(int32_t)(x > best[l]); /* all bits, or none: no branch */

			at[l] = (k & more) | (at[l] & ~more);
			best[l] = x > best[l] ? x : best[l];
		}
	for (int l = 0; l < WIN_LANES; l++)
		most = best[l] > most ? best[l] : most;
	for (int l = WIN_LANES - 1; l >= 0; l--)
		if (best[l] == most)
			*column = (size_t)(at[l] + l);
	return most;
}

/* e_j has grown by d, so r by d A_j. */
static void move(const struct refine_row *o, size_t j, float step)
{
	const float *restrict a = o->a + j * o->stride;
	float *restrict r = o->r;
	const float d = -step * o->s[j];
	const size_t n = o->stride;

	o->q[j] += step;
	allow(o, j);
	for (size_t i = 0; i < n; i++)
		r[i] += d * a[i];
}

/* Both at once. */
static void move_pair(const struct refine_row *o, size_t j, float step, size_t k, float its_step)
{
	const float *restrict a = o->a + j * o->stride, *restrict b = o->a + k * o->stride;
	float *restrict r = o->r;
	const float d = -step * o->s[j], c = -its_step * o->s[k];
	const size_t n = o->stride;

	o->q[j] += step;
	o->q[k] += its_step;
	allow(o, j);
	allow(o, k);
	for (size_t i = 0; i < n; i++)
		r[i] += d * a[i] + c * b[i];
}

/* The step that t asks for, within the codes there are. */
static inline float own_step(const struct refine_row *o, size_t j, float t)
{
	float step = nearbyintf(t), q;

	if (step == 0)
		step = t > 0 ? 1 : -1;
	q = o->q[j] + step;
	return (q < 0 ? 0 : q > o->top ? o->top : q) - o->q[j];
}

/* j moves by step, one other code may go with it, when the two together win. */
static void visit(const struct refine_row *o, size_t j, float step)
{
	const float *a = o->a + j * o->stride, s = o->s[j], d = -step * s;
	const double own = (double)s * s * o->diagonal[j];
	const double alone = 2.0 * s * step * o->r[j] - own * step * step;
	size_t k = 0;
	float best;

	o->up[j] = o->down[j] = 0;
	best = best_win(o, a, d, &k);
	allow(o, j);
	if (!(alone + 2.0 * best > o->least * own))
		return;
	if (best > 0)
		move_pair(o, j, step, k, o->r[k] + d * a[k] > 0 ? 1 : -1);
	else
		move(o, j, step);
}

static inline void consider(const struct refine_row *o, size_t j)
{
	const float t = o->r[j] * o->inverse[j];

	if (fabsf(t) > o->nearly) {
		const float step = own_step(o, j, t);

		if (step != 0)
			visit(o, j, step);
	}
}

static void sweep(const struct refine_row *o)
{
	prepare(o);
	for (size_t p = 0; p < o->cols; p++)
		consider(o, (size_t)o->perm[p]);
}

static double total(double *acc)
{
	for (int width = SUM_LANES / 2; width > 0; width /= 2)
		for (int l = 0; l < width; l++)
			acc[l] += acc[l + width];
	return acc[0];
}

static void sums(const float *restrict q, const float *restrict a, const float *restrict r, size_t n,
		 double *q1, double *rq, double *r1)
{
	double qa_lanes[SUM_LANES] = { 0 }, rq_lanes[SUM_LANES] = { 0 }, r_lanes[SUM_LANES] = { 0 };
	size_t i;

	for (i = 0; i + SUM_LANES <= n; i += SUM_LANES)
		for (int l = 0; l < SUM_LANES; l++) {
			qa_lanes[l] += (double)q[i + l] * a[i + l];
			rq_lanes[l] += (double)q[i + l] * r[i + l];
			r_lanes[l] += r[i + l];
		}
	for (int l = 0; i < n; i++, l++) {
		qa_lanes[l] += (double)q[i] * a[i];
		rq_lanes[l] += (double)q[i] * r[i];
		r_lanes[l] += r[i];
	}
	*q1 = total(qa_lanes);
	*rq = total(rq_lanes);
	*r1 = total(r_lanes);
}

static void errors(const float *restrict w, const float *restrict q, double inverse, double s, double z,
		   size_t n, float *restrict e)
{
	for (size_t i = 0; i < n; i++)
		e[i] = (float)(w[i] * inverse - s * (q[i] - z));
}

static double dot(const float *restrict x, const float *restrict y, size_t n)
{
	double acc[SUM_LANES] = { 0 };
	size_t i;

	for (i = 0; i + SUM_LANES <= n; i += SUM_LANES)
		for (int l = 0; l < SUM_LANES; l++)
			acc[l] += (double)x[i + l] * y[i + l];
	for (int l = 0; i < n; i++, l++)
		acc[l] += (double)x[i] * y[i];
	return total(acc);
}

const struct refine_kernels KERNEL_TABLE(refine_kernels) = {
	.sweep = sweep,
	.sums = sums,
	.errors = errors,
	.dot = dot,
};
