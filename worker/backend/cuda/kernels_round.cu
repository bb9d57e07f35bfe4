/* Nearest rounding, bound by memory. In double, as ref and cpu do it: w / s + z may be the small difference of large
 * numbers. */
#include "worker/backend/cuda/kernels_round.h"

#include <math.h>

#include "worker/backend/cuda/fours.cuh"
#include "worker/backend/cuda/rounding.cuh"

/* -1: there is none. */
static __device__ int nearest_code(float w, double inverse, float z, int top)
{
	const double q = w * inverse + z;

	if (!isfinite(q))
		return -1;
	return (int)round_even(fmin(fmax(q, 0.0), (double)top));
}

static __global__ void __launch_bounds__(FOURS_THREADS) round_kernel(cuda_round r, bool wide)
{
	const int top = (1 << r.bits) - 1;
	bool good = true;

	for (size_t i = fours_first(); i < r.n; i += fours_stride()) {
		const int count = fours_count(i, r.n);
		fours_group group(i, r.group);
		size_t known = (size_t)-1;
		double inverse = 0;
		float w[FOURS], z = 0;
		int code[FOURS];

		fours_load(r.w + i, count, wide, w);
		for (int k = 0; k < FOURS; k++, group.next()) {
			if (k < count && group.index != known) {
				const float s = r.scales[group.index];

				known = group.index;
				inverse = 1.0 / s;
				z = r.zeros[known];
				good = good && s > 0 && isfinite(s);
			}
			code[k] = k < count ? nearest_code(w[k], inverse, z, top) : 0;
			good = good && code[k] >= 0;
		}
		if (wide && count == FOURS)
			*(uchar4 *)(r.codes + i) = make_uchar4(code[0], code[1], code[2], code[3]);
		for (int k = 0; k < FOURS && !(wide && count == FOURS); k++)
			if (k < count)
				r.codes[i + k] = (uint8_t)code[k];
	}
	if (!good)
		*r.bad = 1;
}

cudaError_t cuda_round_launch(cudaStream_t stream, const struct cuda_round *r)
{
	const bool wide = fours_aligned(r->w) && (uintptr_t)r->codes % FOURS == 0;

	if (r->n == 0)
		return cudaSuccess;
	round_kernel<<<fours_blocks(r->n), FOURS_THREADS, 0, stream>>>(*r, wide);
	return cudaPeekAtLastError();
}
