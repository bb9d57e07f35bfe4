/* sums.cuh - sums and maxima over the threads of a warp or of a block, for kernels_*.cu.
 *
 * 1. The order is fixed. Over lanes, each adds the number of the lane half their count away, then of the one a quarter
 *    away, and so on down to the neighbour: the two lanes of a step add the same two numbers, so that all end with the
 *    same bits. Over a block, every thread adds up the results of the warps, from warp 0 on.
 * 2. The result is in every thread that takes part. Of a maximum the sign of a zero is not told.
 * 3. All threads of the warp (of the block) take part, those without a term with 0.
 *
 * V is a number, or a struct of several with an operator +: then all of its sums are made in one go.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_SUMS_CUH
#define QUARRY_WORKER_BACKEND_CUDA_SUMS_CUH

#include <stdint.h>
#include <string.h>

enum { WARP = 32 };
static constexpr unsigned ALL_LANES = 0xffffffffu;

/* --- what is done with two of them ------------------------------------------------------------------------ */

struct adding {
	template <class V> __device__ V operator()(V a, V b) const { return a + b; }
};

struct larger {
	__device__ float operator()(float a, float b) const { return fmaxf(a, b); }
	__device__ double operator()(double a, double b) const { return fmax(a, b); }
	__device__ uint32_t operator()(uint32_t a, uint32_t b) const { return max(a, b); }
};

/* --- over lanes ------------------------------------------------------------------------------------------- */

/* x of the lane whose number differs in the bits of `apart`. */
static __device__ __forceinline__ float lane_apart(float x, int apart)
{
	return __shfl_xor_sync(ALL_LANES, x, apart);
}

static __device__ __forceinline__ double lane_apart(double x, int apart)
{
	return __shfl_xor_sync(ALL_LANES, x, apart);
}

template <class V> static __device__ __forceinline__ V lane_apart(V x, int apart)
{
	static_assert(sizeof(V) % sizeof(uint32_t) == 0, "lanes exchange words");
	uint32_t words[sizeof(V) / sizeof(uint32_t)];

	memcpy(words, &x, sizeof(x));
#pragma unroll
	for (size_t i = 0; i < sizeof(V) / sizeof(uint32_t); i++)
		words[i] = __shfl_xor_sync(ALL_LANES, words[i], apart);
	memcpy(&x, words, sizeof(x));
	return x;
}

/* Over each run of `lanes` lanes, a power of two up to WARP, the same for the whole warp. both(a, b) is both(b, a). */
template <class V, class Both> static __device__ __forceinline__ V fold_lanes(V x, int lanes, Both both)
{
	for (int apart = lanes / 2; apart > 0; apart /= 2)
		x = both(x, lane_apart(x, apart));
	return x;
}

template <class V> static __device__ __forceinline__ V sum_lanes(V x, int lanes)
{
	return fold_lanes(x, lanes, adding());
}

template <class V> static __device__ __forceinline__ V sum_warp(V x)
{
	return sum_lanes(x, WARP);
}

template <class V> static __device__ __forceinline__ V max_warp(V x)
{
	return fold_lanes(x, WARP, larger());
}

static __device__ __forceinline__ uint32_t max_warp(uint32_t x)
{
	return __reduce_max_sync(ALL_LANES, x);
}

/* Over four neighbours, which hold a row of what the tensor cores make; the neighbour's comes first here. */
template <class V, class Both> static __device__ __forceinline__ V fold_four(V x, Both both)
{
	x = both(x, lane_apart(x, 1));
	return both(x, lane_apart(x, 2));
}

template <class V> static __device__ __forceinline__ V sum_four(V x)
{
	return fold_four(x, adding());
}

template <class V> static __device__ __forceinline__ V max_four(V x)
{
	return fold_four(x, larger());
}

/* --- over a block ----------------------------------------------------------------------------------------- */

/* A block of THREADS threads in one dimension, a multiple of WARP; x is the result of the thread's warp. `room` is
 * THREADS / WARP elements of shared memory; `rank` is threadIdx.x, for those that hold it in a register. Two barriers of
 * the block: one before room is written, so that it may have been in use up to here, and one after; other use of room
 * afterwards needs a barrier before it. With a single warp there is no barrier, and room is left alone. */
template <int THREADS, class V, class Both>
static __device__ __forceinline__ V fold_warps(V x, V *room, Both both, unsigned rank = threadIdx.x)
{
	static_assert(THREADS % WARP == 0, "whole warps");
	if (THREADS == WARP)
		return x;
	__syncthreads();
	if (rank % WARP == 0)
		room[rank / WARP] = x;
	__syncthreads();
	x = room[0];
	for (int i = 1; i < THREADS / WARP; i++)
		x = both(x, room[i]);
	return x;
}

template <int THREADS, class V> static __device__ __forceinline__ V sum_block(V x, V *room, unsigned rank = threadIdx.x)
{
	return fold_warps<THREADS>(sum_warp(x), room, adding(), rank);
}

template <int THREADS, class V> static __device__ __forceinline__ V max_block(V x, V *room, unsigned rank = threadIdx.x)
{
	return fold_warps<THREADS>(max_warp(x), room, larger(), rank);
}

#endif
