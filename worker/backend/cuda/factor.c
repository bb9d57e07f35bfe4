/* H = U D U^T through cuSOLVER's Cholesky of the reversed matrix.
 *
 * With J the reversal, J P H P^T J = L L^T gives P H P^T = (J L J)(J L J)^T, and U = J L J with its columns divided by
 * their diagonal. The upper triangle of a column-major matrix is the lower one of a row-major matrix, so cuSOLVER is
 * asked for the upper factor. Memory: one more (K, K) matrix in double.
 */
#include "common/alloc.h"
#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_factor.h"
#include "worker/backend/cuda/transfer.h"
#include "worker/backend/shape.h"

/* What is known of the factorization, on the device and here. */
struct outcome {
	int info;               /* cuSOLVER's: k > 0 when the leading k columns are not positive definite */
	int first;              /* the first column with a diagonal that is not positive and finite, or n */
};

/* a becomes L. The host's scratch must live until the stream has been waited for. */
static void factor_in_place(struct cuda_frame *f, double *a, size_t n, int *info, void **host_work)
{
	const struct cuda_libraries *l = &f->cuda->libraries;
	size_t device_bytes = 0, host_bytes = 0;
	void *device_work;

	if (!cuda_try_library(f, "cuSOLVER", l->potrf_size(l->solver, l->params, BLAS_UPPER, (int64_t)n, CUDA_R_64F, a,
							   (int64_t)n, CUDA_R_64F, &device_bytes, &host_bytes)))
		return;
	device_work = cuda_take(f, device_bytes);
	*host_work = mem_alloc(host_bytes, 1);
	if (!*host_work) {
		err_set_nomem(f->err, "the factor of H");
		cuda_fail(f);
	}
	if (cuda_ok(f))
		cuda_try_library(f, "cuSOLVER", l->potrf(l->solver, l->params, BLAS_UPPER, (int64_t)n, CUDA_R_64F, a,
							 (int64_t)n, CUDA_R_64F, device_work, device_bytes, *host_work,
							 host_bytes, info));
}

/* Waits for the factorization and fails where it did. Columns are counted from the front of perm. */
static void check_outcome(struct cuda_frame *f, const struct outcome *device, size_t n)
{
	struct outcome o = { 0 };
	size_t column;

	if (!cuda_ok(f) || !cuda_try(f, cuda_download(f->cuda->transfer, &o, device, sizeof(o))))
		return;
	if (!cuda_try_library(f, "cuSOLVER", o.info < 0 ? o.info : 0) || (o.info == 0 && (size_t)o.first == n))
		return;
	column = n - (o.info > 0 ? (size_t)o.info : (size_t)o.first + 1);
	err_set(f->err, ERR_NUMERIC, "H is not positive definite at column %zu of %zu", column, n);
	cuda_fail(f);
}

int cuda_factor(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp, float *u,
		double *pivots, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "the factor of H", err);
	const cudaStream_t stream = f.cuda->stream;
	struct outcome *outcome;
	const double *h_d;
	const int32_t *perm_d;
	double *pivots_d, *a, *diagonal;
	void *host_work = NULL;
	float *u_d;

	if (matrix_shape_check("factor", n, n, err) != 0)
		return -1;
	h_d = cuda_in(&f, h, n * n * sizeof(*h));
	perm_d = cuda_in(&f, perm, n * sizeof(*perm));
	u_d = cuda_out(&f, u, n * n * sizeof(*u));
	pivots_d = cuda_out(&f, pivots, n * sizeof(*pivots));
	a = cuda_take(&f, n * n * sizeof(*a));
	diagonal = cuda_take(&f, n * sizeof(*diagonal));
	outcome = cuda_take(&f, sizeof(*outcome));
	if (cuda_ok(&f) && cuda_try(&f, cuda_factor_load_launch(stream, h_d, perm_d, n, damp, a)))
		factor_in_place(&f, a, n, &outcome->info, &host_work);
	if (cuda_ok(&f))
		cuda_try(&f, cuda_factor_diagonal_launch(stream, a, n, diagonal, &outcome->first));
	check_outcome(&f, outcome, n);
	if (cuda_ok(&f))
		cuda_try(&f, cuda_factor_store_launch(stream, a, diagonal, n, u_d, cuda_bad(&f)));
	if (cuda_ok(&f) && pivots)
		cuda_try(&f, cuda_factor_pivots_launch(stream, h_d, perm_d, n, damp, u_d, pivots_d, cuda_bad(&f)));
	cuda_end(&f);
	mem_free(host_work);
	return f.rc;
}
