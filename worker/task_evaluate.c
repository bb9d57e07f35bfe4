/* task_evaluate.c - negative log-likelihood of a range of windows, layer by layer; and how far its
 * predictions are from another model's.
 *
 * The hidden states of the chunk's windows stay in memory (the coordinator cuts chunks so that they
 * are some 16 windows); one layer of weights at a time passes over them.
 * To compare two models, one run keeps its last hidden states (output `hidden`) and the other reads
 * them (input `reference`): both go through the head of the model that reads. The file therefore
 * carries a digest of the head it belongs to, and a reference with another head is refused.
 */
#include <stdio.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "worker/forward.h"
#include "worker/model/embed.h"
#include "worker/model/head.h"
#include "worker/table_bits.h"
#include "worker/task_kinds.h"

static const char head_key[] = "head"; /* metadata of `hidden`: head_digest() of the model that made it */

struct evaluation {
	struct layer_forward forward;
	struct task_env *env;
	bool quantized, keep_hidden;
	struct table_bits tables;       /* of this model; the reference's are the source's */
	struct tensor_file reference;   /* closed when there is none */
	char head[DIGEST_HEX];          /* of this model; set when hidden states come or go */
	size_t seq_len, first, count;   /* windows [first, first + count) */
	int32_t *ids;                   /* (count, seq_len) */
	float *rows;                    /* (count, seq_len, hidden) */
	double nll, kl;                 /* sums */
	uint64_t predictions, top1;
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

static int check_reference(const struct evaluation *e, const char *path, struct err *err)
{
	const struct tensor_file *r = &e->reference;
	bool same;

	if (r->sequences != e->count || r->seq_len != e->seq_len || r->width != e->forward.hidden)
		return err_set(err, ERR_INVALID, "the reference holds %zu windows of %zu tokens of width "
			       "%zu; this chunk has %zu windows of %zu tokens and the model has width %zu",
			       r->sequences, r->seq_len, r->width, e->count, e->seq_len,
			       e->forward.hidden);
	if (tensor_file_has_meta(path, head_key, e->head, &same, err) != 0)
		return -1;
	if (!same)
		return err_set(err, ERR_REFUSED, "the reference is a model with another final norm or output "
			       "embedding; predictions are compared between models that share them");
	return 0;
}

/* Everything about the reference that can be wrong, before the work begins. */
static int open_reference(struct evaluation *e, struct err *err)
{
	const char *path = task_input_path(e->env, "reference");

	if ((path || e->keep_hidden) && head_digest(&e->forward.ck, e->head, err) != 0)
		return -1;
	if (!path)
		return 0;
	return hidden_file_open(&e->reference, path, err) != 0 ? -1 : check_reference(e, path, err);
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
	return layer_forward_place(&e->forward, layer, path, err);
}

static int run_layers(struct evaluation *e, struct err *err)
{
	size_t layers = e->forward.ck.config.layers;

	for (size_t layer = 0; layer < layers; layer++)
		if (task_step(e->env, (double)layer / (double)(layers + 1), "evaluating", err) != 0 ||
		    load_layer(e, layer, err) != 0 ||
		    layer_forward_run(&e->forward, e->rows, e->count, e->rows, NULL, NULL, err) != 0)
			return -1;
	layer_forward_discard(&e->forward);
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

static int write_hidden(const struct evaluation *e, struct err *err)
{
	struct tensor_file out;
	char *path = task_output_path(e->env, "hidden", err);
	int rc = -1;

	if (path && hidden_file_create_with(&out, path, e->count, e->seq_len, e->forward.hidden, head_key,
					    e->head, err) == 0) {
		rc = hidden_file_write(&out, 0, e->count, e->rows, err);
		tensor_file_close(&out);
	}
	mem_free(path);
	return rc;
}

/* kl, same_top (tokens): filled. Normalizes e->rows. */
static int compare(struct evaluation *e, const int32_t *targets, double *nll, double *kl, bool *same_top,
		   struct err *err)
{
	size_t tokens = e->count * e->seq_len;
	float *reference = mem_alloc_aligned(tokens * e->forward.hidden, sizeof(*reference));
	int rc = -1;

	if (!reference)
		return err_set_nomem(err, "hidden states of the reference");
	if (hidden_file_read(&e->reference, 0, e->count, reference, err) == 0)
		rc = head_compare(e->forward.backend, &e->forward.ck, e->tables.lm_head, e->rows, reference, targets,
				  tokens, nll, kl, same_top, err);
	mem_free(reference);
	return rc;
}

static int score(struct evaluation *e, struct err *err)
{
	size_t tokens = e->count * e->seq_len;
	int32_t *targets = mem_alloc(tokens, sizeof(*targets));
	double *nll = mem_alloc(tokens, sizeof(*nll)), *kl = mem_alloc(tokens, sizeof(*kl));
	bool *same_top = mem_alloc(tokens, sizeof(*same_top));
	int rc = -1;

	if (!targets || !nll || !kl || !same_top) {
		err_set_nomem(err, "evaluation results");
		goto out;
	}
	next_tokens(e, targets);
	if (e->reference.path)
		rc = compare(e, targets, nll, kl, same_top, err);
	else
		rc = head_nll(e->forward.backend, &e->forward.ck, e->tables.lm_head, e->rows, targets, tokens, nll, NULL,
			      err);
	for (size_t i = 0; rc == 0 && i < tokens; i++) {
		e->nll += nll[i];
		e->kl += kl[i];
		e->top1 += same_top[i];
	}
	e->predictions = e->count * (e->seq_len - 1);
out:
	mem_free(targets);
	mem_free(nll);
	mem_free(kl);
	mem_free(same_top);
	return rc;
}

static int evaluate(struct evaluation *e, struct err *err)
{
	size_t tokens = e->count * e->seq_len, layers = e->forward.ck.config.layers;

	if (open_reference(e, err) != 0)
		return -1;
	e->rows = mem_alloc_aligned(tokens * e->forward.hidden, sizeof(*e->rows));
	if (!e->rows)
		return err_set_nomem(err, "hidden states");
	if (e->count > 0 &&
	    (embed_tokens(&e->forward.ck, e->tables.embeddings, e->ids, tokens, e->rows, err) != 0 ||
	     run_layers(e, err) != 0))
		return -1;
	if ((e->keep_hidden && write_hidden(e, err) != 0) ||
	    task_step(e->env, (double)layers / (double)(layers + 1), "scoring predictions", err) != 0)
		return -1;
	return e->count > 0 ? score(e, err) : 0;
}

static int set_comparison(struct json *result, const struct evaluation *e)
{
	if (!e->reference.path)
		return 0;
	if (json_set_number(result, "kl", e->kl) != 0)
		return -1;
	return json_set_int(result, "top1", (int64_t)e->top1);
}

static struct json *evaluation_result(const struct evaluation *e)
{
	struct json *result = json_new_object();

	if (json_set_number(result, "nll", e->nll) != 0 ||
	    json_set_int(result, "predictions", (int64_t)e->predictions) != 0 ||
	    json_set_int(result, "windows", (int64_t)e->count) != 0 ||
	    json_set_int(result, "first_window", (int64_t)e->first) != 0 || set_comparison(result, e) != 0) {
		json_free(result);
		return NULL;
	}
	return result;
}

int task_evaluate(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct evaluation e = { .env = env, .reference = TENSOR_FILE_CLOSED };
	const char *model;
	int rc = -1;

	if (json_require_string(spec, "model", &model, err) != 0 || table_bits_read(&e.tables, spec, err) != 0 ||
	    read_windows(&e, spec, err) != 0)
		goto out;
	e.quantized = model[0] == 'q';
	e.keep_hidden = json_get_bool(spec, "keep_hidden", false);
	if (layer_forward_init(&e.forward, env, e.seq_len, err) != 0)
		goto out;
	layer_forward_most(&e.forward, env, e.count);
	rc = evaluate(&e, err);
	layer_forward_deinit(&e.forward);
	if (rc == 0 && !(*result = evaluation_result(&e)))
		rc = err_set_nomem(err, "a result");
out:
	tensor_file_close(&e.reference);
	mem_free(e.ids);
	mem_free(e.rows);
	return rc;
}
