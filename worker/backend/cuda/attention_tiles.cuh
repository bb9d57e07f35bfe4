/* attention_tiles.cuh - a warp's 16 queries against a tile of keys, on tensor cores; for kernels_attention.cu.
 *
 * Scores live in base 2: of query and key they are t = score * log2(e), and a weight is 2^(t + base) with base =
 * HEADROOM - the largest t so far, so that weights use the range of a half. The sums of a tile start at zero and are
 * added to the running ones rounded to nearest: what the tensor cores cut off does not add up over tiles.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_ATTENTION_TILES_CUH
#define QUARRY_WORKER_BACKEND_CUDA_ATTENTION_TILES_CUH

#include "worker/backend/cuda/kernels_attention.h"

#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>

#include "worker/backend/cuda/instructions.cuh"
#include "worker/backend/cuda/parts.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { TILE = CUDA_ATTENTION_TILE, WARP_ROWS = 16 };

static constexpr float HEADROOM = 12;   /* a weight is at most 2^12 */

/* --- what there is to do ---------------------------------------------------------------------------------- */

struct parts { const __half *high, *low; const float *factor; };

struct attend_job {
	parts q, k, v;
	float *o, *stats;
	int *bad;
	float scale;            /* log2(e) / sqrt(dim) */
	int seq_len, dim, heads, kv_heads, tiles;
	unsigned row_blocks;    /* of one head of one sequence */
	unsigned pairs;         /* sequences * heads */
	unsigned together;      /* pairs whose keys share the cache */
};

/* Which head of which sequence, and which rows of it. */
struct place { size_t seq; int head, kv_head; size_t q_tile, kv_tile, q_row, kv_row; int first; };

/* Blocks with many keys come first, among pairs that share the cache. */
static __device__ place place_of(const attend_job &a, int block_rows)
{
	const unsigned per_group = a.together * a.row_blocks, group = blockIdx.x / per_group;
	const unsigned at = blockIdx.x % per_group, begin = group * a.together;
	const unsigned pairs = min(a.together, a.pairs - begin), pair = begin + at % pairs;
	place p;

	p.seq = pair / a.heads;
	p.head = (int)(pair % a.heads);
	p.kv_head = p.head / (a.heads / a.kv_heads);
	p.first = (int)(a.row_blocks - 1 - at / pairs) * block_rows;
	p.q_tile = (size_t)pair * a.tiles;
	p.kv_tile = (p.seq * a.kv_heads + p.kv_head) * a.tiles;
	p.q_row = (size_t)pair * a.seq_len;
	p.kv_row = (p.seq * a.kv_heads + p.kv_head) * a.seq_len;
	return p;
}

/* --- into shared memory ----------------------------------------------------------------------------------- */

/* ROWS rows of DP halves into rows PITCH apart; those from `rows` on become zeros. */
template <int DP, int ROWS, int THREADS>
static __device__ __forceinline__ void fetch(__half *to, const __half *from, int rows)
{
	constexpr int CHUNKS = DP / 8, PITCH = DP + 8;

#pragma unroll
	for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
		const bool wanted = i / CHUNKS < rows;

		copy_async_or_zeros(to + i / CHUNKS * PITCH + i % CHUNKS * 8, wanted ? from + i * 8 : from, wanted);
	}
}

/* DP columns of a head, a multiple of 32; BN keys a tile; STAGES tiles in shared memory. PITCH keeps the rows that
 * load_matrices() reads at once in different banks. Queries stay in registers where those suffice; they come in through
 * the last stage then. */
template <int DP, int WARPS, int BN, int STAGES> struct kernel_shape {
	static constexpr int THREADS = WARPS * WARP, BM = WARPS * WARP_ROWS, PITCH = DP + 8;
	static constexpr bool QUERIES_STAY = DP <= 128;
	static constexpr int PART = BN * PITCH, STAGE = 4 * PART, QUERIES = 2 * BM * PITCH; /* halves */
	static constexpr int HALVES = STAGES * STAGE + (QUERIES_STAY ? 0 : QUERIES);
	static constexpr size_t BYTES = HALVES * sizeof(__half);

	static_assert(DP % 32 == 0 && BN % 32 == 0 && TILE % BN == 0, "tiles of whole matrices, one factor each");
	static_assert(!QUERIES_STAY || QUERIES <= STAGE, "queries come in through a stage");
};

/* --- a warp and a tile ------------------------------------------------------------------------------------ */

/* What a warp keeps of its 16 queries; [0] of row lane / 4, [1] of the row 8 below. */
template <int DP> struct running {
	float o[DP / 8][4];
	float base[2], sum[2];
};

