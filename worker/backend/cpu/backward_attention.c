/* With P the probabilities, D_i = sum of dO_i O_i and f = 1 / sqrt(head_dim):
 *   dV = P' dO,  dP = dO V',  dS = P (dP - D) f,  dQ = dS K,  dK = dS' Q.
 *
 * One item = one head and every parts-th query tile of it, from the last one down. It writes dQ of its rows
 * and sums dK, dV over them into arrays of its own; the last tile reaches furthest and writes, the others
 * add. A second run sums those arrays over the parts and the heads of a group. Query tiles meet keys in
 * tiles as well, so that two tiles of scores stay in cache.
 */
#include "worker/backend/cpu/backward_attention.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/kernels_train.h"
#include "worker/backend/cpu/tiles.h"

/* ITEMS: at least so many, as far as there are query tiles. */
enum { KEY_TILE = 512, SUM_ROWS = 64, ITEMS = 12 };

struct back_job {
	struct cpu_backend *cpu;
	const struct attention_back *a;
	size_t tiles, parts;    /* query tiles; items per head */
	size_t q_cols, kv_cols;
	float factor;
};

/* One query tile of one head. */
struct query_tile {
	size_t head, first, rows;
	const float *q, *d_o;           /* row stride q_cols */
	const float *k, *v;             /* of key 0, row stride kv_cols */
	float *dq;
	float *dk, *dv;                 /* (seq_len, head_dim) of the item */
	bool add;                       /* onto dk, dv */
	float *p, *dp;                  /* (rows, keys of a tile) */
	float mean[QUERY_TILE];         /* D */
};

static size_t parts_of(size_t heads, size_t tiles)
{
	const size_t wanted = ceil_div(ITEMS, heads);

	return wanted < tiles ? wanted : tiles;
}

size_t cpu_attention_back_scratch(void)
{
	return (size_t)2 * QUERY_TILE * KEY_TILE;
}

size_t cpu_attention_back_q_shares(const struct block_shape *shape, size_t seq_len)
{
	return shape->heads * parts_of(shape->heads, ceil_div(seq_len, QUERY_TILE));
}

size_t cpu_attention_back_k_shares(const struct block_shape *shape, size_t seq_len)
{
	return shape->kv_heads * ceil_div(seq_len, SUM_ROWS);
}

size_t cpu_attention_back_partial(const struct block_shape *shape, size_t seq_len)
{
	return 2 * cpu_attention_back_q_shares(shape, seq_len) * seq_len * shape->head_dim;
}

static void gemm(enum CBLAS_TRANSPOSE ta, enum CBLAS_TRANSPOSE tb, size_t m, size_t n, size_t k, float alpha,
		 const float *a, size_t lda, const float *b, size_t ldb, bool add, float *c, size_t ldc)
{
	cblas_sgemm(CblasRowMajor, ta, tb, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb,
		    add ? 1.0f : 0.0f, c, (int)ldc);
}

/* Keys from .. from+keys-1 of the tile: scores to P, dP to dS, zero where a key is ahead of the query. The
 * first query sees one key, so its score changes nothing: dP - D is zero but for rounding. */
static void probabilities(const struct back_job *job, const struct query_tile *t, size_t from, size_t keys)
{
	for (size_t r = 0; r < t->rows; r++) {
		const float *stats = job->a->stats + ((t->first + r) * job->a->heads + t->head) * 2;
		const size_t reach = t->first + r + 1 > from ? t->first + r + 1 - from : 0;
		const size_t seen = reach < keys ? reach : keys;
		float *p = t->p + r * keys, *dp = t->dp + r * keys;

		job->cpu->train->softmax_backward(p, dp, stats[0], stats[1], t->mean[r],
						  t->first + r > 0 ? job->factor : 0.0f, seen);
		memset(p + seen, 0, (keys - seen) * sizeof(*p));
		memset(dp + seen, 0, (keys - seen) * sizeof(*dp));
	}
}

static void meet_keys(const struct back_job *job, const struct query_tile *t, size_t from, size_t keys)
{
	const size_t dim = job->a->head_dim, q_cols = job->q_cols, kv_cols = job->kv_cols;
	const float *k = t->k + from * kv_cols, *v = t->v + from * kv_cols;

	gemm(CblasNoTrans, CblasTrans, t->rows, keys, dim, job->factor, t->q, q_cols, k, kv_cols, false, t->p,
	     keys);
	gemm(CblasNoTrans, CblasTrans, t->rows, keys, dim, 1, t->d_o, q_cols, v, kv_cols, false, t->dp, keys);
	probabilities(job, t, from, keys);
	gemm(CblasTrans, CblasNoTrans, keys, dim, t->rows, 1, t->p, keys, t->d_o, q_cols, t->add,
	     t->dv + from * dim, dim);
	gemm(CblasTrans, CblasNoTrans, keys, dim, t->rows, 1, t->dp, keys, t->q, q_cols, t->add,
	     t->dk + from * dim, dim);
	gemm(CblasNoTrans, CblasNoTrans, t->rows, dim, keys, 1, t->dp, keys, k, kv_cols, from > 0, t->dq,
	     q_cols);
}

