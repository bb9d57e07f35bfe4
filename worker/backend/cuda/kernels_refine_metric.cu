/* A of a round of refinement; see kernels_refine.h.
 *
 * The products of a round use A itself. The sweep, which reads two rows of A for every code that moves, uses
 * correlations in the order in which it visits columns. In 16 bits, half the bytes, they are off by at most 1.6e-5; after
 * thousands of moves that is 1e-4 of what decides about a move, and A e is made anew from A after the sweep. Fixed
 * point, not halves: large correlations, those that matter, would be off by 2.4e-4 there.
 */
#include "worker/backend/cuda/kernels_refine.h"

#include <math.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/refine_cells.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };
static const size_t rows_max = 1 << 15;

/* The power of two below the largest diagonal entry. One block. */
static __global__ void find_unit(const refine_metric m)
{
	__shared__ double room[WARPS];
	double largest = 0;

	for (size_t i = threadIdx.x; i < m.cols; i += THREADS)
		largest = fmax(largest, m.h[i * m.cols + i] + m.damp);
	largest = max_block<THREADS>(largest, room);
	if (threadIdx.x == 0)
		*m.unit = largest > 0 && isfinite(largest) ? ldexp(1.0, ilogb(largest)) : 1;
}

static __global__ void fill_a(const refine_metric m)
{
	const double factor = 1 / *m.unit;
	const size_t j = blockIdx.x * (size_t)THREADS + threadIdx.x;

	if (j >= m.cols)
		return;
	for (size_t i = blockIdx.y; i < m.cols; i += gridDim.y)
		m.a[i * m.cols + j] = (float)((m.h[i * m.cols + j] + (i == j ? m.damp : 0)) * factor);
}

/* A warp per column. */
static __global__ void sum_columns(const refine_metric m)
{
	const size_t j = blockIdx.x * (size_t)WARPS + threadIdx.x / WARP;
	double sum = 0;

	if (j >= m.cols)
		return;
	for (size_t i = threadIdx.x % WARP; i < m.group; i += WARP)
		sum += m.a[j * m.cols + j / m.group * m.group + i];
	sum = sum_warp(sum);
	if (threadIdx.x % WARP == 0)
		m.ones[j] = sum;
}

/* A warp per group. */
static __global__ void sum_groups(const refine_metric m)
{
	const size_t g = blockIdx.x * (size_t)WARPS + threadIdx.x / WARP;
	double sum = 0;

	if (g >= m.cols / m.group)
		return;
	for (size_t i = threadIdx.x % WARP; i < m.group; i += WARP)
		sum += m.ones[g * m.group + i];
	sum = sum_warp(sum);
	if (threadIdx.x % WARP == 0)
		m.group_ones[g] = sum;
}

static __global__ void fill_roots(const refine_metric m)
{
	const size_t p = blockIdx.x * (size_t)THREADS + threadIdx.x;
	float root = 0;

	if (p >= m.stride)
		return;
	if (p < m.cols) {
		const size_t j = m.perm[p];

		root = sqrtf(m.a[j * m.cols + j]);
	}
	m.root[p] = root;
	m.inverse[p] = root > 0 ? 1 / root : 0;
}

template <typename Cell>
static __global__ void fill_likeness(const refine_metric m)
{
	const size_t p = blockIdx.x * (size_t)THREADS + threadIdx.x;

	if (p >= m.stride)
		return;
	for (size_t i = blockIdx.y; i < m.cols; i += gridDim.y) {
		float x = 0;

		if (p < m.cols)
			x = m.a[m.perm[i] * m.cols + m.perm[p]] * m.inverse[i] * m.inverse[p];
		put(static_cast<Cell *>(m.likeness) + i * m.stride + p, x);
	}
}

cudaError_t refine_metric_launch(cudaStream_t stream, const struct refine_metric *m)
{
	const unsigned rows = (unsigned)(m->cols < rows_max ? m->cols : rows_max);
	const dim3 square(blocks_of(m->cols, THREADS), rows), padded(blocks_of(m->stride, THREADS), rows);

	find_unit<<<1, THREADS, 0, stream>>>(*m);
	fill_a<<<square, THREADS, 0, stream>>>(*m);
	sum_columns<<<blocks_of(m->cols, WARPS), THREADS, 0, stream>>>(*m);
	sum_groups<<<blocks_of(m->cols / m->group, WARPS), THREADS, 0, stream>>>(*m);
	fill_roots<<<blocks_of(m->stride, THREADS), THREADS, 0, stream>>>(*m);
	if (refine_is_brief(m->cols))
		fill_likeness<uint16_t><<<padded, THREADS, 0, stream>>>(*m);
	else
		fill_likeness<float><<<padded, THREADS, 0, stream>>>(*m);
	return cudaPeekAtLastError();
}
