/* task_evaluate.c - negative log-likelihood of a range of windows, layer by layer.
 *
 * The hidden states of the chunk's windows stay in memory (the coordinator cuts chunks so that they
 * are some 16 windows); one layer of weights at a time passes over them.
 */
#include <stdio.h>

#include "common/alloc.h"
#include "worker/forward.h"
#include "worker/model/embed.h"
#include "worker/model/head.h"
#include "worker/task_kinds.h"

struct evaluation {
	struct layer_forward forward;
	struct task_env *env;
	bool quantized;
	size_t seq_len, first, count;   /* windows [first, first + count) */
	int32_t *ids;                   /* (count, seq_len) */
	float *rows;                    /* (count, seq_len, hidden) */
	double nll;                     /* sum */
	uint64_t predictions;
};

static int read_windows(struct evaluation *e, const struct json *spec, struct err *err)
{
	const struct task_input *input = task_input_find(e->env, "tokens", err);
	struct tensor_file tokens;
	int64_t chunk, chunks;
	int rc = -1;

	if (!input || json_require_int(spec, "chunks", 1, 1 << 20, &chunks, err) != 0 ||
	    json_require_int(spec, "chunk", 0, chunks - 1, &chunk, err) != 0 ||
	    tokens_file_open(&tokens, input->path, err) != 0)
		return -1;
	e->seq_len = tokens.seq_len;
	e->first = (size_t)((uint64_t)chunk * tokens.sequences / (uint64_t)chunks);
	e->count = (size_t)((uint64_t)(chunk + 1) * tokens.sequences / (uint64_t)chunks) - e->first;
	e->ids = mem_alloc(e->count * e->seq_len, sizeof(*e->ids));
	if (!e->ids)
		err_set_nomem(err, "evaluation tokens");
	else
		rc = tokens_file_read(&tokens, e->first, e->count, e->ids, err);
	tensor_file_close(&tokens);
	return rc;
}

static int load_layer(struct evaluation *e, size_t layer, struct err *err)
{
	char name[32];
	const char *path = NULL;

	if (e->quantized) {
		snprintf(name, sizeof(name), "layer-%zu", layer);
		path = task_input_path(e->env, name);
		if (!path)
			return err_set(err, ERR_INVALID, "the task lacks input '%s'", name);
	}
	return layer_forward_load(&e->forward, layer, path, err);
}

static int run_layers(struct evaluation *e, struct err *err)
{
	size_t layers = e->forward.ck.config.layers;

	for (size_t layer = 0; layer < layers; layer++)
		if (task_step(e->env, (double)layer / (double)(layers + 1), "evaluating", err) != 0 ||
		    load_layer(e, layer, err) != 0 ||
		    layer_forward_run(&e->forward, e->rows, e->count, e->rows, NULL, NULL, err) != 0)
			return -1;
	block_free(&e->forward.block);
	return 0;
}

/* Each token predicts the next; the last position of a window predicts nothing. */
static void next_tokens(const struct evaluation *e, int32_t *targets)
{
	for (size_t w = 0; w < e->count; w++) {
		const int32_t *ids = e->ids + w * e->seq_len;

		for (size_t i = 0; i < e->seq_len; i++)
			targets[w * e->seq_len + i] = i + 1 < e->seq_len ? ids[i + 1] : -1;
	}
}

static int score(struct evaluation *e, struct err *err)
{
	size_t tokens = e->count * e->seq_len;
	int32_t *targets = mem_alloc(tokens, sizeof(*targets));
	double *nll = mem_alloc(tokens, sizeof(*nll));
	int rc = -1;

	if (!targets || !nll) {
		err_set_nomem(err, "evaluation results");
		goto out;
	}
	next_tokens(e, targets);
	if (head_nll(e->forward.backend, &e->forward.ck, e->rows, targets, tokens, nll, NULL, err) != 0)
		goto out;
	for (size_t i = 0; i < tokens; i++)
		e->nll += nll[i];
	e->predictions = e->count * (e->seq_len - 1);
	rc = 0;
out:
	mem_free(targets);
	mem_free(nll);
	return rc;
}

static int evaluate(struct evaluation *e, struct err *err)
{
	size_t tokens = e->count * e->seq_len;

	e->rows = mem_alloc_aligned(tokens * e->forward.hidden, sizeof(*e->rows));
	if (!e->rows)
		return err_set_nomem(err, "hidden states");
	if (embed_tokens(&e->forward.ck, e->ids, tokens, e->rows, err) != 0 || run_layers(e, err) != 0)
		return -1;
	return score(e, err);
}

static struct json *evaluation_result(const struct evaluation *e)
{
	struct json *result = json_new_object();

	if (json_set_number(result, "nll", e->nll) != 0 ||
	    json_set_int(result, "predictions", (int64_t)e->predictions) != 0 ||
	    json_set_int(result, "windows", (int64_t)e->count) != 0 ||
	    json_set_int(result, "first_window", (int64_t)e->first) != 0) {
		json_free(result);
		return NULL;
	}
	return result;
}

int task_evaluate(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct evaluation e = { .env = env };
	const char *model;
	int rc = -1;

	if (json_require_string(spec, "model", &model, err) != 0 || read_windows(&e, spec, err) != 0)
		goto out;
	e.quantized = model[0] == 'q';
	if (layer_forward_init(&e.forward, env, e.seq_len, err) != 0)
		goto out;
	rc = e.count == 0 ? 0 : evaluate(&e, err);
	layer_forward_deinit(&e.forward);
	if (rc == 0 && !(*result = evaluation_result(&e)))
		rc = err_set_nomem(err, "a result");
out:
	mem_free(e.ids);
	mem_free(e.rows);
	return rc;
}
