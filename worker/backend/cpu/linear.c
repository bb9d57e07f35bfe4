/* One item = one row tile times one column tile: a single-threaded sgemm and its epilogue. */
#include "worker/backend/cpu/linear.h"

#include <cblas.h>
#include <string.h>

#include "worker/backend/cpu/kernels.h"

enum { MLP_TILE = 256 };

struct linear_job {
	struct cpu_backend *cpu;
	const struct row_tiles *tiles;
	const float *x;
	size_t k;
	const struct linear *maps;
	size_t count, tiles_per_row;    /* column tiles of all maps */
	atomic_bool *bad;
};

/* Heads are not cut. */
static size_t col_tile(const struct linear *map)
{
	if (!map->rope || map->head_dim >= COL_TILE)
		return map->rope ? map->head_dim : COL_TILE;
	return COL_TILE / map->head_dim * map->head_dim;
}

/* What the product is added to; false when that is nothing. */
static bool prepare_row(const struct linear *map, const struct forward_kernels *kernels, size_t row,
			size_t col, size_t n)
{
	float *out = map->out + row * map->n + col;
	const float *from = map->residual ? map->residual + row * map->n + col : NULL;

	if (from && from != out)
		memcpy(out, from, n * sizeof(*out));
	if (!map->bias)
		return from != NULL;
	if (from)
		kernels->add(out, map->bias + col, n);
	else
		memcpy(out, map->bias + col, n * sizeof(*out));
	return true;
}

static void turn_row(const struct linear *map, const struct forward_kernels *kernels, float *row,
		     size_t n, size_t position)
{
	const size_t half = map->head_dim / 2, at = position * half;

	for (float *head = row; head < row + n; head += map->head_dim) {
		if (map->norm)
			kernels->rms_norm(head, map->norm, map->eps, map->head_dim, head);
		kernels->rope(head, map->rope->cos + at, map->rope->sin + at, half);
	}
}

static void linear_tile(const struct linear_job *job, const struct linear *map, struct row_tile tile,
			size_t col, size_t n)
{
	const struct forward_kernels *kernels = job->cpu->forward;
	float *out = map->out + tile.first * map->n + col;
	bool add = false, good = true;

	for (size_t r = 0; r < tile.rows; r++)
		add = prepare_row(map, kernels, tile.first + r, col, n);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)tile.rows, (int)n, (int)job->k, 1.0f,
		    job->x + tile.first * job->k, (int)job->k, map->w + col * job->k, (int)job->k,
		    add ? 1.0f : 0.0f, out, (int)map->n);
	for (size_t r = 0; r < tile.rows; r++) {
		if (map->rope)
			turn_row(map, kernels, out + r * map->n, n, tile.position + r);
		good = kernels->finite(out + r * map->n, n) && good;
	}
	if (!good)
		atomic_store_explicit(job->bad, true, memory_order_relaxed);
}

static void linear_item(void *ctx, size_t item, int worker)
{
	const struct linear_job *job = ctx;
	const struct linear *map = job->maps;
	const struct row_tile tile = row_tile_at(job->tiles, item / job->tiles_per_row);
	size_t index = item % job->tiles_per_row, width;

	(void)worker;
	while (index >= ceil_div(map->n, col_tile(map))) {
		index -= ceil_div(map->n, col_tile(map));
		map++;
	}
	width = col_tile(map);
	linear_tile(job, map, tile, index * width, tile_length(map->n, width, index));
}

void cpu_linear(struct cpu_backend *cpu, const struct row_tiles *tiles, const float *x, size_t k,
		const struct linear *maps, size_t count, atomic_bool *bad)
{
	struct linear_job job = { .cpu = cpu, .tiles = tiles, .x = x, .k = k, .maps = maps,
				  .count = count, .bad = bad };

	for (size_t i = 0; i < count; i++)
		job.tiles_per_row += ceil_div(maps[i].n, col_tile(&maps[i]));
	pool_run(cpu->pool, tiles->count * job.tiles_per_row, linear_item, &job);
}

struct swiglu_job {
	struct cpu_backend *cpu;
	const struct row_tiles *tiles;
	const float *x;
	size_t k;
	const struct swiglu *mlp;
	float *d, *scratch;
	size_t tiles_per_row;
	atomic_bool *bad;
};

/* out (rows, n) of row stride ld = x w' + bias for n columns of w from `col` on. */
static void project(const struct swiglu_job *job, struct row_tile tile, const float *w,
		    const float *bias, size_t col, size_t n, float *out, size_t ld)
{
	for (size_t r = 0; bias && r < tile.rows; r++)
		memcpy(out + r * ld, bias + col, n * sizeof(*out));
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)tile.rows, (int)n, (int)job->k, 1.0f,
		    job->x + tile.first * job->k, (int)job->k, w + col * job->k, (int)job->k,
		    bias ? 1.0f : 0.0f, out, (int)ld);
}

static void swiglu_item(void *ctx, size_t item, int worker)
{
	const struct swiglu_job *job = ctx;
	const struct swiglu *mlp = job->mlp;
	const struct row_tile tile = row_tile_at(job->tiles, item / job->tiles_per_row);
	const size_t index = item % job->tiles_per_row, col = index * MLP_TILE;
	const size_t n = tile_length(mlp->n, MLP_TILE, index);
	float *gate = job->scratch + (size_t)worker * cpu_swiglu_scratch();
	float *up = job->d + tile.first * mlp->n + col;
	bool good = true;

	project(job, tile, mlp->gate, mlp->gate_bias, col, n, gate, n);
	project(job, tile, mlp->up, mlp->up_bias, col, n, up, mlp->n);
	for (size_t r = 0; r < tile.rows; r++) {
		job->cpu->forward->swiglu(gate + r * n, up + r * mlp->n, n);
		good = job->cpu->forward->finite(up + r * mlp->n, n) && good;
	}
	if (!good)
		atomic_store_explicit(job->bad, true, memory_order_relaxed);
}

void cpu_swiglu(struct cpu_backend *cpu, const struct row_tiles *tiles, const float *x, size_t k,
		const struct swiglu *mlp, float *d, float *scratch, atomic_bool *bad)
{
	struct swiglu_job job = { .cpu = cpu, .tiles = tiles, .x = x, .k = k, .mlp = mlp, .d = d,
				  .scratch = scratch, .bad = bad,
				  .tiles_per_row = ceil_div(mlp->n, MLP_TILE) };

	pool_run(cpu->pool, tiles->count * job.tiles_per_row, swiglu_item, &job);
}

size_t cpu_swiglu_scratch(void)
{
	return (size_t)ROW_TILE * MLP_TILE;
}
