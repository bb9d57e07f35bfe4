/* trace(E (H + damp I) E^T): the diagonal of H in double, what is above it through products on the tensor cores.
 *
 * e H e^T = sum over j of e_j (H_jj e_j + 2 sum over i < j of H_ij e_i), so a panel of columns needs the columns before
 * its end only: half of the work of E H. The products are float32-accurate, their sums with E run in double.
 *
 * Accuracy. The loss is less than what the diagonal alone would give by a factor c, for e lies where H is small; damping
 * by 1 % of the mean diagonal keeps c below about 100. What products and entries of H are off by has random signs and
 * goes down with the rows. What does not are accumulators that cut off where float32 rounds: the sums above the diagonal
 * nearly cancel the diagonal, and all shrink. That takes up to 5e-10 c DEEP of the loss, 3e-5 at c = 100. The
 * diagonal itself is taken in double, E is off by 2^-24 of itself, times H e, which is small. Below FEW_ROWS
 * everything is double, which for so few rows costs little more than reading H.
 * Rows go in chunks that bound the scratch: 8 bytes per weight of a chunk and 8 per entry of H.
 */
#include <math.h>

#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_proxy.h"
#include "worker/backend/cuda/product.h"
#include "worker/backend/cuda/transfer.h"
#include "worker/backend/shape.h"

enum { CHUNK_WEIGHTS = 1 << 27, PANEL = 1024, DEEP = 512, FEW_ROWS = 512 };

struct proxy_job {
	struct cuda_frame *f;
	size_t rows, cols, height;      /* all rows; rows of a chunk */
	const double *h;                /* this and what follows is on the device */
	double damp;
	double *unit, *total, *sums;
	double *exact, *exact_products; /* (rows, cols) for few rows; else: */
	float *products;                /* (height, PANEL) */
	struct cuda_operand upper;      /* (cols, cols) */
};

static bool few_rows(const struct proxy_job *job)
{
	return job->rows < FEW_ROWS;
}

/* products (rows, n) = the columns before the panel's end, times what is above the diagonal in the panel. */
static void multiply_panel(struct proxy_job *job, struct cuda_operand e, size_t rows, size_t first, size_t n)
{
	for (size_t k = 0; k < first + n && cuda_ok(job->f); k += DEEP) {
		const struct cuda_product product = {
			.form = CUDA_NN, .m = rows, .n = n, .k = first + n - k < DEEP ? first + n - k : DEEP,
			.a = cuda_operand_at(e, k), .lda = job->cols,
			.b = cuda_operand_at(job->upper, k * job->cols + first), .ldb = job->cols,
			.c = job->products, .ldc = n, .alpha = 1, .beta = k > 0 ? 1 : 0,
		};

		cuda_multiply(job->f, &product);
	}
}

/* sums += what is above the diagonal, panel by panel. */
static void add_panels(struct proxy_job *job, const struct cuda_proxy_rows *rows)
{
	struct cuda_frame *f = job->f;
	const size_t mark = cuda_mark(f);
	const struct cuda_operand e = cuda_split(f, rows->e, rows->rows * rows->cols);

	for (size_t first = 0; first < job->cols && cuda_ok(f); first += PANEL) {
		const size_t n = job->cols - first < PANEL ? job->cols - first : PANEL;

		multiply_panel(job, e, rows->rows, first, n);
		if (cuda_ok(f))
			cuda_try(f, cuda_proxy_dot_launch(f->cuda->stream, rows->e + first, job->cols, job->products,
							  rows->rows, n, rows->sums));
	}
	cuda_drop(f, mark);
}

static void add_chunks(struct proxy_job *job, struct cuda_proxy_rows rows)
{
	struct cuda_frame *f = job->f;
	const cudaStream_t stream = f->cuda->stream;
	const size_t groups = job->cols / rows.group;

	for (size_t r = 0; r < job->rows && cuda_ok(f); r += job->height) {
		rows.rows = job->rows - r < job->height ? job->rows - r : job->height;
		if (cuda_try(f, cuda_proxy_rows_launch(stream, &rows)))
			add_panels(job, &rows);
		if (cuda_ok(f))
			cuda_try(f, cuda_proxy_total_launch(stream, rows.sums, rows.units, rows.rows, job->unit,
							    job->total));
		rows.w += job->height * job->cols;
		rows.scales += job->height * groups;
		rows.zeros += job->height * groups;
		if (rows.codes)
			rows.codes += job->height * job->cols;
	}
}

