/* backward_tiles.cuh - products of operands in two parts, a warp's rows at a time, for attention on the way back.
 *
 * Every operand is high + low, two halves or two bfloat16, and a product is low high + high low + high high, added up
 * in float32. Blocks of WARPS warps; used by kernels_backward_attention_split.cu alone.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_BACKWARD_TILES_CUH
#define QUARRY_WORKER_BACKEND_CUDA_BACKWARD_TILES_CUH

#include <stdint.h>

#include "worker/backend/cuda/instructions.cuh"
#include "worker/backend/cuda/parts.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { WARPS = 8, THREADS = WARP * WARPS, WARP_ROWS = 16, OWN_ROWS = WARPS * WARP_ROWS, MET_ROWS = 32 };

/* --- operands --------------------------------------------------------------------------------------------- */

/* A row is an odd number of 16-byte pieces long: eight rows of a matrix lie in different banks. */
template <int WIDE, int ROWS> struct tile { uint16_t high[ROWS][WIDE + 8], low[ROWS][WIDE + 8]; };

struct fragment { uint32_t high[4], low[4]; };

template <part_kind K> static __device__ void multiply(float c[4], const uint32_t a[4], const uint32_t b[2])
{
	if (K == HALVES)
		multiply_halves(c, a, b);
	else
		multiply_brains(c, a, b);
}

/* c[0] and c[1] += a times the two halves of b, the large product last; two sums at a time hide the latency. */
template <part_kind K> static __device__ void multiply_parts(float (*c)[4], const fragment &a, const fragment &b)
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

/* out += factor times scores times the rows of y. */
template <part_kind K, int WIDE>
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
