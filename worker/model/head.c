/* See head.h. */
#include "worker/model/head.h"

#include <math.h>

#include "common/alloc.h"
#include "worker/model/table.h"

int head_final_norm(struct backend *be, struct checkpoint *ck, const float *hidden, size_t rows,
		    float *out, struct err *err)
{
	const size_t cols = ck->config.hidden;
	float *norm = mem_alloc_aligned(cols, sizeof(float));
	int rc;

	if (!norm)
		return err_set_nomem(err, "the final norm");
	rc = checkpoint_read_f32(ck, MODEL_FINAL_NORM_NAME, 0, cols, norm, err);
	if (rc == 0)
		rc = be->ops->rms_norm(be, hidden, norm, (float)ck->config.rms_eps, rows, cols, out, err);
	mem_free(norm);
	return rc;
}

static int check_targets(const struct checkpoint *ck, const int32_t *targets, size_t rows, struct err *err)
{
	for (size_t r = 0; r < rows; r++)
		if (targets[r] < -1 || (targets[r] >= 0 && (size_t)targets[r] >= ck->config.vocab))
			return err_set(err, ERR_INVALID, "target %zu has id %ld; the model's ids are 0 to "
				       "%zu", r, (long)targets[r], ck->config.vocab - 1);
	return 0;
}

/* One allocation for the arrays of a head_state; *block is what to free. */
static int state_init(struct head_state *st, size_t rows, void **block, struct err *err)
{
	const size_t row_bytes = 4 * sizeof(double) + sizeof(int32_t);
	double *data = mem_alloc(rows, row_bytes);

	*block = data;
	if (!data)
		return err_set_nomem(err, "the loss of each prediction");
	*st = (struct head_state){ .max = data, .sum = data + rows, .target = data + 2 * rows,
				   .top_logit = data + 3 * rows, .top_id = (int32_t *)(data + 4 * rows) };
	for (size_t r = 0; r < rows; r++)
		st->max[r] = st->top_logit[r] = -INFINITY;
	return 0;
}

/* The first n rows of `tile` are those of ids from first_id on. */
typedef int (*tile_fn)(void *ctx, const struct head_rows *tile, size_t n, int32_t first_id, struct err *err);

/* The whole output embedding, tile by tile, in ascending order. */
static int each_tile(struct checkpoint *ck, int bits, tile_fn fn, void *ctx, struct err *err)
{
	const struct model_config *c = &ck->config;
	const size_t row_bytes = c->hidden * sizeof(float), fit = HEAD_TILE_BYTES / row_bytes;
	const size_t step = fit > c->vocab ? c->vocab : fit > 0 ? fit : 1;
	struct head_rows tile;
	int rc = 0;

	if (head_rows_init(&tile, ck, bits, step, err) != 0)
		return -1;
	for (size_t id = 0; rc == 0 && id < c->vocab; id += step) {
		const size_t n = c->vocab - id < step ? c->vocab - id : step;

		rc = head_rows_read(&tile, id, n, err);
		if (rc == 0)
			rc = fn(ctx, &tile, n, (int32_t)id, err);
	}
	head_rows_deinit(&tile);
	return rc;
}

/* Rows on their way through the vocabulary; reference is NULL when there is nothing to compare with. */
struct head_pass {
	struct backend *be;
	const float *x, *reference;     /* (rows, hidden), normalized */
	const int32_t *targets;
	size_t rows, hidden;
	struct head_state state, reference_state;
	double *kl;
};

static int fold_tile(void *ctx, const struct head_rows *tile, size_t n, int32_t first_id, struct err *err)
{
	struct head_pass *p = ctx;
	const struct backend_ops *ops = p->be->ops;

	if (ops->head_tile(p->be, p->x, p->rows, p->hidden, tile->stored, n, first_id, p->targets, &p->state,
			   err) != 0)
		return -1;
	return !p->reference ? 0 : ops->head_tile(p->be, p->reference, p->rows, p->hidden, tile->source, n,
						  first_id, p->targets, &p->reference_state, err);
}

static int kl_tile(void *ctx, const struct head_rows *tile, size_t n, int32_t first_id, struct err *err)
{
	struct head_pass *p = ctx;

	(void)first_id;
	return p->be->ops->head_kl_tile(p->be, p->x, p->reference, p->rows, p->hidden, tile->stored, tile->source, n,
					&p->state, &p->reference_state, p->kl, NULL, err);
}

