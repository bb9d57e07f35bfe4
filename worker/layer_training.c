#include "worker/layer_training.h"

#include <stdio.h>

#include "common/alloc.h"
#include "common/half.h"
#include "worker/layer_store.h"

/* What the callbacks of the training need. */
struct feeding {
	const struct layer_plan *plan;
	struct layer_forward *f;
	const struct layer_sequences *sequences;
	double from, to;
	enum st_dtype bias[LIN_COUNT], norm[NORM_COUNT];
};

/* --- what the training asks for --------------------------------------------------------------------- */

static const float *give_input(void *ctx, size_t i, float *room, struct err *err)
{
	const struct feeding *k = ctx;

	return layer_sequences_input(k->sequences, i, room, err);
}

static const float *give_target(void *ctx, size_t i, float *room, struct err *err)
{
	const struct feeding *k = ctx;

	return layer_sequences_output(k->sequences, i, room, err);
}

static int show_progress(void *ctx, const struct distill_progress *p, struct err *err)
{
	struct feeding *k = ctx;
	char what[96], loss[32] = "";

	if (p->loss >= 0)
		snprintf(loss, sizeof(loss), ", loss %.4f", p->loss);
	snprintf(what, sizeof(what), "layer %lld: distilling, epoch %zu of %zu%s", (long long)k->plan->layer,
		 p->epoch + 1, p->epochs, loss);
	return task_step(k->sequences->shards->env, k->from + (k->to - k->from) * p->fraction, what, err);
}

/* Through the stored type and back, a piece at a time. */
static void round_values(float *values, size_t n, enum st_dtype dtype)
{
	uint16_t piece[256];

	if (dtype != ST_BF16 && dtype != ST_F16)
		return;
	for (size_t at = 0, now; at < n; at += now) {
		now = n - at < 256 ? n - at : 256;
		layer_to_dtype(values + at, now, dtype, piece);
		if (dtype == ST_BF16)
			bf16_to_f32_array(piece, values + at, now);
		else
			f16_to_f32_array(piece, values + at, now);
	}
}

static void round_bias(void *ctx, int module, float *values, size_t n)
{
	const struct feeding *k = ctx;

	round_values(values, n, k->bias[module]);
}

static void round_norm(void *ctx, int norm, float *values, size_t n)
{
	const struct feeding *k = ctx;

	round_values(values, n, k->norm[norm]);
}

static int find_dtypes(struct feeding *k, const struct tuned_plan *plan, struct err *err)
{
	const struct checkpoint *ck = &k->f->ck;
	char name[MODEL_NAME_MAX + 8];

	for (int i = 0; i < LIN_COUNT; i++) {
		snprintf(name, sizeof(name), "%s.bias", k->plan->name[i]);
		if (plan->module[i].bias && layer_source_dtype(ck, name, &k->bias[i], err) != 0)
			return -1;
	}
	for (int i = 0; i < NORM_COUNT; i++) {
		model_norm_name(name, &ck->config, (size_t)k->plan->layer, (enum block_norm)i);
		if (plan->norm[i] > 0 && layer_source_dtype(ck, name, &k->norm[i], err) != 0)
			return -1;
	}
	return 0;
}

/* --- the state ---------------------------------------------------------------------------------------- */

static struct tuned_plan plan_state(const struct layer_plan *plan, const struct layer_forward *f)
{
	struct tuned_plan t = { .shape = f->block.shape, .train_codes = plan->train_codes };

	for (int i = 0; i < LIN_COUNT; i++) {
		t.module[i] = (struct tuned_module){
			.quantized = !plan->settings[i].skip, .bias = plan->shape[i].bias,
			.rows = plan->shape[i].rows, .cols = plan->shape[i].cols,
		};
		if (t.module[i].quantized)
			t.module[i].grid = layer_plan_grid(plan, i);
	}
	for (int i = 0; i < NORM_COUNT; i++)
		if (!model_norm(&f->ck.config, (enum block_norm)i, &t.norm[i]))
			t.norm[i] = 0;
	return t;
}

static int fill_state(struct tuned *t, struct layer_forward *f, const struct quant_result results[LIN_COUNT],
		      struct err *err)
{
	if (tuned_reset(t, err) != 0)
		return -1;
	for (int i = 0; i < LIN_COUNT; i++) {
		const enum block_linear lin = (enum block_linear)i;
		const struct quant_result *r = &results[i];

		if (t->plan.module[i].bias)
			tuned_set_bias(t, i, *block_bias_slot(&f->block.w, lin));
		if (!t->plan.module[i].quantized)
			tuned_set_constant(t, i, *block_linear_slot(&f->weights, lin));
		else if (tuned_set_module(t, i, r->codes, r->scales, r->zeros, *block_linear_slot(&f->block.w, lin),
					  err) != 0)
			return -1;
	}
	for (int i = 0; i < NORM_COUNT; i++)
		if (t->plan.norm[i])
			tuned_set_norm(t, i, *block_norm_slot(&f->block.w, (enum block_norm)i));
	return 0;
}

