/* fit_step.cuh - how candidates (s, z) of one group descend, and which are kept; for kernels_fit.cu.
 *
 * A descent step gives every candidate a thread, which passes over the points that all threads read together: no
 * searching, no divergence, 11 operations per point, whatever the number of codes. When there are fewer candidates
 * than threads, several threads share the points of one. Choosing is the first warp's. What is called from many places
 * is not inlined, for the sake of the instruction cache.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_FIT_STEP_CUH
#define QUARRY_WORKER_BACKEND_CUDA_FIT_STEP_CUH

#include <float.h>
#include <math.h>

#include "worker/backend/cuda/fit_team.cuh"
#include "worker/backend/cuda/rounding.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { FIT_RUN = 128 };         /* pairs of points per partial sum */

/* --- one step ------------------------------------------------------------------------------------------- */

/* Of h (x - q)^2, h (x - q) q, h q, h q^2: x the weights in code units, q their nearest codes. */
struct fit_sums { float e2, eq, q, qq; };

static __device__ void add(fit_sums &a, const fit_sums &b)
{
	a.e2 += b.e2;
	a.eq += b.eq;
	a.q += b.q;
	a.qq += b.qq;
}

/* x = t * inverse + offset is the weight in code units; x * narrow + middle has its codes from 0 to 1. */
struct fit_ruler { float inverse, offset, narrow, middle, width, bottom; };

static __device__ void add_point(fit_sums &a, const fit_ruler &r, float t, float h)
{
	const float x = fmaf(t, r.inverse, r.offset);
	const float q = fmaf(__saturatef(fmaf(x, r.narrow, r.middle)), r.width, r.bottom) - ROUND_FLOAT;
	const float e = x - q, he = h * e, hq = h * q;

	a.e2 = fmaf(he, e, a.e2);
	a.eq = fmaf(he, q, a.eq);
	a.q += hq;
	a.qq = fmaf(hq, q, a.qq);
}

/* Every parts-th pair, `count` of them. */
struct fit_share { const float4 *at; int count, parts; };

template <bool FAST> static __device__ fit_sums sums_of(const fit_share &share, const fit_ruler &r)
{
	const float4 *at = share.at;
	fit_sums all = { 0, 0, 0, 0 };

	if (FAST)
		__builtin_assume(__isShared(at));
	for (int left = share.count; left > 0; left -= FIT_RUN) {
		const int count = min(left, (int)FIT_RUN);
		fit_sums run = { 0, 0, 0, 0 };

#pragma unroll 4
		for (int i = 0; i < count; i++, at += share.parts) {
			const float4 p = *at;

			add_point(run, r, p.x, p.y);
			add_point(run, r, p.z, p.w);
		}
		add(all, run);
	}
	return all;
}

/* A step at most halves or doubles the scale: a start may be far from its codes' best line. */
static __device__ float bounded(float change)
{
	return fminf(fmaxf(change, -0.5f), 1.0f);
}

/* The least-squares s and z for the codes whose sums are given; loss is what they leave with those codes, which
 * nearest codes can only lower. In code units errors become e - ds q + dz, so s grows by 1 + ds and z to
 * (z + dz) / (1 + ds). The weights have mean 0 and h the sum 1, so the sum of h (x - q) follows from that of h q.
 * Where nothing is left, the loss is a rounding error of either sign. */
static __device__ fit_candidate refit_free(const fit_sums &c, fit_candidate p)
{
	const float e = p.z - c.q;
	const float spread = c.qq - c.q * c.q;
	const float slope = bounded((c.eq - e * c.q) / (spread + FLT_MIN));
	const float ds = spread > 1e-6f * c.qq ? slope : 0.0f;
	const float dz = ds * c.q - e;
	const float loss = c.e2 + ds * (ds * c.qq - 2.0f * c.eq) + dz * (dz + 2.0f * (e - ds * c.q));

	return { p.s * (1.0f + ds), (p.z + dz) / (1.0f + ds), p.s * p.s * fabsf(loss) };
}

static __device__ fit_candidate refit_fixed(const fit_sums &c, fit_candidate p, float shift)
{
	const float along = c.eq - p.z * (p.z + shift / p.s - c.q);
	const float length = c.qq - p.z * (2.0f * c.q - p.z);
	const float slope = bounded(along / (length + FLT_MIN));
	const float ds = length > 1e-6f ? slope : 0.0f;

	return { p.s * (1.0f + ds), p.z, p.s * p.s * fabsf(c.e2 + ds * (ds * length - 2.0f * along)) };
}

