/* gram_add of the cpu backend: one item = one tile of the lower triangle, through all rows. gram_mean: one item = rows.
 *
 * At most GRAM_ROWS rows are multiplied in float32 before their sum goes into double; the tile above
 * the diagonal is a copy, made once at the end.
 */
#include <cblas.h>
#include <math.h>

#include "common/alloc.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

enum { GRAM_ROWS = 1024, GRAM_TILE_SMALL = 192, GRAM_TILE_LARGE = 256, GRAM_SMALL_COLS = 512, MEAN_ROWS = 64 };

struct gram_job {
	const struct forward_kernels *kernels;
	const float *x;
	size_t rows, cols, tile;
	double *h;
	float *scratch;         /* workers * tile * tile */
};

/* Tile (i, j), j <= i, of the lower triangle in row order. */
static void tile_of(size_t item, size_t *i, size_t *j)
{
	size_t row = 0;

	while (item > row) {
		item -= row + 1;
		row++;
	}
	*i = row;
	*j = item;
}

/* The lower triangle of an m x n tile at (top, left) into its mirror image. */
static void mirror(double *h, size_t cols, size_t top, size_t m, size_t left, size_t n)
{
	for (size_t i = top; i < top + m; i++)
		for (size_t j = left; j < left + n && j < i; j++)
			h[j * cols + i] = h[i * cols + j];
}

/* product (m, n) = a' b for k rows of a (k, m) and b (k, n); a == b: its lower triangle alone. */
static void multiply(const float *a, size_t m, const float *b, size_t n, size_t k, size_t cols,
		     float *product)
{
	if (a == b)
		cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (int)m, (int)k, 1.0f, a, (int)cols, 0.0f,
			    product, (int)n);
	else
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)m, (int)n, (int)k, 1.0f, a,
			    (int)cols, b, (int)cols, 0.0f, product, (int)n);
}

static void gram_item(void *ctx, size_t item, int worker)
{
	const struct gram_job *job = ctx;
	const size_t cols = job->cols;
	float *product = job->scratch + (size_t)worker * job->tile * job->tile;
	size_t i, j, m, n, top, left;

	tile_of(item, &i, &j);
	top = i * job->tile, left = j * job->tile;
	m = tile_length(cols, job->tile, i), n = tile_length(cols, job->tile, j);
	for (size_t first = 0; first < job->rows; first += GRAM_ROWS) {
		const float *x = job->x + first * cols;
		const size_t k = job->rows - first < GRAM_ROWS ? job->rows - first : GRAM_ROWS;

		multiply(x + top, m, x + left, n, k, cols, product);
		for (size_t r = 0; r < m; r++)
			job->kernels->add_double(job->h + (top + r) * cols + left, product + r * n,
						 i == j ? r + 1 : n);
	}
	mirror(job->h, cols, top, m, left, n);
}

int cpu_gram_add(struct backend *be, const float *x, size_t rows, size_t cols, double *h,
		 struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	const size_t tile = cols <= GRAM_SMALL_COLS ? GRAM_TILE_SMALL : GRAM_TILE_LARGE;
	struct gram_job job = { .kernels = cpu->forward, .x = x, .rows = rows, .cols = cols,
				.tile = tile, .h = h };
	size_t side;
	bool finite = true;

	if (matrix_shape_check("gram_add", rows, cols, err) != 0)
		return -1;
	job.scratch = mem_alloc_aligned((size_t)pool_workers(cpu->pool), tile * tile * sizeof(float));
	if (!job.scratch)
		return err_set_nomem(err, "tiles of H");
	side = ceil_div(cols, tile);
	pool_run(cpu->pool, side * (side + 1) / 2, gram_item, &job);
	mem_free(job.scratch);
	for (size_t i = 0; i < cols; i++)
		finite = finite && isfinite(h[i * cols + i]);
	return finite ? 0 : err_set_not_finite(err, "gram_add");
}

struct mean_job { double *h; size_t cols; double rows; };

static void mean_item(void *ctx, size_t item, int worker)
{
	const struct mean_job *job = ctx;
	double *h = job->h + item * MEAN_ROWS * job->cols;
	const size_t n = tile_length(job->cols, MEAN_ROWS, item) * job->cols;

	(void)worker;
	for (size_t i = 0; i < n; i++)
		h[i] /= job->rows;
}

int cpu_gram_mean(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal,
		  struct err *err)
{
	struct mean_job job = { .h = h, .cols = cols, .rows = (double)rows };
	bool finite = true;

	if (gram_mean_check(cols, rows, err) != 0)
		return -1;
	pool_run(cpu_of(be)->pool, ceil_div(cols, MEAN_ROWS), mean_item, &job);
	for (size_t i = 0; i < cols; i++) {
		diagonal[i] = h[i * cols + i];
		finite = finite && isfinite(diagonal[i]);
	}
	return finite ? 0 : err_set_not_finite(err, "gram_mean");
}
