/* One round of refinement on tiles of rows (ref/refine.c is the specification).
 *
 * Rows are independent, so a tile of rows is an item of the pool. A e of a tile is one sgemm, its loss
 * afterwards half of one. The sweep over the codes goes row by row and needs none: about one code in five moves,
 * and a move is one pass over a row or two of A. Then group after group takes its step: the five sums of each
 * row, and one sgemm that brings A e of the columns still to come up to date.
 * A as a whole and each row are scaled by powers of two, so that products stay within float32 for weights of any
 * size. The height of a tile depends on the shape alone.
 * Memory: A (K,K) float32 for the operation, three tiles of (height, K) per worker.
 */
#include <cblas.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels_refine.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/group_step.h"

CPU_LEVEL_DECLARE(struct refine_kernels, refine_kernels);
static const struct refine_kernels *const kernel_tables[] = CPU_LEVEL_TABLE(refine_kernels);

enum {
	TILE_MAX = 256, TILE_STEP = 64,
	TILE_SHARE = 16,        /* wanted number of tiles */
	ROWS_PER_ITEM = 16,     /* of A, when it is made */
	FORM_BLOCK = 128,       /* columns of x A x^T at a time */
	ROW_ARRAYS = 5          /* scale, inverse, half, up, down of one row */
};

/* Scratch of one worker. Columns are padded to `stride`, with zeros. */
struct tile {
	float *q, *r;           /* (height, stride) codes, A e */
	float *x;               /* (height, stride) e; between, the changes of a group's values */
	float *columns;         /* (ROW_ARRAYS, stride) */
	float *s, *z;           /* (height, G) */
	double *unit;           /* (height) e, r and s are in units of it */
	double *before, *after; /* (height) losses, in units of its square and of a */
	double *qq;             /* (height) q^T A q of a group */
};

struct refine_job {
	const struct refine_kernels *k;
	const struct grid *grid;
	const float *w;
	const double *h;
	double damp, unit;      /* a = (h + damp I) / unit */
	size_t rows, cols, stride, groups, height;
	const int32_t *perm;
	float *a;               /* (K, stride) */
	float *diagonal, *ones; /* (stride) of a; A 1 of each column's own group */
	double *group_ones;     /* (G) 1^T A 1 of each group */
	uint8_t *codes;
	float *scales, *zeros;
	double *row_loss;
	struct tile *tiles;     /* one per worker */
	atomic_size_t failed;   /* row without a finite loss + 1, or 0 */
};

/* --- A ------------------------------------------------------------------------------------------ */

/* Row i of A 1 within its group, from A as it was rounded. */
static double sum_of_group(const struct refine_job *job, size_t i)
{
	const size_t n = job->grid->group;
	const float *a = job->a + i * job->stride + i / n * n;
	double sum = 0;

	for (size_t j = 0; j < n; j++)
		sum += a[j];
	return sum;
}

static void fill_rows(void *ctx, size_t item, int worker)
{
	struct refine_job *job = ctx;
	const size_t from = item * ROWS_PER_ITEM, n = job->cols;
	const double factor = 1 / job->unit;

	(void)worker;
	for (size_t i = from; i < from + tile_length(n, ROWS_PER_ITEM, item); i++) {
		float *row = job->a + i * job->stride;

		for (size_t j = 0; j < n; j++)
			row[j] = (float)(job->h[i * n + j] * factor);
		row[i] = (float)((job->h[i * n + i] + job->damp) * factor);
		memset(row + n, 0, (job->stride - n) * sizeof(*row));
		job->diagonal[i] = row[i];
		job->ones[i] = (float)sum_of_group(job, i);
	}
}

/* The power of two below the largest diagonal entry. */
static double unit_of(const double *h, size_t n, double damp)
{
	double largest = 0;

	for (size_t i = 0; i < n; i++)
		largest = fmax(largest, h[i * n + i] + damp);
	return largest > 0 && isfinite(largest) ? ldexp(1, ilogb(largest)) : 1;
}

static void make_a(struct refine_job *job, struct pool *pool)
{
	const size_t pad = job->stride - job->cols;

	job->unit = unit_of(job->h, job->cols, job->damp);
	memset(job->diagonal + job->cols, 0, pad * sizeof(*job->diagonal));
	pool_run(pool, ceil_div(job->cols, ROWS_PER_ITEM), fill_rows, job);
	for (size_t i = 0; i < job->cols; i++)
		job->group_ones[i / job->grid->group] += job->ones[i];
}

