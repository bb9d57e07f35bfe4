/* See kernels_block.h. Four elements at a time go through where rows and arrays are aligned to 16 bytes, else one. */
#include "worker/backend/cuda/kernels_block.h"

#include <math.h>
#include <stdint.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

/* V floats that move at once. */
template <int V> struct alignas(sizeof(float) * V) lanes { float at[V]; };

template <int V> static __device__ lanes<V> load(const float *from)
{
	return *reinterpret_cast<const lanes<V> *>(from);
}

template <int V> static __device__ void store(float *to, const lanes<V> &x)
{
	*reinterpret_cast<lanes<V> *>(to) = x;
}

static bool aligned(const void *a)
{
	return (uintptr_t)a % sizeof(lanes<4>) == 0; /* NULL is */
}

/* --- RMSNorm -------------------------------------------------------------------------------------------- */

static __device__ float norm_scale(double square, size_t n, float eps)
{
	return (float)(1 / sqrt(square / (double)n + (double)eps));
}

/* One row a block. A thread writes what it alone reads, so y may be x. */
template <int V> static __global__ void __launch_bounds__(THREADS) norm_kernel(const float *x, const float *weight,
										float eps, size_t rows, size_t cols,
										float *y, int *bad)
{
	__shared__ double room[WARPS];
	bool good = true;

	for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
		const float *from = x + r * cols;
		float *to = y + r * cols, scale;
		double square = 0;

		for (size_t i = threadIdx.x * V; i < cols; i += THREADS * V) {
			const lanes<V> a = load<V>(from + i);

			for (int j = 0; j < V; j++)
				square += (double)a.at[j] * a.at[j];
		}
		scale = norm_scale(sum_block<THREADS>(square, room), cols, eps);
		for (size_t i = threadIdx.x * V; i < cols; i += THREADS * V) {
			lanes<V> a = load<V>(from + i);
			const lanes<V> w = load<V>(weight + i);

			for (int j = 0; j < V; j++) {
				a.at[j] = a.at[j] * scale * w.at[j];
				good = good && isfinite(a.at[j]);
			}
			store<V>(to + i, a);
		}
	}
	if (!good)
		*bad = 1;
}

cudaError_t cuda_norm_launch(cudaStream_t stream, const float *x, const float *weight, float eps, size_t rows,
			     size_t cols, float *y, int *bad)
{
	if (rows == 0)
		return cudaSuccess;
	if (cols % 4 == 0 && aligned(x) && aligned(weight) && aligned(y))
		norm_kernel<4><<<blocks_for(rows, 1), THREADS, 0, stream>>>(x, weight, eps, rows, cols, y, bad);
	else
		norm_kernel<1><<<blocks_for(rows, 1), THREADS, 0, stream>>>(x, weight, eps, rows, cols, y, bad);
	return cudaGetLastError();
}

/* --- heads ---------------------------------------------------------------------------------------------- */

/* One head of one row a warp. A lane holds elements i and i + half and writes what it alone reads. */
static __global__ void __launch_bounds__(THREADS) turn_kernel(cuda_turn t)
{
	const size_t half = t.dim / 2, heads = t.rows * t.heads;
	const unsigned lane = threadIdx.x % WARP;
	bool good = true;

	for (size_t h = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP; h < heads; h += (size_t)gridDim.x * WARPS) {
		const size_t angle = h / t.heads % t.seq_len * half;
		const float *in = t.in + h * t.dim;
		float *out = t.out + h * t.dim, scale = 1;

		if (t.norm) {
			double square = 0;

			for (size_t i = lane; i < t.dim; i += WARP)
				square += (double)in[i] * in[i];
			scale = norm_scale(sum_warp(square), t.dim, t.eps);
			__syncwarp(); /* the sum read what other lanes write */
		}
		for (size_t i = lane; i < half; i += WARP) {
			const float c = t.cos[angle + i], s = t.sin[angle + i];
			const float a = t.norm ? in[i] * scale * t.norm[i] : in[i];
			const float b = t.norm ? in[i + half] * scale * t.norm[i + half] : in[i + half];
			const float low = a * c - b * s, high = b * c + a * s;

			out[i] = low;
			out[i + half] = high;
			good = good && isfinite(low) && isfinite(high);
		}
	}
	if (!good)
		*t.bad = 1;
}