static void add_exact(struct proxy_job *job, const struct cuda_proxy_rows *rows)
{
	struct cuda_frame *f = job->f;
	const struct cuda_libraries *l = &f->cuda->libraries;
	const cudaStream_t stream = f->cuda->stream;
	const int n = (int)job->cols;
	const double one = 1, none = 0;

	if (!cuda_try(f, cuda_proxy_exact_rows_launch(stream, rows, job->exact)))
		return;
	/* Column-major, E and E H are (cols, rows) and H is its own transpose. */
	cuda_try_library(f, "cuBLAS", l->gemm(l->blas, BLAS_N, BLAS_N, n, (int)job->rows, n, &one, job->h, CUDA_R_64F, n,
					      job->exact, CUDA_R_64F, n, &none, job->exact_products, CUDA_R_64F, n,
					      BLAS_COMPUTE_64F, BLAS_ALGORITHM_DEFAULT));
	if (cuda_ok(f) &&
	    cuda_try(f, cuda_proxy_exact_dot_launch(stream, job->exact, job->exact_products, job->damp, job->rows,
						    job->cols, job->sums)))
		cuda_try(f, cuda_proxy_total_launch(stream, job->sums, NULL, job->rows, NULL, job->total));
}

/* The form of all rows; rows.codes NULL: of the weights. NAN after a failure. */
static double quadratic_form(struct proxy_job *job, struct cuda_proxy_rows rows)
{
	struct cuda_frame *f = job->f;
	double total = NAN;

	if (cuda_ok(f))
		cuda_try(f, cudaMemsetAsync(job->total, 0, sizeof(*job->total), f->cuda->stream));
	if (cuda_ok(f) && few_rows(job))
		add_exact(job, &rows);
	else if (cuda_ok(f))
		add_chunks(job, rows);
	if (cuda_ok(f))
		cuda_try(f, cuda_download(f->cuda->transfer, &total, job->total, sizeof(total)));
	return total;
}

/* H in both parts, and the scratch of a chunk. */
static void prepare_chunks(struct proxy_job *job, struct cuda_proxy_rows *rows)
{
	struct cuda_frame *f = job->f;
	const size_t cells = job->cols * job->cols, chunks = job->rows * job->cols / CHUNK_WEIGHTS + 1;
	double *diagonal = cuda_take(f, job->cols * sizeof(*diagonal));
	float *upper;

	job->height = (job->rows + chunks - 1) / chunks;
	job->unit = cuda_take(f, sizeof(*job->unit));
	job->products = cuda_take(f, job->height * PANEL * sizeof(*job->products));
	rows->diagonal = diagonal;
	rows->e = cuda_take(f, job->height * job->cols * sizeof(*rows->e));
	rows->units = cuda_take(f, job->height * sizeof(*rows->units));
	upper = cuda_take(f, cells * sizeof(*upper));
	if (cuda_ok(f) &&
	    cuda_try(f, cuda_proxy_diagonal_launch(f->cuda->stream, job->h, job->cols, job->damp, job->unit, diagonal)) &&
	    cuda_try(f, cuda_proxy_upper_launch(f->cuda->stream, job->h, job->cols, job->unit, upper)))
		job->upper = cuda_split(f, upper, cells);
}

static void prepare(struct proxy_job *job, struct cuda_proxy_rows *rows)
{
	struct cuda_frame *f = job->f;

	job->total = cuda_take(f, sizeof(*job->total));
	rows->sums = job->sums = cuda_take(f, job->rows * sizeof(*job->sums));
	if (!few_rows(job)) {
		prepare_chunks(job, rows);
		return;
	}
	job->exact = cuda_take(f, job->rows * job->cols * sizeof(*job->exact));
	job->exact_products = cuda_take(f, job->rows * job->cols * sizeof(*job->exact_products));
}

int cuda_proxy_loss(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
		    const double *h, double damp, const uint8_t *codes, const float *scales, const float *zeros,
		    double *loss, double *energy, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "the proxy loss", err);
	struct proxy_job job = { .f = &f, .rows = rows, .cols = cols, .damp = damp };
	struct cuda_proxy_rows all = { .rows = rows, .cols = cols, .group = grid->group };
	double e_sum = 0, w_sum = 0;
	size_t groups;

	if (grid_shape_check("proxy_loss", grid, rows, cols, err) != 0 ||
	    matrix_shape_check("proxy_loss", cols, cols, err) != 0)
		return -1;
	groups = cols / grid->group;
	all.w = cuda_in(&f, w, rows * cols * sizeof(*w));
	all.codes = cuda_in(&f, codes, rows * cols);
	all.scales = cuda_in(&f, scales, rows * groups * sizeof(*scales));
	all.zeros = cuda_in(&f, zeros, rows * groups * sizeof(*zeros));
	job.h = cuda_in(&f, h, cols * cols * sizeof(*h));
	if (rows > 0) {
		prepare(&job, &all);
		e_sum = quadratic_form(&job, all);
		all.codes = NULL;
		w_sum = energy ? quadratic_form(&job, all) : 0;
	}
	if (cuda_ok(&f) && (!isfinite(e_sum) || !isfinite(w_sum))) {
		err_set(err, ERR_NUMERIC, "the proxy loss is not finite");
		cuda_fail(&f);
	}
	if (cuda_end(&f) != 0)
		return -1;
	*loss = e_sum;
	if (energy)
		*energy = w_sum;
	return 0;
}
