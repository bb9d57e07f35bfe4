/* Heads to halves for attention; see kernels_attention.h. A tile is read twice, the second time from the cache. */
#include "worker/backend/cuda/kernels_attention.h"

#include <cuda_fp16.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>

#include "worker/backend/cuda/parts.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { TILE = CUDA_ATTENTION_TILE, THREADS = 256, WARPS = THREADS / WARP };

struct split_job {
	const float *x;
	size_t seq_len, heads, dim, columns, tiles;
	__half *high, *low;
	float *factor;
};

/* One tile of one head a block. */
static __global__ void __launch_bounds__(THREADS) split_kernel(split_job j)
{
	__shared__ float room[WARPS];
	const size_t tile = blockIdx.x % j.tiles, head = blockIdx.x / j.tiles % j.heads;
	const size_t seq = blockIdx.x / j.tiles / j.heads, first = tile * TILE;
	const int rows = (int)min((size_t)TILE, j.seq_len - first), lane = threadIdx.x % WARP;
	const int warp = threadIdx.x / WARP, dim = (int)j.dim, columns = (int)j.columns;
	const float *x = j.x + ((seq * j.seq_len + first) * j.heads + head) * j.dim;
	const size_t to = ((seq * j.heads + head) * j.seq_len + first) * j.columns;
	float top = 0, scale;
	int exponent;

	for (int r = warp; r < rows; r += WARPS)
		for (int i = 2 * lane; i < dim; i += 2 * WARP) {
			const float2 a = *reinterpret_cast<const float2 *>(x + r * j.heads * j.dim + i);

			top = fmaxf(top, fmaxf(fabsf(a.x), fabsf(a.y)));
		}
	exponent = half_exponent(max_block<THREADS>(top, room), 0);
	scale = ldexpf(1, exponent);
	if (threadIdx.x == 0)
		j.factor[blockIdx.x] = ldexpf(1, -exponent);
	for (int r = warp; r < rows; r += WARPS)
		for (int i = 2 * lane; i < columns; i += 2 * WARP) {
			float2 a = { 0, 0 };

			if (i < dim)
				a = *reinterpret_cast<const float2 *>(x + r * j.heads * j.dim + i);
			const size_t at = to + (size_t)r * j.columns + i;

			split_pair<HALVES>(a.x * scale, a.y * scale, reinterpret_cast<uint32_t *>(j.high + at),
					   reinterpret_cast<uint32_t *>(j.low + at));
		}
}

size_t cuda_attention_tiles(size_t seq_len)
{
	return (seq_len + TILE - 1) / TILE;
}

cudaError_t cuda_attention_split_launch(cudaStream_t stream, const struct cuda_attention_shape *shape, size_t heads,
					const float *x, size_t columns, struct cuda_heads to)
{
	const size_t tiles = cuda_attention_tiles(shape->seq_len), blocks = shape->n_seq * heads * tiles;
	const split_job job = { x, shape->seq_len, heads, shape->dim, columns, tiles, (__half *)to.high,
				(__half *)to.low, to.factor };

	if (blocks > INT_MAX)
		return cudaErrorInvalidConfiguration;
	split_kernel<<<(unsigned)blocks, THREADS, 0, stream>>>(job);
	return cudaGetLastError();
}
