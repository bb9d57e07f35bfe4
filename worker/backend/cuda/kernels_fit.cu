/* Fitting groups: see kernels_fit.h, and fit_search.cuh for the search.
 *
 * Small groups have one warp each, bigger ones a block: a team (fit_team.cuh). The best two of the search, which is in
 * float, are judged with the other offers in fit_judge.cuh.
 *
 * The search of a group of many weights runs on bins, each 1/32 of the smallest step wide, with the weight and the
 * centre of gravity of what lies in them; its last walk takes the weights. Bins are filled in integers, so that the
 * order of the threads does not matter.
 */
#include "worker/backend/cuda/kernels_fit.h"

#include <stdint.h>

#include "worker/backend/cuda/fit_judge.cuh"
#include "worker/backend/cuda/fit_search.cuh"
#include "worker/backend/cuda/fit_team.cuh"
#include "worker/backend/cuda/sums.cuh"

enum {
	SMALL_MAX = 256,                /* weights of a group that one warp takes */
	MEDIUM_MAX = 1024,              /* that 4 warps take; beyond it 8 */
	FAST_MAX = 4096,                /* that fit into shared memory */
	BLOCK_THREADS = 128,            /* of blocks of several teams */
	BINS_MIN = 512,                 /* weights that are worth it */
	BINS_MAX = 4096,
	BINS_PER_STEP = 32,
	POLISHED = 2,                   /* candidates judged in double */
	BLOCKS_PER_PROCESSOR = 4,       /* with scratch */
	BLOCKS_MAX = 1 << 30
};
static constexpr size_t SCRATCH_MAX = (size_t)512 << 20;

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

template <int WARPS> static __global__ void __launch_bounds__(WARPS == 1 ? BLOCK_THREADS : WARPS * WARP,
							      WARPS == 8 ? 4 : 8) fit_kernel(cuda_fit fit)
{
	const int teams = blockDim.x / (WARPS * WARP), team_of_block = threadIdx.x / (WARPS * WARP);
	const fit_layout layout = layout_of<WARPS>(fit.n);
	float4 *mine = fit_memory + team_of_block * layout.size;
	const bool fast = fit.n <= FAST_MAX;
	float4 *points = fast ? mine + layout.points : (float4 *)fit.scratch + blockIdx.x * ((fit.n + 1) / 2);
	const fit_team<WARPS> team = { (fit_shared<WARPS> *)mine, (int)threadIdx.x % (WARPS * WARP) };

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
	const size_t teams = threads / (WARPS * WARP), bytes = teams * layout_of<WARPS>(fit.n).size * sizeof(float4);
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
		return launch<4>(stream, *fit, 4 * WARP);
	return launch<8>(stream, *fit, 8 * WARP);
}
