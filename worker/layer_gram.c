#include "worker/layer_gram.h"

#include "common/alloc.h"
#include "worker/hidden_stream.h"

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

/* One piece of the pass, all or none of whose sequences are within each limit. y: memory of the backend for output. */
static int collect_piece(struct gram_tap *tap, struct layer_forward *f, const struct layer_pass *pass,
			 const struct hidden_piece *piece, float *y, struct err *err)
{
	const bool gram = pass->samples == 0 || piece->first < pass->samples, output = piece->first < pass->outputs;

	if (layer_forward_run(f, piece->x, piece->count, output ? y : NULL, gram ? add_rows : NULL, tap, err) != 0)
		return -1;
	return output ? pass->output(pass->ctx, piece->first, piece->count, piece->x, y, err) : 0;
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

static int collect_pieces(struct gram_tap *tap, struct layer_forward *f, struct hidden_stream *s,
			  const struct task_env *env, const struct layer_pass *pass, struct err *err)
{
	const size_t length = s->config.length;
	struct backend *be = f->backend;
	float *y = NULL;
	int rc = 0;

	if (pass->outputs > 0 && !(y = be->ops->memory_take(be, s->pieces.largest, "the outputs of a block", err)))
		return -1;
	while (rc == 0 && hidden_stream_more(s)) {
		struct hidden_piece piece;

		rc = hidden_stream_next(s, &piece, err);
		if (rc == 0)
			rc = task_step(env, pass->share * (double)piece.first / (double)length,
				       "gathering activation statistics", err);
		if (rc == 0)
			rc = collect_piece(tap, f, pass, &piece, y, err);
	}
	be->ops->memory_give(be, y);
	return rc;
}

int layer_gram_collect(struct layer_gram *g, struct layer_forward *f, struct hidden_shards *shards,
		       const struct layer_pass *pass, struct err *err)
{
	const struct hidden_stream_config config = {
		.backend = f->backend, .in = shards, .piece = f->piece, .length = pass_length(shards, pass),
		.cut = { pass->samples, pass->outputs },
	};
	struct gram_tap tap = { .gram = g, .err = err };
	struct hidden_stream s;
	int rc;

	if (shards->width != f->hidden || shards->seq_len != f->seq_len)
		return err_set(err, ERR_CORRUPT, "%s does not hold hidden states of this model",
			       shards->file.path);
	g->backend = f->backend;
	if (gram_alloc(g, &f->ck.config, pass->wanted, err) != 0 || hidden_stream_open(&s, &config, err) != 0)
		return -1;
	rc = collect_pieces(&tap, f, &s, shards->env, pass, err);
	hidden_stream_close(&s);
	return rc == 0 ? gram_mean(g, err) : -1;
}
