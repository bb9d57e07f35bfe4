/* One item = one tile of an output and everything that is summed into it. */
#include "worker/backend/cpu/backward_linear.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/kernels_train.h"
#include "worker/backend/cpu/tiles.h"

/* Columns of a tile: of dx, of gate and up, of dw (its rows and columns), of a bias. */
enum { DX_COLS = 512, MLP_COLS = 512, DW_ROWS = 512, DW_COLS = 512, BIAS_COLS = 128 };

static void say_bad(atomic_bool *bad)
{
	atomic_store_explicit(bad, true, memory_order_relaxed);
}

/* --- gradients of inputs -------------------------------------------------------------------- */

struct input_job {
	const struct linear_back *maps;
	size_t count, rows, per_row;
	float *dx;
};

static void input_item(void *ctx, size_t item, int worker)
{
	const struct input_job *job = ctx;
	const size_t k = job->maps->k, row = item / job->per_row * BACK_ROWS;
	const size_t col = item % job->per_row * DX_COLS;
	const size_t rows = tile_length(job->rows, BACK_ROWS, item / job->per_row);
	const size_t cols = tile_length(k, DX_COLS, item % job->per_row);

	(void)worker;
	for (size_t i = 0; i < job->count; i++) {
		const struct linear_back *map = &job->maps[i];

		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)cols, (int)map->n,
			    1.0f, map->dy + row * map->n, (int)map->n, map->w + col, (int)k,
			    i ? 1.0f : 0.0f, job->dx + row * k + col, (int)k);
	}
}

void cpu_linear_back(struct cpu_backend *cpu, const struct linear_back *maps, size_t count, size_t rows,
		     float *dx)
{
	struct input_job job = { .maps = maps, .count = count, .rows = rows,
				 .per_row = ceil_div(maps->k, DX_COLS), .dx = dx };

	pool_run(cpu->pool, ceil_div(rows, BACK_ROWS) * job.per_row, input_item, &job);
}

/* --- gradients of weights and biases ---------------------------------------------------------- */

struct gradient_job {
	const struct forward_kernels *kernels;
	const struct linear_back *maps;
	size_t count, rows;
	bool add, last;
	atomic_bool *bad;
};

static size_t weight_tiles(const struct linear_back *map)
{
	return map->dw ? ceil_div(map->n, DW_ROWS) * ceil_div(map->k, DW_COLS) : 0;
}

static size_t bias_tiles(const struct linear_back *map)
{
	return map->dbias ? ceil_div(map->n, BIAS_COLS) : 0;
}

static void weight_tile(const struct gradient_job *job, const struct linear_back *map, size_t index)
{
	const size_t wide = ceil_div(map->k, DW_COLS);
	const size_t top = index / wide * DW_ROWS, left = index % wide * DW_COLS;
	const size_t high = tile_length(map->n, DW_ROWS, index / wide);
	const size_t cols = tile_length(map->k, DW_COLS, index % wide);
	float *dw = map->dw + top * map->k + left;
	bool good = true;

	cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)high, (int)cols, (int)job->rows, 1.0f,
		    map->dy + top, (int)map->n, map->x + left, (int)map->k, job->add ? 1.0f : 0.0f, dw,
		    (int)map->k);
	for (size_t r = 0; job->last && r < high; r++)
		good = job->kernels->finite(dw + r * map->k, cols) && good;
	if (!good)
		say_bad(job->bad);
}

static void bias_tile(const struct gradient_job *job, const struct linear_back *map, size_t index)
{
	const size_t left = index * BIAS_COLS, cols = tile_length(map->n, BIAS_COLS, index);
	float sum[BIAS_COLS] = { 0 };

	for (size_t r = 0; r < job->rows; r++)
		job->kernels->add(sum, map->dy + r * map->n + left, cols);
	if (job->add)
		job->kernels->add(sum, map->dbias + left, cols);
	memcpy(map->dbias + left, sum, cols * sizeof(*sum));
	if (!job->kernels->finite(sum, cols))
		say_bad(job->bad);
}

static void gradient_item(void *ctx, size_t item, int worker)
{
	const struct gradient_job *job = ctx;
	const struct linear_back *map = job->maps;

	(void)worker;
	while (item >= weight_tiles(map) + bias_tiles(map)) {
		item -= weight_tiles(map) + bias_tiles(map);
		map++;
	}
	if (item < weight_tiles(map))
		weight_tile(job, map, item);
	else
		bias_tile(job, map, item - weight_tiles(map));
}

void cpu_linear_gradients(struct cpu_backend *cpu, const struct linear_back *maps, size_t count, size_t rows,
			  bool add, bool last, atomic_bool *bad)
{
	struct gradient_job job = { .kernels = cpu->forward, .maps = maps, .count = count, .rows = rows,
				    .add = add, .last = last, .bad = bad };
	size_t items = 0;

	for (size_t i = 0; i < count; i++)
		items += weight_tiles(&maps[i]) + bias_tiles(&maps[i]);
	pool_run(cpu->pool, items, gradient_item, &job);
}

/* --- SwiGLU --------------------------------------------------------------------------------- */

struct swiglu_job {
	struct cpu_backend *cpu;
	const struct swiglu_back *mlp;
	const float *in;        /* x, or dy */
	size_t rows, per_row;
	atomic_bool *bad;
};

struct mlp_tile { size_t row, rows, col, cols; };

static struct mlp_tile mlp_tile_at(const struct swiglu_job *job, size_t item)
{
	const size_t i = item / job->per_row, j = item % job->per_row;

