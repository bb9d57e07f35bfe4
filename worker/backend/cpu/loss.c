/* squared_error of the cpu backend: one pass over memory, a sum of its own for each item. */
#include <math.h>

#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels_train.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

/* Items are as small as cores want them, and so few that their sums need no memory of their own. */
enum { ITEM_ELEMENTS = 16384, ITEMS_MAX = 512 };

struct loss_job {
	const struct train_kernels *kernels;
	const float *y, *target;
	size_t n, item;         /* elements; of one item */
	double scale;
	float *dy;
	double sums[ITEMS_MAX];
};

static void loss_item(void *ctx, size_t item, int worker)
{
	struct loss_job *job = ctx;
	const size_t at = item * job->item, n = tile_length(job->n, job->item, item);

	(void)worker;
	job->sums[item] = job->kernels->squared_error(job->y + at, job->target + at, n);
	if (job->dy)
		job->kernels->error_gradient(job->y + at, job->target + at, n, job->scale, job->dy + at);
}

int cpu_squared_error(struct backend *be, const float *y, const float *target, size_t n, double scale, float *dy,
		      double *sum, struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	struct loss_job job = { .kernels = cpu->train, .y = y, .target = target, .n = n, .scale = scale, .dy = dy };
	size_t items;

	job.item = ITEM_ELEMENTS * ceil_div(n, (size_t)ITEM_ELEMENTS * ITEMS_MAX);
	items = n == 0 ? 0 : ceil_div(n, job.item);
	pool_run(cpu->pool, items, loss_item, &job);
	*sum = 0;
	for (size_t i = 0; i < items; i++)
		*sum += job.sums[i];
	return isfinite(*sum) ? 0 : err_set_not_finite(err, "squared_error");
}
