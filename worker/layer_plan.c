#include "worker/layer_plan.h"

#include <string.h>

#include "common/packed.h"

enum { REFINE_MAX = 32, EPOCHS_MAX = 64, BATCH_MAX = 64, SEQUENCES_MAX = 1 << 30, BATCH = 4 };

static const struct tuned_rates balanced = { .code = 0.01f, .scale = 0.01f, .zero = 1e-3f, .norm = 1e-3f };

static int plan_module(struct layer_plan *p, int lin, const struct json *row, struct err *err)
{
	const char *name;

	if (json_require_string(row, "name", &name, err) != 0)
		return -1;
	if (strcmp(name, p->name[lin]) != 0)
		return err_set(err, ERR_INVALID, "the task names module '%s' where '%s' belongs", name,
			       p->name[lin]);
	if (module_settings_from_json(&p->settings[lin], row, err) != 0)
		return err_prefix(err, "%s", name);
	return 0;
}

static int plan_modules(struct layer_plan *p, const struct json *spec, const struct model_config *config,
			struct err *err)
{
	const struct json *row = json_first(json_get(spec, "modules"));

	for (int lin = 0; lin < LIN_COUNT; lin++, row = json_next(row)) {
		p->shape[lin] = model_linear(config, (enum block_linear)lin);
		model_linear_name(p->name[lin], config, (size_t)p->layer, (enum block_linear)lin);
		if (!row)
			return err_set(err, ERR_INVALID, "the task lacks module '%s'", p->name[lin]);
		if (plan_module(p, lin, row, err) != 0)
			return -1;
	}
	return 0;
}

/* An integer that has a value of its own when the spec says nothing. */
static int take_int(const struct json *o, const char *key, int64_t min, int64_t max, int64_t otherwise,
		    int64_t *out, struct err *err)
{
	*out = otherwise;
	return json_get(o, key) ? json_require_int(o, key, min, max, out, err) : 0;
}

static int take_rate(const struct json *rates, const char *key, float *rate, struct err *err)
{
	const double value = json_get_number(rates, key, *rate);

	if (!(value >= 0 && value <= 1))
		return err_set(err, ERR_INVALID, "the rate '%s' is %g; it must be 0 to 1", key, value);
	*rate = (float)value;
	return 0;
}

static int plan_distill(struct layer_plan *p, const struct json *o, struct err *err)
{
	const struct json *rates = json_get(o, "rates");
	struct distill_settings *t = &p->training;
	int64_t samples, epochs, batch, seed;

	p->distill = json_type(o) != JSON_NULL;
	if (!p->distill)
		return 0;
	t->rates = balanced;
	if (json_require_int(o, "samples", 1, SEQUENCES_MAX, &samples, err) != 0 ||
	    take_int(o, "epochs", 1, EPOCHS_MAX, 1, &epochs, err) != 0 ||
	    take_int(o, "batch", 1, BATCH_MAX, BATCH, &batch, err) != 0 ||
	    take_int(o, "seed", 0, (int64_t)1 << 53, 0, &seed, err) != 0 ||
	    take_rate(rates, "code", &t->rates.code, err) != 0 ||
	    take_rate(rates, "scale", &t->rates.scale, err) != 0 ||
	    take_rate(rates, "zero", &t->rates.zero, err) != 0 ||
	    take_rate(rates, "norm", &t->rates.norm, err) != 0)
		return err_prefix(err, "distill");
	t->sequences = (size_t)samples;
	t->epochs = (size_t)epochs;
	t->batch = (size_t)batch;
	t->seed = (uint64_t)seed;
	p->train_codes = json_get_bool(o, "train_codes", true);
	return 0;
}

int layer_plan_parse(struct layer_plan *p, const struct json *spec, const struct model_config *config,
		     struct err *err)
{
	int64_t refine, samples;

	*p = (struct layer_plan){ .damp = json_get_number(spec, "damp", 0.01) };
	if (json_require_int(spec, "layer", 0, (int64_t)config->layers - 1, &p->layer, err) != 0 ||
	    take_int(spec, "refine", 0, REFINE_MAX, 0, &refine, err) != 0 ||
	    take_int(spec, "samples", 0, SEQUENCES_MAX, 0, &samples, err) != 0 ||
	    plan_distill(p, json_get(spec, "distill"), err) != 0)
		return -1;
	p->refine = (int)refine;
	p->samples = (size_t)samples;
	return plan_modules(p, spec, config, err);
}

size_t layer_plan_group(const struct layer_plan *p, int lin)
{
	int64_t group = p->settings[lin].group_size;

	return group < 0 ? p->shape[lin].cols : (size_t)group;
}

struct grid grid_of_settings(const struct module_settings *s, size_t cols)
{
	return (struct grid){ .bits = s->bits, .group = s->group_size < 0 ? cols : (size_t)s->group_size,
			      .integer_zero = s->zero_point == ZERO_INTEGER, .symmetric = s->symmetric,
			      .zero_parts = s->zero_parts, .half = true };
}

struct grid layer_plan_grid(const struct layer_plan *p, int lin)
{
	return grid_of_settings(&p->settings[lin], p->shape[lin].cols);
}

double layer_plan_bits_per_weight(const struct layer_plan *p, int lin)
{
	size_t groups = p->shape[lin].cols / layer_plan_group(p, lin);

	return (32.0 * (double)packed_row_words(p->shape[lin].cols, p->settings[lin].bits) +
		64.0 * (double)groups) / (double)p->shape[lin].cols;
}