	return (struct mlp_tile){ i * BACK_ROWS, tile_length(job->rows, BACK_ROWS, i), j * MLP_COLS,
				  tile_length(job->mlp->n, MLP_COLS, j) };
}

static void project(const struct swiglu_job *job, struct mlp_tile t, const float *w, const float *bias,
		    float *out)
{
	const size_t n = job->mlp->n, k = job->mlp->hidden;

	out += t.row * n + t.col;
	for (size_t r = 0; bias && r < t.rows; r++)
		memcpy(out + r * n, bias + t.col, t.cols * sizeof(*out));
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)t.rows, (int)t.cols, (int)k, 1.0f,
		    job->in + t.row * k, (int)k, w + t.col * k, (int)k, bias ? 1.0f : 0.0f, out, (int)n);
}

static void keep_item(void *ctx, size_t item, int worker)
{
	const struct swiglu_job *job = ctx;
	const struct swiglu_back *mlp = job->mlp;
	const struct mlp_tile t = mlp_tile_at(job, item);
	bool good = true;

	(void)worker;
	project(job, t, mlp->w_gate, mlp->gate_bias, mlp->gate);
	project(job, t, mlp->w_up, mlp->up_bias, mlp->up);
	for (size_t r = t.row; r < t.row + t.rows; r++) {
		const size_t at = r * mlp->n + t.col;

		job->cpu->train->swiglu(mlp->gate + at, mlp->up + at, mlp->d + at, t.cols);
		good = job->cpu->forward->finite(mlp->d + at, t.cols) && good;
	}
	if (!good)
		say_bad(job->bad);
}

static void swiglu_back_item(void *ctx, size_t item, int worker)
{
	const struct swiglu_job *job = ctx;
	const struct swiglu_back *mlp = job->mlp;
	const struct mlp_tile t = mlp_tile_at(job, item);
	float *dd = mlp->scratch + (size_t)worker * cpu_swiglu_back_scratch();

	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)t.rows, (int)t.cols, (int)mlp->hidden,
		    1.0f, job->in + t.row * mlp->hidden, (int)mlp->hidden, mlp->w_down + t.col,
		    (int)mlp->n, 0.0f, dd, (int)t.cols);
	for (size_t r = 0; r < t.rows; r++) {
		const size_t at = (t.row + r) * mlp->n + t.col;

		job->cpu->train->swiglu_backward(mlp->gate + at, mlp->up + at, dd + r * t.cols, t.cols);
	}
}

static void run_swiglu(struct cpu_backend *cpu, const struct swiglu_back *mlp, const float *in, size_t rows,
		       pool_fn item, atomic_bool *bad)
{
	struct swiglu_job job = { .cpu = cpu, .mlp = mlp, .in = in, .rows = rows,
				  .per_row = ceil_div(mlp->n, MLP_COLS), .bad = bad };

	pool_run(cpu->pool, ceil_div(rows, BACK_ROWS) * job.per_row, item, &job);
}

void cpu_swiglu_keep(struct cpu_backend *cpu, const struct swiglu_back *mlp, const float *x, size_t rows,
		     atomic_bool *bad)
{
	run_swiglu(cpu, mlp, x, rows, keep_item, bad);
}

void cpu_swiglu_back(struct cpu_backend *cpu, const struct swiglu_back *mlp, const float *dy, size_t rows)
{
	run_swiglu(cpu, mlp, dy, rows, swiglu_back_item, NULL);
}

size_t cpu_swiglu_back_scratch(void)
{
	return (size_t)BACK_ROWS * MLP_COLS;
}

/* --- RMSNorm -------------------------------------------------------------------------------- */

struct norm_job {
	struct cpu_backend *cpu;
	const struct norm_back *norm;
	size_t rows;
	atomic_bool *bad;
};

static void norm_item(void *ctx, size_t item, int worker)
{
	const struct norm_job *job = ctx;
	const struct norm_back *n = job->norm;
	const size_t first = item * NORM_ROWS, end = first + tile_length(job->rows, NORM_ROWS, item);
	float *share = n->shares ? n->shares + item * n->cols : NULL;
	bool good = true;

	(void)worker;
	if (share)
		memset(share, 0, n->cols * sizeof(*share));
	for (size_t r = first; r < end; r++) {
		const size_t at = r * n->cols;

		job->cpu->train->norm_backward(n->x + at, n->weight, n->eps, n->cols, n->dy + at,
					       n->add ? n->add + at : NULL, n->dx + at, share);
		good = job->cpu->forward->finite(n->dx + at, n->cols) && good;
	}
	if (!good)
		say_bad(job->bad);
}

size_t norm_back_shares(size_t rows)
{
	return ceil_div(rows, NORM_ROWS);
}

void cpu_norm_back(struct cpu_backend *cpu, const struct norm_back *norm, size_t rows, atomic_bool *bad)
{
	struct norm_job job = { .cpu = cpu, .norm = norm, .rows = rows, .bad = bad };

	pool_run(cpu->pool, norm_back_shares(rows), norm_item, &job);
}

void cpu_sum_shares(const float *shares, size_t count, size_t n, bool add, float *total, atomic_bool *bad)
{
	for (size_t i = 0; i < n; i++) {
		double sum = add ? total[i] : 0;

		for (size_t s = 0; s < count; s++)
			sum += shares[s * n + i];
		total[i] = (float)sum;
		if (!isfinite(total[i]))
			say_bad(bad);
	}
}
