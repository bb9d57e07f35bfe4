/* attention.h - causal grouped-query attention on tiles. Internal to the cpu backend. */
#ifndef QUARRY_WORKER_BACKEND_CPU_ATTENTION_H
#define QUARRY_WORKER_BACKEND_CPU_ATTENTION_H

#include "worker/backend/cpu/cpu.h"

struct attention {
	size_t heads, kv_heads, head_dim, n_seq, seq_len;
	const float *q, *k, *v; /* (n_seq*seq_len, heads*head_dim | kv_heads*head_dim), turned */
	float *o;               /* (n_seq*seq_len, heads*head_dim) */
	float *stats;           /* (n_seq*seq_len, heads, 2) or NULL: the probability of a key is
				 * exp(score - stats[0]) * stats[1] */
	float *scratch;         /* pool workers * cpu_attention_scratch() floats */
};

void cpu_attention(struct cpu_backend *cpu, const struct attention *a);
/* Floats per worker. */
size_t cpu_attention_scratch(size_t seq_len);

#endif
