/* LDLQ on tiles of rows.
 *
 * Rows are independent, so a tile of rows is an item of the pool. Within it everything is transposed,
 * rows side by side: columns in rounding order come in blocks of LDLQ_BLOCK, the feedback of all
 * earlier blocks is one sgemm with the stored errors, the feedback within the block is the kernel's.
 * The height of a tile depends on the shape alone.
 */
#include <cblas.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/kernels_ldlq.h"
#include "worker/backend/cpu/tiles.h"

CPU_LEVEL_DECLARE(struct ldlq_kernels, ldlq_kernels);
static const struct ldlq_kernels *const kernel_tables[] = CPU_LEVEL_TABLE(ldlq_kernels);

enum {
	TILE_MAX = 4 * LDLQ_LANES,
	TILE_SHARE = 16,        /* wanted number of tiles */
	LINE = 16               /* columns transposed together: a cache line of floats */
};

/* Scratch of one worker; `height` rows. */
struct tile {
	float *w, *e;           /* (K, height), rounding order */
	float *target;          /* (LDLQ_BLOCK, height) */
	float *u;               /* (LDLQ_BLOCK, LDLQ_BLOCK) */
	float *scale, *inverse, *zero; /* (G, height) */
	uint8_t *codes;         /* (K, height), natural order */
	double *loss;           /* (height) */
};

struct ldlq_job {
	const struct ldlq_kernels *k;
	const struct grid *grid;
	const float *w, *u, *scales, *zeros;
	const double *pivots;   /* NULL when no loss is wanted */
	double *row_loss;
	size_t rows, cols, groups, height;
	const int32_t *perm;
	int32_t *place;         /* (K) inverse of perm */
	uint8_t *codes;
	struct tile *tiles;     /* one per worker */
	atomic_size_t failed;   /* row of a non-finite error + 1, or 0 */
};

static void load_tile(const struct ldlq_job *job, struct tile *t, size_t first, size_t rows)
{
	const size_t height = job->height;

	memset(t->w, 0, job->cols * height * sizeof(*t->w));
	for (size_t c0 = 0; c0 < job->cols; c0 += LINE) {
		const size_t c1 = c0 + tile_length(job->cols, LINE, c0 / LINE);

		for (size_t r = 0; r < rows; r++) {
			const float *row = job->w + (first + r) * job->cols;

			for (size_t c = c0; c < c1; c++)
				t->w[(size_t)job->place[c] * height + r] = row[c];
		}
	}
	for (size_t g = 0; g < job->groups; g++) {
		for (size_t r = 0; r < height; r++) {
			const size_t at = (first + r) * job->groups + g, to = g * height + r;

			t->scale[to] = r < rows ? job->scales[at] : 1;
			t->zero[to] = r < rows ? job->zeros[at] : 0;
			t->inverse[to] = 1 / t->scale[to];
		}
	}
}

static void store_tile(struct ldlq_job *job, const struct tile *t, size_t first, size_t rows)
{
	for (size_t c0 = 0; c0 < job->cols; c0 += LINE) {
		const size_t c1 = c0 + tile_length(job->cols, LINE, c0 / LINE);

		for (size_t r = 0; r < rows; r++)
			for (size_t c = c0; c < c1; c++)
				job->codes[(first + r) * job->cols + c] = t->codes[c * job->height + r];
	}
	for (size_t r = 0; r < rows; r++)
		for (size_t j = 0; j < job->cols; j++)
			if (!isfinite(t->e[j * job->height + r]))
				atomic_store(&job->failed, first + r + 1);
}

/* target = w + E_before^T-weighted feedback; the block's own part of U, transposed. */
static void start_block(const struct ldlq_job *job, struct tile *t, size_t first, size_t columns)
{
	const size_t height = job->height, n = job->cols;

	memcpy(t->target, t->w + first * height, columns * height * sizeof(*t->target));
	if (first > 0)
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)columns, (int)height,
			    (int)first, 1, job->u + first, (int)n, t->e, (int)height, 1, t->target,
			    (int)height);
	for (size_t j = 0; j < columns; j++)
		for (size_t k = 0; k < j; k++)
			t->u[j * columns + k] = job->u[(first + k) * n + first + j];
}

