#include "worker/forward.h"

size_t forward_piece(const struct backend *be, size_t seq_len)
{
	const size_t tokens = be->ops->piece_tokens;

	return seq_len >= tokens ? 1 : tokens / seq_len;
}

int layer_forward_init(struct layer_forward *f, struct task_env *env, size_t seq_len, struct err *err)
{
	*f = (struct layer_forward){ .backend = env->backend, .keep = env->keep, .seq_len = seq_len };
	if (checkpoint_open(&f->ck, env->model, NULL, err) != 0)
		return -1;
	f->hidden = f->ck.config.hidden;
	if (rope_init(&f->rope, &f->ck.config, seq_len, err) != 0 ||
	    placed_init(&f->rope_placed, f->backend, f->rope.data, rope_bytes(&f->rope), "rotary tables", err) != 0) {
		layer_forward_deinit(f);
		return -1;
	}
	f->piece = forward_piece(f->backend, seq_len);
	f->rope_table = placed_rope(&f->rope_placed, &f->rope.table);
	return 0;
}

void layer_forward_drop(struct layer_forward *f)
{
	if (!f->original || !layer_keep_put(f->keep, f->layer, &f->block, &f->weights_placed)) {
		placed_deinit(&f->weights_placed);
		block_free(&f->block);
	}
	f->original = false;
	f->weights = (struct block_weights){ 0 };
}

void layer_forward_discard(struct layer_forward *f)
{
	f->original = false;
	layer_forward_drop(f);
}

void layer_forward_deinit(struct layer_forward *f)
{
	layer_forward_drop(f);
	placed_deinit(&f->rope_placed);
	rope_deinit(&f->rope);
	checkpoint_close(&f->ck);
}

static int load_block(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err)
{
	struct tensor_reader reader = tensor_reader_of_checkpoint(&f->ck);
	struct layer_blob blob;
	int rc;

	if (!layer_path)
		return block_load(&f->block, &f->ck.config, layer, &reader, err);
	if (layer_blob_open(&blob, layer_path, err) != 0)
		return -1;
	reader = tensor_reader_of_layer(&blob);
	rc = block_load(&f->block, &f->ck.config, layer, &reader, err);
	layer_blob_close(&blob);
	return rc;
}

int layer_forward_load(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err)
{
	layer_forward_drop(f);
	if (!layer_path && layer_keep_take(f->keep, layer, &f->block, &f->weights_placed))
		goto loaded;
	if (f->keep)
		layer_keep_drop(f->keep);
	if (load_block(f, layer, layer_path, err) != 0)
		return -1;
	if (placed_init(&f->weights_placed, f->backend, f->block.data, f->block.floats * sizeof(*f->block.data),
			"the weights of one block", err) != 0) {
		layer_forward_drop(f);
		return -1;
	}
loaded:
	f->layer = layer;
	f->original = !layer_path;
	f->weights = placed_block(&f->weights_placed, &f->block.w);
	return 0;
}

int layer_forward_run(struct layer_forward *f, const float *x, size_t count, float *y, block_tap tap,
		      void *tap_ctx, struct err *err)
{
	size_t sequence = f->seq_len * f->hidden;

	for (size_t first = 0; first < count; first += f->piece) {
		size_t now = count - first < f->piece ? count - first : f->piece;

		if (f->backend->ops->block_forward(f->backend, &f->block.shape, &f->weights, &f->rope_table,
						   x + first * sequence, now, f->seq_len,
						   y ? y + first * sequence : NULL, tap, tap_ctx, err) != 0)
			return -1;
	}
	return 0;
}
