/* rms_norm_backward, the trainable grid and the optimizer of the cpu backend: one pass over memory each. */
#include <math.h>
#include <stdatomic.h>

#include "worker/backend/cpu/backward_linear.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/kernels_train.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

enum { ITEM_ELEMENTS = 16384 };

int cpu_rms_norm_backward(struct backend *be, const float *x, const float *weight, float eps,
			  size_t rows, size_t cols, const float *dy, float *dx, struct err *err)
{
	const struct norm_back norm = { .x = x, .weight = weight, .dy = dy, .eps = eps, .cols = cols,
					.dx = dx };
	atomic_bool bad = false;

	if (matrix_shape_check("rms_norm_backward", rows, cols, err) != 0)
		return -1;
	cpu_norm_back(cpu_of(be), &norm, rows, &bad);
	return atomic_load(&bad) ? err_set_not_finite(err, "rms_norm_backward") : 0;
}

struct grid_job {
	struct cpu_backend *cpu;
	struct grid_row row;            /* without its scales and zeros */
	size_t rows, cols, rows_per_item;
	const float *latents, *scales, *zeros, *dw;
	float *w, *dscales, *dzeros, *dlatents;
	atomic_bool bad;
};

static struct grid_job grid_job_of(struct backend *be, const struct grid *grid, const float *latents,
				   size_t rows, size_t cols, const float *scales, const float *zeros)
{
	return (struct grid_job){
		.cpu = cpu_of(be), .rows = rows, .cols = cols, .latents = latents, .scales = scales,
		.zeros = zeros, .rows_per_item = ceil_div(ITEM_ELEMENTS, cols),
		.row = { .count = cols / grid->group, .group = grid->group,
			 .top = (float)((1 << grid->bits) - 1) },
	};
}

static struct grid_row row_at(const struct grid_job *job, size_t row)
{
	struct grid_row at = job->row;

	at.scales = job->scales + row * at.count;
	at.zeros = job->zeros + row * at.count;
	return at;
}

/* x (rows, n), NULL: nothing to check. */
static bool row_finite(const struct grid_job *job, const float *x, size_t row, size_t n)
{
	return !x || job->cpu->forward->finite(x + row * n, n);
}

static void values_item(void *ctx, size_t item, int worker)
{
	struct grid_job *job = ctx;
	const size_t first = item * job->rows_per_item;
	const size_t end = first + tile_length(job->rows, job->rows_per_item, item);
	bool good = true;

	(void)worker;
	for (size_t r = first; r < end; r++) {
		const struct grid_row row = row_at(job, r);
		const size_t at = r * job->cols;

		job->cpu->train->grid_values(&row, job->latents + at, job->w + at);
		good = row_finite(job, job->w, r, job->cols) && good;
	}
	if (!good)
		atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

int cpu_grid_values(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		    size_t cols, const float *scales, const float *zeros, float *w, struct err *err)
{
	struct grid_job job;

	if (grid_shape_check("grid_values", grid, rows, cols, err) != 0)
		return -1;
	job = grid_job_of(be, grid, latents, rows, cols, scales, zeros);
	job.w = w;
	pool_run(job.cpu->pool, ceil_div(rows, job.rows_per_item), values_item, &job);
	return atomic_load(&job.bad) ? err_set_not_finite(err, "grid_values") : 0;
}

static void gradients_item(void *ctx, size_t item, int worker)
{
	struct grid_job *job = ctx;
	const size_t first = item * job->rows_per_item;
	const size_t end = first + tile_length(job->rows, job->rows_per_item, item);
	bool good = true;

	(void)worker;
	for (size_t r = first; r < end; r++) {
		const struct grid_row row = row_at(job, r);
		const size_t at = r * job->cols, group = r * row.count;

		job->cpu->train->grid_gradients(&row, job->latents + at, job->dw + at,
						job->dscales ? job->dscales + group : NULL,
						job->dzeros ? job->dzeros + group : NULL,
						job->dlatents ? job->dlatents + at : NULL);
		good = row_finite(job, job->dscales, r, row.count) &&
		       row_finite(job, job->dzeros, r, row.count) &&
		       row_finite(job, job->dlatents, r, job->cols) && good;
	}
	if (!good)
		atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

int cpu_grid_gradients(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		       size_t cols, const float *scales, const float *zeros, const float *dw,
		       float *dscales, float *dzeros, float *dlatents, struct err *err)
{
	struct grid_job job;

	if (grid_shape_check("grid_gradients", grid, rows, cols, err) != 0)
		return -1;
	job = grid_job_of(be, grid, latents, rows, cols, scales, zeros);
	job.dw = dw;
	job.dscales = dscales;
	job.dzeros = dzeros;
	job.dlatents = dlatents;
	pool_run(job.cpu->pool, ceil_div(rows, job.rows_per_item), gradients_item, &job);
	return atomic_load(&job.bad) ? err_set_not_finite(err, "grid_gradients") : 0;
}

struct adam_job {
	struct cpu_backend *cpu;
	struct adam_factors factors;
	size_t n;
	float *p, *m, *v;
	const float *g;
	atomic_bool bad;
};

static void adam_item(void *ctx, size_t item, int worker)
{
	struct adam_job *job = ctx;
	const size_t at = item * ITEM_ELEMENTS, n = tile_length(job->n, ITEM_ELEMENTS, item);

	(void)worker;
	if (!job->cpu->train->adam(&job->factors, n, job->p + at, job->g + at, job->m + at, job->v + at))
		atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

int cpu_adam_step(struct backend *be, const struct adam *adam, size_t n, float *p, const float *g,
		  float *m, float *v, struct err *err)
{
	const double beta1 = adam->beta1, beta2 = adam->beta2, step = (double)adam->step;
	struct adam_job job = { .cpu = cpu_of(be), .n = n, .p = p, .m = m, .v = v, .g = g };

	if (adam_check(adam, err) != 0)
		return -1;
	job.factors = (struct adam_factors){
		.beta1 = adam->beta1, .rest1 = (float)(1 - beta1), .beta2 = adam->beta2,
		.rest2 = (float)(1 - beta2), .rate = (float)(adam->rate / (1 - pow(beta1, step))),
		.root = (float)(1 / sqrt(1 - pow(beta2, step))), .epsilon = adam->epsilon,
	};
	pool_run(job.cpu->pool, ceil_div(n, ITEM_ELEMENTS), adam_item, &job);
	return atomic_load(&job.bad) ? err_set_not_finite(err, "adam_step") : 0;
}