static int take_results(const struct tuned *t, struct quant_result results[LIN_COUNT], struct err *err)
{
	for (int i = 0; i < LIN_COUNT; i++)
		if (t->plan.module[i].quantized &&
		    tuned_result(t, i, results[i].codes, results[i].scales, results[i].zeros, err) != 0)
			return -1;
	return 0;
}

static bool all_quantized(const struct tuned_plan *plan)
{
	bool all = true;

	for (int i = 0; i < TUNED_MODULES; i++)
		all = all && plan->module[i].quantized;
	return all;
}

static int train(struct layer_training *d, struct feeding *k, const struct tuned_sizes *sizes, struct err *err)
{
	const struct distill_data data = {
		.seq_len = k->f->seq_len, .rope = &k->f->rope_table, .input = give_input, .target = give_target,
		.progress = show_progress, .stored_bias = round_bias, .stored_norm = round_norm, .ctx = k,
	};
	int rc;

	if (tuned_scratch_init(&d->tuned.scratch, d->backend, sizes, err) != 0)
		return -1;
	rc = distill_block(&d->tuned, &k->plan->training, &data, &d->result, err);
	tuned_scratch_deinit(&d->tuned.scratch);
	return rc == 0 ? 0 : err_prefix(err, "distilling layer %lld", (long long)k->plan->layer);
}

static int open_state(struct layer_training *d, const struct tuned_plan *plan, const struct tuned_sizes *sizes,
		      struct err *err)
{
	const struct tuned_scratch none = { 0 };

	d->small = mem_alloc_aligned(sizes->small, sizeof(*d->small));
	if (!d->small)
		return err_set_nomem(err, "the training state of a block");
	if (tuned_cells_init(&d->cells, d->backend, plan, err) != 0)
		return -1;
	tuned_open_apart(&d->tuned, plan, d->backend, &d->cells, d->small, &none);
	return 0;
}

/* The weights are not needed while the block is trained; a device keeps them rather than being sent them again. */
static bool may_drop(const struct layer_training *d)
{
	return all_quantized(&d->tuned.plan) && !d->backend->ops->own_memory;
}

/* Of a weight: the state's three floats, value, gradient, best, and what backends keep beside them; of a token: its
 * activations and their gradients. */
uint64_t layer_training_bytes(const struct layer_plan *plan, const struct layer_forward *f)
{
	enum { PER_WEIGHT = 8, PER_HIDDEN = 32, PER_INTERMEDIATE = 16 };
	const struct block_shape *shape = &f->block.shape;
	const size_t of_token = PER_HIDDEN * shape->hidden + PER_INTERMEDIATE * shape->intermediate;
	uint64_t weights = 0;

	for (int i = 0; i < LIN_COUNT; i++)
		weights += (uint64_t)plan->shape[i].rows * plan->shape[i].cols;
	return sizeof(float) * (PER_WEIGHT * weights + (uint64_t)f->seq_len * of_token);
}

int layer_training_run(struct layer_training *d, const struct layer_plan *plan, struct layer_forward *f,
		      const struct layer_sequences *sequences, struct quant_result results[LIN_COUNT], double from,
		      double to, struct err *err)
{
	const struct tuned_plan state = plan_state(plan, f);
	struct feeding k = { .plan = plan, .f = f, .sequences = sequences, .from = from, .to = to };
	struct tuned_sizes sizes;

	*d = (struct layer_training){ .backend = f->backend };
	if (find_dtypes(&k, &state, err) != 0 || tuned_measure(&state, &sizes, err) != 0 ||
	    open_state(d, &state, &sizes, err) != 0 || fill_state(&d->tuned, f, results, err) != 0)
		return -1;
	if (may_drop(d))
		layer_forward_discard(f);
	if (train(d, &k, &sizes, err) != 0 || take_results(&d->tuned, results, err) != 0)
		return -1;
	tuned_cells_deinit(&d->cells, d->backend);
	return f->block.data ? 0 : layer_forward_load(f, (size_t)plan->layer, NULL, err);
}

void layer_training_deinit(struct layer_training *d)
{
	tuned_cells_deinit(&d->cells, d->backend);
	mem_free(d->small);
	d->small = NULL;
}

/* --- the report --------------------------------------------------------------------------------------- */

static struct json *curve_json(const struct distill_result *r)
{
	struct json *curve = json_new_array();

	for (size_t i = 0; curve && i < r->points; i++) {
		struct json *point = json_new_array();

		if (json_push(point, json_new_number((double)r->curve[i].step)) != 0 ||
		    json_push(point, json_new_number(r->curve[i].loss)) != 0) {
			json_free(point);
			json_free(curve);
			return NULL;
		}
		if (json_push(curve, point) != 0) {
			json_free(curve);
			return NULL;
		}
	}
	return curve;
}

struct json *layer_training_json(const struct layer_training *d)
{
	const struct distill_result *r = &d->result;
	struct json *o = json_new_object();

	if (json_set_number(o, "before", r->before) == 0 && json_set_number(o, "after", r->after) == 0 &&
	    json_set_bool(o, "kept", r->kept) == 0 && json_set_int(o, "steps", r->steps) == 0 &&
	    json_set(o, "curve", curve_json(r)) == 0)
		return o;
	json_free(o);
	return NULL;
}
