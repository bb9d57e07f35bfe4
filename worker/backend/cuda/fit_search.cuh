/* fit_search.cuh - candidates (s, z) of one group: where they start, and how the rounds follow one another.
 *
 * A team of 1, 4 or 8 warps has one group. The group lies normalized in fast memory, t = (w - mean) / deviation and
 * h of sum 1. Starting is the first warp's; how candidates descend is in fit_step.cuh.
 *
 * Candidates, starts and rounds are those of cpu/fit_group.c. Codes are centred: q - 2^(b-1), zero-points likewise.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_FIT_SEARCH_CUH
#define QUARRY_WORKER_BACKEND_CUDA_FIT_SEARCH_CUH

#include <math.h>

#include "worker/backend/cuda/fit_step.cuh"
#include "worker/backend/cuda/fit_team.cuh"
#include "worker/backend/cuda/sums.cuh"

enum {
	FIT_SCALES = 24,        /* geometric, from above the min-max scale down */
	FIT_SCALES_WIDE = 40,   /* at more than 6 bits */
	FIT_SCALES_INTEGER = 48, /* where the zero-point gives little or no freedom to trade */
	FIT_SCALES_SYMMETRIC = 128,
	FIT_OUTER = 16,         /* geometric, up from there, where few weights are far out */
	FIT_POSITIONS = 3,      /* per code step */
	FIT_POSITIONS_MAX = 10, /* per scale */
	FIT_WALK = 4,           /* steps of the kept ones between rounds */
	FIT_CENTERS = 3,        /* candidates that the first finer round surrounds */
	FIT_PAIRS_MAX = 6000,   /* few weights: starts through two of them */
	FIT_FAR = 5             /* weighted deviations from the mean, zero included where z is bound */
};

/* --- starts --------------------------------------------------------------------------------------------- */

static __device__ float bound_zero(const fit_search &f, float z)
{
	if (f.symmetric)
		return f.levels / 2;
	return fminf(fmaxf(rintf(z), 0.0f), f.levels - 1);
}

/* The candidate whose code 0 stands at a; both in t. */
static __device__ fit_candidate candidate_at(const fit_search &f, float s, float a)
{
	const float z = f.fixed ? bound_zero(f, (f.origin - a) / s) : -a / s;

	return { s, z - f.levels / 2, 0 };
}

/* Starts 0 .. total-1, one step each: make(i, &p) is whether there is a start i. */
template <int WARPS, typename MAKE> static __device__ void starts(const fit_team<WARPS> &team, const fit_search &f,
								  int total, const MAKE &make)
{
	fit_shared<WARPS> &shared = *team.shared;

	for (int next = 0; next < total;) {
		const int kept = shared.kept;

		if (team.leads()) {
			const unsigned before = (1u << team.lane()) - 1;
			int count = kept;

			for (; next < total && count + WARP <= FIT_POOL; next += WARP) {
				fit_candidate p = { 0, 0, 0 };
				const int i = next + team.lane();
				const bool there = i < total && make(i, &p) && p.s > 0;
				const unsigned mask = __ballot_sync(ALL_LANES, there);

				if (there)
					shared.pool[count + __popc(mask & before)] = p;
				count += __popc(mask);
			}
			if (team.lane() == 0) {
				shared.count = count;
				shared.next = next;
			}
		}
		team.sync();
		const int count = shared.count;

		next = shared.next;
		step(team, f, f.coarse, kept, count);
		team.sync(); /* with no start: count and next were read by all */
		keep(team, count);
	}
}

/* Positions of a ladder of step s that leave at most half a step free at either end, number i of them. */
static __device__ bool ladder(const fit_search &f, float s, int i, fit_candidate *p)
{
	const float reach = (f.levels - 1) * s, width = f.high - f.low;
	const float first = fminf(f.low, f.high - reach) - s / 2, span = fabsf(width - reach) + s;
	const float stride = fmaxf(s / FIT_POSITIONS, span / FIT_POSITIONS_MAX);

	if (i * stride > span * (1 + 1e-5f))
		return false;
	*p = candidate_at(f, s, first + i * stride);
	return !f.fixed || i == 0 || candidate_at(f, s, first + (i - 1) * stride).z != p->z;
}

/* How far above the min-max scale to begin: few weights may happen to lie on a wider ladder. */
static __device__ float top_scale(const fit_search &f)
{
	if (f.fixed)
		return f.n <= 32 ? 2 : 1.45f;
	if (f.bits > 6)
		return 1.05f;
	return f.n <= 32 ? 1.7f : 1.2f;
}

