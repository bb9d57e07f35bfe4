/* refine_device.cuh - sums over the threads of a block, for kernels_refine_*.cu. */
#ifndef QUARRY_WORKER_BACKEND_CUDA_REFINE_DEVICE_CUH
#define QUARRY_WORKER_BACKEND_CUDA_REFINE_DEVICE_CUH

#include <stddef.h>

enum { REFINE_WARP = 32 };
#define REFINE_LANES 0xffffffffu

/* The sum over a warp, the same bits in every lane: each step adds two numbers that both lanes hold. */
static __device__ inline double warp_sum(double x)
{
	for (int width = REFINE_WARP / 2; width > 0; width /= 2)
		x += __shfl_xor_sync(REFINE_LANES, x, width);
	return x;
}

/* The sum over a block of T threads, in every thread; `space` has T / 32 numbers in shared memory and is free again. */
template <int T>
static __device__ inline double block_sum(double x, double *space)
{
	const unsigned lane = threadIdx.x % REFINE_WARP, warp = threadIdx.x / REFINE_WARP;
	double sum = 0;

	x = warp_sum(x);
	if (lane == 0)
		space[warp] = x;
	__syncthreads();
	for (int i = 0; i < T / REFINE_WARP; i++)
		sum += space[i];
	__syncthreads();
	return sum;
}

static inline unsigned refine_blocks(size_t n, size_t each)
{
	return (unsigned)((n + each - 1) / each);
}

#endif
