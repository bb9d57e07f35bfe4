/* See kernels_proxy.h. Everything here is bound by memory. */
#include "worker/backend/cuda/kernels_proxy.h"

#include <math.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

/* The power of two at or below x, within what can be divided by; 1 for what is no size. */
static __device__ double unit_of(double x)
{
	if (!(x > 0) || !isfinite(x))
		return 1;
	return ldexp(1.0, min(max(ilogb(x), -1000), 1000));
}

/* One thread block. */
static __global__ void __launch_bounds__(THREADS) diagonal_kernel(const double *h, size_t n, double damp, double *unit,
								  double *diagonal)
{
	__shared__ double room[WARPS];
	double largest = 0, own;

	for (size_t j = threadIdx.x; j < n; j += THREADS)
		largest = fmax(largest, h[j * n + j] + damp);
	own = unit_of(max_block<THREADS>(largest, room));
	for (size_t j = threadIdx.x; j < n; j += THREADS)
		diagonal[j] = (h[j * n + j] + damp) / own;
	if (threadIdx.x == 0)
		*unit = own;
}

cudaError_t cuda_proxy_diagonal_launch(cudaStream_t stream, const double *h, size_t n, double damp, double *unit,
				       double *diagonal)
{
	diagonal_kernel<<<1, THREADS, 0, stream>>>(h, n, damp, unit, diagonal);
	return cudaPeekAtLastError();
}

static __global__ void __launch_bounds__(THREADS) upper_kernel(const double *h, size_t n, const double *unit, float *a)
{
	const size_t i = blockIdx.x;
	const double factor = 2 / *unit;

	for (size_t j = threadIdx.x; j < n; j += THREADS)
		a[i * n + j] = j > i ? (float)(h[i * n + j] * factor) : 0.0f;
}

cudaError_t cuda_proxy_upper_launch(cudaStream_t stream, const double *h, size_t n, const double *unit, float *a)
{
	upper_kernel<<<(unsigned)n, THREADS, 0, stream>>>(h, n, unit, a);
	return cudaPeekAtLastError();
}

static __device__ double error_at(const cuda_proxy_rows &p, size_t row, size_t c)
{
	const double w = p.w[row * p.cols + c];
	const size_t at = row * (p.cols / p.group) + (unsigned)c / (unsigned)p.group;

	return p.codes ? w - (double)p.scales[at] * (p.codes[row * p.cols + c] - (double)p.zeros[at]) : w;
}

/* A thread block per row; its second pass over the row finds it in the cache. */
static __global__ void __launch_bounds__(THREADS) rows_kernel(const cuda_proxy_rows p)
{
	__shared__ double room[WARPS];

	for (size_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
		double largest = 0, sum = 0;

		for (size_t c = threadIdx.x; c < p.cols; c += THREADS)
			largest = fmax(largest, fabs(error_at(p, r, c)));
		const double unit = unit_of(max_block<THREADS>(largest, room)), factor = 1 / unit;

		for (size_t c = threadIdx.x; c < p.cols; c += THREADS) {
			const float e = (float)(error_at(p, r, c) * factor);

			p.e[r * p.cols + c] = e;
			sum += p.diagonal[c] * ((double)e * e);
		}
		sum = sum_block<THREADS>(sum, room);
		if (threadIdx.x == 0) {
			p.units[r] = unit;
			p.sums[r] = sum;
		}
	}
}

cudaError_t cuda_proxy_rows_launch(cudaStream_t stream, const struct cuda_proxy_rows *p)
{
	rows_kernel<<<blocks_for(p->rows, 1), THREADS, 0, stream>>>(*p);
	return cudaPeekAtLastError();
}

/* A warp per row. */
static __global__ void __launch_bounds__(THREADS) dot_kernel(const float *e, size_t cols, const float *p, size_t rows,
							     size_t n, double *sums)
{
	const unsigned lane = threadIdx.x % WARP;
	const size_t step = (size_t)gridDim.x * WARPS;

	for (size_t r = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP; r < rows; r += step) {
		double sum = 0;

#pragma unroll 4
		for (size_t c = lane; c < n; c += WARP)
			sum += (double)e[r * cols + c] * p[r * n + c];
		sum = sum_warp(sum);
		if (lane == 0)
			sums[r] += sum;
	}
}

cudaError_t cuda_proxy_dot_launch(cudaStream_t stream, const float *e, size_t cols, const float *p, size_t rows,
				  size_t n, double *sums)
{
	dot_kernel<<<blocks_for(rows, WARPS), THREADS, 0, stream>>>(e, cols, p, rows, n, sums);
	return cudaPeekAtLastError();
}

/* One thread block. */
static __global__ void __launch_bounds__(THREADS) total_kernel(const double *sums, const double *units, size_t rows,
							       const double *unit, double *total)
{
	__shared__ double room[WARPS];
	double sum = 0;

	for (size_t r = threadIdx.x; r < rows; r += THREADS)
		sum += units ? sums[r] * units[r] * units[r] : sums[r];
	sum = sum_block<THREADS>(sum, room);
	if (threadIdx.x == 0)
		*total += unit ? *unit * sum : sum;
}

cudaError_t cuda_proxy_total_launch(cudaStream_t stream, const double *sums, const double *units, size_t rows,
				    const double *unit, double *total)
{
	total_kernel<<<1, THREADS, 0, stream>>>(sums, units, rows, unit, total);
	return cudaPeekAtLastError();
}

/* --- few rows ------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS) exact_rows_kernel(const cuda_proxy_rows p, double *e)
{
	for (size_t r = blockIdx.x; r < p.rows; r += gridDim.x)
		for (size_t c = threadIdx.x; c < p.cols; c += THREADS)
			e[r * p.cols + c] = error_at(p, r, c);
}

cudaError_t cuda_proxy_exact_rows_launch(cudaStream_t stream, const struct cuda_proxy_rows *p, double *e)
{
	exact_rows_kernel<<<blocks_for(p->rows, 1), THREADS, 0, stream>>>(*p, e);
	return cudaPeekAtLastError();
}

/* A thread block per row. */
static __global__ void __launch_bounds__(THREADS) exact_dot_kernel(const double *e, const double *p, double damp,
								   size_t rows, size_t cols, double *sums)
{
	__shared__ double room[WARPS];

	for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
		double sum = 0;

		for (size_t i = r * cols + threadIdx.x; i < (r + 1) * cols; i += THREADS)
			sum += e[i] * (p[i] + damp * e[i]);
		sum = sum_block<THREADS>(sum, room);
		if (threadIdx.x == 0)
			sums[r] = sum;
	}
}

cudaError_t cuda_proxy_exact_dot_launch(cudaStream_t stream, const double *e, const double *p, double damp, size_t rows,
					size_t cols, double *sums)
{
	exact_dot_kernel<<<blocks_for(rows, 1), THREADS, 0, stream>>>(e, p, damp, rows, cols, sums);
	return cudaPeekAtLastError();
}
