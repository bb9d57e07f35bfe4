/* Least squares for (s, z) of group after group in a round of refinement; see kernels_refine.h and ref/refine.c.
 *
 * The five sums of a group are sums over its columns, and need A q within it. Narrow groups come in blocks of up to 128
 * columns: a warp takes a row, the block's part of A lies in shared memory, and r of the block's later groups is brought
 * up to date at once. Wide ones get A q from a product, and a block of threads per row. Either way x is the change of the
 * values of all columns, which a product carries to the columns behind.
 */
#include "worker/backend/cuda/kernels_refine.h"

#include <cuda_fp16.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/sums.cuh"

#define CHOICE_FN static __device__ inline
#define CHOICE_HALF(x) __half2float(__float2half_rn(x))
#include "worker/backend/group_choice.h"

enum {
	THREADS = 256, WARPS = THREADS / WARP,
	ROWS = 4 * WARPS,               /* of a block of threads */
	ROW_ARRAYS = 3                  /* codes, r, x */
};

/* The row's step in group g. x = scale q + shift is what its values grow by, in units of the row. */
struct step { double scale, shift; };

/* From sums in units of the row. Every thread that calls may do so, the results are the same. */
static __device__ step take_step(const refine_fit &o, size_t row, size_t g, group_sums m, float *s, float *z)
{
	const double unit = o.unit[row], s0 = *s, t0 = -(double)*s * *z;
	step d;

	m.oo = o.group_ones[g];
	m.rq *= unit;
	m.r1 *= unit;
	choice_step(&o.grid, &m, refine_least_step * o.before[row] * unit * unit, s, z);
	d.scale = ((double)*s - s0) / unit;
	d.shift = (-(double)*s * *z - t0) / unit;
	return d;
}

/* --- narrow groups ------------------------------------------------------------------------------ */

/* Sums of the group at columns from .. from + group - 1 of the block. */
static __device__ group_sums sum_group(const refine_fit &o, const float *a, const float *q, const float *r, unsigned from)
{
	const unsigned wide = (unsigned)o.wide, end = from + (unsigned)o.group;
	group_sums m = { 0, 0, 0, 0, 0 };

	for (unsigned c = from + threadIdx.x % WARP; c < end; c += WARP) {
		float aq = 0;

		for (unsigned k = from; k < end; k++)
			aq = fmaf(a[k * wide + c], q[k], aq);
		m.qq += (double)q[c] * aq;
		m.q1 += q[c] * o.ones[o.first + c];
		m.rq += (double)r[c] * q[c];
		m.r1 += r[c];
	}
	m.qq = sum_warp(m.qq);
	m.q1 = sum_warp(m.q1);
	m.rq = sum_warp(m.rq);
	m.r1 = sum_warp(m.r1);
	return m;
}

/* x of the group, and r of the columns behind it in the block. */
static __device__ void carry(const refine_fit &o, const float *a, const float *q, float *r, float *x, unsigned from,
			     step d)
{
	const unsigned lane = threadIdx.x % WARP, wide = (unsigned)o.wide, end = from + (unsigned)o.group;

	for (unsigned c = from + lane; c < end; c += WARP)
		x[c] = (float)(d.scale * q[c] + d.shift);
	__syncwarp();
	for (unsigned c = end + lane; c < wide; c += WARP) {
		float ax = 0;

		for (unsigned k = from; k < end; k++)
			ax = fmaf(a[k * wide + c], x[k], ax);
		r[c] -= ax;
	}
	__syncwarp();
}

