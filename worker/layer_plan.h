/* layer_plan.h - what a quantize task is asked to do with its layer, read from its spec and checked. */
#ifndef QUARRY_WORKER_LAYER_PLAN_H
#define QUARRY_WORKER_LAYER_PLAN_H

#include "common/json.h"
#include "common/model_config.h"
#include "common/recipe.h"
#include "worker/backend/backend.h"
#include "worker/quant/distill_block.h"

struct layer_plan {
	struct module_settings settings[LIN_COUNT];
	char name[LIN_COUNT][MODEL_NAME_MAX];
	struct linear_shape shape[LIN_COUNT];
	int64_t layer;
	double damp;
	int refine;                     /* rounds */
	size_t samples;                 /* H is made of the first so many sequences; 0 = all */
	bool distill, train_codes;      /* distill: training holds what the spec asks for */
	struct distill_settings training; /* .sequences at most; the shards may have fewer */
};

int layer_plan_parse(struct layer_plan *p, const struct json *spec, const struct model_config *config,
		     struct err *err);
/* The grid that settings ask for, of a module of `cols` columns. */
struct grid grid_of_settings(const struct module_settings *s, size_t cols);
/* Columns of a group of module `lin`, and its grid. */
size_t layer_plan_group(const struct layer_plan *p, int lin);
struct grid layer_plan_grid(const struct layer_plan *p, int lin);
/* As stored: codes with their padding, scale and zero-point as float32. */
double layer_plan_bits_per_weight(const struct layer_plan *p, int lin);

#endif
