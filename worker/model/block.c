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

struct block_weights block_weights_at(const struct model_config *config, const float *data)
{
	struct block_weights w = { 0 };

	for (int i = 0; i < LIN_COUNT; i++) {
		const struct linear_shape shape = model_linear(config, (enum block_linear)i);

		*block_linear_slot(&w, (enum block_linear)i) = data;
		data += shape.rows * shape.cols;
		if (!shape.bias)
			continue;
		*block_bias_slot(&w, (enum block_linear)i) = data;
		data += shape.rows;
	}
	for (int i = 0; i < NORM_COUNT; i++) {
		size_t len;

		if (!model_norm(config, (enum block_norm)i, &len))
			continue;
		*block_norm_slot(&w, (enum block_norm)i) = data;
		data += len;
	}
	return w;
}

void block_free(struct block *block)
{
	mem_free(block->data);
	*block = (struct block){ 0 };
}

/* --- reading ------------------------------------------------------------------------------------------------ */

/* The name is in place. */
static void add_tensor(struct block_pieces *p, size_t rows, size_t cols, size_t most)
{
	struct block_tensor *t = &p->tensor[p->tensors++];

	t->rows = rows;
	t->cols = cols;
	t->at = p->floats;
	t->piece_rows = cols < most ? most / cols : 1;
	t->first_piece = p->count;
	p->count += rows / t->piece_rows + (rows % t->piece_rows != 0);
	p->floats += rows * cols;
}

static void add_linear(struct block_pieces *p, const struct model_config *config, size_t layer,
		       enum block_linear which, size_t most)
{
	const struct linear_shape shape = model_linear(config, which);
	char module[MODEL_NAME_MAX];
	struct block_tensor *t = &p->tensor[p->tensors];

	model_linear_name(module, config, layer, which);
	snprintf(t->name, sizeof(t->name), "%s.weight", module);
	add_tensor(p, shape.rows, shape.cols, most);
	if (!shape.bias)
		return;
	t = &p->tensor[p->tensors];
	snprintf(t->name, sizeof(t->name), "%s.bias", module);
	add_tensor(p, shape.rows, 1, most);
}

int block_pieces_init(struct block_pieces *p, const struct model_config *config, size_t layer, size_t most,
		      struct err *err)
{
	size_t floats, len;

	*p = (struct block_pieces){ 0 };
	if (layer >= config->layers)
		return err_set(err, ERR_INVALID, "layer %zu of a model of %zu layers", layer, config->layers);
	if (block_floats(config, &floats, err) != 0)
		return -1;
	for (int i = 0; i < LIN_COUNT; i++)
		add_linear(p, config, layer, (enum block_linear)i, most);
	for (int i = 0; i < NORM_COUNT; i++) {
		if (!model_norm(config, (enum block_norm)i, &len))
			continue;
		model_norm_name(p->tensor[p->tensors].name, config, layer, (enum block_norm)i);
		add_tensor(p, len, 1, most);
	}
	return 0;
}

struct block_piece block_piece_of(const struct block_pieces *p, size_t i)
{
	const struct block_tensor *t = &p->tensor[p->tensors - 1];
	struct block_piece piece;

	while (t->first_piece > i)
		t--;
	piece = (struct block_piece){ .tensor = t, .row = (i - t->first_piece) * t->piece_rows };
	piece.rows = t->rows - piece.row < t->piece_rows ? t->rows - piece.row : t->piece_rows;
	piece.at = t->at + piece.row * t->cols;
	piece.floats = piece.rows * t->cols;
	return piece;
}
