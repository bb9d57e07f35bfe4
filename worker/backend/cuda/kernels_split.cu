/* Splitting: one pass over memory, for halves a second one before it that finds the largest value.
 *
 * A thread takes eight neighbours where x is aligned; the numbers behind the last eight go one by one to the threads of
 * the first block. The largest value is found by blocks, then by every block of the second pass for itself: no order of
 * theirs changes a maximum.
 */
#include "worker/backend/cuda/kernels_split.h"
#include "worker/backend/cuda/parts.cuh"
#include "worker/backend/cuda/sums.cuh"

namespace {

constexpr int THREADS = 256;
constexpr size_t BLOCKS_MAX = 4096;
constexpr float LOW_FACTOR = 2048;

/* To 11 bits, to nearest, ties to even; never from finite to infinite. */
__device__ float round_tf32(float x)
{
	const uint32_t u = __float_as_uint(x);
	const uint32_t rounded = (u + 0xfffu + ((u >> 13) & 1)) & ~0x1fffu;

	if ((u & 0x7f800000u) == 0x7f800000u)
		return x;
	return __uint_as_float((rounded & 0x7fffffffu) == 0x7f800000u ? u & ~0x1fffu : rounded);
}

/* To 8 bits likewise. */
__device__ uint16_t round_bf16(float x)
{
	const uint32_t u = __float_as_uint(x);
	const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;

	if ((u & 0x7f800000u) == 0x7f800000u)
		return (uint16_t)(u >> 16 | ((u & 0x007fffffu) != 0 ? 0x40u : 0));
	return (uint16_t)((rounded & 0x7fffu) == 0x7f80u ? rounded - 1 : rounded);
}

__device__ float from_bf16(uint16_t b)
{
	return __uint_as_float((uint32_t)b << 16);
}

struct tf32_parts {
	float *high, *low;

	template <int V> __device__ void cut(size_t i, const float (&x)[V]) const
	{
		float h[V], l[V];

#pragma unroll
		for (int k = 0; k < V; k++) {
			h[k] = round_tf32(x[k]);
			l[k] = round_tf32(__fsub_rn(x[k], h[k]));
		}
		store_floats<V>(high + i, h);
		store_floats<V>(low + i, l);
	}
};

struct bf16_parts {
	uint16_t *high, *low, *least;

	template <int V> __device__ void cut(size_t i, const float (&x)[V]) const
	{
		uint16_t h[V], l[V], r[V];

#pragma unroll
		for (int k = 0; k < V; k++) {
			h[k] = round_bf16(x[k]);
			const float rest = __fsub_rn(x[k], from_bf16(h[k]));
			l[k] = round_bf16(rest);
			r[k] = round_bf16(__fsub_rn(rest, from_bf16(l[k])));
		}
		store_shorts<V>(high + i, h);
		if (low)
			store_shorts<V>(low + i, l);
		if (least)
			store_shorts<V>(least + i, r);
	}
};

struct half_parts {
	uint16_t *high, *low;
	float power;

