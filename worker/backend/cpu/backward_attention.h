/* backward_attention.h - gradients of causal grouped-query attention of one sequence.
 *
 * Internal to the cpu backend. Probabilities are made again, tile by tile, from q, k and the two numbers per
 * query that forward kept.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_BACKWARD_ATTENTION_H
#define QUARRY_WORKER_BACKEND_CPU_BACKWARD_ATTENTION_H

#include <stdbool.h>

#include "worker/backend/cpu/cpu.h"

/* q stands for (seq_len, heads*head_dim), kv for (seq_len, kv_heads*head_dim). */
struct attention_back {
	size_t heads, kv_heads, head_dim, seq_len;
	const struct rope_table *rope;
	const float *q, *k, *v, *o;     /* forward's, q and k turned */
	const float *stats;             /* (seq_len, heads, 2): forward's, attention.h */
	const float *d_o;               /* gradient of o */
	/* Head norms: rows before the norm and weight, or NULL. */
	const float *q_in, *k_in, *q_norm, *k_norm;
	float eps;
	float *dq, *dk, *dv;            /* of what the linear maps gave, before norm and turn */
	float *q_norm_shares;           /* (cpu_attention_back_q_shares(), head_dim), with q_norm */
	float *k_norm_shares;           /* (cpu_attention_back_k_shares(), head_dim), with k_norm */
	float *partial;                 /* cpu_attention_back_partial() floats */
	float *scratch;                 /* pool workers * cpu_attention_back_scratch() floats */
};

/* dq, dk, dv and the shares that dq_norm and dk_norm are the sums of. */
void cpu_attention_back(struct cpu_backend *cpu, const struct attention_back *a);

size_t cpu_attention_back_scratch(void);
size_t cpu_attention_back_partial(const struct block_shape *shape, size_t seq_len);
size_t cpu_attention_back_q_shares(const struct block_shape *shape, size_t seq_len);
size_t cpu_attention_back_k_shares(const struct block_shape *shape, size_t seq_len);

#endif