static void round_tile(void *ctx, size_t item, int worker)
{
	struct ldlq_job *job = ctx;
	struct tile *t = &job->tiles[worker];
	const size_t height = job->height, rows = tile_length(job->rows, height, item);

	load_tile(job, t, item * height, rows);
	memset(t->loss, 0, height * sizeof(*t->loss));
	for (size_t first = 0; first < job->cols; first += LDLQ_BLOCK) {
		const size_t columns = tile_length(job->cols, LDLQ_BLOCK, first / LDLQ_BLOCK);
		const struct ldlq_block block = {
			.columns = columns, .stride = height, .u = t->u, .target = t->target,
			.w = t->w + first * height, .e = t->e + first * height,
			.column = job->perm + first, .group = job->grid->group, .scale = t->scale,
			.inverse = t->inverse, .zero = t->zero,
			.top = (float)((1 << job->grid->bits) - 1), .codes = t->codes,
			.pivots = job->pivots ? job->pivots + first : NULL, .loss = t->loss,
		};

		start_block(job, t, first, columns);
		job->k->block(&block);
	}
	store_tile(job, t, item * height, rows);
	if (job->row_loss)
		memcpy(job->row_loss + item * height, t->loss, rows * sizeof(*t->loss));
}

static void free_tiles(struct tile *tiles, int count)
{
	for (int i = 0; tiles && i < count; i++) {
		mem_free(tiles[i].w);
		mem_free(tiles[i].codes);
		mem_free(tiles[i].loss);
	}
	mem_free(tiles);
}

/* All float arrays of a tile are one block, w first. */
static int new_tile(const struct ldlq_job *job, struct tile *t)
{
	const size_t h = job->height, line = h * job->cols, side = h * job->groups;
	const size_t total = 2 * line + 3 * side + LDLQ_BLOCK * (h + LDLQ_BLOCK);

	t->w = mem_alloc_aligned(total, sizeof(*t->w));
	t->codes = mem_alloc_aligned(line, 1);
	t->loss = mem_alloc_aligned(h, sizeof(*t->loss));
	if (!t->w || !t->codes || !t->loss)
		return -1;
	t->e = t->w + line;
	t->scale = t->e + line;
	t->inverse = t->scale + side;
	t->zero = t->inverse + side;
	t->target = t->zero + side;
	t->u = t->target + LDLQ_BLOCK * h;
	return 0;
}

static int prepare(struct ldlq_job *job, int workers, struct err *err)
{
	bool ok;

	job->place = mem_alloc(job->cols, sizeof(*job->place));
	job->tiles = mem_alloc((size_t)workers, sizeof(*job->tiles));
	ok = job->place && job->tiles;
	for (int i = 0; ok && i < workers; i++)
		ok = new_tile(job, &job->tiles[i]) == 0;
	if (!ok)
		return err_set_nomem(err, "tiles for rounding");
	for (size_t j = 0; j < job->cols; j++)
		job->place[job->perm[j]] = (int32_t)j;
	return 0;
}

int cpu_round_ldlq(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		   size_t cols, const int32_t *perm, const float *u, const double *pivots,
		   const float *scales, const float *zeros, uint8_t *codes, double *row_loss,
		   struct err *err)
{
	struct cpu_backend *cpu = cpu_of(be);
	const int workers = pool_workers(cpu->pool);
	const size_t share = ceil_div(ceil_div(rows, TILE_SHARE), LDLQ_LANES) * LDLQ_LANES;
	struct ldlq_job job = {
		.k = kernel_tables[cpu->level], .grid = grid, .w = w, .u = u,
		.pivots = row_loss ? pivots : NULL, .row_loss = row_loss, .scales = scales,
		.zeros = zeros, .rows = rows, .cols = cols, .groups = cols / grid->group,
		.height = share > TILE_MAX ? TILE_MAX : share, .perm = perm, .codes = codes,
	};
	int rc = 0;

	if (rows == 0 || cols == 0)
		return 0;
	atomic_init(&job.failed, 0);
	rc = prepare(&job, workers, err);
	if (rc == 0)
		pool_run(cpu->pool, ceil_div(rows, job.height), round_tile, &job);
	if (rc == 0 && atomic_load(&job.failed))
		rc = err_set(err, ERR_NUMERIC, "rounding row %zu with error feedback is not finite",
			     atomic_load(&job.failed) - 1);
	free_tiles(job.tiles, workers);
	mem_free(job.place);
	return rc;
}
