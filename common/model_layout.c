/* model_layout.c - names and shapes of a model's tensors, derived from its configuration. */
#include <stdio.h>
#include <string.h>

#include "common/model_config.h"

struct linear_shape model_linear(const struct model_config *mc, enum block_linear which)
{
	size_t hidden = mc->hidden, inner = mc->intermediate;
	size_t q = mc->heads * mc->head_dim, kv = mc->kv_heads * mc->head_dim;

	switch (which) {
	case LIN_Q:
		return (struct linear_shape){ "self_attn.q_proj", SITE_ATTN_IN, q, hidden, mc->qkv_bias };
	case LIN_K:
		return (struct linear_shape){ "self_attn.k_proj", SITE_ATTN_IN, kv, hidden, mc->qkv_bias };
	case LIN_V:
		return (struct linear_shape){ "self_attn.v_proj", SITE_ATTN_IN, kv, hidden, mc->qkv_bias };
	case LIN_O:
		return (struct linear_shape){ "self_attn.o_proj", SITE_O_IN, hidden, q, mc->o_bias };
	case LIN_GATE:
		return (struct linear_shape){ "mlp.gate_proj", SITE_MLP_IN, inner, hidden, mc->mlp_bias };
	case LIN_UP:
		return (struct linear_shape){ "mlp.up_proj", SITE_MLP_IN, inner, hidden, mc->mlp_bias };
	case LIN_DOWN:
		return (struct linear_shape){ "mlp.down_proj", SITE_DOWN_IN, hidden, inner, mc->mlp_bias };
	case LIN_COUNT:
		break;
	}
	return (struct linear_shape){ 0 };
}

const char *model_norm(const struct model_config *mc, enum block_norm which, size_t *len)
{
	*len = mc->hidden;
	switch (which) {
	case NORM_ATTN:
		return "input_layernorm";
	case NORM_MLP:
		return "post_attention_layernorm";
	case NORM_Q:
		*len = mc->head_dim;
		return mc->qk_norm ? "self_attn.q_norm" : NULL;
	case NORM_K:
		*len = mc->head_dim;
		return mc->qk_norm ? "self_attn.k_norm" : NULL;
	case NORM_COUNT:
		break;
	}
	return NULL;
}

void model_linear_name(char out[MODEL_NAME_MAX], const struct model_config *mc, size_t layer,
		       enum block_linear which)
{
	snprintf(out, MODEL_NAME_MAX, "model.layers.%zu.%s", layer, model_linear(mc, which).suffix);
}

void model_norm_name(char out[MODEL_NAME_MAX], const struct model_config *mc, size_t layer,
		     enum block_norm which)
{
	size_t len;
	const char *suffix = model_norm(mc, which, &len);

	snprintf(out, MODEL_NAME_MAX, "model.layers.%zu.%s.weight", layer, suffix ? suffix : "?");
}

/* --- every tensor ------------------------------------------------------------- */

struct walk {
	const struct model_config *mc;
	int (*visit)(void *ctx, const struct model_tensor *t);
	void *ctx;
	long layer;
};

static int visit(const struct walk *w, const char *name, size_t rows, size_t cols)
{
	struct model_tensor t = { .name = name, .dim = { rows, cols }, .layer = w->layer };

	return w->visit(w->ctx, &t);
}

static int visit_norm(const struct walk *w, enum block_norm which)
{
	char name[MODEL_NAME_MAX];
	size_t len;

	if (!model_norm(w->mc, which, &len))
		return 0;
	model_norm_name(name, w->mc, (size_t)w->layer, which);
	return visit(w, name, len, 0);
}

static int visit_linear(const struct walk *w, enum block_linear which)
{
	struct linear_shape shape = model_linear(w->mc, which);
	char module[MODEL_NAME_MAX], name[MODEL_NAME_MAX + 8];
	int rc;

	model_linear_name(module, w->mc, (size_t)w->layer, which);
	snprintf(name, sizeof(name), "%s.weight", module);
	rc = visit(w, name, shape.rows, shape.cols);
	if (rc != 0 || !shape.bias)
		return rc;
	snprintf(name, sizeof(name), "%s.bias", module);
	return visit(w, name, shape.rows, 0);
}

static int visit_block(const struct walk *w)
{
	int rc = 0;

	for (int which = 0; rc == 0 && which < NORM_COUNT; which++)
		rc = visit_norm(w, (enum block_norm)which);
	for (int which = 0; rc == 0 && which < LIN_COUNT; which++)
		rc = visit_linear(w, (enum block_linear)which);
	return rc;
}

int model_each_tensor(const struct model_config *mc,
		      int (*visit_one)(void *ctx, const struct model_tensor *t), void *ctx)
{
	struct walk w = { .mc = mc, .visit = visit_one, .ctx = ctx, .layer = -1 };
	int rc = visit(&w, MODEL_EMBED_NAME, mc->vocab, mc->hidden);

	for (size_t layer = 0; rc == 0 && layer < mc->layers; layer++) {
		w.layer = (long)layer;
		rc = visit_block(&w);
	}
	w.layer = -1;
	if (rc == 0)
		rc = visit(&w, MODEL_FINAL_NORM_NAME, mc->hidden, 0);
	if (rc == 0 && !mc->tied_embeddings)
		rc = visit(&w, MODEL_HEAD_NAME, mc->vocab, mc->hidden);
	return rc;
}
