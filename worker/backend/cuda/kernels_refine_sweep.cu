/* One sweep over the codes of each row; see kernels_refine.h and, for what it does, ref/refine.c.
 *
 * With e'_j = e_j sqrt(A_jj) and the correlations C (likeness), r = A e of a row becomes r' = C e', r'_j = r_j / sqrt(A_jj), and
 * the scale s becomes 2 h, h = s sqrt(A_jj) / 2: t is r' / 2 h, and a step of 1 wins 4 h (|r'| - h).
 *
 * A block of threads takes a row, each thread chunks of 8 columns. Every warp finds the next column j worth a visit by
 * itself. Then one pass over all columns does three things at once: what the last visit left to do (its partner's
 * move, or taking its own back), the move of j, and the search for j's partner. It reads a row of C for each of the two
 * moves; all rows of W visit columns in one order, so that one of the two comes from the L2 cache. This traffic is what the
 * sweep is bound by.
 * Between the barriers, who writes what: r', masks and codes by the owner of a chunk in the pass alone, keys at its end;
 * everybody reads them between the end of one pass and the beginning of the next.
 */
#include "worker/backend/cuda/kernels_refine.h"

#include <math.h>

#include "worker/backend/cuda/refine_cells.cuh"
#include "worker/backend/cuda/sums.cuh"
#include "worker/backend/group_step.h"

enum { KEYS = 32, CHUNK = REFINE_CHUNK, CODE_BITS = 7 /* of a key: column within a chunk */ };

/* Of one row. Plane: half of the columns, the first or second four of each chunk, so that neighbours read neighbouring
 * words. */
struct line {
	float *r, *h;                   /* (2, chunks, 4) */
	uint8_t *codes;                 /* (stride) */
	uint16_t *masks;                /* (chunks) columns that may rise, and << 8 that may fall */
	unsigned long long *keys;       /* (KEYS) best partner of each warp */
	unsigned chunks;
};

/* A change of one code that its owner has yet to note. */
struct change { unsigned at; int by; };

/* What follows from the visits so far: r' + by C_row is up to date. */
struct pending { unsigned row; float by; };

struct visit { unsigned at; float r, scale, step; };

/* The best partner, and a quarter of what it wins. */
struct partner { float won; unsigned at; };

static __device__ __forceinline__ unsigned place(const line &l, unsigned p)
{
	return (p >> 2 & 1) * 4 * l.chunks + (p >> 3) * 4 + (p & 3);
}

template <typename Cell>
static __device__ __forceinline__ const Cell *likeness(const refine_sweep &o, unsigned row)
{
	return static_cast<const Cell *>(o.likeness) + (size_t)row * o.stride;
}

/* Shared memory in this order, but for what lies in `space`. */
template <bool R, bool H>
static __device__ line lay_out(const refine_sweep &o, uint4 *shared)
{
	const size_t row = blockIdx.x;
	float *next = reinterpret_cast<float *>(shared);
	line l;

	l.chunks = (unsigned)(o.stride / CHUNK);
	l.keys = reinterpret_cast<unsigned long long *>(next);
	next += KEYS * sizeof(*l.keys) / sizeof(*next);
	l.r = R ? next : o.space + row * o.stride;
	next += R ? o.stride : 0;
	l.h = H ? next : o.space + ((R ? 0 : (size_t)o.rows) + row) * o.stride;
	next += H ? o.stride : 0;
	l.codes = reinterpret_cast<uint8_t *>(next);
	l.masks = reinterpret_cast<uint16_t *>(l.codes + o.stride);
	return l;
}

static size_t shared_bytes(size_t stride, bool r, bool h)
{
	return KEYS * sizeof(unsigned long long) + (r + h) * stride * sizeof(float) + stride + stride / CHUNK * 2;
}

template <int T>
static __device__ void fill(const refine_sweep &o, const line &l)
{
	const size_t row = blockIdx.x;
	const double inverse = 1 / o.unit[row];
	const unsigned group = (unsigned)o.group;

	for (unsigned p = threadIdx.x; p < o.stride; p += T) {
		float r = 0, h = 0;
		uint8_t code = 0;

		if (p < o.cols) {
			const unsigned j = (unsigned)o.perm[p];

			r = o.r[row * o.cols + j] * o.inverse[p];
			h = (float)(o.s[row * o.groups + j / group] * inverse) * o.root[p] * 0.5f;
			code = o.q[row * o.cols + j];
		}
		l.r[place(l, p)] = r;
		l.h[place(l, p)] = h;
		l.codes[p] = code;
	}
	__syncthreads();
	for (unsigned c = threadIdx.x; c < l.chunks; c += T) {
		unsigned mask = 0;

		for (unsigned i = 0; i < CHUNK && c * CHUNK + i < o.cols; i++) {
			const int code = l.codes[c * CHUNK + i];

			mask |= (unsigned)(code < o.top) << i | (unsigned)(code > 0) << (CHUNK + i);
		}
		l.masks[c] = (uint16_t)mask;
	}
}

