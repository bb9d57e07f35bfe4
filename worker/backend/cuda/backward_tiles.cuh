/* backward_tiles.cuh - products of operands in two parts, a warp's rows at a time, for attention on the way back.
 *
 * Every operand is high + low, two halves or two bfloat16, and a product is low high + high low + high high, added up
 * in float32. Blocks of WARPS warps; used by kernels_backward_attention_split.cu alone.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_BACKWARD_TILES_CUH
#define QUARRY_WORKER_BACKEND_CUDA_BACKWARD_TILES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

enum { WARP = 32, WARPS = 8, THREADS = WARP * WARPS, WARP_ROWS = 16, OWN_ROWS = WARPS * WARP_ROWS, MET_ROWS = 32 };
enum kind { HALVES, BRAINS };

/* --- instructions ----------------------------------------------------------------------------------------- */

/* Two numbers as one word, the first in its lower half. */
static __device__ unsigned pack_halves(float first, float second)
{
	const __half2 both = __floats2half2_rn(first, second);
	unsigned word;

	memcpy(&word, &both, sizeof(word));
	return word;
}

static __device__ unsigned pack_brains(float first, float second)
{
	const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
	unsigned word;

	memcpy(&word, &both, sizeof(word));
	return word;
}

static __device__ float2 unpack_halves(unsigned word)
{
	__half2 both;

	memcpy(&both, &word, sizeof(word));
	return __half22float2(both);
}

/* c (16 x 8) += a (16 x 16) b (16 x 8), each spread over the warp as PTX says of mma.m16n8k16. */
static __device__ void multiply_halves(float c[4], const unsigned a[4], const unsigned b[2])
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
	    "{%0, %1, %2, %3};"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ void multiply_brains(float c[4], const unsigned a[4], const unsigned b[2])
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
	    "{%0, %1, %2, %3};"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8. */
static __device__ void load_matrices(unsigned to[4], const uint16_t *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
		     : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

static __device__ void load_transposed(unsigned to[4], const uint16_t *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
		     : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

/* 16 bytes, or one float, of device memory on their way into shared memory. */
static __device__ void copy_async(uint16_t *to, const uint16_t *from)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
		     :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

static __device__ void copy_float_async(float *to, const float *from)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
		     :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

/* Ends a group of the thread's copies. */
static __device__ void end_copies()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All groups but the last one have arrived. */
static __device__ void wait_for_copies()
{
	asm volatile("cp.async.wait_group 1;" ::: "memory");
}

/* --- operands --------------------------------------------------------------------------------------------- */

/* A row is an odd number of 16-byte pieces long: eight rows of a matrix lie in different banks. */
template <int WIDE, int ROWS> struct tile { uint16_t high[ROWS][WIDE + 8], low[ROWS][WIDE + 8]; };

struct fragment { unsigned high[4], low[4]; };

template <kind K> static __device__ void multiply(float c[4], const unsigned a[4], const unsigned b[2])
{
	if (K == HALVES)
		multiply_halves(c, a, b);
	else
		multiply_brains(c, a, b);
}

/* c[0] and c[1] += a times the two halves of b, the large product last; two sums at a time hide the latency. */
template <kind K> static __device__ void multiply_parts(float (*c)[4], const fragment &a, const fragment &b)
{
	multiply<K>(c[0], a.low, b.high);
	multiply<K>(c[1], a.low, b.high + 2);
	multiply<K>(c[0], a.high, b.low);
	multiply<K>(c[1], a.high, b.low + 2);
	multiply<K>(c[0], a.high, b.high);
	multiply<K>(c[1], a.high, b.high + 2);
}

/* --- products --------------------------------------------------------------------------------------------- */

/* A warp's 16 rows against MET_ROWS: element x of at[n] is row lane/4 + x/2*8, column n*8 + lane%4*2 + x%2. */
struct scores { float at[MET_ROWS / 8][4]; };

/* The warp's rows of x times rows of y, as halves. */
template <int WIDE>
static __device__ void meet(scores *s, const tile<WIDE, OWN_ROWS> &x, const tile<WIDE, MET_ROWS> &y)
{
	const int lane = threadIdx.x % WARP, own = threadIdx.x / WARP * WARP_ROWS + lane % 16;
	const int met = lane / 16 * 8 + lane % 8;

#pragma unroll
	for (int i = 0; i < MET_ROWS / 8 * 4; i++)
		s->at[i / 4][i % 4] = 0.0f;
#pragma unroll 2
	for (int k = 0; k < WIDE; k += 16) {
		fragment a, b;

		load_matrices(a.high, &x.high[own][k + lane / 16 * 8]);
		load_matrices(a.low, &x.low[own][k + lane / 16 * 8]);
#pragma unroll
		for (int n = 0; n < MET_ROWS; n += 16) {
			load_matrices(b.high, &y.high[n + met][k + lane / 8 % 2 * 8]);
			load_matrices(b.low, &y.low[n + met][k + lane / 8 % 2 * 8]);
			multiply_parts<HALVES>(&s->at[n / 8], a, b);
		}
	}
}

/* The warp's rows of an output, laid out as scores are. */
template <int WIDE> struct sums { float at[WIDE / 8][4]; };

template <int WIDE> static __device__ void clear(sums<WIDE> *s)
{
#pragma unroll
	for (int i = 0; i < WIDE / 8 * 4; i++)
		s->at[i / 4][i % 4] = 0.0f;
}

template <kind K> static __device__ void split_pair(float first, float second, unsigned *high, unsigned *low)
{
	if (K == HALVES) {
		*high = pack_halves(first, second);
		const float2 got = unpack_halves(*high);

		*low = pack_halves(first - got.x, second - got.y);
	} else {
		*high = pack_brains(first, second);
		*low = pack_brains(first - __uint_as_float(*high << 16),
				   second - __uint_as_float(*high & 0xffff0000u));
	}
}

/* out += factor times scores times the rows of y. */
template <kind K, int WIDE>
static __device__ void add_rows(sums<WIDE> *out, const scores &s, float factor, const tile<WIDE, MET_ROWS> &y)
{
	const int lane = threadIdx.x % WARP;

#pragma unroll
	for (int k = 0; k < MET_ROWS; k += 16) {
		fragment a, b;

#pragma unroll
		for (int i = 0; i < 4; i++) {
			const float *pair = &s.at[k / 8 + i / 2][i % 2 * 2];

			split_pair<K>(factor * pair[0], factor * pair[1], &a.high[i], &a.low[i]);
		}
#pragma unroll
		for (int n = 0; n < WIDE; n += 16) {
			load_transposed(b.high, &y.high[k + lane % 16][n + lane / 16 * 8]);
			load_transposed(b.low, &y.low[k + lane % 16][n + lane / 16 * 8]);
			multiply_parts<K>(&out->at[n / 8], a, b);
		}
	}
}

#endif
