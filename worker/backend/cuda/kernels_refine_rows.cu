/* Errors and losses of rows in a round of refinement; see kernels_refine.h. A block of threads per row. */
#include "worker/backend/cuda/kernels_refine.h"

#include <math.h>

#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

/* What the row begins with. The unit is the power of two below the row's largest scale. */
static __global__ void load(const refine_rows o)
{
	__shared__ float room[WARPS];
	const size_t side = blockIdx.x * o.groups, at = blockIdx.x * o.cols;
	float largest = 0;

	for (size_t g = threadIdx.x; g < o.groups; g += THREADS) {
		const float s = o.scales[side + g], z = o.zeros[side + g];

		if (!(s > 0) || !isfinite(s) || !isfinite(z))
			*o.bad = 1;
		largest = fmaxf(largest, s);
		o.s[side + g] = s;
		o.z[side + g] = z;
	}
	for (size_t c = threadIdx.x; c < o.cols; c += THREADS)
		o.q[at + c] = o.codes[at + c];
	largest = max_block<THREADS>(largest, room);
	if (threadIdx.x == 0)
		o.unit[blockIdx.x] = largest > 0 && isfinite(largest) ? ldexp(1.0, ilogbf(largest)) : 1;
}

static __global__ void errors(const refine_rows o)
{
	const size_t side = blockIdx.x * o.groups, at = blockIdx.x * o.cols;
	const double inverse = 1 / o.unit[blockIdx.x];
	const unsigned group = (unsigned)o.group;

	for (unsigned c = threadIdx.x; c < o.cols; c += THREADS) {
		const size_t g = side + c / group;

		o.e[at + c] = (float)((o.w[at + c] - (double)o.s[g] * (o.q[at + c] - (double)o.z[g])) * inverse);
	}
}

static __global__ void losses(const refine_rows o, double *to, bool watch)
{
	__shared__ double room[WARPS];
	const size_t at = blockIdx.x * o.cols;
	double sum = 0;

	for (size_t c = threadIdx.x; c < o.cols; c += THREADS)
		sum += (double)o.e[at + c] * o.r[at + c];
	sum = sum_block<THREADS>(sum, room);
	if (threadIdx.x != 0)
		return;
	to[blockIdx.x] = sum;
	if (watch && !isfinite(sum))
		*o.bad = 1;
}

static __global__ void store(const refine_rows o)
{
	const size_t row = blockIdx.x, side = row * o.groups, at = row * o.cols;
	const double unit = o.unit[row], before = o.before[row], after = o.after[row];
	const bool won = after < before;

	if (*o.bad != 0)
		return;
	if (threadIdx.x == 0)
		o.row_loss[row] = *o.metric_unit * unit * unit * (won ? after : before);
	if (!won)
		return;
	for (size_t g = threadIdx.x; g < o.groups; g += THREADS) {
		o.scales[side + g] = o.s[side + g];
		o.zeros[side + g] = o.z[side + g];
	}
	for (size_t c = threadIdx.x; c < o.cols; c += THREADS)
		o.codes[at + c] = o.q[at + c];
}

cudaError_t refine_load_launch(cudaStream_t stream, const struct refine_rows *o)
{
	load<<<(unsigned)o->rows, THREADS, 0, stream>>>(*o);
	return cudaPeekAtLastError();
}

cudaError_t refine_errors_launch(cudaStream_t stream, const struct refine_rows *o)
{
	errors<<<(unsigned)o->rows, THREADS, 0, stream>>>(*o);
	return cudaPeekAtLastError();
}

cudaError_t refine_losses_launch(cudaStream_t stream, const struct refine_rows *o, double *to, bool watch)
{
	losses<<<(unsigned)o->rows, THREADS, 0, stream>>>(*o, to, watch);
	return cudaPeekAtLastError();
}

cudaError_t refine_store_launch(cudaStream_t stream, const struct refine_rows *o)
{
	store<<<(unsigned)o->rows, THREADS, 0, stream>>>(*o);
	return cudaPeekAtLastError();
}
