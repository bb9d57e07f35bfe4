/* trace(E H E^T) = sum over pairs of column blocks (I, J) of <E_I^T E_J, H_IJ>.
 *
 * Rows go in chunks; a chunk's errors are made once, then the pool shares out the pairs J <= I: one sgemm
 * each, multiplied with H in double. Each pair has its own total, added in order at the end.
 */
#include <cblas.h>
#include <math.h>

#include "common/alloc.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels_ldlq.h"
#include "worker/backend/cpu/tiles.h"

CPU_LEVEL_DECLARE(struct ldlq_kernels, ldlq_kernels);
static const struct ldlq_kernels *const kernel_tables[] = CPU_LEVEL_TABLE(ldlq_kernels);

enum { CHUNK = 1024, BLOCK = 256, ROWS_PER_ITEM = 16 };

struct proxy_job {
	const struct ldlq_kernels *k;
	const struct grid *grid;
	const float *w, *scales, *zeros;
	const uint8_t *codes;
	size_t cols, groups;
	const double *h;
	double damp;
	size_t first, rows;     /* the chunk */
	float *errors;          /* (CHUNK, K) */
	const float *x;         /* (rows, K): what the form is taken of */
	float *products;        /* (BLOCK, BLOCK) per worker */
	double *totals;         /* per pair */
};

static void fill_errors(void *ctx, size_t item, int worker)
{
	struct proxy_job *job = ctx;
	const size_t n = job->grid->group, from = item * ROWS_PER_ITEM;

	(void)worker;
	for (size_t r = from; r < from + tile_length(job->rows, ROWS_PER_ITEM, item); r++) {
		const size_t row = job->first + r;

		for (size_t g = 0; g < job->groups; g++) {
			const size_t at = row * job->cols + g * n, s = row * job->groups + g;

			job->k->error(job->w + at, job->codes + at, job->scales[s], job->zeros[s], n,
				      job->errors + r * job->cols + g * n);
		}
	}
}

static void add_pair(void *ctx, size_t item, int worker)
{
	struct proxy_job *job = ctx;
	float *product = job->products + (size_t)worker * BLOCK * BLOCK;
	const size_t n = job->cols;
	size_t i = 0, left = item, high, wide;
	double sum = 0, diagonal = 0;

	while (left > i)
		left -= ++i;
	high = tile_length(n, BLOCK, i);
	wide = tile_length(n, BLOCK, left);
	cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)high, (int)wide, (int)job->rows, 1,
		    job->x + i * BLOCK, (int)n, job->x + left * BLOCK, (int)n, 0, product, BLOCK);
	for (size_t r = 0; r < high; r++) {
		sum += job->k->dot(job->h + (i * BLOCK + r) * n + left * BLOCK, product + r * BLOCK,
				   wide);
		diagonal += product[r * BLOCK + r % wide];
	}
	job->totals[item] += i == left ? sum + job->damp * diagonal : 2 * sum;
}

static double total_of(const struct proxy_job *job, size_t pairs)
{
	double sum = 0;

	for (size_t i = 0; i < pairs; i++)
		sum += job->totals[i];
	return sum;
}

/* The form of the errors, or of the weights when there are no codes. */
static double quadratic_form(struct cpu_backend *cpu, struct proxy_job *job, size_t rows)
{
	const size_t blocks = ceil_div(job->cols, BLOCK), pairs = blocks * (blocks + 1) / 2;

	for (size_t i = 0; i < pairs; i++)
		job->totals[i] = 0;
	for (job->first = 0; job->first < rows; job->first += CHUNK) {
		job->rows = tile_length(rows, CHUNK, job->first / CHUNK);
		job->x = job->codes ? job->errors : job->w + job->first * job->cols;
		if (job->codes)
			pool_run(cpu->pool, ceil_div(job->rows, ROWS_PER_ITEM), fill_errors, job);
		pool_run(cpu->pool, pairs, add_pair, job);
	}
	return total_of(job, pairs);
}

int cpu_proxy_loss(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const double *h, double damp, const uint8_t *codes,
		   const float *scales, const float *zeros, double *loss, double *energy,
		   struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	const size_t blocks = ceil_div(cols, BLOCK), workers = (size_t)pool_workers(cpu->pool);
	struct proxy_job job = {
		.k = kernel_tables[cpu->level], .grid = grid, .w = w, .scales = scales,
		.zeros = zeros, .codes = codes, .cols = cols, .groups = cols / grid->group, .h = h,
		.damp = damp,
	};
	double e_sum, w_sum = 0;
	int rc = 0;

	job.errors = mem_alloc_aligned(rows < CHUNK ? rows : CHUNK, cols * sizeof(*job.errors));
	job.products = mem_alloc_aligned(workers, BLOCK * BLOCK * sizeof(*job.products));
	job.totals = mem_alloc(blocks * (blocks + 1) / 2, sizeof(*job.totals));
	if (!job.errors || !job.products || !job.totals) {
		rc = err_set_nomem(err, "tiles for the proxy loss");
		goto out;
	}
	e_sum = quadratic_form(cpu, &job, rows);
	if (energy) {
		job.codes = NULL;
		w_sum = quadratic_form(cpu, &job, rows);
	}
	if (!isfinite(e_sum) || !isfinite(w_sum)) {
		rc = err_set(err, ERR_NUMERIC, "the proxy loss is not finite");
		goto out;
	}
	*loss = e_sum;
	if (energy)
		*energy = w_sum;
out:
	mem_free(job.errors);
	mem_free(job.products);
	mem_free(job.totals);
	return rc;
}
