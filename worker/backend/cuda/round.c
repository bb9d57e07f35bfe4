/* round_nearest of the cuda backend. */
#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_round.h"
#include "worker/backend/shape.h"

int cuda_round_nearest(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		       size_t cols, const float *scales, const float *zeros, uint8_t *codes,
		       struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "round_nearest", err);
	struct cuda_round r;

	if (grid_shape_check("round_nearest", grid, rows, cols, err) != 0)
		return -1;
	r = (struct cuda_round){ .bits = grid->bits, .group = grid->group, .n = rows * cols };
	r.w = cuda_in(&f, w, r.n * sizeof(*w));
	r.scales = cuda_in(&f, scales, r.n / r.group * sizeof(*scales));
	r.zeros = cuda_in(&f, zeros, r.n / r.group * sizeof(*zeros));
	r.codes = cuda_out(&f, codes, r.n);
	r.bad = cuda_bad(&f);
	if (cuda_ok(&f))
		cuda_try(&f, cuda_round_launch(f.cuda->stream, &r));
	return cuda_end(&f);
}
