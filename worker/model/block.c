/* The block's tensors are laid out in `data` in canonical order: linears with their biases, then norms. */
#include "worker/model/block.h"

#include <stdio.h>

#include "common/alloc.h"

const float **block_linear_slot(struct block_weights *w, enum block_linear which)
{
	const float **slots[LIN_COUNT] = { &w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down };

	return slots[which];
}

const float **block_bias_slot(struct block_weights *w, enum block_linear which)
{
	const float **slots[LIN_COUNT] = { &w->q_bias, &w->k_bias, &w->v_bias, &w->o_bias,
					   &w->gate_bias, &w->up_bias, &w->down_bias };

	return slots[which];
}

const float **block_norm_slot(struct block_weights *w, enum block_norm which)
{
	const float **slots[NORM_COUNT] = { &w->attn_norm, &w->mlp_norm, &w->q_norm, &w->k_norm };

	return slots[which];
}

struct block_shape block_shape_of(const struct model_config *c)
{
	return (struct block_shape){ .hidden = c->hidden, .heads = c->heads, .kv_heads = c->kv_heads,
				     .head_dim = c->head_dim, .intermediate = c->intermediate,
				     .rms_eps = (float)c->rms_eps };
}

/* *floats += rows * cols */
static bool count(size_t *floats, size_t rows, size_t cols)
{
	size_t n;

	return size_mul(rows, cols, &n) && size_add(*floats, n, floats);
}

int block_floats(const struct model_config *config, size_t *floats, struct err *err)
{
	bool fits = true;

	*floats = 0;
	for (int i = 0; i < LIN_COUNT; i++) {
		const struct linear_shape shape = model_linear(config, (enum block_linear)i);

		fits = fits && count(floats, shape.rows, shape.cols) &&
		       count(floats, shape.rows, shape.bias ? 1 : 0);
	}
	for (int i = 0; i < NORM_COUNT; i++) {
		size_t len = 0;

		if (model_norm(config, (enum block_norm)i, &len))
			fits = fits && count(floats, len, 1);
	}
	return fits ? 0 : err_set(err, ERR_TOO_LARGE, "one block of the model does not fit into memory");
}

/* One block_load() under way. */
struct loading {
	struct block *block;
	const struct model_config *config;
	size_t layer;
	const struct tensor_reader *reader;
	float *at;              /* where the next tensor goes */
};

static int load(struct loading *l, const char *name, size_t rows, size_t cols, const float **slot,
		struct err *err)
{
	if (l->reader->read(l->reader->ctx, name, 0, rows, l->at, err) != 0)
		return -1;
	*slot = l->at;
	l->at += rows * cols;
	return 0;
}

static int load_linear(struct loading *l, enum block_linear which, struct err *err)
{
	const struct linear_shape shape = model_linear(l->config, which);
	char module[MODEL_NAME_MAX], name[MODEL_NAME_MAX + 16];

	model_linear_name(module, l->config, l->layer, which);
	snprintf(name, sizeof(name), "%s.weight", module);
	if (load(l, name, shape.rows, shape.cols, block_linear_slot(&l->block->w, which), err) != 0)
		return -1;
	if (!shape.bias)
		return 0;
	snprintf(name, sizeof(name), "%s.bias", module);
	return load(l, name, shape.rows, 1, block_bias_slot(&l->block->w, which), err);
}

static int load_norm(struct loading *l, enum block_norm which, struct err *err)
{
	char name[MODEL_NAME_MAX];
	size_t len;

	if (!model_norm(l->config, which, &len))
		return 0;
	model_norm_name(name, l->config, l->layer, which);
	return load(l, name, len, 1, block_norm_slot(&l->block->w, which), err);
}

static int load_all(struct loading *l, struct err *err)
{
	for (int i = 0; i < LIN_COUNT; i++)
		if (load_linear(l, (enum block_linear)i, err) != 0)
			return -1;
	for (int i = 0; i < NORM_COUNT; i++)
		if (load_norm(l, (enum block_norm)i, err) != 0)
			return -1;
	return 0;
}

int block_load(struct block *block, const struct model_config *config, size_t layer,
	       const struct tensor_reader *reader, struct err *err)
{
	struct loading l = { .block = block, .config = config, .layer = layer, .reader = reader };

	*block = (struct block){ 0 };
	if (layer >= config->layers)
		return err_set(err, ERR_INVALID, "layer %zu of a model of %zu layers", layer, config->layers);
	if (block_floats(config, &block->floats, err) != 0)
		return -1;
	block->data = mem_alloc_aligned(block->floats, sizeof(float));
	if (!block->data)
		return err_set_nomem(err, "the weights of one block");
	l.at = block->data;
	block->shape = block_shape_of(config);
	if (load_all(&l, err) != 0) {
		block_free(block);
		return -1;
	}
	return 0;
}

void block_free(struct block *block)
{
	mem_free(block->data);
	*block = (struct block){ 0 };
}