/* The owner of the chunk notes the new code. */
template <int T>
static __device__ __forceinline__ void note(const refine_sweep &o, const line &l, change c)
{
	const unsigned chunk = c.at / CHUNK, bit = c.at % CHUNK;

	if (c.by == 0 || chunk % T != threadIdx.x)
		return;
	const int code = l.codes[c.at] + c.by;

	l.codes[c.at] = (uint8_t)code;
	l.masks[chunk] = (uint16_t)((l.masks[chunk] & ~(0x101u << bit)) | (unsigned)(code < o.top) << bit |
				    (unsigned)(code > 0) << (CHUNK + bit));
}

/* The next column from `from` on that wants to move and can; at = cols when there is none. `late` is not noted yet. */
template <typename Cell>
static __device__ __forceinline__ visit find(const refine_sweep &o, const line &l, unsigned from, pending left,
					     change late)
{
	const unsigned lane = threadIdx.x % WARP, cols = (unsigned)o.cols;
	const Cell *c = likeness<Cell>(o, left.row);
	const float by = left.by * cell_unit(c);
	visit v = { cols, 0, 0, 0 };

	for (unsigned first = from; first < cols; first += WARP) {
		const unsigned p = first + lane;
		float r = 0;
		int code = 0;
		bool wants = false;

		if (p < cols) {
			r = l.r[place(l, p)];
			if (by != 0)
				r = fmaf(by, cell(c + p), r);
			code = l.codes[p] + (p == late.at ? late.by : 0);
			wants = fabsf(r) > (float)(2 * refine_nearly) * l.h[place(l, p)] &&
				(r > 0 ? code < o.top : code > 0);
		}
		const unsigned found = __ballot_sync(ALL_LANES, wants);

		if (found == 0)
			continue;
		const int at = __ffs((int)found) - 1;

		v.at = first + at;
		v.r = __shfl_sync(ALL_LANES, r, at);
		code = __shfl_sync(ALL_LANES, code, at);
		v.scale = 2 * l.h[place(l, v.at)];
		v.step = rintf(v.r / v.scale);
		if (v.step == 0)
			v.step = v.r > 0 ? 1 : -1;
		v.step = fminf(fmaxf(code + v.step, 0), (float)o.top) - code;
		break;
	}
	return v;
}

static __device__ __forceinline__ float4 moved(float4 r, float d, const float *a, float by, const float *b)
{
	return make_float4(fmaf(d, a[0], fmaf(by, b[0], r.x)), fmaf(d, a[1], fmaf(by, b[1], r.y)),
			   fmaf(d, a[2], fmaf(by, b[2], r.z)), fmaf(d, a[3], fmaf(by, b[3], r.w)));
}

/* A quarter of what the column wins, as bits that order as it does, the column in the lowest three; 0 where it may not
 * move, below 8 where it wins nothing. */
template <int I>
static __device__ __forceinline__ int key_of(float r, float h, unsigned rise, unsigned fall)
{
	const float won = (fabsf(r) - h) * h;
	const unsigned free = r > 0 ? rise : fall;

	return free >> I & 1 ? (__float_as_int(won) & ~CODE_BITS) | I : 0;
}

template <int I>
static __device__ __forceinline__ int best_of(float4 r, float4 h, unsigned rise, unsigned fall)
{
	return max(max(key_of<I>(r.x, h.x, rise, fall), key_of<I + 1>(r.y, h.y, rise, fall)),
		   max(key_of<I + 2>(r.z, h.z, rise, fall), key_of<I + 3>(r.w, h.w, rise, fall)));
}

/* The highest key of the warp with the lowest chunk that has it, in every lane. */
static __device__ __forceinline__ void best_of_warp(int &key, unsigned &chunk)
{
	const int best = __reduce_max_sync(ALL_LANES, key);

	chunk = __reduce_min_sync(ALL_LANES, key == best ? chunk : ~0u);
	key = best;
}

/* The pass: r' becomes r' + by C_row + d C_j; what is best to move with j. */
template <int T, typename Cell>
static __device__ __forceinline__ partner pass(const refine_sweep &o, const line &l, unsigned j, float d, pending left)
{
	const Cell *of_j = likeness<Cell>(o, j), *of_left = likeness<Cell>(o, left.row);
	const float unit = cell_unit(of_j), by = left.by * unit;
	float4 *r = reinterpret_cast<float4 *>(l.r);
	const float4 *h = reinterpret_cast<const float4 *>(l.h);
	const unsigned lane = threadIdx.x % WARP;
	unsigned chunk = 0;
	int key = 0;

	d *= unit;
#pragma unroll 2
	for (unsigned c = threadIdx.x; c < l.chunks; c += T) {
		float a[CHUNK], b[CHUNK];

		cells(of_j + c * CHUNK, a);
		cells(of_left + c * CHUNK, b);
		const float4 low = moved(r[c], d, a, by, b), high = moved(r[l.chunks + c], d, a + 4, by, b + 4);
		const unsigned mask = l.masks[c] & ~(c == j / CHUNK ? 0x101u << j % CHUNK : 0);
		const int best = max(best_of<0>(low, h[c], mask, mask >> CHUNK),
				     best_of<4>(high, h[l.chunks + c], mask, mask >> CHUNK));

		r[c] = low;
		r[l.chunks + c] = high;
		if (best > key) {
			key = best;
			chunk = c;
		}
	}
	best_of_warp(key, chunk);
	if (lane == 0)
		l.keys[threadIdx.x / WARP] = (unsigned long long)key << 32 | chunk;
	__syncthreads();
	const unsigned long long of_warp = lane < T / WARP ? l.keys[lane] : 0;

	key = (int)(of_warp >> 32);
	chunk = (unsigned)of_warp;
	best_of_warp(key, chunk);
	return { __int_as_float(key & ~CODE_BITS), chunk * CHUNK + (key & CODE_BITS) };
}

