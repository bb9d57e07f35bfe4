/* See kernels_attention.h.
 *
 * A warp has 16 queries, a block WARPS of them; all pass over the same tiles of BN keys in shared memory, the next tile
 * being on its way where there is room for two. What a warp does with a tile is in attention_tiles.cuh.
 */
#include "worker/backend/cuda/kernels_attention.h"

#include <cuda_fp16.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>

#include "worker/backend/cuda/attention_tiles.cuh"

enum { TOGETHER_BYTES = 24 << 20 };

/* All copies that the thread began have arrived. */
static __device__ __forceinline__ void finish_copies()
{
	end_copies();
	wait_for_copies<0>();
}

template <int DP, int WARPS, int BN, int STAGES>
static __global__ void __launch_bounds__(WARPS * WARP) attend_kernel(attend_job a)
{
	using shape = kernel_shape<DP, WARPS, BN, STAGES>;
	constexpr bool STAY = shape::QUERIES_STAY;
	extern __shared__ __align__(16) __half stages[];
	__half *const queries = stages + (STAY ? (STAGES - 1) * shape::STAGE : STAGES * shape::STAGE);
	const place p = place_of(a, shape::BM);
	const int lane = threadIdx.x % WARP, warp_first = threadIdx.x / WARP * WARP_ROWS;
	const int row = p.first + warp_first; /* the warp's first */
	const int tiles = min(p.first + shape::BM - 1, a.seq_len - 1) / BN + 1;
	const bool busy = row < a.seq_len;
	const float q_scale = busy ? a.scale * a.q.factor[p.q_tile + row / TILE] : 0;
	const __half *q_high = queries + warp_first * shape::PITCH, *q_low = q_high + shape::BM * shape::PITCH;
	uint32_t held[2][STAY ? DP / 16 : 1][4];
	running<DP> run = { };

	const auto fetch_tile = [&](int tile) {
		const int key = tile * BN, rows = a.seq_len - key;
		const size_t from = (p.kv_row + key) * DP;
		__half *to = stages + tile % STAGES * shape::STAGE;

		fetch<DP, BN, shape::THREADS>(to, a.k.high + from, rows);
		fetch<DP, BN, shape::THREADS>(to + shape::PART, a.k.low + from, rows);
		fetch<DP, BN, shape::THREADS>(to + 2 * shape::PART, a.v.high + from, rows);
		fetch<DP, BN, shape::THREADS>(to + 3 * shape::PART, a.v.low + from, rows);
	};

	run.base[0] = run.base[1] = INFINITY;
	fetch<DP, shape::BM, shape::THREADS>(queries, a.q.high + (p.q_row + p.first) * DP, a.seq_len - p.first);
	fetch<DP, shape::BM, shape::THREADS>(queries + shape::BM * shape::PITCH, a.q.low + (p.q_row + p.first) * DP,
					     a.seq_len - p.first);
	if (STAGES == 2)
		fetch_tile(0);
	finish_copies();
	__syncthreads();
	if (STAY) {
#pragma unroll
		for (int i = 0; i < (STAY ? DP / 16 : 1); i++) {
			load_matrices(held[0][i], q_high + lane % 16 * shape::PITCH + lane / 16 * 8 + i * 16);
			load_matrices(held[1][i], q_low + lane % 16 * shape::PITCH + lane / 16 * 8 + i * 16);
		}
		__syncthreads(); /* their place is a stage's */
	}
	for (int tile = 0; tile < tiles; tile++) {
		const int key = tile * BN;
		const __half *k = stages + tile % STAGES * shape::STAGE, *v = k + 2 * shape::PART;

		if (STAGES == 1) {
			fetch_tile(tile);
			finish_copies();
			__syncthreads();
		} else if (tile + 1 < tiles) {
			fetch_tile(tile + 1);
		}
		if (busy && key < row + WARP_ROWS) {
			const size_t factor = p.kv_tile + key / TILE;
			const float scale = fmaxf(q_scale * a.k.factor[factor], FLT_MIN), v_factor = a.v.factor[factor];
			float s[BN / 8][4] = { }, alpha[2];

			scores<DP, BN, STAY>(s, held, q_high, q_low, k, k + shape::PART);
			if (key + BN > row)
				hide<BN>(s, key, row);
			weigh<DP, BN>(s, run, scale, alpha);
			weighted_sum<DP, BN>(s, run, alpha, v, v + shape::PART, v_factor);
		}
		if (STAGES == 2)
			finish_copies();
		__syncthreads(); /* this tile is done with, the next one is there */
	}
	if (busy)
		store<DP>(a, p, run, row);
}

