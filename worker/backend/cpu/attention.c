/* One item = one query tile of one head of one sequence. The tile's queries meet all keys up to its own
 * end, so of the products above the diagonal only those within the diagonal tile are wasted.
 * The whole rows of scores are there at once (QUERY_TILE * seq_len floats per worker): one plain softmax,
 * two sgemm. Late tiles are the longest and are started first. */
#include "worker/backend/cpu/attention.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/tiles.h"

struct attention_job {
	struct cpu_backend *cpu;
	const struct attention *a;
	size_t tiles;           /* query tiles of a sequence */
};

size_t cpu_attention_scratch(size_t seq_len)
{
	const size_t rows = seq_len < QUERY_TILE ? seq_len : QUERY_TILE;

	return rows * seq_len + rows;
}

/* scores (rows, keys): row r becomes exp(score - max) over the keys up to its own position, zero
 * behind; inverse[r] = 1 / its sum. stats, of row stride `stride`, may be NULL. */
static void softmax_rows(const struct forward_kernels *kernels, float *scores, size_t rows, size_t keys,
			 float *inverse, float *stats, size_t stride)
{
	for (size_t r = 0; r < rows; r++) {
		const size_t seen = keys - rows + r + 1;
		float *row = scores + r * keys;

		if (stats)
			stats[r * stride] = kernels->max(row, seen);
		inverse[r] = 1.0f / kernels->softmax(row, seen);
		if (stats)
			stats[r * stride + 1] = inverse[r];
		memset(row + seen, 0, (keys - seen) * sizeof(*row));
	}
}

static void attention_item(void *ctx, size_t item, int worker)
{
	const struct attention_job *job = ctx;
	const struct attention *a = job->a;
	const struct forward_kernels *kernels = job->cpu->forward;
	const size_t per_tile = a->n_seq * a->heads, tile = job->tiles - 1 - item / per_tile;
	const size_t seq = item % per_tile / a->heads, head = item % a->heads;
	const size_t kv = head / (a->heads / a->kv_heads), dim = a->head_dim;
	const size_t q_cols = a->heads * dim, kv_cols = a->kv_heads * dim;
	const size_t rows = tile_length(a->seq_len, QUERY_TILE, tile), first = tile * QUERY_TILE;
	const size_t keys = first + rows, top = seq * a->seq_len;
	float *scores = a->scratch + (size_t)worker * cpu_attention_scratch(a->seq_len);
	float *inverse = scores + rows * keys;
	float *o = a->o + (top + first) * q_cols + head * dim;

	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)keys, (int)dim,
		    1.0f / sqrtf((float)dim), a->q + (top + first) * q_cols + head * dim, (int)q_cols,
		    a->k + top * kv_cols + kv * dim, (int)kv_cols, 0.0f, scores, (int)keys);
	softmax_rows(kernels, scores, rows, keys, inverse,
		     a->stats ? a->stats + ((top + first) * a->heads + head) * 2 : NULL, 2 * a->heads);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)dim, (int)keys, 1.0f,
		    scores, (int)keys, a->v + top * kv_cols + kv * dim, (int)kv_cols, 0.0f, o, (int)q_cols);
	for (size_t r = 0; r < rows; r++)
		kernels->scale(o + r * q_cols, inverse[r], dim);
}

void cpu_attention(struct cpu_backend *cpu, const struct attention *a)
{
	struct attention_job job = { .cpu = cpu, .a = a, .tiles = ceil_div(a->seq_len, QUERY_TILE) };

	pool_run(cpu->pool, job.tiles * a->n_seq * a->heads, attention_item, &job);
}
