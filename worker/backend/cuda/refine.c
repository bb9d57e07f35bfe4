/* One round of refinement on chunks of rows (ref/refine.c is the specification, kernels_refine.h the device's part).
 *
 * Rows are independent. A e of a chunk is one product, and is made three times: for the sweep over the codes and the loss
 * before, for the least squares, for the loss after. The sweep is one launch for all rows. Groups are fitted one
 * after the other, narrow ones a block of columns at a time, and the change of their values goes to the columns behind by a
 * product.
 * Scratch: A as float32, in parts for products and as correlations, 10 bytes per entry when it is large; a chunk of
 * rows, about 20 bytes per weight of it.
 */
#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_refine.h"
#include "worker/backend/cuda/product.h"
#include "worker/backend/shape.h"

enum { CHUNK_WEIGHTS = 1 << 26 };

struct refine_job {
	struct cuda_frame *f;
	const struct grid *grid;
	struct refine_metric metric;
	struct cuda_operand a;          /* (cols, cols) */
	struct refine_rows rows;        /* of the chunk */
	size_t height;                  /* rows of a full chunk */
	float *product, *space;         /* of fit and sweep */
};

static cudaStream_t stream_of(const struct refine_job *job)
{
	return job->f->cuda->stream;
}

/* Chunks of nearly the same height. */
static size_t chunk_height(size_t rows, size_t cols)
{
	const size_t chunks = rows * cols / CHUNK_WEIGHTS + 1;

	return (rows + chunks - 1) / chunks;
}

/* --- products ----------------------------------------------------------------------------------- */

/* out (rows, wide) = x (rows, deep) A_part, or -= when factor is -1; A_part (deep, wide) begins at row `from` and column
 * `first`. A is symmetric, which is why it may be given transposed. */
static void multiply(struct refine_job *job, const float *x, size_t deep, size_t from, size_t first, size_t wide,
		     float factor, float *out, size_t out_stride)
{
	struct cuda_frame *f = job->f;
	const size_t cols = job->metric.cols, mark = cuda_mark(f);
	const struct cuda_product product = {
		.form = CUDA_NT, .m = job->rows.rows, .n = wide, .k = deep,
		.a = cuda_split(f, x, job->rows.rows * deep), .lda = deep,
		.b = cuda_operand_at(job->a, first * cols + from), .ldb = cols,
		.c = out, .ldc = out_stride, .alpha = factor, .beta = factor < 0 ? 1 : 0,
	};

	if (cuda_ok(f))
		cuda_multiply(f, &product);
	cuda_drop(f, mark);
}

/* r = A e, from q, s and z. */
static void make_r(struct refine_job *job)
{
	const size_t cols = job->rows.cols;

	if (cuda_try(job->f, refine_errors_launch(stream_of(job), &job->rows)))
		multiply(job, job->rows.e, cols, 0, 0, cols, 1, job->rows.r, cols);
}

/* --- a chunk ------------------------------------------------------------------------------------ */

static void sweep(struct refine_job *job)
{
	const struct refine_metric *m = &job->metric;
	const struct refine_rows *o = &job->rows;
	const struct refine_sweep s = {
		.rows = o->rows, .cols = o->cols, .stride = m->stride, .group = o->group, .groups = o->groups,
		.perm = m->perm, .likeness = m->likeness, .root = m->root, .inverse = m->inverse, .r = o->r, .s = o->s,
		.unit = o->unit, .q = o->q, .top = (1 << job->grid->bits) - 1, .space = job->space,
	};

	if (cuda_ok(job->f))
		cuda_try(job->f, refine_sweep_launch(stream_of(job), &s));
}

/* Columns of the groups that are fitted together. */
static size_t fit_columns(size_t cols, size_t group)
{
	const size_t together = group < REFINE_BLOCK ? REFINE_BLOCK / group * group : group;

	return together < cols ? together : cols;
}

static void fit_columns_from(struct refine_job *job, size_t first, size_t wide)
{
	const struct refine_rows *o = &job->rows;
	const struct refine_fit fit = {
		.rows = o->rows, .cols = o->cols, .group = o->group, .groups = o->groups, .first = first, .wide = wide,
		.a = job->metric.a, .ones = job->metric.ones, .group_ones = job->metric.group_ones, .q = o->q, .r = o->r,
		.s = o->s, .z = o->z, .unit = o->unit, .before = o->before, .product = job->product, .x = o->e,
		.grid = *job->grid,
	};
	const size_t end = first + wide;

	if (wide <= REFINE_BLOCK) {
		cuda_try(job->f, refine_fit_block_launch(stream_of(job), &fit));
	} else if (cuda_try(job->f, refine_codes_launch(stream_of(job), &fit))) {
		multiply(job, fit.x, wide, first, first, wide, 1, fit.product, wide);
		if (cuda_ok(job->f))
			cuda_try(job->f, refine_fit_wide_launch(stream_of(job), &fit));
	}
	if (cuda_ok(job->f) && end < o->cols)
		multiply(job, fit.x, wide, first, end, o->cols - end, -1, o->r + end, o->cols);
}

