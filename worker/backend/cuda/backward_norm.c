/* The way back through norms and biases: rms_norm_backward, and what block_backward needs of them. */
#include "worker/backend/cuda/backward.h"
#include "worker/backend/shape.h"

static void column_sums(struct cuda_frame *f, struct cuda_column_sums s)
{
	const size_t mark = cuda_mark(f);

	s.parts = cuda_take(f, cuda_column_parts(s.rows) * s.cols * sizeof(*s.parts));
	if (cuda_ok(f))
		cuda_try(f, cuda_column_sums_launch(f->cuda->stream, &s));
	cuda_drop(f, mark);
}

void cuda_bias_backward(struct cuda_frame *f, const float *dy, size_t rows, size_t cols, bool add, float *total)
{
	if (total)
		column_sums(f, (struct cuda_column_sums){ .dy = dy, .rows = rows, .cols = cols, .add = add,
							  .total = total });
}

void cuda_norm_backward(struct cuda_frame *f, const struct cuda_norm_back *norm, float *dweight, bool add)
{
	const size_t mark = cuda_mark(f);
	struct cuda_norm_back n = *norm;

	n.bad = cuda_bad(f);
	n.scales = dweight ? cuda_take(f, n.rows * sizeof(*n.scales)) : NULL;
	if (cuda_ok(f))
		cuda_try(f, cuda_norm_back_launch(f->cuda->stream, &n));
	if (dweight)
		column_sums(f, (struct cuda_column_sums){ .dy = n.dy, .x = n.x, .scales = n.scales, .rows = n.rows,
							  .cols = n.cols, .add = add, .total = dweight });
	cuda_drop(f, mark);
}

void cuda_turn_backward(struct cuda_block *b, const float *in, size_t heads, const float *norm, float *d, float *dnorm,
			bool add)
{
	const size_t mark = cuda_mark(b->f), items = b->rows * heads, dim = b->shape->head_dim;
	const size_t bytes = items * dim * sizeof(*d);
	struct cuda_turn_back t = { .cos = b->rope.cos, .sin = b->rope.sin, .rows = b->rows, .seq_len = b->seq_len,
				    .heads = heads, .dim = dim, .d = d, .in = in, .norm = norm,
				    .eps = b->shape->rms_eps };

	/* The weight's gradient needs what stood before the norm's own gradient. */
	t.out = norm ? cuda_take(b->f, bytes) : NULL;
	t.scales = norm ? cuda_take(b->f, items * sizeof(*t.scales)) : NULL;
	if (cuda_ok(b->f))
		cuda_try(b->f, cuda_turn_back_launch(b->f->cuda->stream, &t));
	if (norm && dnorm)
		column_sums(b->f, (struct cuda_column_sums){ .dy = d, .x = in, .scales = t.scales, .rows = items,
							     .cols = dim, .add = add, .total = dnorm });
	if (norm && cuda_ok(b->f))
		cuda_try(b->f, cudaMemcpyAsync(d, t.out, bytes, cudaMemcpyDeviceToDevice, b->f->cuda->stream));
	cuda_drop(b->f, mark);
}

int cuda_rms_norm_backward(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
			   size_t cols, const float *dy, float *dx, struct err *err)
{
	const size_t bytes = rows * cols * sizeof(*dx);
	struct cuda_frame f = cuda_begin(be, "rms_norm_backward", err);
	struct cuda_norm_back n = { .eps = eps, .rows = rows, .cols = cols };

	if (matrix_shape_check("rms_norm_backward", rows, cols, err) != 0)
		return -1;
	n.x = cuda_in(&f, x, bytes);
	n.weight = cuda_in(&f, weight, cols * sizeof(*weight));
	n.dy = cuda_in(&f, dy, bytes);
	n.dx = cuda_out(&f, dx, bytes);
	cuda_norm_backward(&f, &n, NULL, false);
	return cuda_end(&f);
}
