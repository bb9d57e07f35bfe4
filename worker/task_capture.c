/* task_capture.c - one shard's hidden states through one block: X(l, s) to X(l+1, s). */
#include "common/alloc.h"
#include "worker/forward.h"
#include "worker/hidden_stream.h"
#include "worker/task_kinds.h"

/* What every piece of the shard goes through; the file is whole on success. */
static int push_pieces(struct hidden_stream *s, struct layer_forward *f, const struct task_env *env, struct err *err)
{
	const size_t sequences = s->config.length;

	while (hidden_stream_more(s)) {
		struct hidden_piece piece;

		if (hidden_stream_next(s, &piece, err) != 0 ||
		    task_step(env, (double)piece.first / (double)sequences, "capturing hidden states", err) != 0 ||
		    layer_forward_run(f, piece.x, piece.count, piece.y, NULL, NULL, err) != 0)
			return -1;
	}
	return hidden_stream_finish(s, err);
}

static int push_shard(struct layer_forward *f, struct hidden_shards *in, const char *out_path,
		      const struct task_env *env, struct err *err)
{
	const struct hidden_stream_config config = { .backend = f->backend, .in = in, .piece = f->piece,
						     .length = hidden_shards_total(in), .out_path = out_path };
	struct hidden_stream s;
	int rc;

	if (hidden_stream_open(&s, &config, err) != 0)
		return -1;
	rc = push_pieces(&s, f, env, err);
	hidden_stream_close(&s);
	return rc;
}

static int capture(struct layer_forward *f, struct hidden_shards *in, int64_t layer, struct task_env *env,
		   struct err *err)
{
	char *out_path;
	int rc;

	if (in->width != f->hidden)
		return err_set(err, ERR_CORRUPT, "%s holds hidden states of width %zu, the model has %zu",
			       in->file.path, in->width, f->hidden);
	/* With `propagate quantized` the quantized block stands in for the original. */
	if (layer_forward_place(f, (size_t)layer, task_input_path(env, "layer"), err) != 0)
		return -1;
	out_path = task_output_path(env, "hidden", err);
	rc = out_path ? push_shard(f, in, out_path, env, err) : -1;
	mem_free(out_path);
	return rc;
}

int task_capture(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct layer_forward f;
	struct hidden_shards in;
	int64_t layer;
	int rc = -1;

	if (json_require_int(spec, "layer", 0, 65535, &layer, err) != 0 ||
	    hidden_shards_open_only(&in, env, "hidden", err) != 0)
		return -1;
	if (layer_forward_init(&f, env, in.seq_len, err) == 0) {
		layer_forward_most(&f, env, hidden_shards_total(&in));
		rc = capture(&f, &in, layer, env, err);
		layer_forward_deinit(&f);
	}
	hidden_shards_close(&in);
	if (rc == 0 && !(*result = json_new_object()))
		rc = err_set_nomem(err, "a result");
	return rc;
}
