/* See kernels_backward.h. Everything here is bound by memory: double costs nothing where it is used. */
#include "worker/backend/cuda/kernels_backward.h"

#include <math.h>

#include "worker/backend/cuda/blocks.cuh"
#include "worker/backend/cuda/sums.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

/* --- RMSNorm -------------------------------------------------------------------------------------------- */

struct norm_sums { double square, along; };

static __device__ norm_sums operator+(norm_sums a, norm_sums b)
{
	return { a.square + b.square, a.along + b.along };
}

/* dx = weight dy scale - x back, with t = scale(x) as in ref: back = t^3 (sum of dy weight x) / n. The two terms nearly
 * cancel for few columns, or with one that is far above the rest. */
struct norm_row { double scale, back; };

static __device__ norm_row norm_of(norm_sums s, float eps, size_t cols)
{
	const double scale = 1 / sqrt(s.square / (double)cols + eps);

	return { scale, scale * scale * scale * s.along / (double)cols };
}

static __device__ float norm_gradient(norm_row n, float x, float weight, float dy)
{
	return (float)((double)weight * dy * n.scale - x * n.back);
}

static __global__ void __launch_bounds__(THREADS) norm_back_kernel(cuda_norm_back n)
{
	__shared__ norm_sums room[WARPS];
	bool good = true;

	for (size_t r = blockIdx.x; r < n.rows; r += gridDim.x) {
		const float *x = n.x + r * n.cols, *dy = n.dy + r * n.cols;
		norm_sums s = { 0, 0 };

		for (size_t i = threadIdx.x; i < n.cols; i += THREADS) {
			s.square += (double)x[i] * x[i];
			s.along += (double)n.weight[i] * dy[i] * x[i];
		}
		const norm_row row = norm_of(sum_block<THREADS>(s, room), n.eps, n.cols);

		for (size_t i = threadIdx.x; i < n.cols; i += THREADS) {
			float dx = norm_gradient(row, x[i], n.weight[i], dy[i]);

			if (n.add)
				dx += n.add[r * n.cols + i];
			good = good && isfinite(dx);
			n.dx[r * n.cols + i] = dx;
		}
		if (n.scales && threadIdx.x == 0)
			n.scales[r] = (float)row.scale;
	}
	if (!good)
		*n.bad = 1;
}

cudaError_t cuda_norm_back_launch(cudaStream_t stream, const struct cuda_norm_back *n)
{
	if (n->rows == 0)
		return cudaSuccess;
	norm_back_kernel<<<blocks_for(n->rows, 1), THREADS, 0, stream>>>(*n);
	return cudaPeekAtLastError();
}

/* --- head norm and turn --------------------------------------------------------------------------------- */

/* Gradients of the pair (i, i + half) before the turn: a rotation's gradient is the rotation back. */
static __device__ void turn_pair(const cuda_turn_back &t, float *d, size_t at, size_t i, size_t half)
{
	const float a = d[i], b = d[i + half], c = t.cos[at + i], s = t.sin[at + i];

	d[i] = a * c + b * s;
	d[i + half] = b * c - a * s;
}

static __device__ void norm_head(const cuda_turn_back &t, size_t item, const float *d, norm_sums s, int lane)
{
	const float *in = t.in + item * t.dim;
	const norm_row row = norm_of(sum_warp(s), t.eps, t.dim);

	for (size_t i = lane; i < t.dim / 2; i += WARP)
		for (size_t j = i; j < t.dim; j += t.dim / 2)
			t.out[item * t.dim + j] = norm_gradient(row, in[j], t.norm[j], d[j]);
	if (lane == 0)
		t.scales[item] = (float)row.scale;
}

/* One warp, one head of one row; a lane reads back only what it wrote. */
static __global__ void __launch_bounds__(THREADS) turn_back_kernel(cuda_turn_back t)
{
	const int lane = threadIdx.x % WARP;
	const size_t half = t.dim / 2, items = t.rows * t.heads, warps = (size_t)gridDim.x * WARPS;

	for (size_t item = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP; item < items; item += warps) {
		const size_t at = item / t.heads % t.seq_len * half;
		float *d = t.d + item * t.dim;
		norm_sums s = { 0, 0 };

		for (size_t i = lane; i < half; i += WARP) {
			turn_pair(t, d, at, i, half);
			for (size_t j = i; t.norm && j < t.dim; j += half) {
				const float x = t.in[item * t.dim + j];

				s.square += (double)x * x;
				s.along += (double)t.norm[j] * d[j] * x;
			}
		}
		if (t.norm)
			norm_head(t, item, d, s, lane);
	}
}

