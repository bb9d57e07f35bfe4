/* head_kl_tile of the cpu backend: one item = one row tile, which meets the vocabulary tile in pieces: logits
 * of both sides, the differences of the probabilities in their place, then the rows of dx. */
#include <cblas.h>
#include <math.h>
#include <stdatomic.h>

#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/kernels_train.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

enum { KL_ROWS = 256, KL_IDS = 512 };

struct kl_job {
	struct cpu_backend *cpu;
	const float *x, *x_ref, *w, *w_ref;
	size_t rows, hidden, tile_rows;
	const struct head_state *state, *ref_state;
	double *kl;
	float *dx;
	float *scratch;         /* workers * 2 * KL_ROWS * KL_IDS */
	atomic_bool bad;
};

static void logits(const struct kl_job *job, const float *x, const float *w, size_t first, size_t rows, size_t id,
		   size_t n, float *out)
{
	const int hidden = (int)job->hidden;

	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)n, hidden, 1.0f,
		    x + first * job->hidden, hidden, w + id * job->hidden, hidden, 0.0f, out, (int)n);
}

static struct kl_side side_of(const struct head_state *state, size_t row)
{
	return (struct kl_side){ (float)state->max[row], (float)(1 / state->sum[row]) };
}

/* n logits of both sides of one row; returns false when what comes of them is not finite. */
static bool compare_row(const struct kl_job *job, size_t row, float *x, const float *ref, size_t n)
{
	const double shift = log(job->state->sum[row] / job->ref_state->sum[row]);
	const double add = job->cpu->train->kl(x, ref, side_of(job->state, row), side_of(job->ref_state, row),
					       (float)shift, n);

	if (job->kl)
		job->kl[row] += add;
	return isfinite(add);
}

static void kl_item(void *ctx, size_t item, int worker)
{
	struct kl_job *job = ctx;
	const size_t first = item * KL_ROWS, rows = tile_length(job->rows, KL_ROWS, item);
	float *own = job->scratch + (size_t)worker * 2 * KL_ROWS * KL_IDS, *ref = own + KL_ROWS * KL_IDS;
	const int hidden = (int)job->hidden;
	bool good = true;

	for (size_t id = 0; id < job->tile_rows; id += KL_IDS) {
		const size_t n = job->tile_rows - id < KL_IDS ? job->tile_rows - id : KL_IDS;

		logits(job, job->x, job->w, first, rows, id, n, own);
		logits(job, job->x_ref, job->w_ref, first, rows, id, n, ref);
		for (size_t r = 0; r < rows; r++)
			good = compare_row(job, first + r, own + r * n, ref + r * n, n) && good;
		if (job->dx)
			cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, hidden, (int)n,
				    1.0f, own, (int)n, job->w + id * job->hidden, hidden, 1.0f,
				    job->dx + first * job->hidden, hidden);
	}
	if (job->dx)
		good = job->cpu->forward->finite(job->dx + first * job->hidden, rows * job->hidden) && good;
	if (!good)
		atomic_store_explicit(&job->bad, true, memory_order_relaxed);
}

int cpu_head_kl_tile(struct backend *be, const float *x, const float *x_ref, size_t rows, size_t hidden,
		     const float *w, const float *w_ref, size_t tile_rows, const struct head_state *state,
		     const struct head_state *ref_state, double *kl, float *dx, struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	struct kl_job job = { .cpu = cpu, .x = x, .x_ref = x_ref, .w = w, .w_ref = w_ref, .rows = rows,
			      .hidden = hidden, .tile_rows = tile_rows, .state = state, .ref_state = ref_state, .kl = kl,
			      .dx = dx };

	if (matrix_shape_check("head_kl_tile", rows, hidden, err) != 0 ||
	    matrix_shape_check("head_kl_tile", tile_rows, hidden, err) != 0)
		return -1;
	if (!kl && !dx)
		return 0;
	job.scratch = cpu_scratch_take(cpu, (size_t)pool_workers(cpu->pool) * 2 * KL_ROWS * KL_IDS, "logits",
				       err);
	if (!job.scratch)
		return -1;
	pool_run(cpu->pool, ceil_div(rows, KL_ROWS), kl_item, &job);
	cpu_scratch_give(cpu);
	return atomic_load(&job.bad) ? err_set_not_finite(err, "head_kl_tile") : 0;
}
