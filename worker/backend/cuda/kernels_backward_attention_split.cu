/* See kernels_backward_attention.h: tensor cores, head_dim up to 128.
 *
 * Where errors grow, in the scores (behind exp) and in d_o v' (D is taken off it), operands are halves, good to 2^-22
 * (backward_planes.cuh). The gradients of scores span more than halves do: they meet k and q as bfloat16, good to 2^-17.
 * Weights and gradients of scores are split in registers, where the tensor cores leave and take them.
 *
 * A block has OWN_ROWS queries (or keys) of one head, 16 a warp, in shared memory, and meets MET_ROWS keys (or queries)
 * at a time, in three phases: scores; d_o v'; the product with gradients of scores. Each phase has a buffer of its own,
 * which is filled for the next time while the other two phases run. Heads that share keys and values write dk and dv of
 * their own, which are then added up in order.
 */
#include "worker/backend/cuda/kernels_backward_attention.h"

#include <math.h>
#include <stdint.h>

#include "worker/backend/cuda/backward_planes.cuh"
#include "worker/backend/cuda/backward_tiles.cuh"
#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/instructions.cuh"

enum { PHASES = 3, SCORES = 0, VALUES = 1, GRADIENTS = 2 };

static constexpr float WEIGHT_POWER = 4096.0f;  /* weights, at most 1, are brought up into the range of a half */

/* --- shared memory, results ------------------------------------------------------------------------------- */

template <int WIDE> struct room {
	tile<WIDE, OWN_ROWS> own[2];
	tile<WIDE, MET_ROWS> met[PHASES];
	float stats[MET_ROWS], along[MET_ROWS];
};

/* factor times the rows first .. of (seq_len, heads, dim); dim is even. */
template <int WIDE>
static __device__ void store(const sums<WIDE> &s, float factor, float *to, size_t first, size_t head,
			     const cuda_attention_back &a)
{
	const int lane = threadIdx.x % WARP;

#pragma unroll
	for (int i = 0; i < WIDE / 8 * 2; i++) {
		const size_t row = first + threadIdx.x / WARP * WARP_ROWS + lane / 4 + i % 2 * 8;
		const size_t col = i / 2 * 8 + lane % 4 * 2;
		const float2 pair = { factor * s.at[i / 2][i % 2 * 2], factor * s.at[i / 2][i % 2 * 2 + 1] };

		if (row < a.seq_len && col < a.dim)
			*(float2 *)&to[(row * a.heads + head) * a.dim + col] = pair;
	}
}

/* --- kernels ---------------------------------------------------------------------------------------------- */

struct job {
	cuda_attention_back a;
	planes q, k, v, d_o;            /* halves */
	planes q_brains, k_brains;
	float *dk, *dv;                 /* (seq_len, heads, dim): of each query's head by itself */
};

/* What turns products of halves into scores and d_o v'. */
struct units { float score, value; };

/* As in kernels_backward_attention.cu. */
static __device__ void weigh(size_t query, size_t key, const cuda_attention_back &a, units u, float stats, float along,
			     float *e, float *dp)
{
	const bool seen = query < a.seq_len && key <= query;
	const float p = seen ? expf(*e * u.score - stats) : 0.0f;

	*dp = seen && query > 0 ? p * (*dp * u.value - along) * a.scale : 0.0f;
	*e = p;
}

/* A phase begins: its buffer has been filled, and no warp is in the phase before any more. */
static __device__ void begin_phase()
{
	wait_for_copies<1>();
	__syncthreads();
}

/* stats and D of the thread's two rows of queries. */
struct query_rows { float stats[2], along[2]; };

static __device__ query_rows rows_at(const cuda_attention_back &a, size_t row, size_t head)
{
	query_rows r = { { 0.0f, 0.0f }, { 0.0f, 0.0f } };

#pragma unroll
	for (int i = 0; i < 2; i++)
		if (row + i * 8 < a.seq_len) {
			r.stats[i] = a.stats[(row + i * 8) * a.heads + head];
			r.along[i] = a.along[(row + i * 8) * a.heads + head];
		}
	return r;
}