static __device__ fit_ruler ruler_of(const fit_search &f, fit_candidate p)
{
	const float inverse = 1.0f / p.s, width = f.levels - 1;

	return { inverse, p.z + f.shift * inverse, 1.0f / width, f.levels / 2 / width, width,
		 ROUND_FLOAT - f.levels / 2 };
}

/* One step of candidates first .. end-1. Reached by the whole team. */
template <int WARPS> static __device__ __noinline__ void step(fit_team<WARPS> team, const fit_search &f,
							      const fit_points &points, int first, int end)
{
	const int threads = fit_team<WARPS>::THREADS;
	fit_shared<WARPS> &shared = *team.shared;

	for (int base = first; base < end; base += threads) {
		const int m = min(end - base, threads);
		const int log_slots = m > 1 ? 32 - __clz(m - 1) : 0, slots = 1 << log_slots;
		const int parts = threads >> log_slots, slot = team.rank & (slots - 1), part = team.rank >> log_slots;
		fit_sums c = { 0, 0, 0, 0 };
		fit_candidate p = { 1, 0, 0 };

		if (slot < m) {
			const int log_parts = 31 - __clz(threads) - log_slots;
			const fit_share share = { points.at + part, (points.pairs - part + parts - 1) >> log_parts, parts };

			p = shared.pool[base + slot];
			c = points.fast ? sums_of<true>(share, ruler_of(f, p)) : sums_of<false>(share, ruler_of(f, p));
		}
		if (parts > 1) {
			const float mine[FIT_SUMS] = { c.e2, c.eq, c.q, c.qq };

			for (int k = 0; k < FIT_SUMS; k++)
				shared.sums[k][team.rank] = mine[k];
			team.sync();
			for (int i = slot + slots; team.rank < m && i < threads; i += slots)
				add(c, { shared.sums[0][i], shared.sums[1][i], shared.sums[2][i], shared.sums[3][i] });
		}
		if (team.rank < m)
			shared.pool[base + slot] = f.fixed ? refit_fixed(c, p, f.shift) : refit_free(c, p);
		team.sync();
	}
}

/* --- the kept ones -------------------------------------------------------------------------------------- */

/* Keeps the best of the first `count` candidates, by loss, one of each loss; of equal ones the first. One warp. */
template <int KEYS, int WARPS> static __device__ __noinline__ void choose(fit_shared<WARPS> &shared, int count,
									  int lane)
{
	const unsigned dead = 0xffffffffu;      /* bits of losses that are not negative have their order */
	fit_candidate winner = { 0, 0, 0 };
	unsigned key[KEYS];
	int kept = 0;

	for (int k = 0; k < KEYS; k++) {
		const int i = k * WARP + lane;
		const fit_candidate p = i < count ? shared.pool[i] : winner;

		key[k] = p.s > 0 && p.s <= FLT_MAX && p.loss <= FLT_MAX ? __float_as_uint(p.loss) : dead;
	}
	for (; kept < FIT_KEEP; kept++) {
		unsigned best = dead, index = dead, limit;

		for (int k = 0; k < KEYS; k++)
			best = min(best, key[k]);
		best = __reduce_min_sync(ALL_LANES, best);
		if (best == dead)
			break;
		limit = __float_as_uint(__uint_as_float(best) * (1 + 2e-6f));
		for (int k = KEYS - 1; k >= 0; k--) {
			if (key[k] == best)
				index = k * WARP + lane;
			if (key[k] <= limit)
				key[k] = dead;
		}
		index = __reduce_min_sync(ALL_LANES, index);
		if (lane == kept)
			winner = shared.pool[index];
	}
	__syncwarp();
	if (lane < kept)
		shared.pool[lane] = winner;
	if (lane == 0)
		shared.kept = kept;
	__syncwarp();
}

/* As choose(), by the first warp, for the whole team. */
template <int WARPS> static __device__ void keep(const fit_team<WARPS> &team, int count)
{
	if (team.leads() && count <= WARP)
		choose<1>(*team.shared, count, team.lane());
	else if (team.leads() && count <= 3 * WARP)
		choose<3>(*team.shared, count, team.lane());
	else if (team.leads())
		choose<FIT_POOL / WARP>(*team.shared, count, team.lane());
	team.sync();
}

/* More steps for the kept ones. */
template <int WARPS> static __device__ void walk(const fit_team<WARPS> &team, const fit_search &f,
						 const fit_points &points, int times)
{
	const int kept = team.shared->kept;

	for (int i = 0; i < times; i++)
		step(team, f, points, 0, kept);
	team.sync(); /* with none kept: `kept` was read by all */
	keep(team, kept);
}

#endif