cudaError_t cuda_turn_launch(cudaStream_t stream, const struct cuda_turn *t)
{
	if (t->rows == 0)
		return cudaSuccess;
	turn_kernel<<<blocks_for(t->rows * t->heads, WARPS), THREADS, 0, stream>>>(*t);
	return cudaGetLastError();
}

/* --- elements ------------------------------------------------------------------------------------------- */

template <int V> static __global__ void __launch_bounds__(THREADS) swiglu_kernel(const float *gate, const float *up,
										  size_t n, float *d, int *bad)
{
	const size_t step = (size_t)gridDim.x * THREADS * V;
	bool good = true;

	for (size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * V; i < n; i += step) {
		const lanes<V> g = load<V>(gate + i);
		lanes<V> u = load<V>(up + i);

		for (int j = 0; j < V; j++) {
			u.at[j] *= g.at[j] / (1.0f + expf(-g.at[j]));
			good = good && isfinite(u.at[j]);
		}
		store<V>(d + i, u);
	}
	if (!good)
		*bad = 1;
}

cudaError_t cuda_swiglu_launch(cudaStream_t stream, const float *gate, const float *up, size_t n, float *d, int *bad)
{
	const bool fast = aligned(gate) && aligned(up) && aligned(d);
	const size_t body = fast ? n / 4 * 4 : 0;

	if (body > 0)
		swiglu_kernel<4><<<blocks_for(body / 4, THREADS), THREADS, 0, stream>>>(gate, up, body, d, bad);
	if (body < n)
		swiglu_kernel<1><<<blocks_for(n - body, THREADS), THREADS, 0, stream>>>(gate + body, up + body, n - body,
											d + body, bad);
	return cudaGetLastError();
}

template <int V> static __global__ void __launch_bounds__(THREADS) begin_kernel(const float *residual, const float *bias,
										 size_t rows, size_t cols, float *y)
{
	for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
		for (size_t i = threadIdx.x * V; i < cols; i += THREADS * V) {
			lanes<V> a = { };

			if (residual)
				a = load<V>(residual + r * cols + i);
			if (bias) {
				const lanes<V> b = load<V>(bias + i);

				for (int j = 0; j < V; j++)
					a.at[j] += b.at[j];
			}
			store<V>(y + r * cols + i, a);
		}
	}
}

cudaError_t cuda_rows_begin_launch(cudaStream_t stream, const float *residual, const float *bias, size_t rows,
				   size_t cols, float *y)
{
	if (rows == 0)
		return cudaSuccess;
	if (cols % 4 == 0 && aligned(residual) && aligned(bias) && aligned(y))
		begin_kernel<4><<<blocks_for(rows, 1), THREADS, 0, stream>>>(residual, bias, rows, cols, y);
	else
		begin_kernel<1><<<blocks_for(rows, 1), THREADS, 0, stream>>>(residual, bias, rows, cols, y);
	return cudaGetLastError();
}

template <int V> static __global__ void __launch_bounds__(THREADS) finite_kernel(const float *x, size_t n, int *bad)
{
	const size_t step = (size_t)gridDim.x * THREADS * V;
	bool good = true;

	for (size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * V; i < n; i += step) {
		const lanes<V> a = load<V>(x + i);

		for (int j = 0; j < V; j++)
			good = good && isfinite(a.at[j]);
	}
	if (!good)
		*bad = 1;
}

cudaError_t cuda_rows_finite_launch(cudaStream_t stream, const float *x, size_t n, int *bad)
{
	const size_t body = aligned(x) ? n / 4 * 4 : 0;

	if (body > 0)
		finite_kernel<4><<<blocks_for(body / 4, THREADS), THREADS, 0, stream>>>(x, body, bad);
	if (body < n)
		finite_kernel<1><<<blocks_for(n - body, THREADS), THREADS, 0, stream>>>(x + body, n - body, bad);
	return cudaGetLastError();
}
