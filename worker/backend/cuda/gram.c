/* gram_add of the cuda backend: halves on the tensor cores, sums in double.
 *
 * Every column of a pass is scaled by a power of two and cut into two halves x = high + low (product.c on why halves),
 * so that the error of h_ij is relative to columns i and j and not to the largest one. The three products of parts are
 * one product of longer columns: of each run of GRAM_RUN rows the parts are stored one below the other,
 *
 *	high, low, high, high:   (low, high, high)^T (high, low, high) = low^T high + high^T low + high^T high
 *
 * where both sides are three neighbouring parts, one part apart. That way a product is written once, in float32, and all
 * runs of a pass are one batch; another kernel adds them up in double, into h and its mirror image. Only column panels
 * from the diagonal on downwards are multiplied. Bytes per entry of h and pass of 16 runs: 16 * (4 + 4) for the products,
 * 24 for h, about a quarter of the time of the products themselves; 16 per element of x.
 */
#include "worker/backend/cuda/kernels_gram.h"
#include "worker/backend/cuda/product_kinds.h"
#include "worker/backend/shape.h"

enum { PANEL = 512, PARTS = 3 };

/* The halves of a pass take at most so much, unless one run alone is more. */
static const size_t pass_bytes = (size_t)2 << 30;

static size_t pass_rows(size_t cols)
{
	const size_t fit = pass_bytes / (GRAM_COPIES * sizeof(uint16_t) * cols) / GRAM_RUN * GRAM_RUN;

	return fit < GRAM_RUN ? GRAM_RUN : fit < GRAM_PASS_MAX ? fit : GRAM_PASS_MAX;
}

/* Products of `runs` runs of `length` rows each, whose halves begin at `halves`. */
static void multiply_runs(struct cuda_frame *f, const uint16_t *halves, size_t cols, size_t first, size_t n, size_t length,
			  size_t runs, float *products)
{
	const size_t part = length * cols, m = cols - first;
	const struct cuda_product p = {
		.form = CUDA_TN, .m = m, .n = n, .k = PARTS * length,
		.a = { .high = halves + part + first }, .b = { .high = halves + first },
		.lda = cols, .ldb = cols, .c = products, .alpha = 1, .batch = runs,
		.a_stride = (long long)(GRAM_COPIES * part), .b_stride = (long long)(GRAM_COPIES * part),
		.c_stride = (long long)(m * n),
	};

	cuda_multiply_as(f, CUDA_F16, &p);
}

/* Columns first .. first + n - 1 of h, from their diagonal on downwards. */
static void add_panel(struct cuda_frame *f, const struct gram_rows *g, size_t first, size_t n, float *products, double *h)
{
	const size_t whole = g->rows / GRAM_RUN, rest = g->rows % GRAM_RUN, m = g->cols - first;
	const struct gram_fold fold = {
		.products = products, .runs = (int)(whole + (rest > 0)), .m = m, .n = n, .first = first, .cols = g->cols,
		.back = g->back, .h = h, .bad = cuda_bad(f),
	};

	if (whole > 0)
		multiply_runs(f, g->halves, g->cols, first, n, GRAM_RUN, whole, products);
	if (rest > 0)
		multiply_runs(f, g->halves + GRAM_COPIES * whole * GRAM_RUN * g->cols, g->cols, first, n, rest, 1,
			      products + whole * m * n);
	if (cuda_ok(f))
		cuda_try(f, cuda_gram_fold_launch(f->cuda->stream, &fold));
}

static void add_pass(struct cuda_frame *f, const float *x, size_t rows, size_t cols, double *h)
{
	const size_t mark = cuda_mark(f), chunks = (rows + GRAM_CHUNK - 1) / GRAM_CHUNK;
	const size_t runs = (rows + GRAM_RUN - 1) / GRAM_RUN, panel = cols < PANEL ? cols : PANEL;
	struct gram_rows g = { .x = cuda_in(f, x, rows * cols * sizeof(*x)), .rows = rows, .cols = cols };
	float *products;

	g.largest = cuda_take(f, chunks * cols * sizeof(*g.largest));
	g.power = cuda_take(f, cols * sizeof(*g.power));
	g.back = cuda_take(f, cols * sizeof(*g.back));
	g.halves = cuda_take(f, GRAM_COPIES * rows * cols * sizeof(*g.halves));
	products = cuda_take(f, runs * cols * panel * sizeof(*products));
	if (cuda_ok(f))
		cuda_try(f, cuda_gram_split_launch(f->cuda->stream, &g));
	for (size_t first = 0; first < cols && cuda_ok(f); first += PANEL)
		add_panel(f, &g, first, cols - first < PANEL ? cols - first : PANEL, products, h);
	cuda_drop(f, mark);
}

int cuda_gram_add(struct backend *be, const float *x, size_t rows, size_t cols, double *h, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "gram_add", err);
	const size_t step = cols > 0 ? pass_rows(cols) : 0;
	double *h_d;

	if (matrix_shape_check("gram_add", rows, cols, err) != 0)
		return -1;
	h_d = cuda_inout(&f, h, cols * cols * sizeof(*h));
	for (size_t first = 0; first < rows && cuda_ok(&f); first += step)
		add_pass(&f, x + first * cols, rows - first < step ? rows - first : step, cols, h_d);
	return cuda_end(&f);
}

int cuda_gram_mean(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "gram_mean", err);
	double *h_d, *diagonal_d;

	if (gram_mean_check(cols, rows, err) != 0)
		return -1;
	h_d = cuda_inout(&f, h, cols * cols * sizeof(*h));
	diagonal_d = cuda_out(&f, diagonal, cols * sizeof(*diagonal));
	if (cuda_ok(&f))
		cuda_try(&f, cuda_gram_mean_launch(f.cuda->stream, h_d, cols, (double)rows, diagonal_d, cuda_bad(&f)));
	return cuda_end(&f);
}
