#include "worker/layer_gram.h"

#include <stdio.h>

#include "common/alloc.h"

struct gram_tap {
	struct layer_gram *gram;
	struct backend *backend;
	struct err *err;
};

void layer_gram_drop(struct layer_gram *g, enum block_site site)
{
	mem_free(g->h[site]);
	g->h[site] = NULL;
}

void layer_gram_deinit(struct layer_gram *g)
{
	for (int site = 0; site < SITE_COUNT; site++)
		layer_gram_drop(g, (enum block_site)site);
}

static int add_rows(void *ctx, int site, const float *x, size_t rows, size_t cols)
{
	struct gram_tap *tap = ctx;

	if (!tap->gram->h[site])
		return 0;
	tap->gram->rows[site] += rows;
	return tap->backend->ops->gram_add(tap->backend, x, rows, cols, tap->gram->h[site], tap->err);
}

static int gram_alloc(struct layer_gram *g, const struct model_config *config,
		      const bool wanted[SITE_COUNT], struct err *err)
{
	for (int lin = 0; lin < LIN_COUNT; lin++) {
		struct linear_shape shape = model_linear(config, (enum block_linear)lin);

		if (g->h[shape.site] || !wanted[shape.site])
			continue;
		g->cols[shape.site] = shape.cols;
		g->h[shape.site] = mem_alloc(shape.cols, shape.cols * sizeof(double));
		if (!g->h[shape.site])
			return err_set_nomem(err, "the H matrix of a layer");
	}
	return 0;
}

static int collect_shard(struct gram_tap *tap, struct layer_forward *f, const char *path, float *rows,
			 struct err *err)
{
	struct tensor_file in;
	int rc = 0;

	if (hidden_file_open(&in, path, err) != 0)
		return -1;
	if (in.width != f->hidden || in.seq_len != f->seq_len)
		rc = err_set(err, ERR_CORRUPT, "%s does not hold hidden states of this model", path);
	for (size_t first = 0; rc == 0 && first < in.sequences; first += f->piece) {
		size_t now = in.sequences - first < f->piece ? in.sequences - first : f->piece;

		rc = hidden_file_read(&in, first, now, rows, err);
		if (rc == 0)
			rc = layer_forward_run(f, rows, now, NULL, add_rows, tap, err);
	}
	tensor_file_close(&in);
	return rc;
}

static void gram_mean(struct layer_gram *g)
{
	for (int site = 0; site < SITE_COUNT; site++) {
		size_t n = g->cols[site] * g->cols[site];

		for (size_t i = 0; g->h[site] && i < n; i++)
			g->h[site][i] /= (double)g->rows[site];
	}
}

int layer_gram_collect(struct layer_gram *g, struct layer_forward *f, const bool wanted[SITE_COUNT],
		       struct task_env *env, double share, struct err *err)
{
	struct gram_tap tap = { .gram = g, .backend = f->backend, .err = err };
	float *rows = mem_alloc_aligned(f->piece * f->seq_len * f->hidden, sizeof(*rows));
	const char *path;
	char name[32];
	int rc;

	if (!rows)
		return err_set_nomem(err, "hidden states");
	rc = gram_alloc(g, &f->ck.config, wanted, err);
	for (size_t s = 0; rc == 0 && s < env->input_count; s++) {
		snprintf(name, sizeof(name), "hidden-%zu", s);
		path = task_input_path(env, name);
		if (!path)
			rc = err_set(err, ERR_INVALID, "the task lacks input '%s'", name);
		else
			rc = task_step(env, share * (double)s / (double)env->input_count,
				       "gathering activation statistics", err);
		if (rc == 0)
			rc = collect_shard(&tap, f, path, rows, err);
	}
	if (rc == 0)
		gram_mean(g);
	mem_free(rows);
	return rc;
}