/* --- which kernel --------------------------------------------------------------------------------------- */

struct choice { size_t columns, bytes; unsigned threads, rows; void (*kernel)(attend_job); };

template <int DP, int WARPS, int BN, int STAGES> static constexpr choice choice_of()
{
	using shape = kernel_shape<DP, WARPS, BN, STAGES>;

	return { DP, shape::BYTES, shape::THREADS, shape::BM, attend_kernel<DP, WARPS, BN, STAGES> };
}

/* The first that is wide enough and finds enough shared memory is taken. */
static const choice choices[] = {
	choice_of<32, 4, 64, 2>(), choice_of<64, 4, 64, 2>(), choice_of<96, 8, 64, 2>(), choice_of<96, 8, 64, 1>(),
	choice_of<128, 8, 64, 2>(), choice_of<128, 8, 64, 1>(), choice_of<192, 4, 32, 2>(), choice_of<256, 4, 32, 2>(),
	choice_of<256, 4, 32, 1>(),
};

static const choice *choose(int device, size_t dim)
{
	int bytes = 0;

	if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
		return NULL;
	for (const choice &c : choices)
		if (c.columns >= dim && c.bytes <= (size_t)bytes)
			return &c;
	return NULL;
}

size_t cuda_attention_columns(int device, size_t dim)
{
	const choice *c = choose(device, dim);

	return c ? c->columns : 0;
}

/* Pairs of sequence and head at work at a time: as many as have their keys and values in the cache. */
static unsigned pairs_together(const struct cuda_attention_shape *s, size_t columns)
{
	const size_t bytes = s->seq_len * columns * 4 * sizeof(__half), sharing = s->heads / s->kv_heads;
	const size_t together = TOGETHER_BYTES / bytes * sharing, pairs = s->n_seq * s->heads;

	return (unsigned)(together < 1 ? 1 : together < pairs ? together : pairs);
}

static parts parts_of(struct cuda_heads heads)
{
	return { (const __half *)heads.high, (const __half *)heads.low, heads.factor };
}

cudaError_t cuda_attention_launch(cudaStream_t stream, int device, const struct cuda_attention_shape *shape,
				  size_t columns, struct cuda_heads q, struct cuda_heads k, struct cuda_heads v, float *o,
				  float *stats, int *bad)
{
	const choice *c = choose(device, shape->dim);
	const size_t row_blocks = c ? (shape->seq_len + c->rows - 1) / c->rows : 0;
	const size_t blocks = row_blocks * shape->n_seq * shape->heads;
	cudaError_t status;
	attend_job job;

	if (!c || c->columns != columns || blocks > INT_MAX)
		return cudaErrorInvalidConfiguration;
	job = { parts_of(q), parts_of(k), parts_of(v), o, stats, bad, (float)(M_LOG2E / sqrt((double)shape->dim)),
		(int)shape->seq_len, (int)shape->dim, (int)shape->heads, (int)shape->kv_heads,
		(int)cuda_attention_tiles(shape->seq_len), (unsigned)row_blocks,
		(unsigned)(shape->n_seq * shape->heads), pairs_together(shape, columns) };
	status = cudaFuncSetAttribute((const void *)c->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
				      (int)c->bytes);
	if (status != cudaSuccess)
		return status;
	c->kernel<<<(unsigned)blocks, c->threads, c->bytes, stream>>>(job);
	return cudaGetLastError();
}