/* All groups of the block, of one row; a warp. */
static __device__ void fit_row(const refine_fit &o, const float *a, float *space, size_t row)
{
	const unsigned lane = threadIdx.x % WARP, wide = (unsigned)o.wide, group = (unsigned)o.group;
	const size_t at = row * o.cols + o.first;
	float *q = space, *r = q + wide, *x = r + wide;

	for (unsigned c = lane; c < wide; c += WARP) {
		q[c] = o.q[at + c];
		r[c] = o.r[at + c];
	}
	__syncwarp();
	for (unsigned from = 0; from < wide; from += group) {
		const size_t g = (o.first + from) / group, side = row * o.groups + g;
		float s = o.s[side], z = o.z[side];
		const step d = take_step(o, row, g, sum_group(o, a, q, r, from), &s, &z);

		__syncwarp();
		if (lane == 0) {
			o.s[side] = s;
			o.z[side] = z;
		}
		carry(o, a, q, r, x, from, d);
	}
	for (unsigned c = lane; c < wide; c += WARP)
		o.x[row * wide + c] = x[c];
	__syncwarp();
}

static __global__ void __launch_bounds__(THREADS) fit_block(const refine_fit o)
{
	extern __shared__ float shared[];
	const unsigned wide = (unsigned)o.wide, warp = threadIdx.x / WARP;
	const size_t first = blockIdx.x * (size_t)ROWS, end = first + ROWS < o.rows ? first + ROWS : o.rows;
	float *space = shared + wide * wide + warp * ROW_ARRAYS * wide;

	for (unsigned i = threadIdx.x; i < wide * wide; i += THREADS)
		shared[i] = o.a[(o.first + i / wide) * o.cols + o.first + i % wide];
	__syncthreads();
	for (size_t row = first + warp; row < end; row += WARPS)
		fit_row(o, shared, space, row);
}

cudaError_t refine_fit_block_launch(cudaStream_t stream, const struct refine_fit *o)
{
	const size_t bytes = (o->wide + ROW_ARRAYS * WARPS) * o->wide * sizeof(float);
	const cudaError_t status = cudaFuncSetAttribute(fit_block, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	if (status != cudaSuccess)
		return status;
	fit_block<<<blocks_of(o->rows, ROWS), THREADS, bytes, stream>>>(*o);
	return cudaPeekAtLastError();
}

/* --- wide groups -------------------------------------------------------------------------------- */

static __device__ group_sums operator+(group_sums a, const group_sums &b)
{
	a.qq += b.qq;
	a.q1 += b.q1;
	a.oo += b.oo;
	a.rq += b.rq;
	a.r1 += b.r1;
	return a;
}

static __global__ void fill_codes(const refine_fit o)
{
	const size_t from = blockIdx.x * o.cols + o.first, to = blockIdx.x * o.wide;

	for (size_t c = threadIdx.x; c < o.wide; c += THREADS)
		o.x[to + c] = o.q[from + c];
}

static __global__ void __launch_bounds__(THREADS) fit_wide(const refine_fit o)
{
	__shared__ group_sums room[WARPS];
	const size_t row = blockIdx.x, at = row * o.cols + o.first, line = row * o.wide, g = o.first / o.group;
	const size_t side = row * o.groups + g;
	float s = o.s[side], z = o.z[side];
	group_sums m = { 0, 0, 0, 0, 0 };

	for (size_t c = threadIdx.x; c < o.wide; c += THREADS) {
		const double q = o.x[line + c], r = o.r[at + c];

		m.qq += q * o.product[line + c];
		m.q1 += q * o.ones[o.first + c];
		m.rq += q * r;
		m.r1 += r;
	}
	m = sum_block<THREADS>(m, room);
	const step d = take_step(o, row, g, m, &s, &z);

	for (size_t c = threadIdx.x; c < o.wide; c += THREADS)
		o.x[line + c] = (float)(d.scale * o.x[line + c] + d.shift);
	__syncthreads();
	if (threadIdx.x == 0) {
		o.s[side] = s;
		o.z[side] = z;
	}
}

cudaError_t refine_codes_launch(cudaStream_t stream, const struct refine_fit *o)
{
	fill_codes<<<(unsigned)o->rows, THREADS, 0, stream>>>(*o);
	return cudaPeekAtLastError();
}

cudaError_t refine_fit_wide_launch(cudaStream_t stream, const struct refine_fit *o)
{
	fit_wide<<<(unsigned)o->rows, THREADS, 0, stream>>>(*o);
	return cudaPeekAtLastError();
}
