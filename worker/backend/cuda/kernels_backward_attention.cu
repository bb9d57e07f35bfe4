/* See kernels_backward_attention.h: float32 throughout, any head_dim.
 *
 * A block of 16 x 16 threads holds one 64 x 64 tile of scores, 4 x 4 in each thread, made from slices of both operands
 * in shared memory. A tile of weights or of their gradients goes through shared memory into the products with rows of
 * width WIDE; where head_dim is wider, other blocks make the rest of the width from the same scores.
 */
#include "worker/backend/cuda/kernels_backward_attention.h"

#include <math.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, TILE = 64, SLICE = 32, PITCH = TILE + 4, SIDE = 16 };

/* Rows `step` apart; only the first `count` of a tile are there. */
struct rows_of { const float *at; size_t step; int count; };

/* Columns `from` .. of TILE rows, transposed; zero where there is none. A warp takes 4 rows of 8 columns: no two of its
 * lanes meet in a bank. */
static __device__ void load_slice(float (*to)[PITCH], rows_of x, size_t from, size_t dim)
{
	const int lane = threadIdx.x % WARP;

	for (int piece = threadIdx.x / WARP; piece < TILE / 4 * (SLICE / 8); piece += THREADS / WARP) {
		const int row = piece / (SLICE / 8) * 4 + lane / 8, col = piece % (SLICE / 8) * 8 + lane % 8;

		to[col][row] = row < x.count && from + col < dim ? x.at[row * x.step + from + col] : 0.0f;
	}
}

struct scratch {
	float a[SLICE][PITCH], b[SLICE][PITCH]; /* slices; or TILE / 2 rows of WIDE */
	float p[TILE][PITCH];
};

static __device__ void add_products(float acc[4][4], float4 x, float4 y)
{
	const float left[4] = { x.x, x.y, x.z, x.w }, right[4] = { y.x, y.y, y.z, y.w };

#pragma unroll
	for (int i = 0; i < 4; i++)
#pragma unroll
		for (int j = 0; j < 4; j++)
			acc[i][j] = fmaf(left[i], right[j], acc[i][j]);
}

/* acc[i][j] = row ty*4+i of x times row tx*4+j of y. */
static __device__ void multiply_rows(float acc[4][4], rows_of x, rows_of y, size_t dim, scratch *s)
{
	const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;

#pragma unroll
	for (int i = 0; i < 16; i++)
		acc[i / 4][i % 4] = 0.0f;
	for (size_t from = 0; from < dim; from += SLICE) {
		load_slice(s->a, x, from, dim);
		load_slice(s->b, y, from, dim);
		__syncthreads();
#pragma unroll 8
		for (int d = 0; d < SLICE; d++)
			add_products(acc, *(const float4 *)&s->a[d][ty * 4], *(const float4 *)&s->b[d][tx * 4]);
		__syncthreads();
	}
}

/* Columns of one output tile: of thread tx, 4 in every 64. */
template <int WIDE> struct wide_tile { float acc[WIDE / 64][4][4]; };

template <int WIDE> static __device__ void clear(wide_tile<WIDE> *out)
{
#pragma unroll
	for (int i = 0; i < WIDE / 4; i++)
		out->acc[i / 16][i / 4 % 4][i % 4] = 0.0f;
}

/* Row ty*4+i of out += sum over t of s->p[t][ty*4+i] times columns from .. from+WIDE of row t of y. */
template <int WIDE>
static __device__ void add_rows(wide_tile<WIDE> *out, rows_of y, size_t from, size_t dim, scratch *s)
{
	const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE, half = TILE / 2;
	float *room = &s->a[0][0];

	static_assert(sizeof(s->a) + sizeof(s->b) >= TILE / 2 * WIDE * sizeof(float), "half a tile of rows");
	for (int top = 0; top < TILE; top += half) {
		for (int i = threadIdx.x; i < half * WIDE; i += THREADS) {
			const int row = top + i / WIDE, col = i % WIDE;

			room[i] = row < y.count && from + col < dim ? y.at[row * y.step + from + col] : 0.0f;
		}
		__syncthreads();
#pragma unroll 4
		for (int t = 0; t < half; t++) {
			const float4 p = *(const float4 *)&s->p[top + t][ty * 4];

#pragma unroll
			for (int c = 0; c < WIDE / 64; c++)
				add_products(out->acc[c], p, *(const float4 *)&room[t * WIDE + c * 64 + tx * 4]);
		}
		__syncthreads();
	}
}