cudaError_t cuda_turn_back_launch(cudaStream_t stream, const struct cuda_turn_back *t)
{
	if (t->rows == 0)
		return cudaSuccess;
	turn_back_kernel<<<blocks_for(t->rows * t->heads, WARPS), THREADS, 0, stream>>>(*t);
	return cudaPeekAtLastError();
}

/* --- SwiGLU --------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS) swiglu_back_kernel(float *gate, float *up, const float *dd,
								      size_t n)
{
	for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (size_t)gridDim.x * THREADS) {
		const float g = gate[i], u = up[i], d = dd[i];
		const float sigmoid = 1.0f / (1.0f + expf(-g)), silu = g * sigmoid;

		gate[i] = d * u * (sigmoid + silu * (1.0f - sigmoid));
		up[i] = d * silu;
	}
}

cudaError_t cuda_swiglu_back_launch(cudaStream_t stream, float *gate, float *up, const float *dd, size_t n)
{
	if (n == 0)
		return cudaSuccess;
	swiglu_back_kernel<<<blocks_for(n, THREADS), THREADS, 0, stream>>>(gate, up, dd, n);
	return cudaPeekAtLastError();
}

/* --- column sums ---------------------------------------------------------------------------------------- */

/* Rows of a part: so many that there are few parts, and enough parts to fill the device. */
enum { PART_ROWS_MIN = 64, PARTS_MAX = 256, SUM_COLS = 32, SUM_LANES = THREADS / SUM_COLS };

static __host__ __device__ size_t part_rows(size_t rows)
{
	const size_t even = (rows + PARTS_MAX - 1) / PARTS_MAX;

	return even < PART_ROWS_MIN ? (size_t)PART_ROWS_MIN : even;
}

size_t cuda_column_parts(size_t rows)
{
	return (rows + part_rows(rows) - 1) / part_rows(rows);
}

/* One part of SUM_COLS columns: SUM_LANES threads per column take every SUM_LANES-th row, then one adds them up. */
static __global__ void __launch_bounds__(THREADS) column_parts_kernel(cuda_column_sums s)
{
	__shared__ double of_lane[SUM_LANES][SUM_COLS];
	const size_t c = (size_t)blockIdx.x * SUM_COLS + threadIdx.x % SUM_COLS, per_part = part_rows(s.rows);
	const size_t first = blockIdx.y * per_part, rest = s.rows - first;
	const size_t end = first + (rest < per_part ? rest : per_part);
	const int lane = threadIdx.x / SUM_COLS;
	double sum = 0;

	for (size_t r = first + lane; c < s.cols && r < end; r += SUM_LANES) {
		const double dy = s.dy[r * s.cols + c];

		sum += s.x ? dy * (s.x[r * s.cols + c] * s.scales[r]) : dy;
	}
	of_lane[lane][threadIdx.x % SUM_COLS] = sum;
	__syncthreads();
	if (lane != 0 || c >= s.cols)
		return;
	for (int i = 1; i < SUM_LANES; i++)
		sum += of_lane[i][threadIdx.x];
	s.parts[blockIdx.y * s.cols + c] = sum;
}

static __global__ void __launch_bounds__(THREADS) column_totals_kernel(cuda_column_sums s, size_t parts)
{
	const size_t c = (size_t)blockIdx.x * THREADS + threadIdx.x;
	double sum;

	if (c >= s.cols)
		return;
	sum = s.add ? s.total[c] : 0;
	for (size_t i = 0; i < parts; i++)
		sum += s.parts[i * s.cols + c];
	s.total[c] = (float)sum;
}

cudaError_t cuda_column_sums_launch(cudaStream_t stream, const struct cuda_column_sums *s)
{
	const size_t parts = cuda_column_parts(s->rows);
	const dim3 grid((unsigned)((s->cols + SUM_COLS - 1) / SUM_COLS), (unsigned)parts);

	if (s->rows == 0 || s->cols == 0)
		return cudaSuccess;
	column_parts_kernel<<<grid, THREADS, 0, stream>>>(*s);
	column_totals_kernel<<<(unsigned)((s->cols + THREADS - 1) / THREADS), THREADS, 0, stream>>>(*s, parts);
	return cudaPeekAtLastError();
}
