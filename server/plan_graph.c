/* The graph up to assembly: verify, tokenize, embed, capture, quantize, distill, evaluate. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/plan_parts.h"

enum { CHUNK_WINDOWS = 16, CHUNKS_MAX = 256, BYTES_PER_TOKEN = 4 };

static const int64_t kind_order[KIND_COUNT] = {
	[KIND_TOKENIZE] = 0, [KIND_VERIFY] = 1, [KIND_EMBED] = 2, [KIND_CAPTURE] = 3, [KIND_QUANTIZE] = 4,
	[KIND_DISTILL] = 5, [KIND_EVALUATE] = 6, [KIND_ASSEMBLE] = 7,
};

static int64_t rank_of(enum task_kind kind, int64_t layer)
{
	return (kind_order[kind] << 20) + (layer > 0 ? layer : 0);
}

int64_t plan_add_task(struct plan *plan, enum task_kind kind, int64_t layer, int64_t shard, int64_t work,
		      struct json *spec, struct err *err)
{
	struct plan_task *t;

	if (plan->task_count == plan->task_cap) {
		size_t cap = plan->task_cap ? 2 * plan->task_cap : 64;
		struct plan_task *grown = mem_realloc(plan->tasks, cap, sizeof(*grown));

		if (!grown) {
			json_free(spec);
			return err_set_nomem(err, "the task graph");
		}
		plan->tasks = grown;
		plan->task_cap = cap;
	}
	t = &plan->tasks[plan->task_count];
	*t = (struct plan_task){ .kind = kind, .layer = layer, .shard = shard, .work = work,
				 .rank = rank_of(kind, layer), .spec = spec ? json_print(spec, false) : NULL };
	json_free(spec);
	if (!t->spec)
		return err_set_nomem(err, "a task's spec");
	return (int64_t)plan->task_count++;
}

/* Room for one more input of the task; NULL without memory. */
static struct plan_input *next_input(struct plan_task *t, struct err *err)
{
	size_t n = t->input_count;

	if ((n & (n - 1)) == 0) { /* 0, 1, 2, 4 ...: grow to 1, 2, 4, 8 */
		struct plan_input *grown = mem_realloc(t->inputs, n ? 2 * n : 1, sizeof(*grown));

		if (!grown) {
			err_set_nomem(err, "the task graph");
			return NULL;
		}
		t->inputs = grown;
	}
	return &t->inputs[t->input_count++];
}

int plan_add_output_input(struct plan *plan, int64_t index, const char *name, int64_t from, const char *output,
			  struct err *err)
{
	struct plan_input *in = next_input(&plan->tasks[index], err);

	if (!in)
		return -1;
	*in = (struct plan_input){ .from = from };
	snprintf(in->name, sizeof(in->name), "%s", name);
	snprintf(in->output, sizeof(in->output), "%s", output);
	return 0;
}

int plan_add_input(struct plan *plan, int64_t index, const char *name, int64_t from,
		   const struct plan_text *text, struct err *err)
{
	struct plan_input *in;

	if (from >= 0)
		return plan_add_output_input(plan, index, name, from, task_kind_output(plan->tasks[from].kind), err);
	in = next_input(&plan->tasks[index], err);
	if (!in)
		return -1;
	*in = (struct plan_input){ .from = -1, .sha256 = text->sha256, .bytes = text->bytes };
	snprintf(in->name, sizeof(in->name), "%s", name);
	return 0;
}

struct spec spec_new(void)
{
	return (struct spec){ .object = json_new_object() };
}

void spec_int(struct spec *s, const char *key, int64_t value)
{
	s->rc |= json_set_int(s->object, key, value);
}

void spec_text(struct spec *s, const char *key, const char *value)
{
	s->rc |= json_set_string(s->object, key, value);
}

void spec_bool(struct spec *s, const char *key, bool value)
{
	s->rc |= json_set_bool(s->object, key, value);
}

struct json *spec_done(struct spec *s)
{
	if (s->rc == 0)
		return s->object;
	json_free(s->object);
	return NULL;
}

/* --- sources ------------------------------------------------------------------ */

static int add_verify(struct plan *plan, const struct plan_request *r, struct err *err)
{
	for (size_t i = 0; i < r->shard_count; i++) {
		struct spec s = spec_new();

		spec_text(&s, "file", r->shards[i]);
		if (plan_halves_for(r->recipe))
			spec_text(&s, "halves_for", plan_halves_for(r->recipe));
		if (plan_add_task(plan, KIND_VERIFY, -1, (int64_t)i, plan_work_verify(r->shard_bytes[i]),
				  spec_done(&s), err) < 0)
			return -1;
	}
	return 0;
}

