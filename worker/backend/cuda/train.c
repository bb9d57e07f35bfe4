/* The trainable grid and the optimizer of the cuda backend. */
#include <math.h>

#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/kernels_train.h"
#include "worker/backend/shape.h"

static struct cuda_trained_grid grid_in(struct cuda_frame *f, const struct grid *grid, const float *latents, size_t n,
					const float *scales, const float *zeros)
{
	const size_t groups = n / grid->group;

	return (struct cuda_trained_grid){
		.bits = grid->bits, .n = n, .group = grid->group,
		.latents = cuda_in(f, latents, n * sizeof(*latents)),
		.scales = cuda_in(f, scales, groups * sizeof(*scales)),
		.zeros = cuda_in(f, zeros, groups * sizeof(*zeros)),
		.bad = cuda_bad(f),
	};
}

int cuda_grid_values(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		     size_t cols, const float *scales, const float *zeros, float *w, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "grid_values", err);
	struct cuda_trained_grid g;
	float *w_d;

	if (grid_shape_check("grid_values", grid, rows, cols, err) != 0)
		return -1;
	g = grid_in(&f, grid, latents, rows * cols, scales, zeros);
	w_d = cuda_out(&f, w, g.n * sizeof(*w));
	if (cuda_ok(&f))
		cuda_try(&f, cuda_grid_values_launch(f.cuda->stream, &g, w_d));
	return cuda_end(&f);
}

int cuda_grid_gradients(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
			size_t cols, const float *scales, const float *zeros, const float *dw,
			float *dscales, float *dzeros, float *dlatents, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "grid_gradients", err);
	struct cuda_trained_grid g;
	float *dscales_d, *dzeros_d, *dlatents_d;
	const float *dw_d;

	if (grid_shape_check("grid_gradients", grid, rows, cols, err) != 0)
		return -1;
	g = grid_in(&f, grid, latents, rows * cols, scales, zeros);
	dw_d = cuda_in(&f, dw, g.n * sizeof(*dw));
	dscales_d = cuda_out(&f, dscales, g.n / g.group * sizeof(*dscales));
	dzeros_d = cuda_out(&f, dzeros, g.n / g.group * sizeof(*dzeros));
	dlatents_d = cuda_out(&f, dlatents, g.n * sizeof(*dlatents));
	if (cuda_ok(&f))
		cuda_try(&f, cuda_grid_gradients_launch(f.cuda->stream, &g, dw_d, dscales_d, dzeros_d, dlatents_d));
	return cuda_end(&f);
}

int cuda_adam_step(struct backend *be, const struct adam *adam, size_t n, float *p, const float *g,
		   float *m, float *v, struct err *err)
{
	const double beta1 = adam->beta1, beta2 = adam->beta2, step = (double)adam->step;
	struct cuda_frame f = cuda_begin(be, "adam_step", err);
	struct cuda_adam factors;
	float *p_d, *m_d, *v_d;
	const float *g_d;

	if (adam_check(adam, err) != 0)
		return -1;
	factors = (struct cuda_adam){
		.beta1 = adam->beta1, .rest1 = (float)(1 - beta1), .beta2 = adam->beta2,
		.rest2 = (float)(1 - beta2), .rate = (float)(adam->rate / (1 - pow(beta1, step))),
		.root = (float)(1 / sqrt(1 - pow(beta2, step))), .epsilon = adam->epsilon,
	};
	p_d = cuda_inout(&f, p, n * sizeof(*p));
	g_d = cuda_in(&f, g, n * sizeof(*g));
	m_d = cuda_inout(&f, m, n * sizeof(*m));
	v_d = cuda_inout(&f, v, n * sizeof(*v));
	if (cuda_ok(&f) && n > 0)
		cuda_try(&f, cuda_adam_launch(f.cuda->stream, &factors, n, p_d, g_d, m_d, v_d, cuda_bad(&f)));
	return cuda_end(&f);
}
