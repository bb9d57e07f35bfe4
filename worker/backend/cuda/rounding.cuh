/* rounding.cuh - to the nearest integer, half to even, for numbers well below 2^22 (double: 2^51); for kernels_*.cu.
 *
 * 1.5 times two to the power of the mantissa's bits leaves no bit for a fraction: adding it rounds.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_ROUNDING_CUH
#define QUARRY_WORKER_BACKEND_CUDA_ROUNDING_CUH

static constexpr float ROUND_FLOAT = 12582912.0f;               /* 1.5 * 2^23 */
static constexpr double ROUND_DOUBLE = 6755399441055744.0;      /* 1.5 * 2^52 */

static __device__ __forceinline__ float round_even(float x)
{
	return __fsub_rn(__fadd_rn(x, ROUND_FLOAT), ROUND_FLOAT);
}

static __device__ __forceinline__ double round_even(double x)
{
	return __dsub_rn(__dadd_rn(x, ROUND_DOUBLE), ROUND_DOUBLE);
}

#endif
