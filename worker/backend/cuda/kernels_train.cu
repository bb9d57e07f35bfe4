/* The trainable grid and Adam: one pass over memory each. */
#include "worker/backend/cuda/kernels_train.h"

#include <math.h>

#include "worker/backend/cuda/fours.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { WARPS = FOURS_THREADS / WARP, WARP_GROUP_MAX = 1024 };

static __device__ float code_of(float latent, float top)
{
	return fminf(fmaxf(rintf(latent), 0.0f), top);
}

static float top_of(const cuda_trained_grid &g)
{
	return (float)((1 << g.bits) - 1);
}

/* --- values --------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(FOURS_THREADS) values_kernel(cuda_trained_grid g, float top, float *w,
								      bool wide)
{
	bool good = true;

	for (size_t i = fours_first(); i < g.n; i += fours_stride()) {
		const int count = fours_count(i, g.n);
		fours_group group(i, g.group);
		float v[FOURS];

		fours_load(g.latents + i, count, wide, v);
		for (int k = 0; k < FOURS; k++, group.next()) {
			if (k >= count)
				continue;
			v[k] = __fmul_rn(g.scales[group.index], __fsub_rn(code_of(v[k], top), g.zeros[group.index]));
			good = good && isfinite(v[k]);
		}
		fours_store(w + i, count, wide, v);
	}
	if (!good)
		*g.bad = 1;
}

cudaError_t cuda_grid_values_launch(cudaStream_t stream, const struct cuda_trained_grid *g, float *w)
{
	if (g->n == 0)
		return cudaSuccess;
	values_kernel<<<fours_blocks(g->n), FOURS_THREADS, 0, stream>>>(*g, top_of(*g), w,
									fours_aligned(g->latents) && fours_aligned(w));
	return cudaPeekAtLastError();
}

/* --- gradients ------------------------------------------------------------------------------------------ */

struct gradients {
	cuda_trained_grid g;
	const float *dw;
	float *dscales, *dzeros, *dlatents;
	float top;
	int step;               /* elements at a time: 4 where groups are whole fours, else 1 */
	bool wide;              /* aligned; matters for the time alone, not for the order of sums */
	int lanes;              /* threads that share a group: a power of two, up to a warp, or the block */
};

/* Sums of dw (q - z) and of dw. */
struct group_sums { double along, total; };

static __device__ group_sums operator+(group_sums a, group_sums b)
{
	return { a.along + b.along, a.total + b.total };
}

/* The share of one of a group's threads; writes dlatents, element by element after it was read. */
static __device__ group_sums share_of(const gradients &a, size_t group, int rank, int lanes, bool *good)
{
	const size_t first = group * a.g.group;
	const float s = a.g.scales[group], z = a.g.zeros[group], end = a.top + 0.5f;
	group_sums sums = { 0, 0 };

	for (size_t i = rank * a.step; i < a.g.group; i += lanes * a.step) {
		float x[FOURS], d[FOURS], along = 0, total = 0;

		fours_load(a.g.latents + first + i, a.step, a.wide, x);
		fours_load(a.dw + first + i, a.step, a.wide, d);
		for (int k = 0; k < FOURS; k++) {
			along += d[k] * (code_of(x[k], a.top) - z);
			total += d[k];
			d[k] = x[k] > -0.5f && x[k] < end ? __fmul_rn(s, d[k]) : 0.0f;
			*good = *good && (!a.dlatents || isfinite(d[k]));
		}
		sums.along += along;
		sums.total += total;
		if (a.dlatents)
			fours_store(a.dlatents + first + i, a.step, a.wide, d);
	}
	return sums;
}

static __device__ bool store_sums(const gradients &a, size_t group, group_sums s)
{
	const float dscale = (float)s.along, dzero = (float)(-(double)a.g.scales[group] * s.total);

	if (a.dscales)
		a.dscales[group] = dscale;
	if (a.dzeros)
		a.dzeros[group] = dzero;
	return (!a.dscales || isfinite(dscale)) && (!a.dzeros || isfinite(dzero));
}