/* dq of the turned queries to dq of what the linear map gave. */
static void turn_back(const struct back_job *job, float *row, size_t position, const float *in,
		      const float *norm, float *share)
{
	const struct attention_back *a = job->a;
	const size_t half = a->head_dim / 2, at = position * half;

	job->cpu->train->rope_backward(row, a->rope->cos + at, a->rope->sin + at, half);
	if (norm)
		job->cpu->train->norm_backward(in, norm, a->eps, a->head_dim, row, NULL, row, share);
}

static void finish_queries(const struct back_job *job, const struct query_tile *t, float *share)
{
	const struct attention_back *a = job->a;

	for (size_t r = 0; r < t->rows; r++) {
		const size_t at = (t->first + r) * job->q_cols + t->head * a->head_dim;

		turn_back(job, t->dq + r * job->q_cols, t->first + r, a->q_norm ? a->q_in + at : NULL,
			  a->q_norm, share);
	}
}

static struct query_tile tile_of(const struct back_job *job, size_t head, size_t tile)
{
	const struct attention_back *a = job->a;
	const size_t dim = a->head_dim, first = tile * QUERY_TILE, at = first * job->q_cols + head * dim;
	const size_t kv = head / (a->heads / a->kv_heads) * dim;
	struct query_tile t = { .head = head, .first = first, .q = a->q + at, .d_o = a->d_o + at,
				.rows = tile_length(a->seq_len, QUERY_TILE, tile), .k = a->k + kv,
				.v = a->v + kv, .dq = a->dq + at };

	for (size_t r = 0; r < t.rows; r++)
		t.mean[r] = job->cpu->train->dot(t.d_o + r * job->q_cols, a->o + at + r * job->q_cols, dim);
	return t;
}

static void query_item(void *ctx, size_t item, int worker)
{
	const struct back_job *job = ctx;
	const struct attention_back *a = job->a;
	const size_t head = item % a->heads, part = item / a->heads, slot = head * job->parts + part;
	const size_t room = a->seq_len * a->head_dim;
	float *share = a->q_norm ? a->q_norm_shares + slot * a->head_dim : NULL;

	if (share)
		memset(share, 0, a->head_dim * sizeof(*share));
	for (size_t left = job->tiles - part; left > 0; left = left > job->parts ? left - job->parts : 0) {
		struct query_tile t = tile_of(job, head, left - 1);
		const size_t end = t.first + t.rows;

		t.dk = a->partial + 2 * slot * room;
		t.dv = t.dk + room;
		t.add = left != job->tiles - part;
		t.p = a->scratch + (size_t)worker * cpu_attention_back_scratch();
		t.dp = t.p + QUERY_TILE * KEY_TILE;
		for (size_t from = 0; from < end; from += KEY_TILE)
			meet_keys(job, &t, from, end - from < KEY_TILE ? end - from : KEY_TILE);
		finish_queries(job, &t, share);
	}
}

/* One row of dK and dV of one key-value head from the items that reach it. */
static void sum_row(const struct back_job *job, size_t kv, size_t row, float *dk, float *dv)
{
	const struct attention_back *a = job->a;
	const size_t dim = a->head_dim, group = a->heads / a->kv_heads, room = a->seq_len * dim;

	memset(dk, 0, dim * sizeof(*dk));
	memset(dv, 0, dim * sizeof(*dv));
	for (size_t slot = kv * group * job->parts; slot < (kv + 1) * group * job->parts; slot++) {
		const float *from = a->partial + 2 * slot * room + row * dim;

		if (row >= (job->tiles - slot % job->parts) * QUERY_TILE)
			continue;
		job->cpu->forward->add(dk, from, dim);
		job->cpu->forward->add(dv, from + room, dim);
	}
}

static void sum_item(void *ctx, size_t item, int worker)
{
	const struct back_job *job = ctx;
	const struct attention_back *a = job->a;
	const size_t kv = item % a->kv_heads, tile = item / a->kv_heads, first = tile * SUM_ROWS;
	const size_t end = first + tile_length(a->seq_len, SUM_ROWS, tile);
	float *share = a->k_norm ? a->k_norm_shares + item * a->head_dim : NULL;

	(void)worker;
	if (share)
		memset(share, 0, a->head_dim * sizeof(*share));
	for (size_t r = first; r < end; r++) {
		const size_t at = r * job->kv_cols + kv * a->head_dim;

		sum_row(job, kv, r, a->dk + at, a->dv + at);
		turn_back(job, a->dk + at, r, a->k_norm ? a->k_in + at : NULL, a->k_norm, share);
	}
}

void cpu_attention_back(struct cpu_backend *cpu, const struct attention_back *a)
{
	struct back_job job = { .cpu = cpu, .a = a, .tiles = ceil_div(a->seq_len, QUERY_TILE),
				.q_cols = a->heads * a->head_dim, .kv_cols = a->kv_heads * a->head_dim,
				.factor = 1.0f / sqrtf((float)a->head_dim) };

	job.parts = parts_of(a->heads, job.tiles);
	pool_run(cpu->pool, a->heads * job.parts, query_item, &job);
	pool_run(cpu->pool, a->kv_heads * ceil_div(a->seq_len, SUM_ROWS), sum_item, &job);
}