/* The row of C that the next pass needs may lie in device memory: on its way early. */
template <int T, typename Cell>
static __device__ __forceinline__ void fetch_early(const refine_sweep &o, unsigned row)
{
	const unsigned together = 128 / sizeof(Cell);
	const Cell *from = likeness<Cell>(o, row);

	for (unsigned i = threadIdx.x * together; i < o.stride; i += T * together)
		asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}

template <typename Cell, int T, bool R, bool H>
static __global__ void __launch_bounds__(T, T > 256 ? 2 : T < 256 ? 8 : sizeof(Cell) == 2 ? 5 : 4)
sweep(const refine_sweep o)
{
	extern __shared__ uint4 shared[];
	const line l = lay_out<R, H>(o, shared);
	const float least = (float)refine_least_move;
	change own = { 0, 0 }, other = { 0, 0 };
	pending left = { 0, 0 };
	unsigned from = 0;

	fill<T>(o, l);
	for (;;) {
		const visit v = find<Cell>(o, l, from, left, other);

		__syncthreads();
		note<T>(o, l, own);
		note<T>(o, l, other);
		if (v.at == o.cols)
			break;
		const float d = -v.step * v.scale;
		const partner best = pass<T, Cell>(o, l, v.at, d, left);
		const float alone = v.scale * v.step * (2 * v.r - v.scale * v.step);

		from = v.at + 1;
		own = { v.at, 0 };
		other = { v.at, 0 };
		left = { v.at, 0 };
		if (!(alone + 4 * best.won > least * v.scale * v.scale)) {
			left.by = -d;
			continue;
		}
		own.by = (int)v.step;
		if (best.won > 0) {
			other = { best.at, l.r[place(l, best.at)] > 0 ? 1 : -1 };
			left = { best.at, -2 * other.by * l.h[place(l, best.at)] };
			fetch_early<T, Cell>(o, best.at);
		}
	}
	__syncthreads();
	for (unsigned p = threadIdx.x; p < o.cols; p += T)
		o.q[blockIdx.x * o.cols + (unsigned)o.perm[p]] = l.codes[p];
}

/* --- launching ---------------------------------------------------------------------------------- */

/* Which of r' and h go to shared memory; the rest to `space`. */
enum keeping { KEEP_BOTH, KEEP_R, KEEP_NONE };

static enum keeping keeping_of(size_t stride)
{
	int device = 0, most = 0;

	if (cudaGetDevice(&device) != cudaSuccess ||
	    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
		return KEEP_NONE;
	if (shared_bytes(stride, true, true) <= (size_t)most)
		return KEEP_BOTH;
	return shared_bytes(stride, true, false) <= (size_t)most ? KEEP_R : KEEP_NONE;
}

size_t refine_sweep_space(size_t rows, size_t stride)
{
	return rows * stride * sizeof(float) * (size_t)keeping_of(stride);
}

template <typename Cell, int T, bool R, bool H>
static cudaError_t launch(cudaStream_t stream, const refine_sweep *o)
{
	const size_t bytes = shared_bytes(o->stride, R, H);
	const auto kernel = sweep<Cell, T, R, H>;
	cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	if (status == cudaSuccess)
		status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
					      cudaSharedmemCarveoutMaxShared);
	if (status != cudaSuccess)
		return status;
	kernel<<<(unsigned)o->rows, T, bytes, stream>>>(*o);
	return cudaPeekAtLastError();
}

cudaError_t refine_sweep_launch(cudaStream_t stream, const struct refine_sweep *o)
{
	if (!refine_is_brief(o->cols)) {
		if (o->stride <= 256)
			return launch<float, 32, true, true>(stream, o);
		return o->stride <= 1024 ? launch<float, 128, true, true>(stream, o) :
					   launch<float, 256, true, true>(stream, o);
	}
	switch (keeping_of(o->stride)) {
	case KEEP_BOTH:
		return o->stride <= 6144 ? launch<uint16_t, 256, true, true>(stream, o) :
					   launch<uint16_t, 512, true, true>(stream, o);
	case KEEP_R:
		return launch<uint16_t, 512, true, false>(stream, o);
	case KEEP_NONE:
		break;
	}
	return launch<uint16_t, 512, false, false>(stream, o);
}