static double row_nll(const struct head_pass *p, size_t row)
{
	const struct head_state *st = &p->state;

	return p->targets[row] < 0 ? 0 : st->max[row] + log(st->sum[row]) - st->target[row];
}

int head_nll(struct backend *be, struct checkpoint *ck, int bits, const float *hidden, const int32_t *targets,
	     size_t rows, double *nll_out, int32_t *top_id, struct err *err)
{
	struct head_pass p = { .be = be, .targets = targets, .rows = rows, .hidden = ck->config.hidden };
	void *block = NULL;
	float *normed = NULL;
	size_t n;
	int rc = -1;

	if (check_targets(ck, targets, rows, err) != 0)
		return -1;
	if (size_mul(rows, ck->config.hidden, &n))
		normed = mem_alloc_aligned(n, sizeof(float));
	if (!normed) {
		err_set_nomem(err, "normalized hidden states");
		goto out;
	}
	p.x = normed;
	if (state_init(&p.state, rows, &block, err) != 0 ||
	    head_final_norm(be, ck, hidden, rows, normed, err) != 0 ||
	    each_tile(ck, bits, fold_tile, &p, err) != 0)
		goto out;
	for (size_t r = 0; r < rows; r++) {
		nll_out[r] = row_nll(&p, r);
		if (top_id)
			top_id[r] = p.state.top_id[r];
	}
	rc = 0;
out:
	mem_free(block);
	mem_free(normed);
	return rc;
}

static void compare_rows(const struct head_pass *p, double *nll_out, bool *same_top_out)
{
	for (size_t r = 0; r < p->rows; r++) {
		const bool counts = p->targets[r] >= 0;

		nll_out[r] = row_nll(p, r);
		if (!counts || p->kl[r] < 0)
			p->kl[r] = 0;
		same_top_out[r] = counts && p->state.top_id[r] == p->reference_state.top_id[r];
	}
}

int head_compare(struct backend *be, struct checkpoint *ck, int bits, float *hidden, float *reference,
		 const int32_t *targets, size_t rows, double *nll_out, double *kl_out,
		 bool *same_top_out, struct err *err)
{
	struct head_pass p = { .be = be, .x = hidden, .reference = reference, .targets = targets,
			       .rows = rows, .hidden = ck->config.hidden, .kl = kl_out };
	void *block = NULL, *reference_block = NULL;
	int rc = -1;

	if (check_targets(ck, targets, rows, err) != 0 || state_init(&p.state, rows, &block, err) != 0 ||
	    state_init(&p.reference_state, rows, &reference_block, err) != 0 ||
	    head_final_norm(be, ck, hidden, rows, hidden, err) != 0 ||
	    head_final_norm(be, ck, reference, rows, reference, err) != 0 ||
	    each_tile(ck, bits, fold_tile, &p, err) != 0)
		goto out;
	for (size_t r = 0; r < rows; r++)
		kl_out[r] = 0;
	rc = each_tile(ck, bits, kl_tile, &p, err);
	if (rc == 0)
		compare_rows(&p, nll_out, same_top_out);
out:
	mem_free(block);
	mem_free(reference_block);
	return rc;
}

struct head_hash { struct digest *digest; size_t hidden; };

static int hash_tile(void *ctx, const struct head_rows *tile, size_t n, int32_t first_id, struct err *err)
{
	const struct head_hash *h = ctx;

	(void)first_id;
	(void)err;
	digest_add(h->digest, tile->source, n * h->hidden * sizeof(float));
	return 0;
}

int head_digest(struct checkpoint *ck, char hex[DIGEST_HEX], struct err *err)
{
	struct head_hash h = { .digest = digest_new(), .hidden = ck->config.hidden };
	float *norm = mem_alloc_aligned(h.hidden, sizeof(float));
	int rc = -1;

	if (!h.digest || !norm) {
		err_set_nomem(err, "the digest of a model's head");
		goto out;
	}
	if (checkpoint_read_f32(ck, MODEL_FINAL_NORM_NAME, 0, h.hidden, norm, err) != 0)
		goto out;
	digest_add(h.digest, &ck->config.rms_eps, sizeof(ck->config.rms_eps));
	digest_add(h.digest, norm, h.hidden * sizeof(float));
	rc = each_tile(ck, TABLE_UNTOUCHED, hash_tile, &h, err);
	if (rc == 0)
		digest_finish(h.digest, hex);
out:
	digest_free(h.digest);
	mem_free(norm);
	return rc;
}