	template <int V> __device__ void cut(size_t i, const float (&x)[V]) const
	{
		uint16_t h[V], l[V];

#pragma unroll
		for (int k = 0; k < V; k++)
			cut_half(__fmul_rn(x[k], power), LOW_FACTOR, h + k, l + k);
		store_shorts<V>(high + i, h);
		if (low)
			store_shorts<V>(low + i, l);
	}
};

template <int V, class Parts>
__device__ void cut_all(const float *x, size_t n, const Parts &parts)
{
	const size_t first = (size_t)blockIdx.x * THREADS + threadIdx.x, step = (size_t)gridDim.x * THREADS;
	const size_t whole = n / V * V;

	for (size_t i = first; i < n / V; i += step) {
		float v[V];

		load_floats<V>(x + i * V, v);
		parts.template cut<V>(i * V, v);
	}
	if (blockIdx.x == 0 && threadIdx.x < n - whole) {
		const float v[1] = { x[whole + threadIdx.x] };

		parts.template cut<1>(whole + threadIdx.x, v);
	}
}

template <int V, class Parts>
__global__ void __launch_bounds__(THREADS) cut_kernel(const float *x, size_t n, Parts parts)
{
	cut_all<V>(x, n, parts);
}

template <int V>
__global__ void __launch_bounds__(THREADS) largest_kernel(const float *x, size_t n, uint32_t *largest)
{
	__shared__ uint32_t room[THREADS / WARP];
	const size_t first = (size_t)blockIdx.x * THREADS + threadIdx.x, step = (size_t)gridDim.x * THREADS;
	const size_t whole = n / V * V;
	uint32_t m = 0;

#pragma unroll 2
	for (size_t i = first; i < n / V; i += step) {
		float v[V];

		load_floats<V>(x + i * V, v);
#pragma unroll
		for (int k = 0; k < V; k++)
			m = max(m, magnitude_bits(v[k]));
	}
	if (blockIdx.x == 0 && threadIdx.x < n - whole)
		m = max(m, magnitude_bits(x[whole + threadIdx.x]));
	m = max_block<THREADS>(m, room);
	if (threadIdx.x == 0)
		largest[blockIdx.x] = m;
}

template <int V>
__global__ void __launch_bounds__(THREADS) half_kernel(const float *x, size_t n, half_parts parts, float *scale,
						       const uint32_t *largest, int count)
{
	__shared__ uint32_t room[THREADS / WARP];
	uint32_t m = 0;
	int s;

	for (int i = threadIdx.x; i < count; i += THREADS)
		m = max(m, largest[i]);
	s = half_power(max_block<THREADS>(m, room));
	parts.power = power_of_two(s);
	if (blockIdx.x == 0 && threadIdx.x == 0)
		*scale = power_of_two(-s);
	cut_all<V>(x, n, parts);
}

__global__ void factors_kernel(float alpha, float beta, const float *a_scale, const float *b_scale, float *factors)
{
	const double both = (double)alpha * *a_scale * *b_scale;

	factors[0] = (float)(both / (double)LOW_FACTOR);
	factors[1] = (float)both;
	factors[2] = beta;
	factors[3] = 1;
}

bool is_aligned(const float *x)
{
	return (uintptr_t)x % 16 == 0;
}

unsigned blocks_for(size_t n, int v, size_t most)
{
	const size_t blocks = (n / v + THREADS - 1) / THREADS;

	return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

template <class Parts>
cudaError_t cut_launch(cudaStream_t stream, const float *x, size_t n, const Parts &parts)
{
	if (n == 0)
		return cudaSuccess;
	if (is_aligned(x))
		cut_kernel<8><<<blocks_for(n, 8, BLOCKS_MAX), THREADS, 0, stream>>>(x, n, parts);
	else
		cut_kernel<1><<<blocks_for(n, 1, BLOCKS_MAX), THREADS, 0, stream>>>(x, n, parts);
	return cudaGetLastError();
}

template <int V>
void half_launch(cudaStream_t stream, const float *x, size_t n, const half_parts &parts, float *scale,
		 uint32_t *largest)
{
	const unsigned count = blocks_for(n, V, CUDA_SPLIT_BLOCKS);

	largest_kernel<V><<<count, THREADS, 0, stream>>>(x, n, largest);
	half_kernel<V><<<blocks_for(n, V, BLOCKS_MAX), THREADS, 0, stream>>>(x, n, parts, scale, largest, (int)count);
}

} /* namespace */

cudaError_t cuda_split_tf32_launch(cudaStream_t stream, const float *x, size_t n, float *high, float *low)
{
	return cut_launch(stream, x, n, tf32_parts{ high, low });
}

cudaError_t cuda_split_bf16_launch(cudaStream_t stream, const float *x, size_t n, uint16_t *high, uint16_t *low,
				   uint16_t *least)
{
	return cut_launch(stream, x, n, bf16_parts{ high, low, least });
}

cudaError_t cuda_split_half_launch(cudaStream_t stream, const float *x, size_t n, uint16_t *high, uint16_t *low,
				   float *scale, uint32_t *largest)
{
	const half_parts parts{ high, low, 1 };

	if (n == 0)
		return cudaSuccess;
	if (is_aligned(x))
		half_launch<8>(stream, x, n, parts, scale, largest);
	else
		half_launch<1>(stream, x, n, parts, scale, largest);
	return cudaGetLastError();
}

cudaError_t cuda_factors_launch(cudaStream_t stream, float alpha, float beta, const float *a_scale,
				const float *b_scale, float *factors)
{
	factors_kernel<<<1, 1, 0, stream>>>(alpha, beta, a_scale, b_scale, factors);
	return cudaGetLastError();
}
