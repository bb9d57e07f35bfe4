/* Fitting groups: see kernels_fit.h, and fit_search.cuh for the search.
 *
 * Small groups have one warp each, bigger ones a block. What decides is judged here, in double and from the weights
 * themselves: min-max, the exact form of a constant group, and the best two of the search after exact least squares.
 * Every thread of a team knows the best so far, so all take the same turns.
 *
 * The search of a group of many weights runs on bins, each 1/32 of the smallest step wide, with the weight and the
 * centre of gravity of what lies in them; its last walk takes the weights. Bins are filled in integers, so that the
 * order of the threads does not matter.
 */
#include "worker/backend/cuda/kernels_fit.h"

#include <stdint.h>

#include "worker/backend/cuda/fit_search.cuh"

enum {
	SMALL_MAX = 256,                /* weights of a group that one warp takes */
	MEDIUM_MAX = 1024,              /* that 4 warps take; beyond it 8 */
	FAST_MAX = 4096,                /* that fit into shared memory */
	BLOCK_THREADS = 128,            /* of blocks of several teams */
	BINS_MIN = 512,                 /* weights that are worth it */
	BINS_MAX = 4096,
	BINS_PER_STEP = 32,
	POLISHED = 2,                   /* candidates judged in double */
	POLISH_STEPS = 4,
	BLOCKS_PER_PROCESSOR = 4,       /* with scratch */
	BLOCKS_MAX = 1 << 30
};
static constexpr size_t SCRATCH_MAX = (size_t)512 << 20;

/* --- judging -------------------------------------------------------------------------------------------- */

/* Sums over a group for the nearest codes (not centred) q of one (s, z); e = w - s (q - z). */
struct exact_sums { double e2, e, eq, q, qq; };

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

/* The sums of all threads' v, the same bits in every thread. */
template <int WARPS, int N> static __device__ void reduce(const fit_team<WARPS> &team, double (&v)[N])
{
	for (int i = 0; i < N; i++)
		for (int offset = FIT_WARP / 2; offset > 0; offset /= 2)
			v[i] += __shfl_xor_sync(fit_all_lanes, v[i], offset);
	if (WARPS == 1)
		return;
	if (team.lane() == 0)
		for (int i = 0; i < N; i++)
			team.shared->room[i * WARPS + team.rank / FIT_WARP] = v[i];
	team.sync();
	for (int i = 0; i < N; i++) {
		v[i] = 0;
		for (int k = 0; k < WARPS; k++)
			v[i] += team.shared->room[i * WARPS + k];
	}
	team.sync();
}

template <int WARPS> static __device__ double largest(const fit_team<WARPS> &team, double v)
{
	for (int offset = FIT_WARP / 2; offset > 0; offset /= 2)
		v = fmax(v, __shfl_xor_sync(fit_all_lanes, v, offset));
	if (WARPS == 1)
		return v;
	if (team.lane() == 0)
		team.shared->room[team.rank / FIT_WARP] = v;
	team.sync();
	for (int k = 0; k < WARPS; k++)
		v = fmax(v, team.shared->room[k]);
	team.sync();
	return v;
}

template <int WARPS> static __device__ __noinline__ exact_sums sums(fit_team<WARPS> team, const judge &j, double s,
								    double z)
{
	const double shift = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to an integer, half to even */
	const double inverse = 1.0 / s, top = j.levels - 1;
	double v[FIT_ROOM] = { 0, 0, 0, 0, 0 };

	for (int i = team.rank; i < j.n; i += team.THREADS) {
		const double w = j.w[i], h = j.h[i];
		double q = w * inverse + z, e, he, hq;

		q = q < 0.0 ? 0.0 : q;
		q = q > top ? top : q;
		q = (q + shift) - shift;
		e = w - s * (q - z);
		he = h * e;
		hq = h * q;
		v[0] += he * e;
		v[1] += he;
		v[2] += he * q;
		v[3] += hq;
		v[4] += hq * q;
	}
	reduce(team, v);
	return { v[0], v[1], v[2], v[3], v[4] };
}

template <int WARPS> static __device__ fit_moments moments(const fit_team<WARPS> &team, const judge &j)
{
	double low = j.w[0], high = low, first[2] = { 0, 0 }, second[1] = { 0 };

	for (int i = team.rank; i < j.n; i += team.THREADS) {
		low = fmin(low, (double)j.w[i]);
		high = fmax(high, (double)j.w[i]);
		first[0] += j.h[i];
		first[1] += j.h[i] * j.w[i];
	}
	reduce(team, first);
	const double mean = first[1] / first[0];

	for (int i = team.rank; i < j.n; i += team.THREADS)
		second[0] += j.h[i] * (j.w[i] - mean) * (j.w[i] - mean);
	reduce(team, second);
	return { -largest(team, -low), largest(team, high), first[0], mean, second[0] / first[0] };
}

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

