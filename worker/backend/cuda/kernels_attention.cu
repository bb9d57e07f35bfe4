/* See kernels_attention.h.
 *
 * A warp has 16 queries, a block WARPS of them; all pass over the same tiles of BN keys in shared memory, the next tile
 * being on its way (cp.async) where there is room for two. Scores live in base 2: of query and key they are
 * t = score * log2(e), and a weight is 2^(t + base) with base = HEADROOM - the largest t so far, so that weights use the
 * range of a half. The sums of a tile start at zero and are added to the running ones rounded to nearest: what the
 * tensor cores cut off does not add up over tiles.
 */
#include "worker/backend/cuda/kernels_attention.h"

#include <cuda_fp16.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>

enum { WARP = 32, TILE = CUDA_ATTENTION_TILE, WARP_ROWS = 16, TOGETHER_BYTES = 24 << 20 };

static constexpr float HEADROOM = 12;   /* a weight is at most 2^12 */
static constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

/* --- instructions --------------------------------------------------------------------------------------- */

static __device__ uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory, zeros when not wanted; `from` must be readable all the same. */
static __device__ __forceinline__ void copy_async(__half *to, const __half *from, bool wanted)
{
	const int bytes = wanted ? 16 : 0;

	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
		     : "memory");
}

static __device__ __forceinline__ void wait_async(void)
{
	asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;\n" ::: "memory");
}

/* Four 8x8 matrices of halves; lane l says where row l % 8 of matrix l / 8 begins. Register i has of matrix i row
 * lane / 4, columns lane % 4 * 2 and + 1; with load_turned those of the transposed matrix. */