/* One item: dq of one head and OWN_ROWS queries; those that see most keys come first. A warp leaves out keys that none
 * of its queries sees. */
template <int WIDE> static __global__ void __launch_bounds__(THREADS, 1) query_kernel(job j)
{
	extern __shared__ __align__(16) unsigned char shared_memory[];
	room<WIDE> &r = *(room<WIDE> *)shared_memory;
	const cuda_attention_back &a = j.a;
	const size_t tiles = (a.seq_len + OWN_ROWS - 1) / OWN_ROWS;
	const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * WARP_ROWS;

	for (size_t item = blockIdx.x; item < tiles * a.heads; item += gridDim.x) {
		const size_t first = (tiles - 1 - item / a.heads) * OWN_ROWS, head = item % a.heads;
		const size_t kv = head / (a.heads / a.kv_heads), row = first + warp_row + lane / 4;
		const size_t end = first + OWN_ROWS < a.seq_len ? first + OWN_ROWS : a.seq_len;
		const query_rows rows = rows_at(a, row, head);
		const units own = { a.scale * factor_at(j.q, first + warp_row, head, a.seq_len),
				    factor_at(j.d_o, first + warp_row, head, a.seq_len) };
		sums<WIDE> dq;

		clear(&dq);
		fetch(&r.own[0], j.q, first, head, a.seq_len);
		fetch(&r.own[1], j.d_o, first, head, a.seq_len);
		fetch(&r.met[SCORES], j.k, 0, kv, a.seq_len);
		end_copies();
		fetch(&r.met[VALUES], j.v, 0, kv, a.seq_len);
		end_copies();
		for (size_t begin = 0; begin < end; begin += MET_ROWS) {
			const size_t next = begin + MET_ROWS;
			const bool seen = begin < first + warp_row + WARP_ROWS;
			const units u = { own.score * factor_at(j.k, begin, kv, a.seq_len),
					  own.value * factor_at(j.v, begin, kv, a.seq_len) };
			scores e, dp;

			begin_phase();
			fetch(&r.met[GRADIENTS], j.k_brains, begin, kv, a.seq_len);
			end_copies();
			if (seen)
				meet(&e, r.own[0], r.met[SCORES]);
			begin_phase();
			if (next < end)
				fetch(&r.met[SCORES], j.k, next, kv, a.seq_len);
			end_copies();
			if (seen) {
				meet(&dp, r.own[1], r.met[VALUES]);
#pragma unroll
				for (int i = 0; i < MET_ROWS / 8 * 4; i++) {
					const int half = i / 2 % 2, col = i / 4 * 8 + lane % 4 * 2 + i % 2;

					weigh(row + half * 8, begin + col, a, u, rows.stats[half], rows.along[half],
					      &e.at[i / 4][i % 4], &dp.at[i / 4][i % 4]);
				}
			}
			begin_phase();
			if (next < end)
				fetch(&r.met[VALUES], j.v, next, kv, a.seq_len);
			end_copies();
			if (seen)
				add_rows<BRAINS>(&dq, dp, 1.0f, r.met[GRADIENTS]);
		}
		store(dq, 1.0f, a.dq, first, head, a);
	}
}

/* d_o of queries begin .. and what belongs to them. */
template <int WIDE> static __device__ void fetch_values(room<WIDE> *r, const job &j, size_t begin, size_t head)
{
	const cuda_attention_back &a = j.a;
	const size_t query = begin + threadIdx.x < a.seq_len ? begin + threadIdx.x : a.seq_len - 1;

	fetch(&r->met[VALUES], j.d_o, begin, head, a.seq_len);
	if (threadIdx.x < MET_ROWS) {
		copy_float_async(&r->stats[threadIdx.x], &a.stats[query * a.heads + head]);
		copy_float_async(&r->along[threadIdx.x], &a.along[query * a.heads + head]);
	}
}

