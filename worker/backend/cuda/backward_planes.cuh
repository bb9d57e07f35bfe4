/* backward_planes.cuh - operands of attention on the way back in two parts: how they are made, kept and read.
 *
 * Halves hold what there is because FACTOR_ROWS rows of a head share a power of two; bfloat16 need none. Used by
 * kernels_backward_attention_split.cu alone.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_BACKWARD_PLANES_CUH
#define QUARRY_WORKER_BACKEND_CUDA_BACKWARD_PLANES_CUH

#include "worker/backend/cuda/kernels_backward_attention.h"

#include <math.h>
#include <stdint.h>

#include "worker/backend/cuda/backward_tiles.cuh"
#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/instructions.cuh"
#include "worker/backend/cuda/parts.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { NARROW_WIDTH = 64, WIDTH_MAX = 128, FACTOR_ROWS = 64, ALIGNMENT = 256 };

/* (heads, seq_len, WIDE), zero behind dim; factor (heads, factor tiles) is what halves are to be multiplied by. */
struct planes { uint16_t *high, *low; float *factor; };

static size_t width(const cuda_attention_back *a)
{
	return a->dim <= NARROW_WIDTH ? NARROW_WIDTH : WIDTH_MAX;
}

static __host__ __device__ size_t factor_tiles(size_t seq_len)
{
	return (seq_len + FACTOR_ROWS - 1) / FACTOR_ROWS;
}

/* --- reading ---------------------------------------------------------------------------------------------- */

static __device__ float factor_at(planes x, size_t row, size_t head, size_t seq_len)
{
	const size_t tiles = factor_tiles(seq_len), tile = row / FACTOR_ROWS;

	return x.factor[head * tiles + (tile < tiles ? tile : tiles - 1)];
}

/* The largest factor of a head, the same in every lane. */
static __device__ float largest_factor(planes x, size_t head, size_t seq_len)
{
	const size_t tiles = factor_tiles(seq_len);
	float top = 0.0f;

	for (size_t i = threadIdx.x % WARP; i < tiles; i += WARP)
		top = fmaxf(top, x.factor[head * tiles + i]);
	return max_warp(top);
}

/* Rows first .. of a head; behind the last one it comes again, for weights that are 0. */
template <int WIDE, int ROWS>
static __device__ void fetch(tile<WIDE, ROWS> *to, planes from, size_t first, size_t head, size_t seq_len)
{
	for (int i = threadIdx.x; i < ROWS * (WIDE / 8); i += THREADS) {
		const int row = i / (WIDE / 8), col = i % (WIDE / 8) * 8;
		const size_t there = first + row < seq_len ? first + row : seq_len - 1;
		const size_t at = (head * seq_len + there) * WIDE + col;

		copy_async(&to->high[row][col], from.high + at);
		copy_async(&to->low[row][col], from.low + at);
	}
}

/* --- making ----------------------------------------------------------------------------------------------- */

struct split_job {
	const float *x;                 /* (seq_len, heads, dim) */
	size_t seq_len, heads, dim, wide;
	planes to;
};

/* The pair of columns i of FACTOR_ROWS rows from `first` on, and where it goes. */
static __device__ float2 pair_of(const split_job &j, size_t first, size_t head, size_t i, size_t *to)
{
	const size_t row = first + i / (j.wide / 2), col = i % (j.wide / 2) * 2;

	*to = ((head * j.seq_len + row) * j.wide + col) / 2;
	return col < j.dim ? *(const float2 *)&j.x[(row * j.heads + head) * j.dim + col] : float2{ 0.0f, 0.0f };
}

/* One item: FACTOR_ROWS rows of one head. */
template <part_kind K> static __global__ void __launch_bounds__(THREADS) split_kernel(split_job j)
{
	__shared__ float room[WARPS];
	const size_t tiles = factor_tiles(j.seq_len);

	for (size_t item = blockIdx.x; item < tiles * j.heads; item += gridDim.x) {
		const size_t head = item / tiles, first = item % tiles * FACTOR_ROWS, rest = j.seq_len - first;
		const size_t pairs = (rest < (size_t)FACTOR_ROWS ? rest : (size_t)FACTOR_ROWS) * (j.wide / 2);
		float top = 0.0f, power = 1.0f;
		size_t to;

		for (size_t i = threadIdx.x; K == HALVES && i < pairs; i += THREADS) {
			const float2 x = pair_of(j, first, head, i, &to);

			top = fmaxf(top, fmaxf(fabsf(x.x), fabsf(x.y)));
		}
		if (K == HALVES) {
			const int exponent = half_exponent(max_block<THREADS>(top, room), 100);

			power = ldexpf(1.0f, exponent);
			if (threadIdx.x == 0)
				j.to.factor[item] = ldexpf(1.0f, -exponent);
		}
		for (size_t i = threadIdx.x; i < pairs; i += THREADS) {
			const float2 x = pair_of(j, first, head, i, &to);

			split_pair<K>(x.x * power, x.y * power, (uint32_t *)j.to.high + to, (uint32_t *)j.to.low + to);
		}
	}
}

template <part_kind K>
static void split(cudaStream_t stream, const cuda_attention_back *a, const float *x, size_t heads, planes to)
{
	const split_job j = { x, a->seq_len, heads, a->dim, width(a), to };

	split_kernel<K><<<blocks_for(factor_tiles(a->seq_len) * heads, 1), THREADS, 0, stream>>>(j);
}

/* --- room for them ---------------------------------------------------------------------------------------- */

/* The next piece of scratch; from NULL it only counts. */
struct cutter { char *base; size_t used; };

static void *cut(cutter *c, size_t bytes)
{
	void *piece = c->base ? c->base + c->used : NULL;

	c->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	return piece;
}

static planes cut_planes(cutter *c, const cuda_attention_back *a, size_t heads, part_kind k)
{
	const size_t bytes = a->seq_len * heads * width(a) * sizeof(uint16_t);
	planes p = {};

	p.high = (uint16_t *)cut(c, bytes);
	p.low = (uint16_t *)cut(c, bytes);
	if (k == HALVES)
		p.factor = (float *)cut(c, heads * factor_tiles(a->seq_len) * sizeof(*p.factor));
	return p;
}

#endif
