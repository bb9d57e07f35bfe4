/* See head.h. */
#include "worker/model/head.h"

#include <math.h>

#include "common/alloc.h"

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

/* The whole vocabulary through the backend, tile by tile. */
static int stream_head(struct backend *be, struct checkpoint *ck, const float *normed,
		       const int32_t *targets, size_t rows, struct head_state *st, struct err *err)
{
	const struct model_config *c = &ck->config;
	const char *name = c->tied_embeddings ? MODEL_EMBED_NAME : MODEL_HEAD_NAME;
	const size_t row_bytes = c->hidden * sizeof(float), fit = HEAD_TILE_BYTES / row_bytes;
	const size_t step = fit > c->vocab ? c->vocab : fit > 0 ? fit : 1;
	float *tile = mem_alloc_aligned(step, row_bytes);
	int rc = 0;

	if (!tile)
		return err_set_nomem(err, "a tile of the output embedding");
	for (size_t id = 0; rc == 0 && id < c->vocab; id += step) {
		const size_t n = c->vocab - id < step ? c->vocab - id : step;

		rc = checkpoint_read_f32(ck, name, id, n, tile, err);
		if (rc == 0)
			rc = be->ops->head_tile(be, normed, rows, c->hidden, tile, n, (int32_t)id, targets,
						st, err);
	}
	mem_free(tile);
	return rc;
}

int head_nll(struct backend *be, struct checkpoint *ck, const float *hidden, const int32_t *targets,
	     size_t rows, double *nll_out, int32_t *top_id, struct err *err)
{
	struct head_state st;
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
	if (state_init(&st, rows, &block, err) != 0 ||
	    head_final_norm(be, ck, hidden, rows, normed, err) != 0 ||
	    stream_head(be, ck, normed, targets, rows, &st, err) != 0)
		goto out;
	for (size_t r = 0; r < rows; r++) {
		nll_out[r] = targets[r] < 0 ? 0 : st.max[r] + log(st.sum[r]) - st.target[r];
		if (top_id)
			top_id[r] = st.top_id[r];
	}
	rc = 0;
out:
	mem_free(block);
	mem_free(normed);
	return rc;
}
