/* rms_norm, by itself and within a block. */
#include "worker/backend/cuda/block.h"
#include "worker/backend/cuda/kernels_block.h"
#include "worker/backend/shape.h"

static void norm(struct cuda_frame *f, const float *x, const float *weight, float eps, size_t rows, size_t cols,
		 float *y)
{
	int *bad = cuda_bad(f);

	if (cuda_ok(f))
		cuda_try(f, cuda_norm_launch(f->cuda->stream, x, weight, eps, rows, cols, y, bad));
}

void cuda_norm(struct cuda_block *b, const float *x, const float *weight, size_t rows, size_t cols, float *y)
{
	norm(b->f, x, weight, b->shape->rms_eps, rows, cols, y);
}

int cuda_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
		  size_t cols, float *y, struct err *err)
{
	const size_t bytes = rows * cols * sizeof(*x);
	struct cuda_frame f;
	const float *x_d, *weight_d;
	float *y_d;

	if (matrix_shape_check("rms_norm", rows, cols, err) != 0)
		return -1;
	if (rows == 0)
		return 0;
	f = cuda_begin(be, "rms_norm", err);
	y_d = x == y ? cuda_inout(&f, y, bytes) : cuda_out(&f, y, bytes);
	x_d = x == y ? y_d : cuda_in(&f, x, bytes);
	weight_d = cuda_in(&f, weight, cols * sizeof(*weight));
	norm(&f, x_d, weight_d, eps, rows, cols, y_d);
	return cuda_end(&f);
}
