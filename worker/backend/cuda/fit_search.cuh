/* fit_search.cuh - candidates (s, z) of one group: where they start, how they descend, which are kept.
 *
 * A team of 1, 4 or 8 warps has one group. The group lies normalized in fast memory, t = (w - mean) / deviation and
 * h of sum 1. A descent step gives every candidate a thread, which passes over the points that all threads read
 * together: no searching, no divergence, 11 operations per point, whatever the number of codes. When there are fewer
 * candidates than threads, several threads share the points of one. Starting and choosing are the first warp's.
 *
 * Candidates, starts and rounds are those of cpu/fit_group.c. Codes are centred: q - 2^(b-1), zero-points likewise.
 * What is called from many places is not inlined, for the sake of the instruction cache.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_FIT_SEARCH_CUH
#define QUARRY_WORKER_BACKEND_CUDA_FIT_SEARCH_CUH

#include <float.h>
#include <math.h>

enum {
	FIT_WARP = 32,
	FIT_KEEP = 16,
	FIT_POOL = 288,         /* candidates at once, the kept ones among them; a multiple of the warp */
	FIT_SUMS = 4,           /* of a step */
	FIT_ROOM = 5,           /* doubles per warp for sums over the team */
	FIT_RUN = 128,          /* pairs of points per partial sum */
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

static constexpr unsigned fit_all_lanes = 0xffffffffu;
static constexpr float fit_round_shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, half to even */

struct fit_candidate { float s, z, loss; };

/* What the threads of a team share. */
template <int WARPS> struct fit_shared {
	double room[FIT_ROOM * WARPS];
	fit_candidate pool[FIT_POOL];           /* the kept ones first, by loss */
	int kept, count, next;
	float sums[FIT_SUMS][WARPS * FIT_WARP];
};

template <int WARPS> struct fit_team {
	static const int THREADS = WARPS * FIT_WARP;
	fit_shared<WARPS> *shared;
	int rank;                               /* of the thread */

	__device__ int lane() const { return rank % FIT_WARP; }
	__device__ bool leads() const { return rank < FIT_WARP; }
	__device__ void sync() const
	{
		if (WARPS == 1)
			__syncwarp();
		else
			__syncthreads();
	}
};

/* A group as the search sees it: (t, h) (t, h), an odd last one filled up with h = 0. */
struct fit_points {
	float4 *at;
	int pairs;
	bool fast;                              /* in shared memory */
};

struct fit_search {
	int bits, levels;
	bool fixed, symmetric;                  /* fixed: zero-points stay, only the scale is fitted */
	int n;
	float origin;                           /* t of the weight 0 */
	float shift;                            /* fixed: mean / deviation, else 0; code q stands for s (q - z) - shift */
	float low, high, largest;               /* reach of the levels in t, its min-max scale */
	fit_points whole, coarse;               /* the group; the same or fewer points that stand for it */
};

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
	const float q = fmaf(__saturatef(fmaf(x, r.narrow, r.middle)), r.width, r.bottom) - fit_round_shift;
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
		 fit_round_shift - f.levels / 2 };
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
		const int i = k * FIT_WARP + lane;
		const fit_candidate p = i < count ? shared.pool[i] : winner;

		key[k] = p.s > 0 && p.s <= FLT_MAX && p.loss <= FLT_MAX ? __float_as_uint(p.loss) : dead;
	}
	for (; kept < FIT_KEEP; kept++) {
		unsigned best = dead, index = dead, limit;

		for (int k = 0; k < KEYS; k++)
			best = min(best, key[k]);
		best = __reduce_min_sync(fit_all_lanes, best);
		if (best == dead)
			break;
		limit = __float_as_uint(__uint_as_float(best) * (1 + 2e-6f));
		for (int k = KEYS - 1; k >= 0; k--) {
			if (key[k] == best)
				index = k * FIT_WARP + lane;
			if (key[k] <= limit)
				key[k] = dead;
		}
		index = __reduce_min_sync(fit_all_lanes, index);
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
	if (team.leads() && count <= FIT_WARP)
		choose<1>(*team.shared, count, team.lane());
	else if (team.leads() && count <= 3 * FIT_WARP)
		choose<3>(*team.shared, count, team.lane());
	else if (team.leads())
		choose<FIT_POOL / FIT_WARP>(*team.shared, count, team.lane());
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

			for (; next < total && count + FIT_WARP <= FIT_POOL; next += FIT_WARP) {
				fit_candidate p = { 0, 0, 0 };
				const int i = next + team.lane();
				const bool there = i < total && make(i, &p) && p.s > 0;
				const unsigned mask = __ballot_sync(fit_all_lanes, there);

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
