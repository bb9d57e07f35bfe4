/* block.h - the activations of a transformer block on the device, and its parts in both directions.
 *
 * The block, and the names of its activations, are those of worker/backend/ref/block.h. Everything here is on the
 * device and launched into the frame's stream. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_BLOCK_H
#define QUARRY_WORKER_BACKEND_CUDA_BLOCK_H

#include "worker/backend/cuda/frame.h"
#include "worker/backend/cuda/product.h"

/* Rows of n_seq sequences at work in one block. */
struct cuda_block {
	struct cuda_frame *f;
	const struct block_shape *shape;
	struct block_weights w;         /* on the device */
	struct rope_table rope;         /* on the device */
	size_t n_seq, seq_len, rows;    /* rows = n_seq * seq_len */
	size_t q_cols, kv_cols;         /* heads * head_dim, kv_heads * head_dim */
};

/* Brings weights and tables to the device; sets everything above. */
void cuda_block_begin(struct cuda_block *b, struct cuda_frame *f, const struct block_shape *shape,
		      const struct block_weights *w, const struct rope_table *rope, size_t n_seq, size_t seq_len);

/* y (rows, n) = x (rows, cols) w' + bias + residual; bias (n) and residual (rows, n) may be NULL; residual may be y. */
void cuda_linear(struct cuda_block *b, struct cuda_operand x, size_t cols, const float *w, const float *bias,
		 const float *residual, size_t n, float *y);
/* y = RMSNorm(x) * weight, (rows, cols); y may be x. */
void cuda_norm(struct cuda_block *b, const float *x, const float *weight, size_t rows, size_t cols, float *y);
/* Optional norm (weight or NULL) and turn of every head: in, out (rows, heads * head_dim); out may be in. */
void cuda_turn_heads(struct cuda_block *b, const float *in, size_t heads, const float *norm, float *out);
/* o (rows, q_cols) from q, k, v, causal within each sequence, grouped heads. stats (rows, heads), or NULL: the
 * logarithm of the sum of exp of each query's scaled scores, for the way back. */
void cuda_attention(struct cuda_block *b, const float *q, const float *k, const float *v, float *o, float *stats);
/* d = silu(gate) * up, n elements; d may be up. */
void cuda_swiglu(struct cuda_block *b, const float *gate, const float *up, size_t n, float *d);

#endif