/* --- a tile ------------------------------------------------------------------------------------- */

static void note_failure(struct refine_job *job, size_t row)
{
	atomic_store(&job->failed, row + 1);
}

/* The power of two below the row's largest scale. */
static double row_unit(struct refine_job *job, size_t row)
{
	float largest = 0;

	for (size_t i = row * job->groups; i < (row + 1) * job->groups; i++) {
		if (!(job->scales[i] > 0) || !isfinite(job->scales[i]) || !isfinite(job->zeros[i]))
			note_failure(job, row);
		largest = fmaxf(largest, job->scales[i]);
	}
	return largest > 0 && isfinite(largest) ? ldexp(1, ilogbf(largest)) : 1;
}

/* Codes as numbers, scales. */
static void load_row(struct refine_job *job, struct tile *t, size_t row, size_t at)
{
	float *q = t->q + at * job->stride;

	t->unit[at] = row_unit(job, row);
	for (size_t g = 0; g < job->groups; g++) {
		t->s[at * job->groups + g] = (float)(job->scales[row * job->groups + g] / t->unit[at]);
		t->z[at * job->groups + g] = job->zeros[row * job->groups + g];
	}
	for (size_t c = 0; c < job->cols; c++)
		q[c] = job->codes[row * job->cols + c];
	memset(q + job->cols, 0, (job->stride - job->cols) * sizeof(*q));
}

/* x = e of the row. */
static void fill_errors(const struct refine_job *job, struct tile *t, size_t row, size_t at)
{
	const size_t n = job->grid->group;
	const float *w = job->w + row * job->cols, *q = t->q + at * job->stride;
	const double inverse = 1 / t->unit[at];
	float *e = t->x + at * job->stride;

	for (size_t g = 0; g < job->groups; g++)
		job->k->errors(w + g * n, q + g * n, inverse, t->s[at * job->groups + g],
			       t->z[at * job->groups + g], n, e + g * n);
	memset(e + job->cols, 0, (job->stride - job->cols) * sizeof(*e));
}

/* out (rows, wide) = beta out + alpha x (rows, deep) a, all with rows `stride` apart. */
static void multiply(const struct refine_job *job, size_t rows, size_t wide, size_t deep, float alpha,
		     const float *x, const float *a, float beta, float *out)
{
	const int stride = (int)job->stride;

	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)wide, (int)deep, alpha, x,
		    stride, a, stride, beta, out, stride);
}

static void scale_columns(const struct refine_job *job, float *x, size_t rows, size_t n, float factor)
{
	for (size_t i = 0; i < rows; i++)
		for (size_t c = 0; c < n; c++)
			x[i * job->stride + c] *= factor;
}

/* out (rows) = x A x^T over columns first .. end-1. A is symmetric: 2 x_J (A_JJ x_J / 2 + A_JK x_K) summed over blocks
 * J, K all columns behind J, is half the work of A x. x is halved block by block for that, and doubled
 * again; product is scratch like x. */
static void forms(const struct refine_job *job, float *x, size_t rows, size_t first, size_t end,
		  float *product, double *out)
{
	memset(out, 0, rows * sizeof(*out));
	for (size_t j = first; j < end; j += FORM_BLOCK) {
		const size_t n = tile_length(end - first, FORM_BLOCK, (j - first) / FORM_BLOCK);

		scale_columns(job, x + j, rows, n, 0.5f);
		multiply(job, rows, n, end - j, 1, x + j, job->a + j * job->stride + j, 0, product + j);
		for (size_t i = 0; i < rows; i++)
			out[i] += 4 * job->k->dot(x + i * job->stride + j, product + i * job->stride + j, n);
		scale_columns(job, x + j, rows, n, 2);
	}
}

static void make_errors(const struct refine_job *job, struct tile *t, size_t first, size_t rows)
{
	for (size_t i = 0; i < rows; i++)
		fill_errors(job, t, first + i, i);
}

