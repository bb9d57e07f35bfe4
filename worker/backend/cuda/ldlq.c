/* LDLQ in column blocks: one launch rounds a block of all rows, one product carries its errors to later columns.
 *
 * After block i (counted from 1) the errors of the last 2^t blocks, 2^t the largest power of two that divides i, are
 * added to the next 2^t blocks: each pair of an earlier and a later block is met exactly once, and the products
 * double in size as they become rarer. K / 128 products pass over each target log2(K / 128) / 2 times; adding every
 * block at once to all that follow would pass over it K / 256 times.
 * The first product that meets a column writes its feedback, so nothing has to be cleared. Errors lie transposed, one
 * column after the other, which makes those of any run of columns one array to split.
 * Rows are independent; they go in chunks that bound the scratch: at most 13 bytes per weight of a chunk.
 */
#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_ldlq.h"
#include "worker/backend/cuda/product.h"
#include "worker/backend/shape.h"

enum { CHUNK_WEIGHTS = 1 << 27 };

struct ldlq_job {
	struct cuda_frame *f;
	struct cuda_ldlq_block block;   /* of the chunk */
	struct cuda_operand u;          /* (cols, cols) */
	float *feedback;
	int32_t *place;                 /* (cols) inverse of perm */
};

static size_t round_up(size_t n, size_t step)
{
	return (n + step - 1) / step * step;
}

/* Chunks of nearly the same height. */
static size_t chunk_height(size_t rows, size_t cols)
{
	const size_t chunks = rows * cols / CHUNK_WEIGHTS + 1;

	return round_up((rows + chunks - 1) / chunks, CUDA_LDLQ_ROWS);
}

/* Columns before `done` are rounded: what falls due now of their errors goes to those behind. */
static void add_feedback(struct ldlq_job *job, size_t done)
{
	const struct cuda_ldlq_block *b = &job->block;
	const size_t blocks = done / CUDA_LDLQ_BLOCK, span = (blocks & (~blocks + 1)) * CUDA_LDLQ_BLOCK;
	const size_t left = b->cols - done, mark = cuda_mark(job->f);
	const struct cuda_product product = {
		.form = CUDA_TN, .m = b->rows, .n = left < span ? left : span, .k = span,
		.a = cuda_split(job->f, b->errors + (done - span) * b->height, span * b->height),
		.lda = b->height, .b = cuda_operand_at(job->u, (done - span) * b->cols + done), .ldb = b->cols,
		.c = job->feedback + done, .ldc = b->wide, .alpha = 1, .beta = span == done ? 0 : 1,
	};

	if (cuda_ok(job->f))
		cuda_multiply(job->f, &product);
	cuda_drop(job->f, mark);
}

static void round_chunk(struct ldlq_job *job, uint8_t *codes)
{
	const cudaStream_t stream = job->f->cuda->stream;
	struct cuda_ldlq_block *b = &job->block;

	for (b->first = 0; b->first < b->cols && cuda_ok(job->f); b->first += CUDA_LDLQ_BLOCK) {
		cuda_try(job->f, cuda_ldlq_block_launch(stream, b));
		if (b->cols - b->first > CUDA_LDLQ_BLOCK)
			add_feedback(job, b->first + CUDA_LDLQ_BLOCK);
	}
	if (cuda_ok(job->f))
		cuda_try(job->f, cuda_ldlq_codes_launch(stream, b->codes, b->wide, job->place, b->rows, b->cols,
							codes));
}

static void prepare(struct ldlq_job *job)
{
	struct cuda_ldlq_block *b = &job->block;
	struct cuda_frame *f = job->f;

	job->place = cuda_take(f, b->cols * sizeof(*job->place));
	b->feedback = job->feedback = cuda_take(f, b->height * b->wide * sizeof(*job->feedback));
	b->errors = cuda_take(f, b->height * b->cols * sizeof(*b->errors));
	b->codes = cuda_take(f, b->height * b->wide);
	b->bad = cuda_bad(f);
	job->u = cuda_split(f, b->u, b->cols * b->cols);
	if (cuda_ok(f))
		cuda_try(f, cuda_ldlq_place_launch(f->cuda->stream, b->perm, b->cols, job->place));
}

/* The block moves on over all rows, chunk by chunk. */
static void round_rows(struct ldlq_job *job, size_t rows, uint8_t *codes)
{
	struct cuda_ldlq_block *b = &job->block;
	const size_t groups = b->cols / b->group;

	for (size_t r = 0; r < rows && cuda_ok(job->f); r += b->height) {
		b->rows = rows - r < b->height ? rows - r : b->height;
		round_chunk(job, codes + r * b->cols);
		b->w += b->height * b->cols;
		b->scales += b->height * groups;
		b->zeros += b->height * groups;
		if (b->row_loss)
			b->row_loss += b->height;
	}
}

int cuda_round_ldlq(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
		    const int32_t *perm, const float *u, const double *pivots, const float *scales,
		    const float *zeros, uint8_t *codes, double *row_loss, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "rounding with error feedback", err);
	struct ldlq_job job = { .f = &f };
	size_t groups;
	uint8_t *codes_d;

	if (grid_shape_check("round_ldlq", grid, rows, cols, err) != 0 ||
	    matrix_shape_check("round_ldlq", cols, cols, err) != 0)
		return -1;
	if (rows == 0)
		return 0;
	groups = cols / grid->group;
	job.block = (struct cuda_ldlq_block){
		.w = cuda_in(&f, w, rows * cols * sizeof(*w)), .cols = cols, .group = grid->group,
		.perm = cuda_in(&f, perm, cols * sizeof(*perm)), .u = cuda_in(&f, u, cols * cols * sizeof(*u)),
		.pivots = row_loss ? cuda_in(&f, pivots, cols * sizeof(*pivots)) : NULL,
		.scales = cuda_in(&f, scales, rows * groups * sizeof(*scales)),
		.zeros = cuda_in(&f, zeros, rows * groups * sizeof(*zeros)),
		.top = (float)((1 << grid->bits) - 1), .wide = round_up(cols, CUDA_LDLQ_BLOCK),
		.height = chunk_height(rows, cols), .row_loss = cuda_out(&f, row_loss, rows * sizeof(*row_loss)),
	};
	codes_d = cuda_out(&f, codes, rows * cols);
	if (cuda_ok(&f))
		prepare(&job);
	if (cuda_ok(&f))
		round_rows(&job, rows, codes_d);
	return cuda_end(&f);
}
