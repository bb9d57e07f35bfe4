/* Training in the graph: what quantize tasks are told of block distillation, and the distill task over all layers. The
 * rates were found by experiment; docs/quality.md has the table. */
#include <stdio.h>

#include "common/alloc.h"
#include "server/plan_parts.h"

/* Adam's rates at the top of the schedule; that of scales is relative to the scale. */
struct training { int64_t batch; double code, scale, zero, norm; };
static const struct training block = { 4, 0.01, 0.01, 1e-3, 1e-3 };
static const struct training model = { 2, 0.01, 0.003, 1e-3, 1e-3 };
enum { CHECKPOINT_PERCENT = 1 }; /* of the steps may be lost with a worker */

static struct json *rates_json(const struct training *t)
{
	struct json *o = json_new_object();

	if ((json_set_number(o, "code", t->code) | json_set_number(o, "scale", t->scale) |
	     json_set_number(o, "zero", t->zero) | json_set_number(o, "norm", t->norm)) == 0)
		return o;
	json_free(o);
	return NULL;
}

static void spec_training(struct spec *s, const struct training *t, const struct recipe *recipe, int64_t epochs)
{
	spec_int(s, "epochs", epochs);
	spec_int(s, "batch", t->batch);
	spec_bool(s, "train_codes", recipe->train_codes);
	spec_int(s, "seed", (int64_t)recipe->seed);
	s->rc |= json_set(s->object, "rates", rates_json(t));
}

/* true when a module from first to last (not included) is quantized. */
static bool any_quantized(const struct plan *plan, size_t first, size_t last)
{
	for (size_t i = first; i < last; i++)
		if (!plan->modules[i].settings.skip)
			return true;
	return false;
}

void spec_distill_block(struct spec *s, const struct plan *plan, const struct plan_request *r, int64_t layer)
{
	size_t first = (size_t)layer * LIN_COUNT;
	struct spec how;

	if (!recipe_distills_blocks(r->recipe) || !any_quantized(plan, first, first + LIN_COUNT)) {
		s->rc |= json_set_null(s->object, "distill");
		return;
	}
	how = spec_new();
	spec_int(&how, "samples", recipe_distill_sequences(r->recipe));
	spec_training(&how, &block, r->recipe, r->recipe->block_epochs);
	s->rc |= json_set(s->object, "distill", spec_done(&how));
}

bool plan_distills_model(const struct plan *plan, const struct plan_request *r)
{
	return recipe_distills_model(r->recipe) && any_quantized(plan, 0, plan->module_count);
}

static struct json *distill_spec(const struct recipe *recipe)
{
	struct spec s = spec_new();

	spec_int(&s, "sequences", recipe_distill_sequences(recipe));
	spec_training(&s, &model, recipe, recipe->epochs);
	spec_int(&s, "weight_hidden", 1); /* of the hidden states' error beside the divergence */
	spec_int(&s, "checkpoint_percent", CHECKPOINT_PERCENT);
	spec_embeddings(&s, recipe);
	return spec_done(&s);
}

int plan_add_distill(struct plan *plan, const struct plan_request *r, int64_t tokens, const int64_t *targets,
		     int64_t count, struct err *err)
{
	int64_t index = plan_add_task(plan, KIND_DISTILL, -1, -1, plan_work_distill(r),
				      distill_spec(r->recipe), err);

	if (index < 0 || plan_add_input(plan, index, "tokens", tokens, NULL, err) != 0)
		return -1;
	for (size_t l = 0; l < r->config->layers; l++)
		if (plan_add_layer_input(plan, index, (int64_t)l, err) != 0)
			return -1;
	for (int64_t s = 0; s < count; s++) {
		char name[PLAN_INPUT_NAME_MAX];

		snprintf(name, sizeof(name), "target-%lld", (long long)s);
		if (plan_add_input(plan, index, name, targets[s], NULL, err) != 0)
			return -1;
	}
	plan->distill = index; /* from here on layers are taken from it */
	return 0;
}