/* s (16, BN) = q k'. */
template <int DP, int BN, bool STAY>
static __device__ __forceinline__ void scores(float (&s)[BN / 8][4], const uint32_t (&held)[2][STAY ? DP / 16 : 1][4],
					      const __half *q_high, const __half *q_low, const __half *k_high,
					      const __half *k_low)
{
	constexpr int PITCH = DP + 8;
	const int lane = threadIdx.x % WARP;
	const int q_at = lane % 16 * PITCH + lane / 16 * 8;
	const int k_at = (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8;

#pragma unroll
	for (int i = 0; i < DP / 16; i++) {
		uint32_t high[4], low[4];

		if (STAY) {
#pragma unroll
			for (int j = 0; j < 4; j++) {
				high[j] = held[0][STAY ? i : 0][j];
				low[j] = held[1][STAY ? i : 0][j];
			}
		} else {
			load_matrices(high, q_high + q_at + i * 16);
			load_matrices(low, q_low + q_at + i * 16);
		}
#pragma unroll
		for (int n = 0; n < BN / 8; n += 4) {
			const int at = n * 8 * PITCH + k_at + i * 16;
			uint32_t kh[8], kl[8];

			load_matrices(kh, k_high + at);
			load_matrices(kh + 4, k_high + at + 16 * PITCH);
			load_matrices(kl, k_low + at);
			load_matrices(kl + 4, k_low + at + 16 * PITCH);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply_halves(s[n + j], low, kh + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply_halves(s[n + j], high, kl + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply_halves(s[n + j], high, kh + 2 * j);
		}
	}
}

/* Scores to weights, in place; alpha: what the sums so far are to be multiplied by. Every row has a key. */
template <int DP, int BN>
static __device__ __forceinline__ void weigh(float (&s)[BN / 8][4], running<DP> &run, float scale, float (&alpha)[2])
{
#pragma unroll
	for (int h = 0; h < 2; h++) {
		float top = -INFINITY, base, sum = 0;

#pragma unroll
		for (int n = 0; n < BN / 8; n++)
			top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
		top = max_four(top);
		base = fminf(run.base[h], HEADROOM - top * scale);
		alpha[h] = exp2f(base - run.base[h]);
#pragma unroll
		for (int n = 0; n < BN / 8; n++)
#pragma unroll
			for (int i = 2 * h; i < 2 * h + 2; i++) {
				s[n][i] = exp2f(fmaf(s[n][i], scale, base));
				sum += s[n][i];
			}
		run.sum[h] = fmaf(run.sum[h], alpha[h], sum);
		run.base[h] = base;
	}
}

/* o = o alpha + p v. */
template <int DP, int BN>
static __device__ __forceinline__ void weighted_sum(const float (&p)[BN / 8][4], running<DP> &run,
						    const float (&alpha)[2], const __half *v_high,
						    const __half *v_low, float factor)
{
	constexpr int PITCH = DP + 8;
	const int lane = threadIdx.x % WARP, v_at = lane % 16 * PITCH + lane / 16 * 8;
	uint32_t high[BN / 16][4], low[BN / 16][4];

#pragma unroll
	for (int k = 0; k < BN / 16; k++)
#pragma unroll
		for (int i = 0; i < 4; i++) {
			const float *pair = &p[2 * k + i / 2][i % 2 * 2];

			split_pair<HALVES>(pair[0], pair[1], &high[k][i], &low[k][i]);
		}
#pragma unroll
	for (int d = 0; d < DP / 8; d += 4) {
		float part[4][4] = { };

#pragma unroll
		for (int k = 0; k < BN / 16; k++) {
			const int at = k * 16 * PITCH + v_at + d * 8;
			uint32_t vh[8], vl[8];

			load_transposed(vh, v_high + at);
			load_transposed(vh + 4, v_high + at + 16);
			load_transposed(vl, v_low + at);
			load_transposed(vl + 4, v_low + at + 16);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply_halves(part[j], low[k], vh + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply_halves(part[j], high[k], vl + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply_halves(part[j], high[k], vh + 2 * j);
		}
#pragma unroll
		for (int j = 0; j < 4; j++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				run.o[d + j][i] = fmaf(run.o[d + j][i], alpha[i / 2], part[j][i] * factor);
	}
}

/* Takes away the keys behind each row's own; s[0][0] of lane 0 is first_row's score of first_key. */
template <int BN> static __device__ __forceinline__ void hide(float (&s)[BN / 8][4], int first_key, int first_row)
{
	const int lane = threadIdx.x % WARP, key = first_key + lane % 4 * 2, row = first_row + lane / 4;

#pragma unroll
	for (int n = 0; n < BN / 8; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			if (key + n * 8 + i % 2 > row + i / 2 * 8)
				s[n][i] = -INFINITY;
}

/* Divides by the sums and stores the warp's rows that exist. */
template <int DP>
static __device__ __forceinline__ void store(const attend_job &a, const place &p, const running<DP> &run, int first_row)
{
	const int lane = threadIdx.x % WARP, column = lane % 4 * 2;
	bool good = true;

#pragma unroll
	for (int h = 0; h < 2; h++) {
		const int row = first_row + lane / 4 + 8 * h;
		const size_t at = (p.seq * a.seq_len + row) * a.heads + p.head;
		const float sum = sum_four(run.sum[h]), inverse = 1 / sum;

		if (row >= a.seq_len)
			continue;
		if (a.stats && column == 0)
			a.stats[at] = (float)((log2((double)sum) - run.base[h]) * M_LN2);
#pragma unroll
		for (int d = 0; d < DP / 8; d++) {
			const float2 out = { run.o[d][2 * h] * inverse, run.o[d][2 * h + 1] * inverse };

			if (d * 8 + column < a.dim) {
				good = good && isfinite(out.x) && isfinite(out.y);
				*reinterpret_cast<float2 *>(a.o + at * a.dim + d * 8 + column) = out;
			}
		}
	}
	if (!good)
		*a.bad = 1;
}

#endif
