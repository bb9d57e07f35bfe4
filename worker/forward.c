#include "worker/forward.h"

enum { PIECE_TOKENS = 2048 };

size_t forward_piece(size_t seq_len)
{
	return seq_len >= PIECE_TOKENS ? 1 : PIECE_TOKENS / seq_len;
}

int layer_forward_init(struct layer_forward *f, struct task_env *env, size_t seq_len, struct err *err)
{
	*f = (struct layer_forward){ .backend = env->backend, .seq_len = seq_len,
				     .piece = forward_piece(seq_len) };
	if (checkpoint_open(&f->ck, env->model, NULL, err) != 0)
		return -1;
	f->hidden = f->ck.config.hidden;
	if (rope_init(&f->rope, &f->ck.config, seq_len, err) != 0) {
		layer_forward_deinit(f);
		return -1;
	}
	return 0;
}

void layer_forward_deinit(struct layer_forward *f)
{
	block_free(&f->block);
	rope_deinit(&f->rope);
	checkpoint_close(&f->ck);
}

int layer_forward_load(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err)
{
	struct tensor_reader reader = tensor_reader_of_checkpoint(&f->ck);
	struct layer_blob blob;
	int rc;

	block_free(&f->block);
	if (!layer_path)
		return block_load(&f->block, &f->ck.config, layer, &reader, err);
	if (layer_blob_open(&blob, layer_path, err) != 0)
		return -1;
	reader = tensor_reader_of_layer(&blob);
	rc = block_load(&f->block, &f->ck.config, layer, &reader, err);
	layer_blob_close(&blob);
	return rc;
}

int layer_forward_run(struct layer_forward *f, const float *x, size_t count, float *y, block_tap tap,
		      void *tap_ctx, struct err *err)
{
	size_t sequence = f->seq_len * f->hidden;

	for (size_t first = 0; first < count; first += f->piece) {
		size_t now = count - first < f->piece ? count - first : f->piece;

		if (f->backend->ops->block_forward(f->backend, &f->block.shape, &f->block.w, &f->rope.table,
						   x + first * sequence, now, f->seq_len,
						   y ? y + first * sequence : NULL, tap, tap_ctx, err) != 0)
			return -1;
	}
	return 0;
}
