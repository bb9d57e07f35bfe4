/* The middle of the graph: embed, capture and quantize, in either order of propagation. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/plan_parts.h"

static const double damp = 0.01; /* of the mean diagonal of H */

/* As many sequences as fit 32 MiB of hidden states, 1 to 16. */
static int64_t sequences_per_shard(const struct plan_request *r)
{
	uint64_t one = plan_hidden_shard_bytes(r, 1);
	uint64_t fit = (32u << 20) / one;

	return fit < 1 ? 1 : fit > 16 ? 16 : (int64_t)fit;
}

static int64_t shard_sequences(const struct plan *plan, const struct plan_request *r, int64_t shard)
{
	int64_t left = r->recipe->samples - shard * plan->per_shard;

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
	int64_t index;

	spec_int(&s, "layer", layer);
	s.rc |= json_set_number(s.object, "damp", damp);
	for (size_t i = (size_t)layer * LIN_COUNT; i < (size_t)(layer + 1) * LIN_COUNT; i++)
		s.rc |= json_push(modules, module_spec(&plan->modules[i]));
	s.rc |= json_set(s.object, "modules", modules);
	index = plan_add_task(plan, KIND_QUANTIZE, layer, -1, plan_work_quantize(plan, r, layer), spec_done(&s),
			      err);
	for (int64_t shard = 0; index >= 0 && shard < plan->shards; shard++) {
		char name[PLAN_INPUT_NAME_MAX];

		snprintf(name, sizeof(name), "hidden-%lld", (long long)shard);
		if (plan_add_input(plan, index, name, hidden[shard], NULL, err) != 0)
			return -1;
	}
	return index;
}

/* hidden[s]: who makes X(layer, s); moved on to layer + 1. */
static int add_captures(struct plan *plan, const struct plan_request *r, int64_t layer, int64_t *hidden,
			int64_t quantized_layer, struct err *err)
{
	for (int64_t s = 0; s < plan->shards; s++) {
		hidden[s] = add_capture(plan, r, layer, s, hidden[s], quantized_layer, err);
		if (hidden[s] < 0)
			return -1;
	}
	return 0;
}

/* Captures first, so that the quantize tasks of all layers get consecutive indexes. */
static int add_layers_original(struct plan *plan, const struct plan_request *r, int64_t *hidden, struct err *err)
{
	int64_t layers = (int64_t)r->config->layers, shards = plan->shards;

	for (int64_t l = 0; l + 1 < layers; l++) {
		memcpy(hidden + (l + 1) * shards, hidden + l * shards, (size_t)shards * sizeof(*hidden));
		if (add_captures(plan, r, l, hidden + (l + 1) * shards, -1, err) != 0)
			return -1;
	}
	plan->first_quantize = plan->task_count;
	for (int64_t l = 0; l < layers; l++)
		if (add_quantize(plan, r, l, hidden + l * shards, err) < 0)
			return -1;
	return 0;
}

static int add_layers_quantized(struct plan *plan, const struct plan_request *r, int64_t *hidden, struct err *err)
{
	int64_t layers = (int64_t)r->config->layers;

	plan->first_quantize = plan->task_count;
	for (int64_t l = 0; l < layers; l++) {
		int64_t quantized = add_quantize(plan, r, l, hidden, err);

		if (quantized < 0 || (l + 1 < layers && add_captures(plan, r, l, hidden, quantized, err) != 0))
			return -1;
	}
	return 0;
}

int plan_add_layers(struct plan *plan, const struct plan_request *r, struct err *err)
{
	int64_t tokens = plan_add_tokenize(plan, r, &r->calibration, "calibration", -1, err);
	int64_t *hidden;
	size_t slots;
	int rc = tokens < 0 ? -1 : 0;

	plan->per_shard = sequences_per_shard(r);
	plan->shards = (r->recipe->samples + plan->per_shard - 1) / plan->per_shard;
	if (rc != 0)
		return -1;
	if (!size_mul((size_t)plan->shards, r->config->layers + 1, &slots) ||
	    !(hidden = mem_alloc(slots, sizeof(*hidden))))
		return err_set_nomem(err, "the task graph");
	for (int64_t s = 0; rc == 0 && s < plan->shards; s++) {
		hidden[s] = add_embed(plan, r, tokens, s, err);
		rc = hidden[s] < 0 ? -1 : 0;
	}
	if (rc == 0)
		rc = r->recipe->propagate == PROPAGATE_QUANTIZED ? add_layers_quantized(plan, r, hidden, err)
								 : add_layers_original(plan, r, hidden, err);
	mem_free(hidden);
	return rc;
}
