/* See kernels_ldlq.h.
 *
 * A warp owns a row and each lane LANE_COLUMNS neighbouring columns of the block, whose targets stay in its registers.
 * Step j: every lane rounds its own candidate, the owner of column j gives its error to all, and all add U_j,k e_j to the
 * targets of their columns k > j; the rest of U is zero, so that a target is final once its turn was. The block's part
 * of U lies in shared memory. The walk is bound by issue slots, about 16 instructions of a warp per row and column.
 */
#include "worker/backend/cuda/kernels_ldlq.h"

#include <math.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/rounding.cuh"
#include "worker/backend/cuda/sums.cuh"

enum {
	COLUMNS = CUDA_LDLQ_BLOCK, LANE_COLUMNS = COLUMNS / WARP, ROWS = CUDA_LDLQ_ROWS,
	THREADS = ROWS * WARP,
	STAGE = ROWS + 1,               /* of a column of errors on its way out: no two lanes in one bank */
	SHARED_BYTES = COLUMNS * COLUMNS * sizeof(float),
	COPY_THREADS = 256
};
static_assert(LANE_COLUMNS == 4, "four columns of U are read at once");
static_assert(STAGE <= COLUMNS, "the errors leave through the memory of U");

/* What a lane knows of one column of its row. */
struct column { float target, w, scale, inverse, zero; };

/* What the value of a code misses of `of`. */
static __device__ __forceinline__ float value_error(const column &c, float code, float of)
{
	return fmaf(-c.scale, code - c.zero, of);
}

/* A target that is not a number gives 0, and is noticed by what that misses of it. */
static __device__ __forceinline__ float code_of(const column &c, float top)
{
	return round_even(fminf(fmaxf(fmaf(c.target, c.inverse, c.zero), 0.0f), top));
}

/* u (COLUMNS, COLUMNS) = U of the block, strictly upper, zero elsewhere. */
static __device__ void load_factor(const cuda_ldlq_block &b, unsigned columns, float *u)
{
#pragma unroll 8
	for (unsigned i = threadIdx.x; i < COLUMNS * COLUMNS; i += THREADS) {
		const unsigned j = i / COLUMNS, k = i % COLUMNS;

		u[i] = k > j && k < columns ? b.u[(b.first + j) * b.cols + b.first + k] : 0.0f;
	}
}

/* Columns beyond the last, and rows, are zeros that stay zeros. */
static __device__ void load_columns(const cuda_ldlq_block &b, size_t row, unsigned first, unsigned columns,
				    const int *natural, const int *group, column c[LANE_COLUMNS])
{
	const size_t groups = b.cols / b.group;
	float4 fed = make_float4(0, 0, 0, 0);

	if (b.first > 0 && row < b.rows)
		fed = *reinterpret_cast<const float4 *>(b.feedback + row * b.wide + b.first + first);
	const float feedback[LANE_COLUMNS] = { fed.x, fed.y, fed.z, fed.w };

	for (unsigned i = 0; i < LANE_COLUMNS; i++) {
		const unsigned k = first + i;

		c[i] = { 0, 0, 1, 1, 0 };
		if (row >= b.rows || k >= columns)
			continue;
		c[i].w = b.w[row * b.cols + natural[k]];
		c[i].scale = b.scales[row * groups + group[k]];
		c[i].zero = b.zeros[row * groups + group[k]];
		c[i].inverse = 1 / c[i].scale;
		c[i].target = c[i].w + feedback[i];
	}
}

static __device__ __forceinline__ void walk(const float4 *u, unsigned lane, unsigned columns, float top,
					    column c[LANE_COLUMNS])
{
	for (unsigned owner = 0; owner * LANE_COLUMNS < columns; owner++) {
#pragma unroll
		for (unsigned i = 0; i < LANE_COLUMNS; i++) {
			const float4 to = u[(owner * LANE_COLUMNS + i) * WARP + lane];
			const float mine = value_error(c[i], code_of(c[i], top), c[i].w);
			const float e = __shfl_sync(ALL_LANES, mine, (int)owner);

			c[0].target = fmaf(to.x, e, c[0].target);
			c[1].target = fmaf(to.y, e, c[1].target);
			c[2].target = fmaf(to.z, e, c[2].target);
			c[3].target = fmaf(to.w, e, c[3].target);
		}
	}
}

