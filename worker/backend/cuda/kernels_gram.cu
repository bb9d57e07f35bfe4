/* Device code of the Gram matrix: passes over memory around the products, which cuBLAS does. */
#include "worker/backend/cuda/kernels_gram.h"

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/parts.cuh"

namespace {

constexpr int THREADS = 256, TILE = 32, TILE_ROWS = 8;

/* One thread: one column through one chunk of rows. */
__global__ void __launch_bounds__(THREADS) largest_kernel(gram_rows g)
{
	const size_t column = (size_t)blockIdx.x * THREADS + threadIdx.x, first = (size_t)blockIdx.y * GRAM_CHUNK;
	const size_t last = min(first + GRAM_CHUNK, g.rows);
	uint32_t m = 0;

	if (column >= g.cols)
		return;
#pragma unroll 8
	for (size_t r = first; r < last; r++)
		m = max(m, magnitude_bits(g.x[r * g.cols + column]));
	g.largest[blockIdx.y * g.cols + column] = m;
}

__global__ void __launch_bounds__(THREADS) power_kernel(gram_rows g, int chunks)
{
	const size_t column = (size_t)blockIdx.x * THREADS + threadIdx.x;
	uint32_t m = 0;
	int s;

	if (column >= g.cols)
		return;
	for (int c = 0; c < chunks; c++)
		m = max(m, g.largest[c * g.cols + column]);
	s = half_power(m);
	g.power[column] = power_of_two(s);
	g.back[column] = (double)power_of_two(-s);
}

/* One thread: V neighbouring columns of rows gridDim.y apart. */
template <int V>
__global__ void __launch_bounds__(THREADS) cut_kernel(gram_rows g)
{
	const size_t column = ((size_t)blockIdx.x * THREADS + threadIdx.x) * V;
	float power[V], x[V];
	uint16_t high[V], low[V];

	if (column >= g.cols)
		return;
	load_floats<V>(g.power + column, power);
	for (size_t row = blockIdx.y; row < g.rows; row += gridDim.y) {
		const size_t run = row / GRAM_RUN, first = run * GRAM_RUN, r = row - first;
		const size_t length = min((size_t)GRAM_RUN, g.rows - first);
		uint16_t *to = g.halves + (GRAM_COPIES * first + r) * g.cols + column;

		load_floats<V>(g.x + row * g.cols + column, x);
#pragma unroll
		for (int k = 0; k < V; k++)
			cut_half(__fmul_rn(x[k], power[k]), 1, high + k, low + k);
		store_shorts<V>(to, high);
		store_shorts<V>(to + length * g.cols, low);
		store_shorts<V>(to + 2 * length * g.cols, high);
		store_shorts<V>(to + 3 * length * g.cols, high);
	}
}

__device__ double sum_of_runs(const gram_fold &g, size_t at)
{
	const size_t apart = g.m * g.n;
	double sum = 0;

#pragma unroll 4
	for (int run = 0; run < g.runs; run++)
		sum += (double)g.products[run * apart + at];
	return sum;
}

/* One block: a tile of the products; those above the diagonal are left out. The mirror image goes through shared memory, so
 * that its rows are written along memory too. */
__global__ void __launch_bounds__(TILE * TILE_ROWS) fold_kernel(gram_fold g)
{
	__shared__ double tile[TILE][TILE + 1];
	const size_t top = (size_t)blockIdx.y * TILE, left = (size_t)blockIdx.x * TILE;

	if (top < left)
		return;
#pragma unroll
	for (int r = threadIdx.y; r < TILE; r += TILE_ROWS) {
		const size_t i = top + r, j = left + threadIdx.x;

		if (i < g.m && j < g.n && i >= j) {
			double *at = g.h + (g.first + i) * g.cols + g.first + j;
			const double sum = *at + sum_of_runs(g, i * g.n + j) * g.back[g.first + i] * g.back[g.first + j];

			*at = tile[r][threadIdx.x] = sum;
			if (i == j && !isfinite(sum))
				*g.bad = 1;
		}
	}
	__syncthreads();
#pragma unroll
	for (int r = threadIdx.y; r < TILE; r += TILE_ROWS) {
		const size_t i = top + threadIdx.x, j = left + r;

		if (i < g.m && j < g.n && i > j)
			g.h[(g.first + j) * g.cols + g.first + i] = tile[threadIdx.x][r];
	}
}

__global__ void __launch_bounds__(THREADS) mean_kernel(double *h, size_t cols, double rows, double *diagonal, int *bad)
{
	const size_t step = (size_t)gridDim.x * THREADS;

	for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < cols * cols; i += step) {
		const double mean = __ddiv_rn(h[i], rows);

		h[i] = mean;
		if (i % (cols + 1) == 0) {
			diagonal[i / (cols + 1)] = mean;
			if (!isfinite(mean))
				*bad = 1;
		}
	}
}

template <int V>
void cut_launch(cudaStream_t stream, const gram_rows &g)
{
	const dim3 blocks(blocks_of(g.cols, (size_t)THREADS * V), (unsigned)min(g.rows, (size_t)GRAM_RUN));

	cut_kernel<V><<<blocks, THREADS, 0, stream>>>(g);
}

} /* namespace */

cudaError_t cuda_gram_split_launch(cudaStream_t stream, const struct gram_rows *g)
{
	const unsigned columns = blocks_of(g->cols, THREADS), chunks = blocks_of(g->rows, GRAM_CHUNK);

	if (g->rows == 0)
		return cudaSuccess;
	largest_kernel<<<dim3(columns, chunks), THREADS, 0, stream>>>(*g);
	power_kernel<<<columns, THREADS, 0, stream>>>(*g, (int)chunks);
	if (g->cols % 8 == 0 && (uintptr_t)g->x % 16 == 0)
		cut_launch<8>(stream, *g);
	else
		cut_launch<1>(stream, *g);
	return cudaGetLastError();
}

cudaError_t cuda_gram_fold_launch(cudaStream_t stream, const struct gram_fold *g)
{
	const dim3 tiles(blocks_of(g->n, TILE), blocks_of(g->m, TILE));

	fold_kernel<<<tiles, dim3(TILE, TILE_ROWS), 0, stream>>>(*g);
	return cudaGetLastError();
}

cudaError_t cuda_gram_mean_launch(cudaStream_t stream, double *h, size_t cols, double rows, double *diagonal, int *bad)
{
	const size_t blocks = (cols * cols + THREADS - 1) / THREADS;

	mean_kernel<<<(unsigned)(blocks < 4096 ? blocks : 4096), THREADS, 0, stream>>>(h, cols, rows, diagonal, bad);
	return cudaGetLastError();
}