/* r = A e of every row, and its loss. */
static void begin_tile(const struct refine_job *job, struct tile *t, size_t first, size_t rows)
{
	make_errors(job, t, first, rows);
	multiply(job, rows, job->stride, job->cols, 1, t->x, job->a, 0, t->r);
	for (size_t i = 0; i < rows; i++)
		t->before[i] = job->k->dot(t->x + i * job->stride, t->r + i * job->stride, job->cols);
}

static void sweep_row(const struct refine_job *job, struct tile *t, size_t row)
{
	const size_t stride = job->stride, n = job->grid->group;
	float *s = t->columns;
	const struct refine_row r = {
		.cols = job->cols, .stride = stride, .a = job->a, .diagonal = job->diagonal,
		.perm = job->perm, .top = (float)((1 << job->grid->bits) - 1),
		.nearly = (float)refine_nearly, .least = (float)refine_least_move, .s = s,
		.q = t->q + row * stride, .r = t->r + row * stride, .inverse = s + stride,
		.half = s + 2 * stride, .up = s + 3 * stride, .down = s + 4 * stride,
	};

	for (size_t g = 0; g < job->groups; g++)
		for (size_t c = g * n; c < (g + 1) * n; c++)
			s[c] = t->s[row * job->groups + g];
	memset(s + job->cols, 0, (stride - job->cols) * sizeof(*s));
	job->k->sweep(&r);
}

/* group_step() in true units: what may be stored, a subnormal half for one, does not scale. */
static double true_step(const struct refine_job *job, const struct group_sums *m, double least, double unit, float *s,
			float *z)
{
	const struct group_sums sums = { m->qq, m->q1, m->oo, m->rq * unit, m->r1 * unit };
	float stored = (float)(*s * unit);
	const double gain = group_step(job->grid, &sums, least * unit * unit, &stored, z);

	*s = (float)(stored / unit);
	return gain;
}

/* The row's step in group g; x receives the change of its values s q + t. */
static bool step_row(const struct refine_job *job, struct tile *t, size_t row, size_t g)
{
	const size_t n = job->grid->group, at = row * job->stride + g * n, side = row * job->groups + g;
	const double s = t->s[side], z = t->z[side];
	struct group_sums m = { .qq = t->qq[row], .oo = job->group_ones[g] };
	double gain;
	float ds, dt;

	job->k->sums(t->q + at, job->ones + g * n, t->r + at, n, &m.q1, &m.rq, &m.r1);
	gain = true_step(job, &m, refine_least_step * t->before[row], t->unit[row], &t->s[side], &t->z[side]);
	ds = (float)(t->s[side] - s);
	dt = (float)(s * z - (double)t->s[side] * t->z[side]);
	for (size_t c = at; c < at + n; c++)
		t->x[c] = ds * t->q[c] + dt;
	return gain > 0;
}

/* Group after group; A e of the columns still to come is brought up to date. */
static void fit_tile(const struct refine_job *job, struct tile *t, size_t rows)
{
	const size_t n = job->grid->group;

	for (size_t first = 0; first < job->cols; first += n) {
		const size_t end = first + n;
		bool moved = false;

		forms(job, t->q, rows, first, end, t->x, t->qq);
		for (size_t i = 0; i < rows; i++)
			moved |= step_row(job, t, i, first / n);
		if (moved && end < job->cols)
			multiply(job, rows, job->cols - end, n, -1, t->x + first,
				 job->a + first * job->stride + end, 1, t->r + end);
	}
}

/* Scales that are still positive and finite in the row's own unit. */
static bool scales_hold(const struct refine_job *job, const struct tile *t, size_t at)
{
	for (size_t g = at * job->groups; g < (at + 1) * job->groups; g++) {
		const float s = (float)(t->s[g] * t->unit[at]);

		if (!(s > 0) || !isfinite(s))
			return false;
	}
	return true;
}

/* What a row has won is kept. */
static void store_row(struct refine_job *job, const struct tile *t, size_t row, size_t at)
{
	const double unit = t->unit[at], square = job->unit * unit * unit;
	const bool won = t->after[at] < t->before[at] && scales_hold(job, t, at);

	if (!isfinite(t->before[at]))
		note_failure(job, row);
	job->row_loss[row] = square * (won ? t->after[at] : t->before[at]);
	if (!won)
		return;
	for (size_t g = 0; g < job->groups; g++) {
		job->scales[row * job->groups + g] = (float)(t->s[at * job->groups + g] * unit);
		job->zeros[row * job->groups + g] = t->z[at * job->groups + g];
	}
	for (size_t c = 0; c < job->cols; c++)
		job->codes[row * job->cols + c] = (uint8_t)(int)t->q[at * job->stride + c];
}

