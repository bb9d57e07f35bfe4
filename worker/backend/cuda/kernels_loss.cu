/* The squared error in two passes, both in an order of sums that n alone decides: blocks over the elements, one block over
 * their sums. The first is bound by memory. */
#include "worker/backend/cuda/kernels_loss.h"

#include <math.h>

#include "worker/backend/cuda/fours.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { WARPS = FOURS_THREADS / WARP };

static __global__ void __launch_bounds__(FOURS_THREADS) error_kernel(cuda_squared_error e, bool wide)
{
	__shared__ double room[WARPS];
	double sum = 0;

	for (size_t i = fours_first(); i < e.n; i += fours_stride()) {
		const int count = fours_count(i, e.n);
		float y[FOURS], target[FOURS];

		fours_load(e.y + i, count, wide, y);
		fours_load(e.target + i, count, wide, target);
		for (int k = 0; k < FOURS; k++) {
			const double d = (double)y[k] - (double)target[k];

			sum += d * d;
			y[k] = (float)__dmul_rn(e.scale, d);
		}
		if (e.dy)
			fours_store(e.dy + i, count, wide, y);
	}
	sum = sum_block<FOURS_THREADS>(sum, room);
	if (threadIdx.x == 0)
		e.parts[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(FOURS_THREADS) parts_kernel(cuda_squared_error e, unsigned parts)
{
	__shared__ double room[WARPS];
	double sum = 0;

	for (unsigned i = threadIdx.x; i < parts; i += FOURS_THREADS)
		sum += e.parts[i];
	sum = sum_block<FOURS_THREADS>(sum, room);
	if (threadIdx.x != 0)
		return;
	*e.sum = sum;
	if (!isfinite(sum))
		*e.bad = 1;
}

cudaError_t cuda_squared_error_launch(cudaStream_t stream, const struct cuda_squared_error *e)
{
	const bool wide = fours_aligned(e->y) && fours_aligned(e->target) && fours_aligned(e->dy);
	unsigned parts = fours_blocks(e->n);

	parts = parts < (unsigned)CUDA_LOSS_PARTS ? parts : (unsigned)CUDA_LOSS_PARTS;
	if (parts > 0)
		error_kernel<<<parts, FOURS_THREADS, 0, stream>>>(*e, wide);
	parts_kernel<<<1, FOURS_THREADS, 0, stream>>>(*e, parts);
	return cudaPeekAtLastError();
}