/* --- the group as the search sees it -------------------------------------------------------------------- */

/* false: nothing to search, all weights are equal (or as good as). */
template <int WARPS> static __device__ bool prepare(const fit_team<WARPS> &team, const judge &j, fit_search &f)
{
	const double unit = sqrt(j.m.square), inverse = 1 / unit, share = 1 / j.m.total;
	const double origin = -j.m.mean / unit;
	double low = (j.m.low - j.m.mean) / unit, high = (j.m.high - j.m.mean) / unit;
	float2 *points = (float2 *)f.whole.at;

	if (!(unit > 0) || !isfinite(inverse))
		return false;
	if (f.fixed) {
		low = fmin(low, origin);
		high = fmax(high, origin);
	}
	f.origin = (float)origin;
	f.shift = f.fixed ? (float)-origin : 0;
	f.low = (float)low;
	f.high = (float)high;
	f.largest = (float)minmax_scale(j, low, high, origin);
	for (int i = team.rank; i < j.n; i += team.THREADS)
		points[i] = make_float2((float)((j.w[i] - j.m.mean) * inverse), (float)(j.h[i] * share));
	if (j.n % 2 == 1 && team.rank == 0)
		points[j.n] = make_float2(0, 0);
	team.sync();
	return low < high;
}

/* One bin on its way: the sum of h, and of h * (distance from the middle, in bins), in units of 2^-30. */
struct bin { unsigned h; int off; };

/* f.coarse: bins at `bins`, or the whole group where that saves little. */
template <int WARPS> static __device__ void make_bins(const fit_team<WARPS> &team, const judge &j, fit_search &f,
						      float4 *bins)
{
	const double unit = sqrt(j.m.square), width = 1.6 / f.levels / BINS_PER_STEP;
	const double low = (j.m.low - j.m.mean) / unit, reach = (j.m.high - j.m.low) / unit / width;
	const float first = (float)low, inverse = (float)(1 / width), one = 1 << 30;
	const float2 *points = (const float2 *)f.whole.at;
	bin *filled = (bin *)bins;

	f.coarse = f.whole;
	if (j.n < BINS_MIN || !(reach < BINS_MAX - 2) || !((reach + 2) * 5 <= j.n * 2.0))
		return;
	const int count = (int)reach + 2, padded = count + count % 2;

	for (int i = team.rank; i < padded; i += team.THREADS)
		filled[i] = { 0, 0 };
	team.sync();
	for (int i = team.rank; i < j.n; i += team.THREADS) {
		const float at = fmaxf((points[i].x - first) * inverse, 0.0f), h = points[i].y * one;
		const int b = min((int)at, count - 1);
		const float aside = fminf(at - b - 0.5f, 0.5f);

		atomicAdd(&filled[b].h, __float2uint_rn(h));
		atomicAdd(&filled[b].off, __float2int_rn(h * aside));
	}
	team.sync();
	for (int i = team.rank; i < padded; i += team.THREADS) {
		const bin b = filled[i];
		const float aside = b.h > 0 ? (float)b.off / (float)b.h : 0.0f;

		((float2 *)bins)[i] = make_float2((float)(low + width * (i + 0.5 + aside)), (float)b.h / one);
	}
	team.sync();
	f.coarse = { bins, padded / 2, true };
}

/* --- one group ------------------------------------------------------------------------------------------ */

template <int WARPS> static __device__ void fit_group(const fit_team<WARPS> &team, const cuda_fit &fit, size_t group,
						      float4 *points, bool fast, float4 *bins)
{
	judge j = { fit.w + group * fit.n, fit.h + group % fit.period * fit.n, (int)fit.n, 1 << fit.bits,
		    fit.integer_zero || fit.symmetric, fit.symmetric, { 0, 0, 0, 0, 0 }, 1, 0, INFINITY };

	j.m = moments(team, j);
	offer_minmax(team, j);
	if (!fit.minmax) {
		fit_search f = { fit.bits, j.levels, j.fixed, j.symmetric, j.n, 0, 0, 0, 0, 0,
				 { points, (j.n + 1) / 2, fast }, { points, 0, fast } };

		offer_constant(team, j, j.w[0]);
		if (prepare(team, j, f)) {
			offer_constant(team, j, j.m.mean);
			make_bins(team, j, f, bins);
			search(team, f);
			for (int i = 0; i < POLISHED && i < team.shared->kept; i++) {
				const fit_candidate p = team.shared->pool[i];
				const double s = p.s * sqrt(j.m.square), z = p.z + j.levels / 2;

				polish(team, j, s, j.fixed ? z : z - j.m.mean / s);
			}
		}
	}
	if (team.rank == 0) {
		fit.scales[group] = j.s;
		fit.zeros[group] = j.z;
		if (fit.objective)
			fit.objective[group] = j.objective;
		if (!isfinite(j.objective))
			*fit.bad = 1;
	}
	team.sync();
}

