/* instructions.cuh - instructions that C++ has no word for: copies on their way, matrices, products of tensor cores;
 * for kernels_*.cu. Layouts are those of PTX for m8n8 and m16n8k16.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_INSTRUCTIONS_CUH
#define QUARRY_WORKER_BACKEND_CUDA_INSTRUCTIONS_CUH

#include <stdint.h>

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* --- copies of a thread from device memory to shared memory, which go on behind it ------------------------------ */

/* 16 bytes; both ends are aligned to that. */
static __device__ __forceinline__ void copy_async(void *to, const void *from)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

/* The same, or 16 zeros when not wanted; `from` must be readable all the same. */
static __device__ __forceinline__ void copy_async_or_zeros(void *to, const void *from, bool wanted)
{
	const int bytes = wanted ? 16 : 0;

	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
		     : "memory");
}

static __device__ __forceinline__ void copy_float_async(float *to, const float *from)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

/* Ends a group of the thread's copies. */
static __device__ __forceinline__ void end_copies()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All groups of the thread but the last LEFT have arrived; others see them behind a barrier. */
template <int LEFT> static __device__ __forceinline__ void wait_for_copies()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* --- matrices --------------------------------------------------------------------------------------------------- */

/* Four 8 x 8 matrices of 16-bit elements; lane l says where row l % 8 of matrix l / 8 begins, aligned to 16 bytes.
 * Register i has of matrix i row lane / 4, columns lane % 4 * 2 and + 1; with load_transposed() of the transposed one. */
static __device__ __forceinline__ void load_matrices(uint32_t to[4], const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

static __device__ __forceinline__ void load_transposed(uint32_t to[4], const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

/* c (16, 8) += a (16, 16) b (16, 8). With g = lane / 4 and t = lane % 4 * 2: c has rows g, g, g + 8, g + 8, columns
 * t, t + 1, t, t + 1; a the pairs of columns t and t + 1 of rows g and g + 8, then t + 8 and t + 9 of the same; b the
 * pairs of rows t and t + 1, then t + 8 and t + 9, of column g. Of halves: */
static __device__ __forceinline__ void multiply_halves(float c[4], const uint32_t a[4], const uint32_t b[2])
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
	    "{%0, %1, %2, %3};"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Of bfloat16: */
static __device__ __forceinline__ void multiply_brains(float c[4], const uint32_t a[4], const uint32_t b[2])
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
	    "{%0, %1, %2, %3};"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
