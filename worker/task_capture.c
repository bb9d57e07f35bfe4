/* task_capture.c - one shard's hidden states through one block: X(l, s) to X(l+1, s). */
#include "common/alloc.h"
#include "worker/forward.h"
#include "worker/task_kinds.h"

static int push_shard(struct layer_forward *f, struct tensor_file *in, const char *out_path,
		      const struct task_env *env, struct err *err)
{
	struct tensor_file out = TENSOR_FILE_CLOSED;
	float *rows = mem_alloc_aligned(f->piece * f->seq_len * f->hidden, sizeof(*rows));
	int rc = -1;

	if (!rows)
		return err_set_nomem(err, "hidden states");
	if (hidden_file_create(&out, out_path, in->sequences, f->seq_len, f->hidden, err) == 0)
		rc = 0;
	for (size_t first = 0; rc == 0 && first < in->sequences; first += f->piece) {
		size_t now = in->sequences - first < f->piece ? in->sequences - first : f->piece;

		if (task_step(env, (double)first / (double)in->sequences, "capturing hidden states", err) != 0 ||
		    hidden_file_read(in, first, now, rows, err) != 0 ||
		    layer_forward_run(f, rows, now, rows, NULL, NULL, err) != 0 ||
		    hidden_file_write(&out, first, now, rows, err) != 0)
			rc = -1;
	}
	tensor_file_close(&out);
	mem_free(rows);
	return rc;
}

static int capture(struct layer_forward *f, struct tensor_file *in, int64_t layer, struct task_env *env,
		   struct err *err)
{
	char *out_path;
	int rc;

	if (in->width != f->hidden)
		return err_set(err, ERR_CORRUPT, "%s holds hidden states of width %zu, the model has %zu",
			       in->path, in->width, f->hidden);
	/* With `propagate quantized` the quantized block stands in for the original. */
	if (layer_forward_load(f, (size_t)layer, task_input_path(env, "layer"), err) != 0)
		return -1;
	out_path = task_output_path(env, "hidden", err);
	rc = out_path ? push_shard(f, in, out_path, env, err) : -1;
	mem_free(out_path);
	return rc;
}

int task_capture(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	const struct task_input *input = task_input_find(env, "hidden", err);
	struct layer_forward f;
	struct tensor_file in;
	int64_t layer;
	int rc = -1;

	if (!input || json_require_int(spec, "layer", 0, 65535, &layer, err) != 0 ||
	    hidden_file_open(&in, input->path, err) != 0)
		return -1;
	if (layer_forward_init(&f, env, in.seq_len, err) == 0) {
		rc = capture(&f, &in, layer, env, err);
		layer_forward_deinit(&f);
	}
	tensor_file_close(&in);
	if (rc == 0 && !(*result = json_new_object()))
		rc = err_set_nomem(err, "a result");
	return rc;
}
