/* The way back through attention: on the tensor cores where the device and head_dim allow it. */
#include <math.h>

#include "worker/backend/cuda/backward.h"
#include "worker/backend/cuda/kernels_backward_attention.h"

static void run(struct cuda_frame *f, const struct cuda_attention_back *a)
{
	const size_t bytes = cuda_attention_back_split_bytes(a);
	void *scratch = cuda_take(f, bytes);

	if (!cuda_ok(f) || !cuda_try(f, cuda_attention_along_launch(f->cuda->stream, a)))
		return;
	if (scratch)
		cuda_try(f, cuda_attention_back_split_launch(f->cuda->stream, a, scratch));
	else
		cuda_try(f, cuda_attention_back_launch(f->cuda->stream, a));
}

void cuda_attention_backward(struct cuda_block *b, const float *q, const float *k, const float *v, const float *o,
			     const float *stats, const float *d_o, struct cuda_attention_grads to)
{
	const struct block_shape *d = b->shape;
	const size_t mark = cuda_mark(b->f);
	struct cuda_attention_back a = {
		.seq_len = b->seq_len, .heads = d->heads, .kv_heads = d->kv_heads, .dim = d->head_dim,
		.scale = 1.0f / sqrtf((float)d->head_dim), .q = q, .k = k, .v = v, .o = o, .d_o = d_o,
		.stats = stats, .dq = to.dq, .dk = to.dk, .dv = to.dv,
	};

	a.along = cuda_take(b->f, b->rows * d->heads * sizeof(*a.along));
	run(b->f, &a);
	cuda_drop(b->f, mark);
}
