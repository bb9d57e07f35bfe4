/* fit_groups and round_nearest of the cpu backend: groups are shared out over the pool. */
#include <math.h>
#include <stdatomic.h>

#include "common/alloc.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/fit_group.h"
#include "worker/backend/cpu/tiles.h"

CPU_LEVEL_DECLARE(struct fit_kernels, fit_kernels);
static const struct fit_kernels *const kernel_tables[] = CPU_LEVEL_TABLE(fit_kernels);

enum { ITEM_WEIGHTS = 4096 };   /* at least so many per item */

struct fit_job {
	const struct fit_kernels *k;
	const struct grid *grid;
	enum fit_method method;
	const float *w;
	size_t rows, cols, groups, rows_per_item;
	const double *h;
	float *scales, *zeros;
	double *objective;
	struct fit_scratch *scratch;    /* one per worker */
	atomic_size_t failed;           /* a row without a finite objective + 1, or 0 */
	const float *in_scales, *in_zeros;
	uint8_t *codes;
};

static void fit_rows(void *ctx, size_t item, int worker)
{
	struct fit_job *job = ctx;
	const size_t first = item * job->rows_per_item;
	const size_t last = first + tile_length(job->rows, job->rows_per_item, item);
	const size_t n = job->grid->group;

	for (size_t r = first; r < last; r++) {
		for (size_t g = 0; g < job->groups; g++) {
			const size_t at = r * job->groups + g;
			struct fit_result best = fit_group(job->k, job->grid, job->method,
							   job->w + r * job->cols + g * n,
							   job->h + g * n, n, &job->scratch[worker]);

			if (!isfinite(best.objective))
				atomic_store(&job->failed, r + 1);
			job->scales[at] = best.s;
			job->zeros[at] = best.z;
			if (job->objective)
				job->objective[at] = best.objective;
		}
	}
}

static void free_scratch(struct fit_scratch *scratch, int workers)
{
	for (int i = 0; scratch && i < workers; i++)
		mem_free(scratch[i].t);
	mem_free(scratch);
}

static struct fit_scratch *new_scratch(int workers, size_t n, struct err *err)
{
	struct fit_scratch *scratch = mem_alloc((size_t)workers, sizeof(*scratch));
	size_t total;
	bool ok = scratch && size_mul(n, 4, &total);

	for (int i = 0; ok && i < workers; i++) {
		float *block = mem_alloc_aligned(total, sizeof(*block));

		if (block)
			scratch[i] = (struct fit_scratch){ block, block + n, block + 2 * n, block + 3 * n };
		ok = block != NULL;
	}
	if (ok)
		return scratch;
	free_scratch(scratch, workers);
	err_set_nomem(err, "scratch for fitting groups");
	return NULL;
}

int cpu_fit_groups(struct backend *be, enum fit_method method, const struct grid *grid,
		   const float *w, size_t rows, size_t cols, const double *h, float *scales,
		   float *zeros, double *objective, struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	const int workers = pool_workers(cpu->pool);
	struct fit_job job = {
		.k = kernel_tables[cpu->level], .grid = grid, .method = method, .w = w, .rows = rows,
		.cols = cols, .groups = cols / grid->group, .h = h, .scales = scales, .zeros = zeros,
		.objective = objective, .rows_per_item = cols ? ceil_div(ITEM_WEIGHTS, cols) : 1,
	};
	size_t failed;

	job.scratch = new_scratch(workers, grid->group, err);
	if (!job.scratch)
		return -1;
	atomic_init(&job.failed, 0);
	pool_run(cpu->pool, ceil_div(rows, job.rows_per_item), fit_rows, &job);
	free_scratch(job.scratch, workers);
	failed = atomic_load(&job.failed);
	if (failed)
		return err_set(err, ERR_NUMERIC, "a group of row %zu has no finite objective",
			       failed - 1);
	return 0;
}

static void round_rows(void *ctx, size_t item, int worker)
{
	struct fit_job *job = ctx;
	const size_t first = item * job->rows_per_item;
	const size_t last = first + tile_length(job->rows, job->rows_per_item, item);
	const size_t n = job->grid->group;

	(void)worker;
	for (size_t i = first * job->groups; i < last * job->groups; i++) {
		const double s = job->in_scales[i], z = job->in_zeros[i];

		if (!(s > 0) || !isfinite(s) || !isfinite(z)) {
			atomic_store(&job->failed, i / job->groups + 1);
			continue;
		}
		job->k->round(job->w + i * n, n, s, z, 1 << job->grid->bits, job->codes + i * n);
	}
}

int cpu_round_nearest(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		      size_t cols, const float *scales, const float *zeros, uint8_t *codes,
		      struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	struct fit_job job = {
		.k = kernel_tables[cpu->level], .grid = grid, .w = w, .rows = rows, .cols = cols,
		.groups = cols / grid->group, .in_scales = scales, .in_zeros = zeros, .codes = codes,
		.rows_per_item = cols ? ceil_div(ITEM_WEIGHTS, cols) : 1,
	};
	size_t failed;

	atomic_init(&job.failed, 0);
	pool_run(cpu->pool, ceil_div(rows, job.rows_per_item), round_rows, &job);
	failed = atomic_load(&job.failed);
	if (failed)
		return err_set(err, ERR_NUMERIC, "a scale or zero-point of row %zu is not usable",
			       failed - 1);
	return 0;
}
