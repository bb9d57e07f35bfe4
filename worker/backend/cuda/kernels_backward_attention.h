/* kernels_backward_attention.h - device code of the way back through attention.
 *
 * With e = scale q k', p = exp(e - stats), the weights of each query, and D = sum over a row of d_o o:
 *   dv = p' d_o,  de = p (d_o v' - D),  dq = scale de k,  dk = scale de' q
 * (as ref; Dao 2023, FlashAttention-2, section 3.2). Scores are computed again tile by tile: one kernel goes over the
 * keys of a tile of queries for dq, another over the queries of a tile of keys, and the heads that share them in their
 * order, for dk and dv, so that each sum has one order. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_BACKWARD_ATTENTION_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_BACKWARD_ATTENTION_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One sequence. Rows of q, o, d_o, dq have heads * dim columns, those of k, v, dk, dv kv_heads * dim; q and k as they
 * meet, behind their turn. */
struct cuda_attention_back {
	size_t seq_len, heads, kv_heads, dim;
	float scale;
	const float *q, *k, *v, *o, *d_o;
	const float *stats;             /* (seq_len, heads) logarithm of the sum of exp of a query's scaled scores */
	float *along;                   /* (seq_len, heads) D: written by the first launcher, read by the others */
	float *dq, *dk, *dv;            /* written */
};
cudaError_t cuda_attention_along_launch(cudaStream_t stream, const struct cuda_attention_back *a);

/* float32 throughout, any dim. */
cudaError_t cuda_attention_back_launch(cudaStream_t stream, const struct cuda_attention_back *a);

/* The same on the tensor cores, from operands split in two, with scratch of so many bytes, 256-byte aligned. 0: this
 * device, or dim, is not made for it. */
size_t cuda_attention_back_split_bytes(const struct cuda_attention_back *a);
cudaError_t cuda_attention_back_split_launch(cudaStream_t stream, const struct cuda_attention_back *a, void *scratch);

#ifdef __cplusplus
}
#endif

#endif
