/* kernels_attention.h - device code of attention, forward.
 *
 * softmax(q k' / sqrt(dim)) v over the keys up to each query's own, without ever storing the weights (Dao 2023,
 * FlashAttention-2): a block holds some queries, passes over tiles of keys and keeps the running maximum, sum and
 * weighted sum of each query. Products are those of half-precision tensor cores with float32 sums: x is high + low, two
 * halves of it, and low high + high low + high high is added up, which leaves a relative error of about 2^-22. So that
 * neither half overflows or fades, the rows of a tile are first scaled by a power of two, the same one for all of them.
 * Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_ATTENTION_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_ATTENTION_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of one head that share a factor. */
enum { CUDA_ATTENTION_TILE = 64 };

/* Columns of a split head of dim elements on this device, at least dim; 0: cuda_attention_launch() cannot take it, and
 * cuda_attention_wide_launch() has to. */
size_t cuda_attention_columns(int device, size_t dim);

/* Heads, split: high and low hold halves, (n_seq, heads, seq_len, columns), zero behind dim; factor (n_seq, heads,
 * cuda_attention_tiles(seq_len)) is what high + low is to be multiplied by. */
struct cuda_heads { void *high, *low; float *factor; };
size_t cuda_attention_tiles(size_t seq_len);

struct cuda_attention_shape { size_t n_seq, seq_len, heads, kv_heads, dim; };

/* x (n_seq * seq_len, heads * dim) to its parts; heads by itself, since shape has two kinds. */
cudaError_t cuda_attention_split_launch(cudaStream_t stream, const struct cuda_attention_shape *shape, size_t heads,
					const float *x, size_t columns, struct cuda_heads to);

/* o (n_seq * seq_len, heads * dim); stats (n_seq * seq_len, heads), or NULL: the logarithm of the sum of exp of each
 * query's scaled scores. bad: set to 1 where o is not finite. */
cudaError_t cuda_attention_launch(cudaStream_t stream, int device, const struct cuda_attention_shape *shape,
				  size_t columns, struct cuda_heads q, struct cuda_heads k, struct cuda_heads v, float *o,
				  float *stats, int *bad);
/* The same from float32 for heads of any width, slowly. */
cudaError_t cuda_attention_wide_launch(cudaStream_t stream, const struct cuda_attention_shape *shape, const float *q,
				       const float *k, const float *v, float *o, float *stats, int *bad);

#ifdef __cplusplus
}
#endif

#endif
