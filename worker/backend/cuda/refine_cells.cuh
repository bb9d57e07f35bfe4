/* refine_cells.cuh - correlations as they are stored: float32, or 16 bits that stand for 32767 C + 32768; for
 * kernels_refine_*.cu. */
#ifndef QUARRY_WORKER_BACKEND_CUDA_REFINE_CELLS_CUH
#define QUARRY_WORKER_BACKEND_CUDA_REFINE_CELLS_CUH

#include "worker/backend/cuda/kernels_refine.h"

#include <math.h>

static __device__ __forceinline__ void put(float *to, float x)
{
	*to = x;
}

static __device__ __forceinline__ void put(uint16_t *to, float x)
{
	*to = (uint16_t)(32768 + (int)rintf(fminf(fmaxf(x, -1.0f), 1.0f) * 32767));
}

/* What a cell of C is in units of cell_unit(). */
static __device__ __forceinline__ float cell_unit(const float *) { return 1; }
static __device__ __forceinline__ float cell_unit(const uint16_t *) { return 1.0f / 32767; }
static __device__ __forceinline__ float cell(const float *c) { return __ldg(c); }
static __device__ __forceinline__ float cell(const uint16_t *c) { return (float)__ldg(c) - 32768; }

/* Eight cells of a chunk. */
static __device__ __forceinline__ void cells(const float *c, float (&x)[REFINE_CHUNK])
{
	const float4 *from = reinterpret_cast<const float4 *>(c);
	const float4 low = __ldg(from), high = __ldg(from + 1);

	x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
	x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

/* The 16 bits become the mantissa of 2^23 + bits. */
static __device__ __forceinline__ void pair(unsigned two, float &first, float &second)
{
	const float zero = 8388608 + 32768;

	first = __uint_as_float(__byte_perm(two, 0x4b000000, 0x7410)) - zero;
	second = __uint_as_float(__byte_perm(two, 0x4b000000, 0x7432)) - zero;
}

static __device__ __forceinline__ void cells(const uint16_t *c, float (&x)[REFINE_CHUNK])
{
	const uint4 all = __ldg(reinterpret_cast<const uint4 *>(c));

	pair(all.x, x[0], x[1]);
	pair(all.y, x[2], x[3]);
	pair(all.z, x[4], x[5]);
	pair(all.w, x[6], x[7]);
}

#endif