static __device__ __forceinline__ void load_matrices(uint32_t *to, const __half *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

static __device__ __forceinline__ void load_turned(uint32_t *to, const __half *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

/* c (16, 8) += a (16, 16) b (16, 8). With g = lane / 4 and t = lane % 4 * 2: c has rows g, g, g + 8, g + 8, columns
 * t, t + 1, t, t + 1; a the pairs of columns t and t + 1 of rows g and g + 8, then t + 8 and t + 9 of the same; b the
 * pairs of rows t and t + 1, then t + 8 and t + 9, of column g. */
static __device__ __forceinline__ void multiply(float *c, const uint32_t *a, const uint32_t *b)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
	    "{%0, %1, %2, %3};\n"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* --- splitting ------------------------------------------------------------------------------------------ */

static __device__ __half2 low_of(float a, float b, __half2 high)
{
	return __floats2half2_rn(a - __low2float(high), b - __high2float(high));
}

struct split_job {
	const float *x;
	size_t seq_len, heads, dim, columns, tiles;
	__half *high, *low;
	float *factor;
};

enum { SPLIT_THREADS = 256, SPLIT_WARPS = SPLIT_THREADS / WARP };

static __device__ float max_block(float top)
{
	__shared__ float of_warp[SPLIT_WARPS];

	for (int offset = WARP / 2; offset > 0; offset /= 2)
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
	if (threadIdx.x % WARP == 0)
		of_warp[threadIdx.x / WARP] = top;
	__syncthreads();
	for (int i = 0; i < SPLIT_WARPS; i++)
		top = fmaxf(top, of_warp[i]);
	return top;
}

/* The power of two that brings `top` to 2^14 .. 2^15; 1 for what is zero or not finite. */
static __device__ int exponent_for(float top)
{
	if (!(top > 0) || !isfinite(top))
		return 0;
	return min(14 - ilogbf(top), 100);
}

/* One tile of one head a block. */
static __global__ void __launch_bounds__(SPLIT_THREADS) split_kernel(split_job j)
{
	const size_t tile = blockIdx.x % j.tiles, head = blockIdx.x / j.tiles % j.heads;
	const size_t seq = blockIdx.x / j.tiles / j.heads, first = tile * TILE;
	const int rows = (int)min((size_t)TILE, j.seq_len - first), lane = threadIdx.x % WARP;
	const int warp = threadIdx.x / WARP, dim = (int)j.dim, columns = (int)j.columns;
	const float *x = j.x + ((seq * j.seq_len + first) * j.heads + head) * j.dim;
	const size_t to = ((seq * j.heads + head) * j.seq_len + first) * j.columns;
	float top = 0, scale;
	int exponent;

	for (int r = warp; r < rows; r += SPLIT_WARPS)
		for (int i = 2 * lane; i < dim; i += 2 * WARP) {
			const float2 a = *reinterpret_cast<const float2 *>(x + r * j.heads * j.dim + i);

			top = fmaxf(top, fmaxf(fabsf(a.x), fabsf(a.y)));
		}
	exponent = exponent_for(max_block(top));
	scale = ldexpf(1, exponent);
	if (threadIdx.x == 0)
		j.factor[blockIdx.x] = ldexpf(1, -exponent);
	for (int r = warp; r < rows; r += SPLIT_WARPS)
		for (int i = 2 * lane; i < columns; i += 2 * WARP) {
			float2 a = { 0, 0 };

			if (i < dim)
				a = *reinterpret_cast<const float2 *>(x + r * j.heads * j.dim + i);
			const __half2 high = __floats2half2_rn(a.x * scale, a.y * scale);

			*reinterpret_cast<__half2 *>(j.high + to + (size_t)r * j.columns + i) = high;
			*reinterpret_cast<__half2 *>(j.low + to + (size_t)r * j.columns + i) =
				low_of(a.x * scale, a.y * scale, high);
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
	split_kernel<<<(unsigned)blocks, SPLIT_THREADS, 0, stream>>>(job);
	return cudaGetLastError();
}

/* --- attention ------------------------------------------------------------------------------------------ */

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

/* ROWS rows of DP halves into rows PITCH apart; those from `rows` on become zeros. */
template <int DP, int ROWS, int THREADS>
static __device__ __forceinline__ void fetch(__half *to, const __half *from, int rows)
{
	constexpr int CHUNKS = DP / 8, PITCH = DP + 8;

#pragma unroll
	for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
		const bool wanted = i / CHUNKS < rows;

		copy_async(to + i / CHUNKS * PITCH + i % CHUNKS * 8, wanted ? from + i * 8 : from, wanted);
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
				multiply(s[n + j], low, kh + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply(s[n + j], high, kl + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply(s[n + j], high, kh + 2 * j);
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
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
		top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
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
			const float a = p[2 * k + i / 2][i % 2 * 2], b = p[2 * k + i / 2][i % 2 * 2 + 1];
			const __half2 ab = __floats2half2_rn(a, b), rest = low_of(a, b, ab);

			high[k][i] = *reinterpret_cast<const uint32_t *>(&ab);
			low[k][i] = *reinterpret_cast<const uint32_t *>(&rest);
		}
#pragma unroll
	for (int d = 0; d < DP / 8; d += 4) {
		float part[4][4] = { };

#pragma unroll
		for (int k = 0; k < BN / 16; k++) {
			const int at = k * 16 * PITCH + v_at + d * 8;
			uint32_t vh[8], vl[8];

			load_turned(vh, v_high + at);
			load_turned(vh + 4, v_high + at + 16);
			load_turned(vl, v_low + at);
			load_turned(vl + 4, v_low + at + 16);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply(part[j], low[k], vh + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply(part[j], high[k], vl + 2 * j);
#pragma unroll
			for (int j = 0; j < 4; j++)
				multiply(part[j], high[k], vh + 2 * j);
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
		float sum = run.sum[h], inverse;

		sum += __shfl_xor_sync(0xffffffffu, sum, 1);
		sum += __shfl_xor_sync(0xffffffffu, sum, 2);
		inverse = 1 / sum;
		if (row >= a.seq_len)
			continue;
		if (a.stats && column == 0)
			a.stats[at] = (float)((log2((double)sum) - run.base[h]) * LN_2);
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
	wait_async();
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
			wait_async();
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
			wait_async();
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
	job = { parts_of(q), parts_of(k), parts_of(v), o, stats, bad, (float)(LOG2_E / sqrt((double)shape->dim)),
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

/* --- heads of any width --------------------------------------------------------------------------------- */

struct wide_job {
	const float *q, *k, *v;
	float *o, *stats;
	int *bad;
	float scale;
	size_t seq_len, heads, kv_heads, dim;
};

enum { WIDE_THREADS = 256, WIDE_WARPS = WIDE_THREADS / WARP };

static __device__ float dot_warp(const float *a, const float *b, size_t n)
{
	float sum = 0;

	for (size_t i = threadIdx.x % WARP; i < n; i += WARP)
		sum = fmaf(a[i], b[i], sum);
	for (int offset = WARP / 2; offset > 0; offset /= 2)
		sum += __shfl_xor_sync(0xffffffffu, sum, offset);
	return sum;
}

/* p (WIDE_THREADS) of keys first .. : scores to weights relative to the largest so far. Returns their sum. */
static __device__ float weigh_wide(const wide_job &w, const float *q, const float *k, int keys, float *p, float *top,
				   float *alpha)
{
	float before = *top, sum = 0;

	__syncthreads(); /* p was read in the round before */
	for (int i = threadIdx.x / WARP; i < keys; i += WIDE_WARPS) {
		const float score = dot_warp(q, k + i * w.kv_heads * w.dim, w.dim) * w.scale;

		if (threadIdx.x % WARP == 0)
			p[i] = score;
	}
	__syncthreads();
	for (int i = 0; i < keys; i++)
		*top = fmaxf(*top, p[i]);
	__syncthreads();
	if ((int)threadIdx.x < keys)
		p[threadIdx.x] = exp2f(p[threadIdx.x] - *top);
	__syncthreads();
	for (int i = 0; i < keys; i++)
		sum += p[i];
	*alpha = exp2f(before - *top);
	return sum;
}

/* One query of one head a block. */
static __global__ void __launch_bounds__(WIDE_THREADS) wide_kernel(wide_job w)
{
	__shared__ float p[WIDE_THREADS];
	const size_t row = blockIdx.x / w.heads, head = blockIdx.x % w.heads, at = row % w.seq_len;
	const size_t step = w.kv_heads * w.dim, kv = (row - at) * step + head / (w.heads / w.kv_heads) * w.dim;
	const float *q = w.q + (row * w.heads + head) * w.dim;
	float *o = w.o + (row * w.heads + head) * w.dim, top = -INFINITY, sum = 0;
	bool good = true;

	for (size_t first = 0; first <= at; first += WIDE_THREADS) {
		const int keys = (int)min((size_t)WIDE_THREADS, at + 1 - first);
		float alpha;
		const float added = weigh_wide(w, q, w.k + kv + first * step, keys, p, &top, &alpha);

		sum = fmaf(sum, alpha, added);
		for (size_t d = threadIdx.x; d < w.dim; d += WIDE_THREADS) {
			float total = 0;

			for (int i = 0; i < keys; i++)
				total = fmaf(p[i], w.v[kv + (first + i) * step + d], total);
			o[d] = first > 0 ? fmaf(o[d], alpha, total) : total;
		}
	}
	for (size_t d = threadIdx.x; d < w.dim; d += WIDE_THREADS) {
		o[d] /= sum;
		good = good && isfinite(o[d]);
	}
	if (w.stats && threadIdx.x == 0)
		w.stats[blockIdx.x] = (float)((log2((double)sum) + top) * LN_2);
	if (!good)
		*w.bad = 1;
}

cudaError_t cuda_attention_wide_launch(cudaStream_t stream, const struct cuda_attention_shape *s, const float *q,
				       const float *k, const float *v, float *o, float *stats, int *bad)
{
	const size_t blocks = s->n_seq * s->seq_len * s->heads;
	const wide_job job = { q, k, v, o, stats, bad, (float)(LOG2_E / sqrt((double)s->dim)), s->seq_len, s->heads,
			       s->kv_heads, s->dim };

	if (blocks > INT_MAX)
		return cudaErrorInvalidConfiguration;
	wide_kernel<<<(unsigned)blocks, WIDE_THREADS, 0, stream>>>(job);
	return cudaGetLastError();
}