/* The memory of a team, in float4: what it shares, points if fast, bins. */
struct fit_layout { size_t points, bins, size; };

template <int WARPS> static __host__ __device__ fit_layout layout_of(size_t n)
{
	const size_t pairs = n <= FAST_MAX ? (n + 1) / 2 : 0;
	const size_t most = n * 2 / 5, bins = n < (size_t)BINS_MIN ? 0 : most < (size_t)BINS_MAX ? most : (size_t)BINS_MAX;
	const size_t points = (sizeof(fit_shared<WARPS>) + sizeof(float4) - 1) / sizeof(float4);

	return { points, points + pairs, points + pairs + (bins + 1) / 2 };
}

extern __shared__ float4 fit_memory[];

template <int WARPS> static __global__ void __launch_bounds__(WARPS == 1 ? BLOCK_THREADS : WARPS * FIT_WARP,
							      WARPS == 8 ? 4 : 8) fit_kernel(cuda_fit fit)
{
	const int teams = blockDim.x / (WARPS * FIT_WARP), team_of_block = threadIdx.x / (WARPS * FIT_WARP);
	const fit_layout layout = layout_of<WARPS>(fit.n);
	float4 *mine = fit_memory + team_of_block * layout.size;
	const bool fast = fit.n <= FAST_MAX;
	float4 *points = fast ? mine + layout.points : (float4 *)fit.scratch + blockIdx.x * ((fit.n + 1) / 2);
	const fit_team<WARPS> team = { (fit_shared<WARPS> *)mine, (int)threadIdx.x % (WARPS * FIT_WARP) };

	for (size_t i = (size_t)blockIdx.x * teams + team_of_block; i < fit.count; i += (size_t)gridDim.x * teams)
		fit_group(team, fit, i, points, fast, mine + layout.bins);
}

/* --- launching ------------------------------------------------------------------------------------------ */

/* How many blocks share the scratch: the result does not depend on it. */
static cudaError_t scratch_blocks(size_t n, size_t count, size_t *blocks)
{
	const size_t most = SCRATCH_MAX / ((n + 1) / 2 * sizeof(float4));
	int device, processors = 1;
	cudaError_t status = cudaGetDevice(&device);

	if (status == cudaSuccess)
		status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
	*blocks = (size_t)processors * BLOCKS_PER_PROCESSOR;
	if (*blocks > most)
		*blocks = most > 0 ? most : 1;
	if (*blocks > count)
		*blocks = count;
	return status;
}

cudaError_t cuda_fit_scratch(size_t n, size_t count, size_t *bytes)
{
	size_t blocks = 0;
	cudaError_t status = n > FAST_MAX ? scratch_blocks(n, count, &blocks) : cudaSuccess;

	*bytes = blocks * ((n + 1) / 2) * sizeof(float4);
	return status;
}

template <int WARPS> static cudaError_t launch(cudaStream_t stream, const cuda_fit &fit, int threads)
{
	const size_t teams = threads / (WARPS * FIT_WARP), bytes = teams * layout_of<WARPS>(fit.n).size * sizeof(float4);
	size_t blocks = (fit.count + teams - 1) / teams;
	cudaError_t status = cudaFuncSetAttribute(fit_kernel<WARPS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
						  (int)bytes);

	if (status == cudaSuccess && fit.n > FAST_MAX)
		status = scratch_blocks(fit.n, fit.count, &blocks);
	if (status != cudaSuccess)
		return status;
	if (blocks > BLOCKS_MAX)
		blocks = BLOCKS_MAX;
	fit_kernel<WARPS><<<(unsigned)blocks, threads, bytes, stream>>>(fit);
	return cudaPeekAtLastError();
}

cudaError_t cuda_fit_launch(cudaStream_t stream, const struct cuda_fit *fit)
{
	if (fit->count == 0)
		return cudaSuccess;
	if (fit->n <= SMALL_MAX)
		return launch<1>(stream, *fit, BLOCK_THREADS);
	if (fit->n <= MEDIUM_MAX)
		return launch<4>(stream, *fit, 4 * FIT_WARP);
	return launch<8>(stream, *fit, 8 * FIT_WARP);
}