int64_t plan_add_tokenize(struct plan *plan, const struct plan_request *r, const struct plan_text *text,
			    const char *role, int64_t shard, struct err *err)
{
	struct spec s = spec_new();
	int64_t index;

	spec_text(&s, "role", role);
	spec_text(&s, "name", text->name);
	spec_text(&s, "format", text->format);
	spec_int(&s, "samples", strcmp(role, "eval") == 0 ? 0 : recipe_sequences(r->recipe));
	spec_int(&s, "seq_len", r->recipe->seq_len);
	spec_int(&s, "max_windows", text->max_windows);
	spec_int(&s, "seed", strcmp(role, "eval") == 0 ? 0 : (int64_t)r->recipe->seed);
	index = plan_add_task(plan, KIND_TOKENIZE, -1, shard, plan_work_tokenize(text->bytes), spec_done(&s), err);
	if (index < 0 || plan_add_input(plan, index, "text", -1, text, err) != 0)
		return -1;
	return index;
}

/* --- evaluation --------------------------------------------------------------- */

static int64_t count_chunks(const struct plan_request *r, const struct plan_text *text)
{
	uint64_t bytes = BYTES_PER_TOKEN * CHUNK_WINDOWS * (uint64_t)r->recipe->seq_len;
	uint64_t chunks = (text->bytes + bytes - 1) / bytes;

	if (text->max_windows > 0) {
		uint64_t limit = ((uint64_t)text->max_windows + CHUNK_WINDOWS - 1) / CHUNK_WINDOWS;

		chunks = limit < chunks ? limit : chunks;
	}
	return chunks < 1 ? 1 : chunks > CHUNKS_MAX ? CHUNKS_MAX : (int64_t)chunks;
}

/* A chunk of windows of one text. */
struct chunk { size_t text; int64_t number, tokens; };

static int64_t add_evaluate(struct plan *plan, const struct plan_request *r, const struct chunk *c,
			    const char *model, bool keep_hidden, bool compared, struct err *err)
{
	struct spec s = spec_new();
	int64_t chunks = plan->chunks[c->text];
	int64_t windows = plan_windows(r, &r->evals[c->text]) / chunks + 1;
	int64_t index;

	spec_text(&s, "model", model);
	spec_int(&s, "text", (int64_t)c->text);
	spec_int(&s, "chunk", c->number);
	spec_int(&s, "chunks", chunks);
	spec_int(&s, "seq_len", r->recipe->seq_len);
	if (keep_hidden)
		spec_bool(&s, "keep_hidden", true);
	if (model[0] == 'q')
		spec_embeddings(&s, r->recipe);
	index = plan_add_task(plan, KIND_EVALUATE, -1, c->number, plan_work_evaluate(r, windows, compared),
			      spec_done(&s), err);
	if (index < 0 || plan_add_input(plan, index, "tokens", c->tokens, NULL, err) != 0)
		return -1;
	return index;
}

/* The quantized model on the windows whose final hidden states of the original are an output of `original`. */
static int add_compared(struct plan *plan, const struct plan_request *r, const struct chunk *c,
			int64_t original, struct err *err)
{
	int64_t index = add_evaluate(plan, r, c, "quantized", false, true, err);

	if (index < 0 || plan_add_output_input(plan, index, "reference", original, "hidden", err) != 0)
		return -1;
	for (size_t l = 0; l < r->config->layers; l++)
		if (plan_add_layer_input(plan, index, (int64_t)l, err) != 0)
			return -1;
	return 0;
}

/* The reference, whose last hidden states the model's own task reads. */
static int add_referenced(struct plan *plan, const struct plan_request *r, const struct chunk *c, struct err *err)
{
	int64_t reference = add_evaluate(plan, r, c, "reference", true, false, err);
	int64_t own = reference < 0 ? -1 : add_evaluate(plan, r, c, "original", false, true, err);

	return own < 0 ? -1 : plan_add_output_input(plan, own, "reference", reference, "hidden", err);
}

/* Original and quantized in turn: where nothing waits, the hidden states of one chunk exist at a time. */
static int add_chunk(struct plan *plan, const struct plan_request *r, const struct chunk *c, struct err *err)
{
	bool quantize = r->recipe->kind == RECIPE_QUANTIZE;
	int64_t original;

	if (r->reference.config)
		return add_referenced(plan, r, c, err);
	original = add_evaluate(plan, r, c, "original", quantize, false, err);
	if (original < 0)
		return -1;
	return quantize ? add_compared(plan, r, c, original, err) : 0;
}

static int add_text(struct plan *plan, const struct plan_request *r, size_t text, struct err *err)
{
	int64_t tokens = plan_add_tokenize(plan, r, &r->evals[text], "eval", (int64_t)text, err);

	if (tokens < 0)
		return -1;
	plan->chunks[text] = count_chunks(r, &r->evals[text]);
	for (int64_t c = 0; c < plan->chunks[text]; c++)
		if (add_chunk(plan, r, &(struct chunk){ text, c, tokens }, err) != 0)
			return -1;
	return 0;
}

int plan_graph(struct plan *plan, const struct plan_request *r, struct err *err)
{
	if (r->recipe->kind == RECIPE_QUANTIZE &&
	    (add_verify(plan, r, err) != 0 || plan_add_layers(plan, r, err) != 0))
		return -1;
	for (size_t t = 0; t < r->recipe->eval_count; t++)
		if (add_text(plan, r, t, err) != 0)
			return -1;
	return 0;
}
