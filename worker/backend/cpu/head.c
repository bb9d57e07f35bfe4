/* head_tile of the cpu backend: one item = one row tile, which meets the vocabulary tile in pieces. */
#include <cblas.h>
#include <math.h>
#include <stdatomic.h>

#include "common/alloc.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

enum { HEAD_ROWS = 128, HEAD_IDS = 512 };

struct head_job {
	struct cpu_backend *cpu;
	const float *x, *w;
	size_t rows, hidden, tile_rows;
	int32_t first_id;
	const int32_t *targets;
	struct head_state *state;
	float *scratch;         /* workers * HEAD_ROWS * HEAD_IDS */
	atomic_bool bad;
};

/* n logits of ids from first_id on into the state of one row. */
static void fold_row(const struct forward_kernels *kernels, const struct head_state *st, size_t row,
		     const float *logits, size_t n, int32_t first_id, int32_t target)
{
	const float best = kernels->max(logits, n);

	if (best > st->max[row]) {
		st->sum[row] *= exp(st->max[row] - best);
		st->max[row] = best;
		st->sum[row] += kernels->sum_exp(logits, best, n);
	} else {
		st->sum[row] += kernels->sum_exp(logits, best, n) * exp(best - st->max[row]);
	}
	if (target >= first_id && (size_t)(target - first_id) < n)
		st->target[row] = logits[target - first_id];
	if (best > st->top_logit[row]) {
		size_t at = 0;

		while (logits[at] != best)
			at++;
		st->top_logit[row] = best;
		st->top_id[row] = first_id + (int32_t)at;
	}
}

static void head_item(void *ctx, size_t item, int worker)
{
	struct head_job *job = ctx;
	const struct forward_kernels *kernels = job->cpu->forward;
	const size_t first = item * HEAD_ROWS, rows = tile_length(job->rows, HEAD_ROWS, item);
	float *logits = job->scratch + (size_t)worker * HEAD_ROWS * HEAD_IDS;

	for (size_t id = 0; id < job->tile_rows; id += HEAD_IDS) {
		const size_t n = job->tile_rows - id < HEAD_IDS ? job->tile_rows - id : HEAD_IDS;

		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)n, (int)job->hidden,
			    1.0f, job->x + first * job->hidden, (int)job->hidden,
			    job->w + id * job->hidden, (int)job->hidden, 0.0f, logits, (int)n);
		if (!kernels->finite(logits, rows * n)) {
			atomic_store_explicit(&job->bad, true, memory_order_relaxed);
			return;
		}
		for (size_t r = 0; r < rows; r++)
			fold_row(kernels, job->state, first + r, logits + r * n, n,
				 job->first_id + (int32_t)id, job->targets[first + r]);
	}
}

int cpu_head_tile(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w,
		  size_t tile_rows, int32_t first_id, const int32_t *targets,
		  struct head_state *state, struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	struct head_job job = { .cpu = cpu, .x = x, .w = w, .rows = rows, .hidden = hidden,
				.tile_rows = tile_rows, .first_id = first_id, .targets = targets,
				.state = state };

	if (matrix_shape_check("head_tile", rows, hidden, err) != 0 ||
	    matrix_shape_check("head_tile", tile_rows, hidden, err) != 0)
		return -1;
	job.scratch = mem_alloc_aligned((size_t)pool_workers(cpu->pool),
					sizeof(float) * HEAD_ROWS * HEAD_IDS);
	if (!job.scratch)
		return err_set_nomem(err, "logits");
	pool_run(cpu->pool, ceil_div(rows, HEAD_ROWS), head_item, &job);
	mem_free(job.scratch);
	return atomic_load(&job.bad) ? err_set_not_finite(err, "head_tile") : 0;
}
