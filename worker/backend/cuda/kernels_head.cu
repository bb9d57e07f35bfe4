/* Rows of logits: log-sum-exp and divergence. The products before them take ten times as long, so that the plain way, in
 * double and through memory twice, costs little. */
#include <math.h>

#include "worker/backend/cuda/kernels_head.h"
#include "worker/backend/cuda/sums.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;

/* The largest logit and the smallest place where it stands. */
struct best { float logit; uint32_t at; };

struct better {
	__device__ best operator()(best a, best b) const
	{
		return b.logit > a.logit || (b.logit == a.logit && b.at < a.at) ? b : a;
	}
};

/* One thread, for its row. */
__device__ void update_state(const head_fold &h, size_t row, best top, double sum)
{
	const double largest = (double)top.logit;
	const int64_t in_tile = (int64_t)h.targets[row] - h.first_id;

	if (largest > h.max[row]) {
		h.sum[row] = h.sum[row] * exp(h.max[row] - largest) + sum;
		h.max[row] = largest;
	} else {
		h.sum[row] += sum * exp(largest - h.max[row]);
	}
	if (in_tile >= 0 && (size_t)in_tile < h.n)
		h.target[row] = (double)h.logits[row * h.n + (size_t)in_tile];
	if (largest > h.top_logit[row]) {
		h.top_logit[row] = largest;
		h.top_id[row] = h.first_id + (int32_t)top.at;
	}
}

__global__ void __launch_bounds__(THREADS) fold_kernel(head_fold h)
{
	__shared__ best best_room[WARPS];
	__shared__ double room[WARPS];
	const size_t row = blockIdx.x;
	const float *logits = h.logits + row * h.n;
	best top = { -INFINITY, UINT32_MAX };
	bool finite = true;
	double sum = 0;

#pragma unroll 4
	for (size_t i = threadIdx.x; i < h.n; i += THREADS) {
		const float logit = logits[i];

		finite = finite && isfinite(logit);
		top = better()(top, best{ logit, (uint32_t)i });
	}
	if (!finite)
		*h.bad = 1;
	top = fold_warps<THREADS>(fold_lanes(top, WARP, better()), best_room, better());
#pragma unroll 4
	for (size_t i = threadIdx.x; i < h.n; i += THREADS)
		sum += exp((double)logits[i] - (double)top.logit);
	sum = sum_block<THREADS>(sum, room);
	if (threadIdx.x == 0)
		update_state(h, row, top, sum);
}

__global__ void __launch_bounds__(THREADS) compare_kernel(head_compare h)
{
	__shared__ double room[WARPS];
	const size_t row = blockIdx.x, first = row * h.n;
	const double norm = h.max[row] + log(h.sum[row]), ref_norm = h.ref_max[row] + log(h.ref_sum[row]);
	double sum = 0;

#pragma unroll 2
	for (size_t i = threadIdx.x; i < h.n; i += THREADS) {
		const double log_p = (double)h.logits[first + i] - norm;
		const double log_ref = (double)h.ref_logits[first + i] - ref_norm;
		const double ref = exp(log_ref);

		sum += ref * (log_ref - log_p);
		if (h.difference)
			h.difference[first + i] = (float)(exp(log_p) - ref);
	}
	sum = sum_block<THREADS>(sum, room);
	if (threadIdx.x != 0)
		return;
	if (h.kl)
		h.kl[row] += sum;
	if (!isfinite(sum))
		*h.bad = 1;
}

__global__ void __launch_bounds__(THREADS) finite_kernel(const float *x, size_t n, int *bad)
{
	const size_t step = (size_t)gridDim.x * THREADS;

	for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step)
		if (!isfinite(x[i]))
			*bad = 1;
}

} /* namespace */

cudaError_t cuda_head_fold_launch(cudaStream_t stream, const struct head_fold *h)
{
	if (h->rows > 0)
		fold_kernel<<<(unsigned)h->rows, THREADS, 0, stream>>>(*h);
	return cudaGetLastError();
}

cudaError_t cuda_head_compare_launch(cudaStream_t stream, const struct head_compare *h)
{
	if (h->rows > 0)
		compare_kernel<<<(unsigned)h->rows, THREADS, 0, stream>>>(*h);
	return cudaGetLastError();
}

cudaError_t cuda_head_finite_launch(cudaStream_t stream, const float *x, size_t n, int *bad)
{
	const size_t blocks = (n + THREADS - 1) / THREADS;

	if (n > 0)
		finite_kernel<<<(unsigned)(blocks < 4096 ? blocks : 4096), THREADS, 0, stream>>>(x, n, bad);
	return cudaGetLastError();
}
