/* See kernels_factor.h.
 *
 * The pivots are a substitution from the last column backwards, in blocks of WIDE columns: one warp finishes the
 * triangle of a block, two rows in each lane, then all earlier rows take away what the block owes them. U is read once.
 */
#include "worker/backend/cuda/kernels_factor.h"

#include <math.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP, WIDE = 2 * WARP };

static __global__ void __launch_bounds__(THREADS) load_kernel(const double *h, const int32_t *perm, size_t n,
							      double damp, double *a)
{
	const size_t i = blockIdx.x;
	const double *from = h + (size_t)perm[n - 1 - i] * n;

	for (size_t j = threadIdx.x; j < n; j += THREADS)
		a[i * n + j] = from[perm[n - 1 - j]] + (i == j ? damp : 0);
}

cudaError_t cuda_factor_load_launch(cudaStream_t stream, const double *h, const int32_t *perm, size_t n, double damp,
				    double *a)
{
	load_kernel<<<(unsigned)n, THREADS, 0, stream>>>(h, perm, n, damp, a);
	return cudaPeekAtLastError();
}

/* One thread block. */
static __global__ void __launch_bounds__(THREADS) diagonal_kernel(const double *l, size_t n, double *diagonal,
								  int *first)
{
	__shared__ int smallest;

	if (threadIdx.x == 0)
		smallest = (int)n;
	__syncthreads();
	for (size_t q = threadIdx.x; q < n; q += THREADS) {
		const double d = l[q * n + q];

		diagonal[n - 1 - q] = d;
		if (!(d > 0) || !isfinite(d))
			atomicMin(&smallest, (int)q);
	}
	__syncthreads();
	if (threadIdx.x == 0)
		*first = smallest;
}

cudaError_t cuda_factor_diagonal_launch(cudaStream_t stream, const double *l, size_t n, double *diagonal, int *first)
{
	diagonal_kernel<<<1, THREADS, 0, stream>>>(l, n, diagonal, first);
	return cudaPeekAtLastError();
}

static __global__ void __launch_bounds__(THREADS) store_kernel(const double *l, const double *diagonal, size_t n,
							       float *u, int *bad)
{
	const size_t i = blockIdx.x;
	const double *row = l + (n - 1 - i) * n;

	for (size_t j = threadIdx.x; j < n; j += THREADS) {
		const float x = j > i ? (float)(row[n - 1 - j] / diagonal[j]) : 0.0f;

		if (!isfinite(x))
			*bad = 1;
		u[i * n + j] = x;
	}
}

cudaError_t cuda_factor_store_launch(cudaStream_t stream, const double *l, const double *diagonal, size_t n, float *u,
				     int *bad)
{
	store_kernel<<<(unsigned)n, THREADS, 0, stream>>>(l, diagonal, n, u, bad);
	return cudaPeekAtLastError();
}

/* --- pivots --------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS) start_kernel(const double *h, const int32_t *perm, size_t n,
							       double damp, double *pivots)
{
	const size_t j = (size_t)blockIdx.x * THREADS + threadIdx.x;

	if (j < n)
		pivots[j] = h[(size_t)perm[j] * n + (size_t)perm[j]] + damp;
}

static __device__ double not_negative(double d)
{
	return d > 0 ? d : 0;
}

/* One thread block: D of columns first .. first + wide - 1, from what is left of them. */
static __global__ void __launch_bounds__(THREADS) triangle_kernel(const float *u, size_t n, size_t first, unsigned wide,
								  double *pivots, int *bad)
{
	__shared__ float tile[WIDE][WIDE + 1];
	const unsigned lane = threadIdx.x;

	for (unsigned i = threadIdx.x; i < WIDE * WIDE; i += THREADS) {
		const unsigned j = i / WIDE, k = i % WIDE;

		tile[j][k] = j < k && k < wide ? u[(first + j) * n + first + k] : 0.0f;
	}
	__syncthreads();
	if (lane >= WARP)
		return;

	double low = lane < wide ? pivots[first + lane] : 0, high = 0;

	if (lane + WARP < wide)
		high = pivots[first + lane + WARP];
	if (!isfinite(low) || !isfinite(high))
		*bad = 1;
	for (unsigned k = wide - 1; k > 0; k--) {
		const double d = not_negative(__shfl_sync(ALL_LANES, k < WARP ? low : high, (int)(k % WARP)));
		const double to_low = tile[lane][k], to_high = tile[lane + WARP][k];

		low -= to_low * to_low * d;
		high -= to_high * to_high * d;
	}
	if (lane < wide)
		pivots[first + lane] = not_negative(low);
	if (lane + WARP < wide)
		pivots[first + lane + WARP] = not_negative(high);
}

/* A warp per row j < first: what columns first .. first + wide - 1 take from it. */
static __global__ void __launch_bounds__(THREADS) rows_kernel(const float *u, size_t n, size_t first, unsigned wide,
							      double *pivots)
{
	const size_t j = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP;
	const unsigned lane = threadIdx.x % WARP;
	double sum = 0;

	if (j >= first)
		return;
	for (unsigned k = lane; k < wide; k += WARP) {
		const double x = u[j * n + first + k];

		sum += x * x * pivots[first + k];
	}
	sum = sum_warp(sum);
	if (lane == 0)
		pivots[j] -= sum;
}

cudaError_t cuda_factor_pivots_launch(cudaStream_t stream, const double *h, const int32_t *perm, size_t n, double damp,
				      const float *u, double *pivots, int *bad)
{
	start_kernel<<<blocks_of(n, THREADS), THREADS, 0, stream>>>(h, perm, n, damp, pivots);
	for (size_t end = n; end > 0;) {
		const size_t first = (end - 1) / WIDE * WIDE;
		const unsigned wide = (unsigned)(end - first);

		triangle_kernel<<<1, THREADS, 0, stream>>>(u, n, first, wide, pivots, bad);
		if (first > 0)
			rows_kernel<<<blocks_of(first, WARPS), THREADS, 0, stream>>>(u, n, first, wide, pivots);
		end = first;
	}
	return cudaPeekAtLastError();
}
