/* Attention over heads of any width, in float32; see kernels_attention.h.
 *
 * A block has one query of one head. It takes THREADS keys at a time: a warp a score, then a thread a column of the
 * output, kept in device memory.
 */
#include "worker/backend/cuda/kernels_attention.h"

#include <limits.h>
#include <math.h>

#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

struct wide_job {
	const float *q, *k, *v;
	float *o, *stats;
	int *bad;
	float scale;
	size_t seq_len, heads, kv_heads, dim;
};

static __device__ float dot_warp(const float *a, const float *b, size_t n)
{
	float sum = 0;

	for (size_t i = threadIdx.x % WARP; i < n; i += WARP)
		sum = fmaf(a[i], b[i], sum);
	return sum_warp(sum);
}

/* p (THREADS) of keys first .. : scores to weights relative to the largest so far. Returns their sum. */
static __device__ float weigh_wide(const wide_job &w, const float *q, const float *k, int keys, float *p, float *top,
				   float *alpha)
{
	float before = *top, sum = 0;

	__syncthreads(); /* p was read in the round before */
	for (int i = threadIdx.x / WARP; i < keys; i += WARPS) {
		const float score = dot_warp(q, k + i * w.kv_heads * w.dim, w.dim) * w.scale;

		if (threadIdx.x % WARP == 0)
			p[i] = score;
	}
	__syncthreads();
	for (int i = 0; i < keys; i++)
		*top = fmaxf(*top, p[i]);
	__syncthreads();
	if ((int)threadIdx.x < keys)
		p[threadIdx.x] = exp2f(p[threadIdx.x] - *top);
	__syncthreads();
	for (int i = 0; i < keys; i++)
		sum += p[i];
	*alpha = exp2f(before - *top);
	return sum;
}

/* One query of one head a block. */
static __global__ void __launch_bounds__(THREADS) wide_kernel(wide_job w)
{
	__shared__ float p[THREADS];
	const size_t row = blockIdx.x / w.heads, head = blockIdx.x % w.heads, at = row % w.seq_len;
	const size_t step = w.kv_heads * w.dim, kv = (row - at) * step + head / (w.heads / w.kv_heads) * w.dim;
	const float *q = w.q + (row * w.heads + head) * w.dim;
	float *o = w.o + (row * w.heads + head) * w.dim, top = -INFINITY, sum = 0;
	bool good = true;

	for (size_t first = 0; first <= at; first += THREADS) {
		const int keys = (int)min((size_t)THREADS, at + 1 - first);
		float alpha;
		const float added = weigh_wide(w, q, w.k + kv + first * step, keys, p, &top, &alpha);

		sum = fmaf(sum, alpha, added);
		for (size_t d = threadIdx.x; d < w.dim; d += THREADS) {
			float total = 0;

			for (int i = 0; i < keys; i++)
				total = fmaf(p[i], w.v[kv + (first + i) * step + d], total);
			o[d] = first > 0 ? fmaf(o[d], alpha, total) : total;
		}
	}
	for (size_t d = threadIdx.x; d < w.dim; d += THREADS) {
		o[d] /= sum;
		good = good && isfinite(o[d]);
	}
	if (w.stats && threadIdx.x == 0)
		w.stats[blockIdx.x] = (float)((log2((double)sum) + top) * M_LN2);
	if (!good)
		*w.bad = 1;
}

cudaError_t cuda_attention_wide_launch(cudaStream_t stream, const struct cuda_attention_shape *s, const float *q,
				       const float *k, const float *v, float *o, float *stats, int *bad)
{
	const size_t blocks = s->n_seq * s->seq_len * s->heads;
	const wide_job job = { q, k, v, o, stats, bad, (float)(M_LOG2E / sqrt((double)s->dim)), s->seq_len, s->heads,
			       s->kv_heads, s->dim };

	if (blocks > INT_MAX)
		return cudaErrorInvalidConfiguration;
	wide_kernel<<<(unsigned)blocks, THREADS, 0, stream>>>(job);
	return cudaGetLastError();
}