/* One item: what the queries of one head give to dk and dv of OWN_ROWS keys; those that most queries see come first.
 * dv is summed up in units of the largest factor that d_o of this head has. */
template <int WIDE> static __global__ void __launch_bounds__(THREADS, 1) key_kernel(job j)
{
	extern __shared__ __align__(16) unsigned char shared_memory[];
	room<WIDE> &r = *(room<WIDE> *)shared_memory;
	const cuda_attention_back &a = j.a;
	const size_t tiles = (a.seq_len + OWN_ROWS - 1) / OWN_ROWS;
	const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * WARP_ROWS;

	for (size_t item = blockIdx.x; item < tiles * a.heads; item += gridDim.x) {
		const size_t first = item / a.heads * OWN_ROWS, head = item % a.heads;
		const size_t kv = head / (a.heads / a.kv_heads), key = first + warp_row + lane / 4;
		const units own = { a.scale * factor_at(j.k, first + warp_row, kv, a.seq_len),
				    factor_at(j.v, first + warp_row, kv, a.seq_len) };
		const float unit = largest_factor(j.d_o, head, a.seq_len);
		sums<WIDE> dk, dv;

		clear(&dk);
		clear(&dv);
		fetch(&r.own[0], j.k, first, kv, a.seq_len);
		fetch(&r.own[1], j.v, first, kv, a.seq_len);
		fetch(&r.met[SCORES], j.q, first, head, a.seq_len);
		end_copies();
		fetch_values(&r, j, first, head);
		end_copies();
		for (size_t begin = first; begin < a.seq_len; begin += MET_ROWS) {
			const size_t next = begin + MET_ROWS;
			const bool seen = next > first + warp_row;
			const float d_o_factor = factor_at(j.d_o, begin, head, a.seq_len);
			const units u = { own.score * factor_at(j.q, begin, head, a.seq_len), own.value * d_o_factor };
			scores e, dp;

			begin_phase();
			fetch(&r.met[GRADIENTS], j.q_brains, begin, head, a.seq_len);
			end_copies();
			if (seen)
				meet(&e, r.own[0], r.met[SCORES]);
			begin_phase();
			if (next < a.seq_len)
				fetch(&r.met[SCORES], j.q, next, head, a.seq_len);
			end_copies();
			if (seen) {
				meet(&dp, r.own[1], r.met[VALUES]);
#pragma unroll
				for (int i = 0; i < MET_ROWS / 8 * 4; i++) {
					const int col = i / 4 * 8 + lane % 4 * 2 + i % 2;

					weigh(begin + col, key + i / 2 % 2 * 8, a, u, r.stats[col], r.along[col],
					      &e.at[i / 4][i % 4], &dp.at[i / 4][i % 4]);
				}
				add_rows<HALVES>(&dv, e, d_o_factor / unit * WEIGHT_POWER, r.met[VALUES]);
			}
			begin_phase();
			if (next < a.seq_len)
				fetch_values(&r, j, next, head);
			end_copies();
			if (seen)
				add_rows<BRAINS>(&dk, dp, 1.0f, r.met[GRADIENTS]);
		}
		store(dk, 1.0f, j.dk, first, head, a);
		store(dv, unit / WEIGHT_POWER, j.dv, first, head, a);
	}
}

/* to (seq_len, kv_heads, dim) = sums over the heads that share one. */
static __global__ void __launch_bounds__(THREADS) group_kernel(cuda_attention_back a, const float *of_heads, float *to)
{
	const size_t n = a.seq_len * a.kv_heads * a.dim, group = a.heads / a.kv_heads;

	for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (size_t)gridDim.x * THREADS) {
		const float *from = of_heads + i / a.dim * group * a.dim + i % a.dim;
		float sum = from[0];

		for (size_t g = 1; g < group; g++)
			sum += from[g * a.dim];
		to[i] = sum;
	}
}

