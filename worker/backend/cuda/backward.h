/* backward.h - the parts of a block's way back, on the device.
 *
 * d_x stands for dLoss/dx. `add`: a gradient of a parameter is added to what the sequences before left; else it is
 * written. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_BACKWARD_H
#define QUARRY_WORKER_BACKEND_CUDA_BACKWARD_H

#include "worker/backend/cuda/block.h"
#include "worker/backend/cuda/kernels_backward.h"

/* The gradient of the input of a norm as n says (kernels_backward.h; scales and bad are seen to here), and that of its
 * weight in dweight (cols) unless NULL. With dweight n->dx is not n->dy. */
void cuda_norm_backward(struct cuda_frame *f, const struct cuda_norm_back *n, float *dweight, bool add);
/* total (cols), or NULL: column sums of dy (rows, cols). */
void cuda_bias_backward(struct cuda_frame *f, const float *dy, size_t rows, size_t cols, bool add, float *total);
/* Back through the optional norm (weight or NULL) and turn of every head of in (rows, heads * head_dim): d holds the
 * gradient behind them and then that before them. dnorm (head_dim): the weight's, or NULL. */
void cuda_turn_backward(struct cuda_block *b, const float *in, size_t heads, const float *norm, float *d, float *dnorm,
			bool add);

/* Gradients of q, k, v (behind the turn) from that of o, for one sequence; stats as cuda_attention() left them. */
struct cuda_attention_grads { float *dq, *dk, *dv; };
void cuda_attention_backward(struct cuda_block *b, const float *q, const float *k, const float *v, const float *o,
			     const float *stats, const float *d_o, struct cuda_attention_grads to);

#endif
