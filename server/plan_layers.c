/* The middle of the graph: embed, capture, quantize and distill, in either order of propagation.
 *
 * Hidden states come in shards of per_shard sequences. A task is given as many shards as the sequences it uses need:
 * quantize the samples of its statistics and those of its distillation, distill those it trains on. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/plan_parts.h"

static const double damp = 0.01; /* of the mean diagonal of H */

/* As many sequences as fit 256 MiB of hidden states, 1 to 16: a task reads a layer of the model for them. */
static int64_t sequences_per_shard(const struct plan_request *r)
{
	uint64_t one = plan_hidden_shard_bytes(r, 1);
	uint64_t fit = (256u << 20) / one;

	return fit < 1 ? 1 : fit > 16 ? 16 : (int64_t)fit;
}

/* Shards that hold the first `sequences`. */
static int64_t shards_for(const struct plan *plan, int64_t sequences)
{
	return (sequences + plan->per_shard - 1) / plan->per_shard;
}

/* What quantize tasks read. */
static int64_t quantize_sequences(const struct recipe *recipe)
{
	int64_t distilled = recipe_distills_blocks(recipe) ? recipe_distill_sequences(recipe) : 0;

	return distilled > recipe->samples ? distilled : recipe->samples;
}

static int64_t shard_sequences(const struct plan *plan, const struct plan_request *r, int64_t shard)
{
	int64_t left = recipe_sequences(r->recipe) - shard * plan->per_shard;

	return left < plan->per_shard ? left : plan->per_shard;
}

static int64_t add_embed(struct plan *plan, const struct plan_request *r, int64_t tokens, int64_t shard,
			 struct err *err)
{
	struct spec s = spec_new();
	int64_t count = shard_sequences(plan, r, shard);
	int64_t index;

	spec_int(&s, "shard", shard);
	spec_int(&s, "first", shard * plan->per_shard);
	spec_int(&s, "count", count);
	spec_int(&s, "seq_len", r->recipe->seq_len);
	index = plan_add_task(plan, KIND_EMBED, -1, shard, plan_work_embed(r, count), spec_done(&s), err);
	if (index < 0 || plan_add_input(plan, index, "tokens", tokens, NULL, err) != 0)
		return -1;
	return index;
}

/* quantized_layer: index of quantize(layer) when captures read the quantized block, else -1. */
static int64_t add_capture(struct plan *plan, const struct plan_request *r, int64_t layer, int64_t shard,
			   int64_t hidden, int64_t quantized_layer, struct err *err)
{
	struct spec s = spec_new();
	int64_t index;

	spec_int(&s, "layer", layer);
	spec_int(&s, "shard", shard);
	index = plan_add_task(plan, KIND_CAPTURE, layer, shard,
			      plan_work_capture(r, shard_sequences(plan, r, shard)), spec_done(&s), err);
	if (index < 0 || plan_add_input(plan, index, "hidden", hidden, NULL, err) != 0)
		return -1;
	if (quantized_layer >= 0 && plan_add_input(plan, index, "layer", quantized_layer, NULL, err) != 0)
		return -1;
	return index;
}

static struct json *module_spec(const struct plan_module *m)
{
	struct json *o = json_new_object();

	if (json_set_string(o, "name", m->name) == 0 && module_settings_to_json(&m->settings, o) == 0)
		return o;
	json_free(o);
	return NULL;
}

static int64_t add_quantize(struct plan *plan, const struct plan_request *r, int64_t layer,
			    const int64_t *hidden, struct err *err)
{
	struct spec s = spec_new();
	struct json *modules = json_new_array();
	int64_t index, shards = shards_for(plan, quantize_sequences(r->recipe));

	spec_int(&s, "layer", layer);
	s.rc |= json_set_number(s.object, "damp", damp);
	spec_int(&s, "samples", r->recipe->samples);
	spec_int(&s, "refine", r->recipe->refine);
	spec_distill_block(&s, plan, r, layer);
	for (size_t i = (size_t)layer * LIN_COUNT; i < (size_t)(layer + 1) * LIN_COUNT; i++)
		s.rc |= json_push(modules, module_spec(&plan->modules[i]));
	s.rc |= json_set(s.object, "modules", modules);
	index = plan_add_task(plan, KIND_QUANTIZE, layer, -1, plan_work_quantize(plan, r, layer), spec_done(&s),
			      err);
	for (int64_t shard = 0; index >= 0 && shard < shards; shard++) {
		char name[PLAN_INPUT_NAME_MAX];

		snprintf(name, sizeof(name), "hidden-%lld", (long long)shard);
		if (plan_add_input(plan, index, name, hidden[shard], NULL, err) != 0)
			return -1;
	}
	if (index >= 0)
		plan->quantize[layer] = index;
	return index;
}

