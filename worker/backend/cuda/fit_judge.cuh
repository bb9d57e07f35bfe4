/* fit_judge.cuh - what decides about (s, z) of one group, judged in double and from the weights themselves; used by
 * kernels_fit.cu alone.
 *
 * Every thread of a team knows the best so far, so all take the same turns. Offers are min-max, the exact form of a
 * constant group, and what the search found, which exact least squares make better.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_FIT_JUDGE_CUH
#define QUARRY_WORKER_BACKEND_CUDA_FIT_JUDGE_CUH

#include <float.h>
#include <math.h>

#include "worker/backend/cuda/fit_team.cuh"
#include "worker/backend/cuda/rounding.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { POLISH_STEPS = 4 };

/* --- sums over a group ------------------------------------------------------------------------------------ */

/* Sums over a group for the nearest codes (not centred) q of one (s, z); e = w - s (q - z). */
struct exact_sums { double e2, e, eq, q, qq; };

static __device__ exact_sums operator+(const exact_sums &a, const exact_sums &b)
{
	return { a.e2 + b.e2, a.e + b.e, a.eq + b.eq, a.q + b.q, a.qq + b.qq };
}

/* Of h and h w. */
struct first_sums { double h, hw; };

static __device__ first_sums operator+(first_sums a, first_sums b)
{
	return { a.h + b.h, a.hw + b.hw };
}

struct fit_moments { double low, high, total, mean, square; };

struct judge {
	const float *w;                 /* (n) */
	const double *h;                /* (n) */
	int n, levels;
	bool fixed, symmetric;
	fit_moments m;
	float s, z;                     /* the best so far */
	double objective;
};

template <int WARPS> static __device__ __noinline__ exact_sums sums(fit_team<WARPS> team, const judge &j, double s,
								    double z)
{
	const double inverse = 1.0 / s, top = j.levels - 1;
	exact_sums all = { 0, 0, 0, 0, 0 };

	for (int i = team.rank; i < j.n; i += team.THREADS) {
		const double w = j.w[i], h = j.h[i];
		double q = w * inverse + z, e, he, hq;

		q = q < 0.0 ? 0.0 : q;
		q = q > top ? top : q;
		q = round_even(q);
		e = w - s * (q - z);
		he = h * e;
		hq = h * q;
		all.e2 += he * e;
		all.e += he;
		all.eq += he * q;
		all.q += hq;
		all.qq += hq * q;
	}
	return sum_team(team, all);
}

template <int WARPS> static __device__ fit_moments moments(const fit_team<WARPS> &team, const judge &j)
{
	double low = j.w[0], high = low, second = 0;
	first_sums first = { 0, 0 };

	for (int i = team.rank; i < j.n; i += team.THREADS) {
		low = fmin(low, (double)j.w[i]);
		high = fmax(high, (double)j.w[i]);
		first.h += j.h[i];
		first.hw += j.h[i] * j.w[i];
	}
	first = sum_team(team, first);
	const double mean = first.hw / first.h;

	for (int i = team.rank; i < j.n; i += team.THREADS)
		second += j.h[i] * (j.w[i] - mean) * (j.w[i] - mean);
	second = sum_team(team, second);
	return { -max_team(team, -low), max_team(team, high), first.h, mean, second / first.h };
}

/* --- offers ----------------------------------------------------------------------------------------------- */

static __device__ float storable_scale(double s)
{
	return (float)fmin(fmax(s, (double)FLT_MIN), (double)FLT_MAX);
}

static __device__ double allowed_zero(const judge &j, double z)
{
	if (j.symmetric)
		return j.levels / 2;
	if (j.fixed)
		return fmin(fmax(rint(z), 0.0), (double)(j.levels - 1));
	return z;
}

/* Tries (scale, zero) as stored; the sums of it in *c. */
template <int WARPS> static __device__ bool offer(const fit_team<WARPS> &team, judge &j, double scale, double zero,
						  exact_sums *c)
{
	const float s = storable_scale(scale), z = (float)zero;

	if (!isfinite(z))
		return false;
	*c = sums(team, j, s, z);
	if (!(c->e2 < j.objective))
		return false;
	j.s = s;
	j.z = z;
	j.objective = c->e2;
	return true;
}

/* Offers the best line through the weights for the codes whose sums are given, and goes on from there while that
 * helps. */
template <int WARPS> static __device__ void polish(const fit_team<WARPS> &team, judge &j, double scale, double zero)
{
	const double total = j.m.total;
	exact_sums c = { INFINITY, 0, 0, 0, 0 };
	bool better = offer(team, j, scale, zero, &c);

	for (int i = 0; i < POLISH_STEPS && (better || i == 0) && isfinite(c.e2); i++) {
		const double s = storable_scale(scale), z = (float)zero;
		double spread, along;

		if (j.fixed) {
			along = c.eq - z * c.e;
			spread = c.qq - z * (2 * c.q - z * total);
		} else {
			along = c.eq - c.e * c.q / total;
			spread = c.qq - c.q * c.q / total;
		}
		if (!(spread > 1e-12 * c.qq))
			return;
		scale = s + along / spread;
		if (!j.fixed)
			zero = (s * z - (c.e - (scale - s) * c.q) / total) / scale;
		if (!(scale > 0))
			return;
		better = offer(team, j, scale, zero, &c);
	}
}

/* --- min-max and constants: as in ref/fit.c --------------------------------------------------------------- */

static __device__ double minmax_scale(const judge &j, double low, double high, double origin)
{
	const int below = j.levels / 2, above = j.levels - 1 - below;
	double s;

	if (!j.symmetric)
		return (high - low) / (j.levels - 1);
	s = (origin - low) / below;
	if (above > 0)
		s = fmax(s, (high - origin) / above);
	return s > 0 ? s : high - origin;
}

template <int WARPS> static __device__ void offer_constant(const fit_team<WARPS> &team, judge &j, double value)
{
	exact_sums c;

	if (value == 0)
		offer(team, j, 1, allowed_zero(j, 0), &c);
	else if (j.symmetric)
		offer(team, j, value > 0 ? value : -value / (j.levels / 2), j.levels / 2, &c);
	else
		offer(team, j, fabs(value), value > 0 ? 0 : 1, &c);
}

template <int WARPS> static __device__ void offer_minmax(const fit_team<WARPS> &team, judge &j)
{
	double low = j.m.low, high = j.m.high, s;
	exact_sums c;

	if (j.fixed) {
		low = fmin(low, 0.0);
		high = fmax(high, 0.0);
	}
	if (low == high)
		offer_constant(team, j, low);
	s = storable_scale(minmax_scale(j, low, high, 0));
	offer(team, j, s, allowed_zero(j, -low / s), &c);
}

#endif
