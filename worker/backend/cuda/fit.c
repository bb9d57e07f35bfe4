/* fit_groups of the cuda backend. */
#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_fit.h"
#include "worker/backend/shape.h"

int cuda_fit_groups(struct backend *be, enum fit_method method, const struct grid *grid,
		    const float *w, size_t rows, size_t cols, const double *h, float *scales,
		    float *zeros, double *objective, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "fit_groups", err);
	struct cuda_fit fit;
	size_t bytes = 0;

	if (grid_shape_check("fit_groups", grid, rows, cols, err) != 0)
		return -1;
	fit = (struct cuda_fit){
		.minmax = method == FIT_MINMAX, .bits = grid->bits, .integer_zero = grid->integer_zero,
		.symmetric = grid->symmetric, .n = grid->group, .period = cols / grid->group,
		.count = rows * (cols / grid->group),
		.w = cuda_in(&f, w, rows * cols * sizeof(*w)),
		.h = cuda_in(&f, h, cols * sizeof(*h)),
	};
	fit.scales = cuda_out(&f, scales, fit.count * sizeof(*scales));
	fit.zeros = cuda_out(&f, zeros, fit.count * sizeof(*zeros));
	fit.objective = cuda_out(&f, objective, fit.count * sizeof(*objective));
	if (cuda_try(&f, cuda_fit_scratch(fit.n, fit.count, &bytes)))
		fit.scratch = cuda_take(&f, bytes);
	fit.bad = cuda_bad(&f);
	if (cuda_ok(&f))
		cuda_try(&f, cuda_fit_launch(f.cuda->stream, &fit));
	return cuda_end(&f);
}