int plan_add_layer_input(struct plan *plan, int64_t index, int64_t layer, struct err *err)
{
	char name[PLAN_INPUT_NAME_MAX];

	snprintf(name, sizeof(name), "layer-%lld", (long long)layer);
	if (plan->distill >= 0)
		return plan_add_output_input(plan, index, name, plan->distill, name, err);
	return plan_add_input(plan, index, name, plan->quantize[layer], NULL, err);
}

/* hidden[s] of the first `shards`: who makes X(layer, s); moved on to layer + 1. */
static int add_captures(struct plan *plan, const struct plan_request *r, int64_t layer, int64_t *hidden,
			int64_t shards, int64_t quantized_layer, struct err *err)
{
	for (int64_t s = 0; s < shards; s++) {
		hidden[s] = add_capture(plan, r, layer, s, hidden[s], quantized_layer, err);
		if (hidden[s] < 0)
			return -1;
	}
	return 0;
}

/* Captures first, so that the quantize tasks of all layers get consecutive indexes. targets[s] becomes who makes
 * X(L, s), the original's last hidden states, for as many shards as the distill task reads. */
static int add_layers_original(struct plan *plan, const struct plan_request *r, int64_t *hidden, int64_t targets,
			       struct err *err)
{
	int64_t layers = (int64_t)r->config->layers, shards = plan->shards;

	for (int64_t l = 0; l < layers; l++) {
		memcpy(hidden + (l + 1) * shards, hidden + l * shards, (size_t)shards * sizeof(*hidden));
		if (add_captures(plan, r, l, hidden + (l + 1) * shards, l + 1 < layers ? shards : targets, -1, err) != 0)
			return -1;
	}
	plan->first_quantize = plan->task_count;
	for (int64_t l = 0; l < layers; l++)
		if (add_quantize(plan, r, l, hidden + l * shards, err) < 0)
			return -1;
	return 0;
}

/* The targets are the original's all the same: a chain of its own leads to them. */
static int add_layers_quantized(struct plan *plan, const struct plan_request *r, int64_t *hidden, int64_t targets,
				struct err *err)
{
	int64_t layers = (int64_t)r->config->layers, shards = plan->shards;
	int64_t *original = hidden + layers * shards;

	memcpy(original, hidden, (size_t)shards * sizeof(*hidden));
	for (int64_t l = 0; targets > 0 && l < layers; l++)
		if (add_captures(plan, r, l, original, targets, -1, err) != 0)
			return -1;
	plan->first_quantize = plan->task_count;
	for (int64_t l = 0; l < layers; l++) {
		int64_t quantized = add_quantize(plan, r, l, hidden, err);

		if (quantized < 0 ||
		    (l + 1 < layers && add_captures(plan, r, l, hidden, shards, quantized, err) != 0))
			return -1;
	}
	return 0;
}

static int add_embeds(struct plan *plan, const struct plan_request *r, int64_t tokens, int64_t *hidden,
		      struct err *err)
{
	for (int64_t s = 0; s < plan->shards; s++) {
		hidden[s] = add_embed(plan, r, tokens, s, err);
		if (hidden[s] < 0)
			return -1;
	}
	return 0;
}

/* hidden: (layers + 1, shards) slots; the last row is the targets'. */
static int add_layers(struct plan *plan, const struct plan_request *r, int64_t tokens, int64_t *hidden,
		      struct err *err)
{
	bool distills = plan_distills_model(plan, r);
	int64_t targets = distills ? shards_for(plan, recipe_distill_sequences(r->recipe)) : 0;
	int rc;

	if (add_embeds(plan, r, tokens, hidden, err) != 0)
		return -1;
	rc = r->recipe->propagate == PROPAGATE_QUANTIZED ? add_layers_quantized(plan, r, hidden, targets, err)
							 : add_layers_original(plan, r, hidden, targets, err);
	if (rc != 0 || !distills)
		return rc;
	return plan_add_distill(plan, r, tokens, hidden + (int64_t)r->config->layers * plan->shards, targets, err);
}

int plan_add_layers(struct plan *plan, const struct plan_request *r, struct err *err)
{
	int64_t tokens = plan_add_tokenize(plan, r, &r->calibration, "calibration", -1, err);
	int64_t *hidden;
	size_t slots;
	int rc;

	if (tokens < 0)
		return -1;
	plan->per_shard = sequences_per_shard(r);
	plan->shards = shards_for(plan, recipe_sequences(r->recipe));
	plan->quantize = mem_alloc(r->config->layers, sizeof(*plan->quantize));
	if (!plan->quantize || !size_mul((size_t)plan->shards, r->config->layers + 1, &slots) ||
	    !(hidden = mem_alloc(slots, sizeof(*hidden))))
		return err_set_nomem(err, "the task graph");
	rc = add_layers(plan, r, tokens, hidden, err);
	mem_free(hidden);
	return rc;
}
