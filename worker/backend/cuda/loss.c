/* squared_error of the cuda backend. */
#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_loss.h"

int cuda_squared_error(struct backend *be, const float *y, const float *target, size_t n, double scale, float *dy,
		       double *sum, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "squared_error", err);
	struct cuda_squared_error e = { .n = n, .scale = scale };

	e.y = cuda_in(&f, y, n * sizeof(*y));
	e.target = cuda_in(&f, target, n * sizeof(*target));
	e.dy = cuda_out(&f, dy, n * sizeof(*dy));
	e.parts = cuda_take(&f, CUDA_LOSS_PARTS * sizeof(*e.parts));
	e.sum = cuda_out(&f, sum, sizeof(*sum));
	e.bad = cuda_bad(&f);
	if (cuda_ok(&f))
		cuda_try(&f, cuda_squared_error_launch(f.cuda->stream, &e));
	return cuda_end(&f);
}