static void refine_tile(void *ctx, size_t item, int worker)
{
	struct refine_job *job = ctx;
	struct tile *t = &job->tiles[worker];
	const size_t rows = tile_length(job->rows, job->height, item), first = item * job->height;

	for (size_t i = 0; i < rows; i++)
		load_row(job, t, first + i, i);
	begin_tile(job, t, first, rows);
	for (size_t i = 0; i < rows; i++)
		sweep_row(job, t, i);
	fit_tile(job, t, rows);
	make_errors(job, t, first, rows);
	forms(job, t->x, rows, 0, job->cols, t->r, t->after);
	for (size_t i = 0; i < rows; i++)
		store_row(job, t, first + i, i);
}

/* --- memory ------------------------------------------------------------------------------------- */

/* All float arrays of a tile are one block. */
static int new_tile(const struct refine_job *job, struct tile *t)
{
	const size_t line = job->height * job->stride, side = job->height * job->groups;

	t->q = mem_alloc_aligned(3 * line + ROW_ARRAYS * job->stride + 2 * side, sizeof(*t->q));
	t->before = mem_alloc_aligned(4 * job->height, sizeof(*t->before));
	if (!t->q || !t->before)
		return -1;
	t->r = t->q + line;
	t->x = t->r + line;
	t->columns = t->x + line;
	t->s = t->columns + ROW_ARRAYS * job->stride;
	t->z = t->s + side;
	t->after = t->before + job->height;
	t->unit = t->after + job->height;
	t->qq = t->unit + job->height;
	return 0;
}

static int prepare(struct refine_job *job, int workers, struct err *err)
{
	size_t cells;
	bool ok;

	if (size_mul(job->cols, job->stride, &cells))
		job->a = mem_alloc_aligned(cells, sizeof(*job->a));
	job->diagonal = mem_alloc_aligned(2 * job->stride, sizeof(*job->diagonal));
	job->group_ones = mem_alloc(job->groups, sizeof(*job->group_ones));
	job->tiles = mem_alloc((size_t)workers, sizeof(*job->tiles));
	ok = job->a && job->diagonal && job->group_ones && job->tiles;
	for (int i = 0; ok && i < workers; i++)
		ok = new_tile(job, &job->tiles[i]) == 0;
	if (!ok)
		return err_set_nomem(err, "tiles for refinement");
	job->ones = job->diagonal + job->stride;
	return 0;
}

static void release(struct refine_job *job, int workers)
{
	for (int i = 0; job->tiles && i < workers; i++) {
		mem_free(job->tiles[i].q);
		mem_free(job->tiles[i].before);
	}
	mem_free(job->tiles);
	mem_free(job->group_ones);
	mem_free(job->diagonal);
	mem_free(job->a);
}

int cpu_refine(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
	       const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales,
	       float *zeros, double *row_loss, struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	const int workers = pool_workers(cpu->pool);
	const size_t share = ceil_div(ceil_div(rows, TILE_SHARE), TILE_STEP) * TILE_STEP;
	struct refine_job job = {
		.k = kernel_tables[cpu->level], .grid = grid, .w = w, .h = h, .damp = damp, .rows = rows,
		.cols = cols, .stride = ceil_div(cols, REFINE_LANES) * REFINE_LANES,
		.groups = cols / grid->group, .height = share > TILE_MAX ? TILE_MAX : share, .perm = perm,
		.codes = codes, .scales = scales, .zeros = zeros, .row_loss = row_loss,
	};
	int rc;

	if (rows == 0 || cols == 0)
		return 0;
	atomic_init(&job.failed, 0);
	rc = prepare(&job, workers, err);
	if (rc == 0) {
		make_a(&job, cpu->pool);
		pool_run(cpu->pool, ceil_div(rows, job.height), refine_tile, &job);
	}
	if (rc == 0 && atomic_load(&job.failed))
		rc = err_set(err, ERR_NUMERIC, "the loss of row %zu is not finite",
			     atomic_load(&job.failed) - 1);
	release(&job, workers);
	return rc;
}