static __global__ void __launch_bounds__(FOURS_THREADS) small_groups_kernel(gradients a)
{
	const size_t groups = a.g.n / a.g.group, per_block = FOURS_THREADS / a.lanes;
	const int rank = threadIdx.x % a.lanes;
	bool good = true;

	/* A block's threads take the same number of turns: all of a warp meet in sum_lanes(). */
	for (size_t base = blockIdx.x * per_block; base < groups; base += gridDim.x * per_block) {
		const size_t group = base + threadIdx.x / a.lanes;
		group_sums s = { 0, 0 };

		if (group < groups)
			s = share_of(a, group, rank, a.lanes, &good);
		s = sum_lanes(s, a.lanes);
		if (group < groups && rank == 0)
			good = store_sums(a, group, s) && good;
	}
	if (!good)
		*a.g.bad = 1;
}

static __global__ void __launch_bounds__(FOURS_THREADS) big_groups_kernel(gradients a)
{
	__shared__ group_sums room[WARPS];
	const size_t groups = a.g.n / a.g.group;
	bool good = true;

	for (size_t group = blockIdx.x; group < groups; group += gridDim.x) {
		const group_sums share = share_of(a, group, threadIdx.x, FOURS_THREADS, &good);
		const group_sums s = sum_block<FOURS_THREADS>(share, room);

		if (threadIdx.x == 0)
			good = store_sums(a, group, s) && good;
	}
	if (!good)
		*a.g.bad = 1;
}

cudaError_t cuda_grid_gradients_launch(cudaStream_t stream, const struct cuda_trained_grid *g, const float *dw,
				       float *dscales, float *dzeros, float *dlatents)
{
	const bool wide = fours_aligned(g->latents) && fours_aligned(dw) && (!dlatents || fours_aligned(dlatents));
	gradients a = { *g, dw, dscales, dzeros, dlatents, top_of(*g), g->group % FOURS == 0 ? FOURS : 1, wide, 1 };
	size_t blocks = g->n / g->group, per_block;

	if (g->n == 0)
		return cudaSuccess;
	if (g->group > (size_t)WARP_GROUP_MAX) {
		blocks = blocks < (size_t)FOURS_BLOCKS_MAX ? blocks : (size_t)FOURS_BLOCKS_MAX;
		big_groups_kernel<<<(unsigned)blocks, FOURS_THREADS, 0, stream>>>(a);
		return cudaPeekAtLastError();
	}
	while (a.lanes < WARP && (size_t)a.lanes * a.step < g->group)
		a.lanes *= 2;
	per_block = FOURS_THREADS / a.lanes;
	blocks = (blocks + per_block - 1) / per_block;
	blocks = blocks < (size_t)FOURS_BLOCKS_MAX ? blocks : (size_t)FOURS_BLOCKS_MAX;
	small_groups_kernel<<<(unsigned)blocks, FOURS_THREADS, 0, stream>>>(a);
	return cudaPeekAtLastError();
}

/* --- Adam ----------------------------------------------------------------------------------------------- */

struct adam_arrays { float *p; const float *g; float *m, *v; };

static __global__ void __launch_bounds__(FOURS_THREADS) adam_kernel(cuda_adam c, size_t n, adam_arrays a, int *bad,
								    bool wide)
{
	bool good = true;

	for (size_t i = fours_first(); i < n; i += fours_stride()) {
		const int count = fours_count(i, n);
		float p[FOURS], g[FOURS], m[FOURS], v[FOURS];

		fours_load(a.p + i, count, wide, p);
		fours_load(a.g + i, count, wide, g);
		fours_load(a.m + i, count, wide, m);
		fours_load(a.v + i, count, wide, v);
		for (int k = 0; k < FOURS; k++) {
			if (k >= count)
				continue;
			m[k] = c.beta1 * m[k] + c.rest1 * g[k];
			v[k] = c.beta2 * v[k] + c.rest2 * g[k] * g[k];
			p[k] -= c.rate * m[k] / (sqrtf(v[k]) * c.root + c.epsilon);
			good = good && isfinite(p[k]) && isfinite(m[k]) && isfinite(v[k]);
		}
		fours_store(a.p + i, count, wide, p);
		fours_store(a.m + i, count, wide, m);
		fours_store(a.v + i, count, wide, v);
	}
	if (!good)
		*bad = 1;
}

cudaError_t cuda_adam_launch(cudaStream_t stream, const struct cuda_adam *adam, size_t n, float *p, const float *g,
			     float *m, float *v, int *bad)
{
	const bool wide = fours_aligned(p) && fours_aligned(g) && fours_aligned(m) && fours_aligned(v);

	if (n == 0)
		return cudaSuccess;
	adam_kernel<<<fours_blocks(n), FOURS_THREADS, 0, stream>>>(*adam, n, { p, g, m, v }, bad, wide);
	return cudaPeekAtLastError();
}
