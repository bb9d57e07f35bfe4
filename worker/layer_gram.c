#include "worker/layer_gram.h"

#include "common/alloc.h"

struct gram_tap { struct layer_gram *gram; struct err *err; };

void layer_gram_drop(struct layer_gram *g, enum block_site site)
{
	if (g->h[site])
		g->backend->ops->memory_give(g->backend, g->h[site]);
	mem_free(g->diagonal[site]);
	g->h[site] = NULL;
	g->diagonal[site] = NULL;
}

void layer_gram_deinit(struct layer_gram *g)
{
	for (int site = 0; site < SITE_COUNT; site++)
		layer_gram_drop(g, (enum block_site)site);
}

static int add_rows(void *ctx, int site, const float *x, size_t rows, size_t cols)
{
	struct gram_tap *tap = ctx;
	struct layer_gram *g = tap->gram;

	if (!g->h[site])
		return 0;
	g->rows[site] += rows;
	return g->backend->ops->gram_add(g->backend, x, rows, cols, g->h[site], tap->err);
}

static int alloc_site(struct layer_gram *g, enum block_site site, size_t cols, struct err *err)
{
	size_t cells, bytes;

	g->cols[site] = cols;
	if (!size_mul(cols, cols, &cells) || !size_mul(cells, sizeof(double), &bytes))
		return err_set_nomem(err, "the H matrix of a layer");
	g->diagonal[site] = mem_alloc(cols, sizeof(double));
	if (!g->diagonal[site])
		return err_set_nomem(err, "the diagonal of H");
	g->h[site] = place_zeros(g->backend, bytes, "the H matrix of a layer", err);
	return g->h[site] ? 0 : -1;
}

static int gram_alloc(struct layer_gram *g, const struct model_config *config,
		      const bool wanted[SITE_COUNT], struct err *err)
{
	for (int lin = 0; lin < LIN_COUNT; lin++) {
		struct linear_shape shape = model_linear(config, (enum block_linear)lin);

		if (!g->h[shape.site] && wanted[shape.site] && alloc_site(g, shape.site, shape.cols, err) != 0)
			return -1;
	}
	return 0;
}

/* One piece of the pass: sequences [first, first + count) of one shard, all or none of them within each
 * limit. */
static int collect_piece(struct gram_tap *tap, struct layer_forward *f, struct hidden_shards *shards,
			 const struct layer_pass *pass, size_t first, size_t count, float *rows,
			 struct err *err)
{
	const bool gram = pass->samples == 0 || first < pass->samples, output = first < pass->outputs;

	if (hidden_shards_read(shards, first, count, rows, err) != 0 ||
	    layer_forward_run(f, rows, count, output ? rows : NULL, gram ? add_rows : NULL, tap, err) != 0)
		return -1;
	return output ? pass->output(pass->ctx, first, count, rows, err) : 0;
}

/* Where the piece that begins at `first` ends. */
static size_t piece_end(const struct layer_forward *f, const struct hidden_shards *shards,
			const struct layer_pass *pass, size_t first)
{
	size_t end = hidden_shards_end(shards, first);

	if (end - first > f->piece)
		end = first + f->piece;
	if (pass->samples > first && pass->samples < end)
		end = pass->samples;
	if (pass->outputs > first && pass->outputs < end)
		end = pass->outputs;
	return end;
}

/* How many sequences the pass takes. */
static size_t pass_length(const struct hidden_shards *shards, const struct layer_pass *pass)
{
	const size_t total = hidden_shards_total(shards);
	size_t wanted = pass->samples == 0 ? total : pass->samples;

	if (pass->outputs > wanted)
		wanted = pass->outputs;
	return wanted < total ? wanted : total;
}

static int gram_mean(struct layer_gram *g, struct err *err)
{
	for (int site = 0; site < SITE_COUNT; site++)
		if (g->h[site] && g->backend->ops->gram_mean(g->backend, g->h[site], g->cols[site], g->rows[site],
							      g->diagonal[site], err) != 0)
			return -1;
	return 0;
}

int layer_gram_collect(struct layer_gram *g, struct layer_forward *f, struct hidden_shards *shards,
		       const struct layer_pass *pass, struct err *err)
{
	struct gram_tap tap = { .gram = g, .err = err };
	const size_t length = pass_length(shards, pass);
	float *rows;
	int rc;

	if (shards->width != f->hidden || shards->seq_len != f->seq_len)
		return err_set(err, ERR_CORRUPT, "%s does not hold hidden states of this model",
			       shards->file.path);
	rows = mem_alloc_aligned(f->piece * f->seq_len * f->hidden, sizeof(*rows));
	if (!rows)
		return err_set_nomem(err, "hidden states");
	g->backend = f->backend;
	rc = gram_alloc(g, &f->ck.config, pass->wanted, err);
	for (size_t first = 0, end; rc == 0 && first < length; first = end) {
		end = piece_end(f, shards, pass, first);
		rc = task_step(shards->env, pass->share * (double)first / (double)length,
			       "gathering activation statistics", err);
		if (rc == 0)
			rc = collect_piece(&tap, f, shards, pass, first, end - first, rows, err);
	}
	if (rc == 0)
		rc = gram_mean(g, err);
	mem_free(rows);
	return rc;
}