/* --- launching -------------------------------------------------------------------------------------------- */

static size_t room_bytes(const cuda_attention_back *a)
{
	return a->dim <= NARROW_WIDTH ? sizeof(room<NARROW_WIDTH>) : sizeof(room<WIDTH_MAX>);
}

static job cut_all(cutter *c, const cuda_attention_back *a)
{
	const size_t bytes = a->seq_len * a->heads * a->dim * sizeof(float);
	const bool shared = a->heads > a->kv_heads;
	job j = {};

	j.a = *a;
	j.q = cut_planes(c, a, a->heads, HALVES);
	j.k = cut_planes(c, a, a->kv_heads, HALVES);
	j.v = cut_planes(c, a, a->kv_heads, HALVES);
	j.d_o = cut_planes(c, a, a->heads, HALVES);
	j.q_brains = cut_planes(c, a, a->heads, BRAINS);
	j.k_brains = cut_planes(c, a, a->kv_heads, BRAINS);
	j.dk = shared ? (float *)cut(c, bytes) : a->dk;
	j.dv = shared ? (float *)cut(c, bytes) : a->dv;
	return j;
}

size_t cuda_attention_back_split_bytes(const struct cuda_attention_back *a)
{
	int device = 0, shared = 0;
	cutter c = {};

	if (a->dim > WIDTH_MAX || cudaGetDevice(&device) != cudaSuccess ||
	    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
	    (size_t)shared < room_bytes(a))
		return 0;
	cut_all(&c, a);
	return c.used;
}

template <int WIDE> static cudaError_t launch(cudaStream_t stream, const job &j)
{
	const int bytes = (int)sizeof(room<WIDE>);
	const unsigned blocks = blocks_for((j.a.seq_len + OWN_ROWS - 1) / OWN_ROWS * j.a.heads, 1);
	const cudaFuncAttribute shared = cudaFuncAttributeMaxDynamicSharedMemorySize;
	cudaError_t status = cudaFuncSetAttribute(query_kernel<WIDE>, shared, bytes);

	if (status == cudaSuccess)
		status = cudaFuncSetAttribute(key_kernel<WIDE>, shared, bytes);
	if (status != cudaSuccess)
		return status;
	query_kernel<WIDE><<<blocks, THREADS, bytes, stream>>>(j);
	key_kernel<WIDE><<<blocks, THREADS, bytes, stream>>>(j);
	return cudaPeekAtLastError();
}

static void add_groups(cudaStream_t stream, const cuda_attention_back *a, const float *of_heads, float *to)
{
	const unsigned blocks = blocks_for(a->seq_len * a->kv_heads * a->dim, THREADS);

	if (of_heads != to)
		group_kernel<<<blocks, THREADS, 0, stream>>>(*a, of_heads, to);
}

cudaError_t cuda_attention_back_split_launch(cudaStream_t stream, const struct cuda_attention_back *a, void *scratch)
{
	cutter c = { (char *)scratch, 0 };
	const job j = cut_all(&c, a);
	cudaError_t status;

	split<HALVES>(stream, a, a->q, a->heads, j.q);
	split<HALVES>(stream, a, a->k, a->kv_heads, j.k);
	split<HALVES>(stream, a, a->v, a->kv_heads, j.v);
	split<HALVES>(stream, a, a->d_o, a->heads, j.d_o);
	split<BRAINS>(stream, a, a->q, a->heads, j.q_brains);
	split<BRAINS>(stream, a, a->k, a->kv_heads, j.k_brains);
	status = width(a) == NARROW_WIDTH ? launch<NARROW_WIDTH>(stream, j) : launch<WIDTH_MAX>(stream, j);
	if (status != cudaSuccess)
		return status;
	add_groups(stream, a, j.dk, a->dk);
	add_groups(stream, a, j.dv, a->dv);
	return cudaPeekAtLastError();
}
