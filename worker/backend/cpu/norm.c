/* rms_norm on row tiles. */
#include <stdatomic.h>

#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

enum { NORM_TILE = 64 };

struct norm_job {
	const struct forward_kernels *kernels;
	const float *x, *weight;
	float eps, *y;
	size_t rows, cols;
	atomic_bool bad;
};

static void norm_item(void *ctx, size_t item, int worker)
{
	struct norm_job *job = ctx;
	const size_t first = item * NORM_TILE, end = first + tile_length(job->rows, NORM_TILE, item);
	bool good = true;

	(void)worker;
	for (size_t r = first; r < end; r++) {
		float *y = job->y + r * job->cols;

		job->kernels->rms_norm(job->x + r * job->cols, job->weight, job->eps, job->cols, y);
		good = job->kernels->finite(y, job->cols) && good;
	}
	if (!good)
		atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

int cpu_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
		 size_t cols, float *y, struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	struct norm_job job = { .kernels = cpu->forward, .x = x, .weight = weight, .eps = eps, .y = y,
				.rows = rows, .cols = cols };

	if (matrix_shape_check("rms_norm", rows, cols, err) != 0)
		return -1;
	pool_run(cpu->pool, ceil_div(rows, NORM_TILE), norm_item, &job);
	return atomic_load(&job.bad) ? err_set_not_finite(err, "rms_norm") : 0;
}
