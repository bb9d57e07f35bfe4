/* Attention, forward: heads are split into halves for the tensor cores, unless they are too wide for that. */
#include "worker/backend/cuda/block.h"
#include "worker/backend/cuda/kernels_attention.h"

/* The parts of x (rows, heads * head_dim); scratch of the frame. */
static struct cuda_heads split(struct cuda_block *b, const struct cuda_attention_shape *shape, const float *x,
			       size_t heads, size_t columns)
{
	enum { HALF = 2 };
	const size_t bytes = b->rows * heads * columns * HALF;
	const struct cuda_heads to = {
		.high = cuda_take(b->f, bytes), .low = cuda_take(b->f, bytes),
		.factor = cuda_take(b->f, b->n_seq * heads * cuda_attention_tiles(b->seq_len) * sizeof(*to.factor)),
	};

	if (cuda_ok(b->f))
		cuda_try(b->f, cuda_attention_split_launch(b->f->cuda->stream, shape, heads, x, columns, to));
	return to;
}

void cuda_attention(struct cuda_block *b, const float *q, const float *k, const float *v, float *o, float *stats)
{
	const struct block_shape *d = b->shape;
	const struct cuda_attention_shape shape = { .n_seq = b->n_seq, .seq_len = b->seq_len, .heads = d->heads,
						    .kv_heads = d->kv_heads, .dim = d->head_dim };
	struct cuda_frame *f = b->f;
	const size_t mark = cuda_mark(f), columns = cuda_attention_columns(f->cuda->device, d->head_dim);
	int *bad = cuda_bad(f);

	if (!cuda_ok(f))
		return;
	if (columns == 0) {
		cuda_try(f, cuda_attention_wide_launch(f->cuda->stream, &shape, q, k, v, o, stats, bad));
	} else {
		const struct cuda_heads qs = split(b, &shape, q, d->heads, columns);
		const struct cuda_heads ks = split(b, &shape, k, d->kv_heads, columns);
		const struct cuda_heads vs = split(b, &shape, v, d->kv_heads, columns);

		if (cuda_ok(f))
			cuda_try(f, cuda_attention_launch(f->cuda->stream, f->cuda->device, &shape, columns, qs, ks,
							  vs, o, stats, bad));
	}
	cuda_drop(f, mark);
}
