/* parts.cuh - device functions that cut float32 numbers into parts of fewer bits; used by kernels_*.cu alone. */
#ifndef QUARRY_WORKER_BACKEND_CUDA_PARTS_CUH
#define QUARRY_WORKER_BACKEND_CUDA_PARTS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

/* Orders as |x| does; what is not finite comes above everything. */
static __device__ __forceinline__ uint32_t magnitude_bits(float x)
{
	return __float_as_uint(x) & 0x7fffffffu;
}

/* The power s for which 2^s times the largest magnitude is in 2^14 .. 2^15, so that halves hold it; 0 where that is not
 * finite. At most 126: 2^s and 2^-s are normal numbers. */
static __device__ __forceinline__ int half_power(uint32_t largest_bits)
{
	const int exponent = (int)(largest_bits >> 23);

	return exponent == 255 ? 0 : min(141 - exponent, 126);
}

/* The same from the largest magnitude itself, at most 100; of_zero where that is 0. */
static __device__ __forceinline__ int half_exponent(float largest, int of_zero)
{
	if (!isfinite(largest))
		return 0;
	return largest > 0 ? min(14 - ilogbf(largest), 100) : of_zero;
}

static __device__ __forceinline__ float power_of_two(int s)
{
	return __uint_as_float((uint32_t)(127 + s) << 23);
}

/* x, scaled, as high + low / factor. */
static __device__ __forceinline__ void cut_half(float x, float factor, uint16_t *high, uint16_t *low)
{
	const __half h = __float2half_rn(x);

	*high = __half_as_ushort(h);
	*low = __half_as_ushort(__float2half_rn(__fmul_rn(__fsub_rn(x, __half2float(h)), factor)));
}

/* --- pairs, as tensor cores take them --------------------------------------------------------------------- */

/* What parts are: halves, good to 2^-22 together, or bfloat16 of the range of float32, good to 2^-17. */
enum part_kind { HALVES, BRAINS };

/* Two of them as one word, the first in its lower half. */
static __device__ __forceinline__ uint32_t word_of(__half2 both)
{
	uint32_t word;

	memcpy(&word, &both, sizeof(word));
	return word;
}

static __device__ __forceinline__ uint32_t brains_of(float first, float second)
{
	const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
	uint32_t word;

	memcpy(&word, &both, sizeof(word));
	return word;
}

/* Two numbers as high + low. */
template <part_kind K>
static __device__ __forceinline__ void split_pair(float first, float second, uint32_t *high, uint32_t *low)
{
	if (K == HALVES) {
		const __half2 both = __floats2half2_rn(first, second);

		*high = word_of(both);
		*low = word_of(__floats2half2_rn(first - __low2float(both), second - __high2float(both)));
	} else {
		*high = brains_of(first, second);
		*low = brains_of(first - __uint_as_float(*high << 16), second - __uint_as_float(*high & 0xffff0000u));
	}
}

/* --- memory ----------------------------------------------------------------------------------------------- */

/* 16-byte accesses of eight elements, or one element at a time. */
template <int V>
static __device__ __forceinline__ void load_floats(const float *x, float (&v)[V])
{
	if constexpr (V == 8) {
		const float4 a = reinterpret_cast<const float4 *>(x)[0], b = reinterpret_cast<const float4 *>(x)[1];

		v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
		v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
	} else {
		v[0] = x[0];
	}
}

template <int V>
static __device__ __forceinline__ void store_shorts(uint16_t *to, const uint16_t (&v)[V])
{
	if constexpr (V == 8)
		*reinterpret_cast<uint4 *>(to) = make_uint4(v[0] | (uint32_t)v[1] << 16, v[2] | (uint32_t)v[3] << 16,
							    v[4] | (uint32_t)v[5] << 16, v[6] | (uint32_t)v[7] << 16);
	else
		to[0] = v[0];
}

template <int V>
static __device__ __forceinline__ void store_floats(float *to, const float (&v)[V])
{
	if constexpr (V == 8) {
		reinterpret_cast<float4 *>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
		reinterpret_cast<float4 *>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
	} else {
		to[0] = v[0];
	}
}

#endif
