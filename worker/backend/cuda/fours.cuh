/* fours.cuh - element-wise kernels of four elements a thread, in groups of any size.
 *
 * Loads and stores are 16 bytes wide where every array is aligned to that ("wide"), else single elements.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_FOURS_CUH
#define QUARRY_WORKER_BACKEND_CUDA_FOURS_CUH

#include <stddef.h>
#include <stdint.h>

enum { FOURS = 4, FOURS_THREADS = 256, FOURS_BLOCKS_MAX = 1 << 30 };

/* Blocks for n elements; kernels go on at fours_stride() behind fours_first(). */
static inline unsigned fours_blocks(size_t n)
{
	const size_t each = FOURS * FOURS_THREADS, blocks = (n + each - 1) / each;

	return (unsigned)(blocks < (size_t)FOURS_BLOCKS_MAX ? blocks : (size_t)FOURS_BLOCKS_MAX);
}

static __device__ inline size_t fours_first()
{
	return ((size_t)blockIdx.x * FOURS_THREADS + threadIdx.x) * FOURS;
}

static __device__ inline size_t fours_stride()
{
	return (size_t)gridDim.x * FOURS_THREADS * FOURS;
}

static inline bool fours_aligned(const void *p)
{
	return (uintptr_t)p % (FOURS * sizeof(float)) == 0;
}

/* Up to `count` of x[0 .. 3]; the rest is 0. */
static __device__ inline void fours_load(const float *x, int count, bool wide, float v[FOURS])
{
	if (wide && count == FOURS) {
		const float4 all = *(const float4 *)x;

		v[0] = all.x;
		v[1] = all.y;
		v[2] = all.z;
		v[3] = all.w;
		return;
	}
	for (int k = 0; k < FOURS; k++)
		v[k] = k < count ? x[k] : 0;
}

static __device__ inline void fours_store(float *x, int count, bool wide, const float v[FOURS])
{
	if (wide && count == FOURS) {
		*(float4 *)x = make_float4(v[0], v[1], v[2], v[3]);
		return;
	}
	for (int k = 0; k < FOURS; k++)
		if (k < count)
			x[k] = v[k];
}

static __device__ inline int fours_count(size_t i, size_t n)
{
	return n - i < (size_t)FOURS ? (int)(n - i) : FOURS;
}

/* The group of element i, then of the next ones. A division of 64 bits costs more than all the rest. */
struct fours_group {
	size_t index, at, size;

	__device__ fours_group(size_t i, size_t group) : size(group)
	{
		index = (i | group) >> 32 ? i / group : (uint32_t)i / (uint32_t)group;
		at = i - index * group;
	}
	__device__ void next()
	{
		if (++at == size) {
			at = 0;
			index++;
		}
	}
};

#endif