template <int WARPS> static __device__ void start_coarse(const fit_team<WARPS> &team, const fit_search &f)
{
	const int scales = f.symmetric ? FIT_SCALES_SYMMETRIC : f.fixed ? FIT_SCALES_INTEGER
			 : f.bits > 6 ? FIT_SCALES_WIDE : FIT_SCALES;
	const int outer = fmaxf(-f.low, f.high) > FIT_FAR ? FIT_OUTER : 0;
	const int positions = f.symmetric ? 1 : FIT_POSITIONS_MAX + 1;
	const float smallest = fminf(1.6f / f.levels, f.largest / 2), top = f.largest * top_scale(f);
	const float down = log2f(top / smallest) / (scales - 1);
	const float up = log2f((f.high - f.low) / f.largest) / FIT_OUTER;

	starts(team, f, (scales + outer) * positions, [&](int i, fit_candidate *p) {
		const int scale = i / positions;
		const float s = scale < scales ? top * exp2f(-scale * down)
					       : f.largest * exp2f((scale - scales + 1) * up);

		return ladder(f, s, i % positions, p);
	});
}

/* Every ladder with two weights on two of its codes, when that is few. */
template <int WARPS> static __device__ void start_pairs(const fit_team<WARPS> &team, const fit_search &f)
{
	const int ladders = f.levels * (f.levels - 1) / 2;

	if ((double)f.n * (f.n - 1) / 2 * ladders > FIT_PAIRS_MAX)
		return;
	starts(team, f, f.n * f.n * ladders, [&](int i, fit_candidate *p) {
		const float *t = (const float *)f.whole.at;
		const int pair = i / ladders;
		const float from = t[pair / f.n * 2], to = t[pair % f.n * 2];
		int first = i % ladders, apart = 1; /* the two codes: first, first + apart */

		for (; first >= f.levels - apart; apart++)
			first -= f.levels - apart;
		*p = candidate_at(f, (to - from) / apart, from - first * ((to - from) / apart));
		return from < to;
	});
}

/* --- rounds --------------------------------------------------------------------------------------------- */

/* A finer round around the best: scales within +-range of it, ladders shifted by up to +-shift codes. */
struct fit_round { float range, shift; int scales, shifts, centers; };

template <int WARPS> static __device__ void start_round(const fit_team<WARPS> &team, const fit_search &f,
							const fit_round &r)
{
	const int rows = 2 * r.scales + 1, columns = 2 * r.shifts + 1;
	const float half = (f.levels - 1) / 2.0f;
	fit_candidate best[FIT_CENTERS];

	for (int i = 0; i < FIT_CENTERS; i++)
		best[i] = team.shared->pool[i < r.centers ? i : 0];
	starts(team, f, r.centers * rows * columns, [&](int i, fit_candidate *p) {
		const int center = i / (rows * columns);
		const fit_candidate b = center == 0 ? best[0] : center == 1 ? best[1] : best[2];
		const float along = (float)(i / columns % rows - r.scales) / r.scales;
		const float aside = (float)(i % columns - r.shifts) / max(r.shifts, 1);
		const float middle = b.s * (half - (b.z + f.levels / 2)) - f.shift;
		const float s = b.s * (1 + r.range * along);

		*p = candidate_at(f, s, middle - s * half + s * r.shift * aside);
		return true;
	});
}

/* Rounds shrink from the spacing of the coarse scales (or one code at the end of the ladder) until the ladder's end
 * moves by a fraction of a code; then whole-code shifts, which a walk never makes. */
template <int WARPS> static __device__ void refine(const fit_team<WARPS> &team, const fit_search &f)
{
	fit_round r = { 0, 1, f.fixed ? 16 : f.bits > 6 ? 9 : 5, f.symmetric ? 0 : f.fixed ? 1 : 2,
			min(team.shared->kept, (int)FIT_CENTERS) };

	for (r.range = fmaxf(1.0f / f.levels, 0.07f);; r.range /= 4) {
		const float moved = r.range * f.levels;

		if (!f.fixed)
			r.shift = fminf(1.0f, 0.4f * moved);
		start_round(team, f, r);
		walk(team, f, f.coarse, 1);
		r.centers = 1;
		if (moved < 0.3f)
			break;
	}
	if (f.bits <= 2)
		return;
	r.range = 0.5f / f.levels;
	r.shift = f.fixed ? 1 : 2;
	start_round(team, f, r);
	walk(team, f, f.coarse, 1);
}

/* The best candidates: shared->pool, shared->kept of them. Reached by the whole team. */
template <int WARPS> static __device__ void search(const fit_team<WARPS> &team, const fit_search &f)
{
	if (team.rank == 0)
		team.shared->kept = 0;
	team.sync();
	start_pairs(team, f);
	start_coarse(team, f);
	walk(team, f, f.coarse, FIT_WALK);
	if (team.shared->kept == 0)
		return;
	refine(team, f);
	walk(team, f, f.whole, FIT_WALK);
}

#endif