/* Codes and loss of the row; its errors into the stage. */
static __device__ void finish_row(const cuda_ldlq_block &b, size_t row, unsigned first, unsigned columns,
				  const column c[LANE_COLUMNS], float *stage)
{
	uint8_t codes[LANE_COLUMNS];
	double loss = 0;

	for (unsigned i = 0; i < LANE_COLUMNS; i++) {
		const float code = code_of(c[i], b.top);
		const float error = value_error(c[i], code, c[i].w), miss = value_error(c[i], code, c[i].target);

		codes[i] = (uint8_t)(int)code;
		stage[(first + i) * STAGE] = error;
		if (!isfinite(error) || !isfinite(miss) || !isfinite(c[i].inverse))
			*b.bad = 1;
		if (b.row_loss && first + i < columns)
			loss += b.pivots[b.first + first + i] * ((double)miss * miss);
	}
	if (row < b.rows)
		*reinterpret_cast<uchar4 *>(b.codes + row * b.wide + b.first + first) =
			make_uchar4(codes[0], codes[1], codes[2], codes[3]);
	if (!b.row_loss)
		return;
	loss = sum_warp(loss);
	if (first == 0 && row < b.rows)
		b.row_loss[row] = (b.first > 0 ? b.row_loss[row] : 0) + loss;
}

static __global__ void __launch_bounds__(THREADS, 2) block_kernel(const cuda_ldlq_block b)
{
	extern __shared__ float4 shared[];      /* U, then the errors */
	__shared__ int natural[COLUMNS], group[COLUMNS];
	const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
	const size_t first_row = (size_t)blockIdx.x * ROWS, row = first_row + warp;
	const unsigned columns = (unsigned)(b.cols - b.first < COLUMNS ? b.cols - b.first : COLUMNS);
	float *floats = reinterpret_cast<float *>(shared);
	column c[LANE_COLUMNS];

	if (threadIdx.x < columns) {
		natural[threadIdx.x] = b.perm[b.first + threadIdx.x];
		group[threadIdx.x] = natural[threadIdx.x] / (int)b.group;
	}
	load_factor(b, columns, floats);
	__syncthreads();
	load_columns(b, row, lane * LANE_COLUMNS, columns, natural, group, c);
	walk(shared, lane, columns, b.top, c);
	__syncthreads(); /* U is read no more */
	finish_row(b, row, lane * LANE_COLUMNS, columns, c, floats + warp);
	__syncthreads();
	for (unsigned i = threadIdx.x; i < columns * ROWS; i += THREADS)
		b.errors[(b.first + i / ROWS) * b.height + first_row + i % ROWS] =
			floats[i / ROWS * STAGE + i % ROWS];
}

cudaError_t cuda_ldlq_block_launch(cudaStream_t stream, const struct cuda_ldlq_block *b)
{
	const cudaError_t status = cudaFuncSetAttribute(block_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
							SHARED_BYTES);

	if (status != cudaSuccess)
		return status;
	block_kernel<<<blocks_of(b->rows, ROWS), THREADS, SHARED_BYTES, stream>>>(*b);
	return cudaPeekAtLastError();
}

static __global__ void __launch_bounds__(COPY_THREADS) place_kernel(const int32_t *perm, size_t n, int32_t *place)
{
	const size_t step = (size_t)gridDim.x * COPY_THREADS;

	for (size_t j = (size_t)blockIdx.x * COPY_THREADS + threadIdx.x; j < n; j += step)
		place[perm[j]] = (int32_t)j;
}

cudaError_t cuda_ldlq_place_launch(cudaStream_t stream, const int32_t *perm, size_t n, int32_t *place)
{
	place_kernel<<<blocks_of(n, COPY_THREADS), COPY_THREADS, 0, stream>>>(perm, n, place);
	return cudaPeekAtLastError();
}

/* A row stays in the first-level cache while its codes are picked out of order. */
static __global__ void __launch_bounds__(COPY_THREADS) codes_kernel(const uint8_t *from, size_t wide,
								    const int32_t *place, size_t rows, size_t cols,
								    uint8_t *to)
{
	for (size_t r = blockIdx.x; r < rows; r += gridDim.x)
		for (size_t c = threadIdx.x; c < cols; c += COPY_THREADS)
			to[r * cols + c] = from[r * wide + place[c]];
}

cudaError_t cuda_ldlq_codes_launch(cudaStream_t stream, const uint8_t *from, size_t wide, const int32_t *place,
				   size_t rows, size_t cols, uint8_t *to)
{
	codes_kernel<<<blocks_for(rows, 1), COPY_THREADS, 0, stream>>>(from, wide, place, rows, cols, to);
	return cudaPeekAtLastError();
}