/* Rows of the output, `step` apart, of which `count` are there. */
template <int WIDE>
static __device__ void store_rows(const wide_tile<WIDE> *out, float *to, size_t step, int count, size_t from,
				  size_t dim)
{
	const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;

#pragma unroll
	for (int i = 0; i < 4; i++)
#pragma unroll
		for (int j = 0; j < WIDE / 16; j++) {
			const size_t col = from + j / 4 * 64 + tx * 4 + j % 4;

			if (ty * 4 + i < count && col < dim)
				to[(ty * 4 + i) * step + col] = out->acc[j / 4][i][j % 4];
		}
}

/* The thread's 4 x 4 into s->p, transposed: [column of the tile][row]. */
static __device__ void store_weights(const float p[4][4], scratch *s)
{
	const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;

#pragma unroll
	for (int j = 0; j < 4; j++)
		*(float4 *)&s->p[tx * 4 + j][ty * 4] = make_float4(p[0][j], p[1][j], p[2][j], p[3][j]);
}

static __device__ int rows_in(size_t first, size_t seq_len)
{
	return (int)(seq_len - first < TILE ? seq_len - first : (size_t)TILE);
}

static __device__ rows_of tile_at(const float *x, size_t first, size_t head, size_t heads, size_t dim, size_t seq_len)
{
	return { x + (first * heads + head) * dim, heads * dim, rows_in(first, seq_len) };
}

/* Score e and d_o v' of one pair become its weight and the gradient of e, both 0 where the query does not see the
 * key. The first query sees one key, so its score changes nothing: its gradient is 0 but for rounding. */
static __device__ void weigh(const cuda_attention_back &a, size_t query, size_t key, size_t head, float *e, float *dp)
{
	const bool seen = query < a.seq_len && key <= query;
	const size_t at = query * a.heads + head;
	const float p = seen ? expf(*e * a.scale - a.stats[at]) : 0.0f;

	*dp = seen && query > 0 ? p * (*dp - a.along[at]) * a.scale : 0.0f;
	*e = p;
}

/* One item: WIDE columns of dq of one head and tile of queries; long tiles come first. */
template <int WIDE> static __global__ void __launch_bounds__(THREADS, 2) query_kernel(cuda_attention_back a)
{
	__shared__ __align__(16) scratch s;
	const size_t tiles = (a.seq_len + TILE - 1) / TILE, pieces = (a.dim + WIDE - 1) / WIDE;
	const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;

	for (size_t item = blockIdx.x; item < tiles * a.heads * pieces; item += gridDim.x) {
		const size_t first = (tiles - 1 - item / pieces / a.heads) * TILE, head = item / pieces % a.heads;
		const size_t from = item % pieces * WIDE, kv = head / (a.heads / a.kv_heads);
		const rows_of q = tile_at(a.q, first, head, a.heads, a.dim, a.seq_len);
		const rows_of d_o = tile_at(a.d_o, first, head, a.heads, a.dim, a.seq_len);
		wide_tile<WIDE> dq;

		clear(&dq);
		for (size_t begin = 0; begin <= first; begin += TILE) {
			const rows_of k = tile_at(a.k, begin, kv, a.kv_heads, a.dim, a.seq_len);
			const rows_of v = tile_at(a.v, begin, kv, a.kv_heads, a.dim, a.seq_len);
			float e[4][4], dp[4][4];

			multiply_rows(e, q, k, a.dim, &s);
			multiply_rows(dp, d_o, v, a.dim, &s);
#pragma unroll
			for (int i = 0; i < 16; i++)
				weigh(a, first + ty * 4 + i / 4, begin + tx * 4 + i % 4, head, &e[i / 4][i % 4],
				      &dp[i / 4][i % 4]);
			store_weights(dp, &s);
			__syncthreads();
			add_rows(&dq, k, from, a.dim, &s);
		}
		store_rows(&dq, a.dq + (first * a.heads + head) * a.dim, a.heads * a.dim, q.count, from, a.dim);
	}
}

template <int WIDE> struct key_tile { wide_tile<WIDE> dk, dv; };