static void refine_chunk(struct refine_job *job)
{
	const struct refine_rows *o = &job->rows;
	const size_t step = fit_columns(o->cols, o->group);
	struct cuda_frame *f = job->f;

	cuda_try(f, refine_load_launch(stream_of(job), o));
	if (cuda_ok(f))
		make_r(job);
	if (cuda_ok(f))
		cuda_try(f, refine_losses_launch(stream_of(job), o, o->before, true));
	sweep(job);
	if (cuda_ok(f))
		make_r(job);
	for (size_t first = 0; first < o->cols && cuda_ok(f); first += step)
		fit_columns_from(job, first, o->cols - first < step ? o->cols - first : step);
	if (cuda_ok(f))
		make_r(job);
	if (cuda_ok(f) && cuda_try(f, refine_losses_launch(stream_of(job), o, o->after, false)))
		cuda_try(f, refine_store_launch(stream_of(job), o));
}

static void refine_chunks(struct refine_job *job, size_t rows)
{
	struct refine_rows *o = &job->rows;

	for (size_t first = 0; first < rows && cuda_ok(job->f); first += job->height) {
		o->rows = rows - first < job->height ? rows - first : job->height;
		refine_chunk(job);
		o->w += job->height * o->cols;
		o->codes += job->height * o->cols;
		o->scales += job->height * o->groups;
		o->zeros += job->height * o->groups;
		o->row_loss += job->height;
	}
}

/* --- memory ------------------------------------------------------------------------------------- */

static void make_metric(struct refine_job *job, const struct grid *grid)
{
	struct refine_metric *m = &job->metric;
	struct cuda_frame *f = job->f;

	m->group = grid->group;
	m->stride = (m->cols + REFINE_CHUNK - 1) / REFINE_CHUNK * REFINE_CHUNK;
	m->unit = cuda_take(f, sizeof(*m->unit));
	m->a = cuda_take(f, m->cols * m->cols * sizeof(*m->a));
	m->ones = cuda_take(f, m->cols * sizeof(*m->ones));
	m->group_ones = cuda_take(f, m->cols / m->group * sizeof(*m->group_ones));
	m->root = cuda_take(f, m->stride * sizeof(*m->root));
	m->inverse = cuda_take(f, m->stride * sizeof(*m->inverse));
	m->likeness = cuda_take(f, m->cols * m->stride * (refine_is_brief(m->cols) ? sizeof(uint16_t) : sizeof(float)));
	if (cuda_ok(f))
		cuda_try(f, refine_metric_launch(stream_of(job), m));
	if (cuda_ok(f))
		job->a = cuda_split(f, m->a, m->cols * m->cols);
}

static void take_chunk(struct refine_job *job)
{
	const size_t height = job->height, wide = fit_columns(job->rows.cols, job->rows.group);
	const size_t cells = height * job->rows.cols, sides = height * job->rows.groups;
	struct refine_rows *o = &job->rows;
	struct cuda_frame *f = job->f;

	o->q = cuda_take(f, cells);
	o->s = cuda_take(f, sides * sizeof(*o->s));
	o->z = cuda_take(f, sides * sizeof(*o->z));
	o->e = cuda_take(f, cells * sizeof(*o->e));
	o->r = cuda_take(f, cells * sizeof(*o->r));
	o->unit = cuda_take(f, height * sizeof(*o->unit));
	o->before = cuda_take(f, height * sizeof(*o->before));
	o->after = cuda_take(f, height * sizeof(*o->after));
	o->metric_unit = job->metric.unit;
	o->bad = cuda_bad(f);
	if (wide > REFINE_BLOCK)
		job->product = cuda_take(f, height * wide * sizeof(*job->product));
	job->space = cuda_take(f, refine_sweep_space(height, job->metric.stride));
}

int cuda_refine(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
		const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales,
		float *zeros, double *row_loss, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "refinement", err);
	struct refine_job job = { .f = &f, .grid = grid, .height = cols > 0 ? chunk_height(rows, cols) : 0 };
	size_t groups;

	if (rows == 0 || cols == 0)
		return 0;
	if (grid_shape_check("refine", grid, rows, cols, err) != 0 ||
	    matrix_shape_check("refine", cols, cols, err) != 0)
		return -1;
	groups = cols / grid->group;
	job.metric = (struct refine_metric){
		.h = cuda_in(&f, h, cols * cols * sizeof(*h)), .damp = damp, .cols = cols,
		.perm = cuda_in(&f, perm, cols * sizeof(*perm)),
	};
	job.rows = (struct refine_rows){
		.cols = cols, .group = grid->group, .groups = groups,
		.w = cuda_in(&f, w, rows * cols * sizeof(*w)), .codes = cuda_inout(&f, codes, rows * cols),
		.scales = cuda_inout(&f, scales, rows * groups * sizeof(*scales)),
		.zeros = cuda_inout(&f, zeros, rows * groups * sizeof(*zeros)),
		.row_loss = cuda_out(&f, row_loss, rows * sizeof(*row_loss)),
	};
	if (cuda_ok(&f))
		make_metric(&job, grid);
	if (cuda_ok(&f))
		take_chunk(&job);
	if (cuda_ok(&f))
		refine_chunks(&job, rows);
	return cuda_end(&f);
}
