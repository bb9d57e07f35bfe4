/* H = U D U^T through a tiled Cholesky of the reversed matrix.
 *
 * With J the reversal, J P H P^T J = L L^T gives P H P^T = (J L J)(J L J)^T, and U = J L J with its
 * columns divided by their diagonal. Tiles are TILE wide: each step factors a diagonal tile, solves the
 * tiles below it and updates the tiles to the right; the pool shares out tiles, OpenBLAS computes
 * one tile with one thread, so the bits depend on n alone.
 */
#include <cblas.h>
#include <lapack.h>
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/pivots.h"

enum { TILE = 192 };

struct factor_job {
	const double *h;
	const int32_t *perm;
	size_t n, tiles, step;
	double damp;
	double *a;              /* (n,n) reversed matrix, lower part; then L */
	float *u;
};

static void load_rows(void *ctx, size_t item, int worker)
{
	struct factor_job *job = ctx;
	const size_t n = job->n, first = item * TILE;

	(void)worker;
	for (size_t i = first; i < first + tile_length(n, TILE, item); i++) {
		const double *row = job->h + (size_t)job->perm[n - 1 - i] * n;

		for (size_t j = 0; j <= i; j++)
			job->a[i * n + j] = row[job->perm[n - 1 - j]];
		job->a[i * n + i] += job->damp;
	}
}

/* L_ik = A_ik L_kk^-T for the item-th tile below the diagonal one. */
static void solve_tile(void *ctx, size_t item, int worker)
{
	struct factor_job *job = ctx;
	const size_t n = job->n, k = job->step, i = k + 1 + item;
	double *diagonal = job->a + k * TILE * n + k * TILE;

	(void)worker;
	cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit,
		    (int)tile_length(n, TILE, i), TILE, 1, diagonal, (int)n,
		    job->a + i * TILE * n + k * TILE, (int)n);
}

/* A_ij -= L_ik L_jk^T for the item-th pair k < j <= i, counted along rows. */
static void update_tile(void *ctx, size_t item, int worker)
{
	struct factor_job *job = ctx;
	const size_t n = job->n, k = job->step;
	size_t i = 0;

	(void)worker;
	while (item > i)
		item -= ++i;
	i += k + 1;
	const size_t j = k + 1 + item;
	const double *left = job->a + i * TILE * n + k * TILE;
	const double *right = job->a + j * TILE * n + k * TILE;
	double *out = job->a + i * TILE * n + j * TILE;

	if (i == j)
		cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, (int)tile_length(n, TILE, i),
			    TILE, -1, left, (int)n, 1, out, (int)n);
	else
		cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)tile_length(n, TILE, i),
			    (int)tile_length(n, TILE, j), TILE, -1, left, (int)n, right, (int)n, 1,
			    out, (int)n);
}

static void store_rows(void *ctx, size_t item, int worker)
{
	struct factor_job *job = ctx;
	const size_t n = job->n, first = item * TILE;

	(void)worker;
	for (size_t i = first; i < first + tile_length(n, TILE, item); i++) {
		const double *row = job->a + (n - 1 - i) * n;
		float *out = job->u + i * n;

		memset(out, 0, (i + 1) * sizeof(*out));
		for (size_t j = i + 1; j < n; j++)
			out[j] = (float)(row[n - 1 - j] / job->a[(n - 1 - j) * n + n - 1 - j]);
	}
}

static int factor_tiles(struct cpu_backend *cpu, struct factor_job *job, struct err *err)
{
	const int lda = (int)job->n;

	for (size_t k = 0; k < job->tiles; k++) {
		const size_t below = job->tiles - 1 - k;
		const int length = (int)tile_length(job->n, TILE, k);
		int info = 0;

		/* Row-major lower is LAPACK's upper. */
		LAPACK_dpotrf("U", &length, job->a + k * TILE * job->n + k * TILE, &lda, &info);
		for (size_t i = k * TILE; i < k * TILE + (size_t)length && info == 0; i++)
			if (!isfinite(job->a[i * job->n + i]))
				info = (int)(i - k * TILE) + 1;
		if (info != 0)
			return err_set(err, ERR_NUMERIC,
				       "H is not positive definite at column %zu of %zu",
				       job->n - k * TILE - (size_t)info, job->n);
		job->step = k;
		pool_run(cpu->pool, below, solve_tile, job);
		pool_run(cpu->pool, below * (below + 1) / 2, update_tile, job);
	}
	return 0;
}

int cpu_factor(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp,
	       float *u, double *pivots, struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	struct factor_job job = { .h = h, .perm = perm, .n = n, .damp = damp, .u = u };
	size_t cells;
	int rc;

	if (n > INT32_MAX / TILE)
		return err_set(err, ERR_TOO_LARGE, "H has %zu columns; at most %d can be factored", n,
			       INT32_MAX / TILE);
	job.tiles = ceil_div(n, TILE);
	if (size_mul(n, n, &cells))
		job.a = mem_alloc_aligned(cells, sizeof(*job.a));
	if (!job.a)
		return err_set_nomem(err, "the factor of H");
	pool_run(cpu->pool, job.tiles, load_rows, &job);
	rc = factor_tiles(cpu, &job, err);
	if (rc == 0)
		pool_run(cpu->pool, job.tiles, store_rows, &job);
	mem_free(job.a);
	if (rc == 0 && pivots)
		factor_pivots(h, perm, n, damp, u, pivots);
	return rc;
}