/* What the queries of one head and tile add to the keys from `first` on. */
template <int WIDE>
static __device__ void meet_queries(const cuda_attention_back &a, size_t first, size_t begin, size_t head, size_t from,
				    key_tile<WIDE> *t, scratch *s)
{
	const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
	const size_t kv = head / (a.heads / a.kv_heads);
	const rows_of q = tile_at(a.q, begin, head, a.heads, a.dim, a.seq_len);
	const rows_of d_o = tile_at(a.d_o, begin, head, a.heads, a.dim, a.seq_len);
	float e[4][4], dp[4][4];

	multiply_rows(e, tile_at(a.k, first, kv, a.kv_heads, a.dim, a.seq_len), q, a.dim, s);
	multiply_rows(dp, tile_at(a.v, first, kv, a.kv_heads, a.dim, a.seq_len), d_o, a.dim, s);
#pragma unroll
	for (int i = 0; i < 16; i++)
		weigh(a, begin + tx * 4 + i % 4, first + ty * 4 + i / 4, head, &e[i / 4][i % 4], &dp[i / 4][i % 4]);
	store_weights(e, s);
	__syncthreads();
	add_rows(&t->dv, d_o, from, a.dim, s);
	store_weights(dp, s);
	__syncthreads();
	add_rows(&t->dk, q, from, a.dim, s);
}

/* One item: WIDE columns of dk and dv of one key-value head and tile of keys; what most queries see comes first. */
template <int WIDE> static __global__ void __launch_bounds__(THREADS, 2) key_kernel(cuda_attention_back a)
{
	__shared__ __align__(16) scratch s;
	const size_t tiles = (a.seq_len + TILE - 1) / TILE, pieces = (a.dim + WIDE - 1) / WIDE;
	const size_t group = a.heads / a.kv_heads;

	for (size_t item = blockIdx.x; item < tiles * a.kv_heads * pieces; item += gridDim.x) {
		const size_t first = item / pieces / a.kv_heads * TILE, kv = item / pieces % a.kv_heads;
		const size_t from = item % pieces * WIDE, at = (first * a.kv_heads + kv) * a.dim;
		const int count = rows_in(first, a.seq_len);
		key_tile<WIDE> t;

		clear(&t.dk);
		clear(&t.dv);
		for (size_t head = kv * group; head < (kv + 1) * group; head++)
			for (size_t begin = first; begin < a.seq_len; begin += TILE)
				meet_queries(a, first, begin, head, from, &t, &s);
		store_rows(&t.dk, a.dk + at, a.kv_heads * a.dim, count, from, a.dim);
		store_rows(&t.dv, a.dv + at, a.kv_heads * a.dim, count, from, a.dim);
	}
}

/* D of one query and head per warp. */
static __global__ void __launch_bounds__(THREADS) along_kernel(cuda_attention_back a)
{
	const int lane = threadIdx.x % WARP;
	const size_t warps = (size_t)gridDim.x * (THREADS / WARP);

	for (size_t item = blockIdx.x * (size_t)(THREADS / WARP) + threadIdx.x / WARP; item < a.seq_len * a.heads;
	     item += warps) {
		float sum = 0.0f;

		for (size_t i = lane; i < a.dim; i += WARP)
			sum = fmaf(a.d_o[item * a.dim + i], a.o[item * a.dim + i], sum);
		sum = sum_warp(sum);
		if (lane == 0)
			a.along[item] = sum;
	}
}

template <int WIDE> static void launch(cudaStream_t stream, const cuda_attention_back &a)
{
	const size_t tiles = (a.seq_len + TILE - 1) / TILE, pieces = (a.dim + WIDE - 1) / WIDE;

	query_kernel<WIDE><<<blocks_for(tiles * a.heads * pieces, 1), THREADS, 0, stream>>>(a);
	key_kernel<WIDE><<<blocks_for(tiles * a.kv_heads * pieces, 1), THREADS, 0, stream>>>(a);
}

cudaError_t cuda_attention_along_launch(cudaStream_t stream, const struct cuda_attention_back *a)
{
	along_kernel<<<blocks_for(a->seq_len * a->heads, THREADS / WARP), THREADS, 0, stream>>>(*a);
	return cudaPeekAtLastError();
}

cudaError_t cuda_attention_back_launch(cudaStream_t stream, const struct cuda_attention_back *a)
{
	if (a->dim <= 64)
		launch<64>(stream, *a);
	else
		launch<128>(stream, *a);
	return cudaPeekAtLastError();
}
