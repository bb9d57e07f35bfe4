#include "worker/forward.h"

size_t forward_piece(const struct task_env *env, size_t seq_len)
{
	const size_t tokens = env->piece_tokens ? env->piece_tokens : env->backend->ops->piece_tokens;

	return seq_len >= tokens ? 1 : tokens / seq_len;
}

int layer_forward_init(struct layer_forward *f, struct task_env *env, size_t seq_len, struct err *err)
{
	*f = (struct layer_forward){ .backend = env->backend, .keep = env->keep, .threads = env->threads,
				     .seq_len = seq_len };
	if (checkpoint_open(&f->ck, env->model, NULL, err) != 0)
		return -1;
	f->hidden = f->ck.config.hidden;
	f->piece = forward_piece(env, seq_len);
	env->piece_used = f->piece * seq_len;
	env->piece_least = seq_len;
	if (rope_init(&f->rope, &f->ck.config, seq_len, err) != 0 ||
	    placed_init(&f->rope_placed, f->backend, f->rope.data, rope_bytes(&f->rope), "rotary tables", err) != 0) {
		layer_forward_deinit(f);
		return -1;
	}
	f->rope_table = placed_rope(&f->rope_placed, &f->rope.table);
	return 0;
}

void layer_forward_most(struct layer_forward *f, struct task_env *env, size_t sequences)
{
	if (sequences > 0 && sequences < f->piece)
		f->piece = sequences;
	env->piece_used = f->piece * f->seq_len;
}

/* What is not kept for the next task stays where it is, as memory to load into. */
static void leave_block(struct layer_forward *f)
{
	if (f->original)
		layer_keep_put(f->keep, f->layer, &f->block, &f->room);
	f->original = false;
	f->weights = (struct block_weights){ 0 };
}

void layer_forward_drop(struct layer_forward *f)
{
	leave_block(f);
	layer_room_free(&f->room);
	block_free(&f->block);
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

static int read_block(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err)
{
	struct layer_load l = { .be = f->backend, .config = &f->ck.config, .layer = layer, .threads = f->threads,
				.reader = tensor_reader_of_checkpoint(&f->ck) };
	struct layer_blob blob;
	int rc;

	if (!layer_path)
		return layer_load(&l, &f->block, &f->room, err);
	if (layer_blob_open(&blob, layer_path, err) != 0)
		return -1;
	l.reader = tensor_reader_of_layer(&blob);
	rc = layer_load(&l, &f->block, &f->room, err);
	layer_blob_close(&blob);
	return rc;
}

/* One layer's memory at most is held afterwards, by f. */
static bool take_kept(struct layer_forward *f, size_t layer, const char *layer_path)
{
	struct layer_room room = { 0 };
	struct block block = { 0 };
	bool found;

	leave_block(f);
	found = layer_keep_take(f->keep, layer, &block, &room) && !layer_path;
	if (!block.data && !room.weights)
		return false;
	layer_forward_drop(f);
	f->block = block;
	f->room = room;
	return found;
}

int layer_forward_place(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err)
{
	if (!take_kept(f, layer, layer_path) && read_block(f, layer, layer_path, err) != 0) {
		layer_forward_drop(f);
		return -1;
	}
	f->layer = layer;
	f->original = !layer_path;
	f->weights = layer_room_weights(&f->ck.config, &f->block, &f->room);
	return 0;
}

int layer_forward_load(struct layer_forward *f, size_t layer, const char *layer_path, struct err *err)
{
	if (layer_forward_place(f, layer, layer_path, err) == 0 &&
	    layer_load_ordinary(&f->ck.config, &f->block, &f->room, err) == 0)
		return 0;
	layer_forward_discard(f);
	return -1;
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
