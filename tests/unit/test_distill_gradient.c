/* The gradient that training follows, held to central differences of the loss of the whole model: embedding to head, all
 * layers, on the reference backend. Adam's first moment after its first step is a tenth of the gradient. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "tests/lib/distill_case.h"
#include "worker/distill_model.h"

enum { SEQUENCES = 2, SEQ_LEN = 6, LAYERS_MOST = 8, GROUP = 64 };

static struct distill_case inputs;
static struct backend *backend;
static struct task_env env;
static struct checkpoint ck;
static struct distill_layer layers[LAYERS_MOST];
static size_t floats[LAYERS_MOST];
static struct distill_feed feed;
static struct distill_state state;
static struct distill_model model;

static void must(int rc, const struct err *err)
{
	if (rc != 0)
		fail_msg("%s", err->text);
}

static void plan_layers(struct err *err)
{
	for (size_t l = 0; l < inputs.layers; l++) {
		char name[32];

		snprintf(name, sizeof(name), "layer-%zu", l);
		must(distill_layer_plan(&layers[l], &ck.config, l, task_input_path(&env, name), true, err), err);
		floats[l] = layers[l].sizes.state;
		for (int m = 0; m < TUNED_MODULES; m++)
			layers[l].plan.module[m].grid.half = false; /* halves are a staircase: differences need a slope */
	}
}

static int open_all(void **unused)
{
	static char dir[512];
	const struct distill_case_options options = {
		.model_dir = dir, .dir = "inputs", .sequences = SEQUENCES, .seq_len = SEQ_LEN, .per_shard = 1,
		.settings = "\"bits\":3,\"group_size\":64,\"method\":\"minmax\",\"zero_point\":\"float\","
			    "\"symmetric\":false,\"rounding\":\"nearest\"",
	};
	const struct distill_sizes sizes = { .batch = 2, .probe = 1, .weight_hidden = 1, .head_bits = 16 };
	struct distill_owner owner = { .identity = "x", .backend = "ref", .exact = "ref", .floats = floats };
	struct backend_options one = { .threads = 1 };
	struct err err = ERR_INIT;
	bool found;

	(void)unused;
	snprintf(dir, sizeof(dir), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	distill_case_make(&inputs, &options);
	owner.layers = inputs.layers;
	backend = backend_find("ref", &err)->open(&one, &err);
	env = (struct task_env){ .backend = backend, .model = inputs.model, .inputs = inputs.inputs,
				 .input_count = inputs.input_count };
	must(checkpoint_open(&ck, inputs.model, NULL, &err), &err);
	plan_layers(&err);
	must(distill_feed_open(&feed, &env, &ck.config, SEQUENCES, &err), &err);
	must(distill_feed_embed(&feed, &env, &ck, 16, "embedded", &err), &err);
	must(distill_state_open(&state, "state", &owner, &found, &err), &err);
	must(distill_model_init(&model, backend, &ck, layers, &feed, &state, &sizes, &err), &err);
	return 0;
}

static int close_all(void **unused)
{
	(void)unused;
	distill_model_deinit(&model);
	distill_state_close(&state);
	distill_feed_close(&feed);
	checkpoint_close(&ck);
	backend->ops->close(backend);
	distill_case_free(&inputs);
	return 0;
}

/* The loss of both sequences; gradients end up in the moments, parameters stay. */
static double loss_now(void)
{
	static const uint32_t both[] = { 0, 1 };
	const struct distill_step still = { .sequences = both, .n = 2, .schedule = 0, .step = 1 };
	struct distill_loss loss;
	struct err err = ERR_INIT;

	must(distill_model_step(&model, &still, &loss, &err), &err);
	return loss.kl + loss.hidden;
}

static void read_layer(size_t layer, float *into, struct tuned *t)
{
	struct err err = ERR_INIT;

	must(distill_state_read(&state, layer, into, 0, 0, &err), &err);
	tuned_open(t, &layers[layer].plan, backend, into, &model.scratch);
}

/* Parameters come first in a state, moments behind them. */
static size_t trained_floats(const struct tuned *t)
{
	size_t begin, end;

	tuned_moments(&t->plan, &begin, &end);
	return begin;
}

/* The same state with other parameters in one layer. */
static void write_params(size_t layer, float *into, struct tuned *t, const float *params)
{
	struct err err = ERR_INIT;

	const size_t trained = trained_floats(t), cells = trained - t->rest.n;
	float *copy = mem_alloc(trained, sizeof(*copy));

	memcpy(copy, params, trained * sizeof(*copy));
	must(tuned_return(t, &(struct tuned_copy){ cells ? copy : NULL, copy + cells }, &err), &err);
	mem_free(copy);
	memset(into + trained, 0, 2 * trained * sizeof(float));
	distill_state_begin(&state, false);
	for (size_t l = 0; l < inputs.layers; l++)
		if (l == layer) {
			must(distill_state_write(&state, l, into, &err), &err);
		} else {
			float *other = mem_alloc(floats[l], sizeof(*other));

			must(distill_state_read(&state, l, other, 0, 0, &err), &err);
			must(distill_state_write(&state, l, other, &err), &err);
			mem_free(other);
		}
	distill_state_end(&state);
}

/* A run of parameters: where it begins among the trained ones. */
struct part { const char *what; size_t begin, count; float reach; };

/* Along the gradient of this part: the slope by differences against its length. */
static double slope_error(size_t layer, const struct part *part, const float *gradient)
{
	float *into = mem_alloc(floats[layer], sizeof(*into)), *params, *moved;
	double length = 0, loss[2], slope, error;
	size_t trained;
	struct tuned t;

	for (size_t i = 0; i < part->count; i++)
		length += (double)gradient[part->begin + i] * gradient[part->begin + i];
	length = sqrt(length);
	assert_true(length > 0);
	read_layer(layer, into, &t);
	trained = trained_floats(&t);
	params = mem_alloc(trained, sizeof(*params));
	moved = mem_alloc(trained, sizeof(*moved));
	memcpy(params, into, trained * sizeof(*params));
	for (int side = 0; side < 2; side++) {
		memcpy(moved, params, trained * sizeof(*moved));
		for (size_t i = part->begin; i < part->begin + part->count; i++)
			moved[i] += (side ? 1.0f : -1.0f) * part->reach * (float)(gradient[i] / length);
		write_params(layer, into, &t, moved);
		loss[side] = loss_now();
		read_layer(layer, into, &t);
	}
	write_params(layer, into, &t, params);
	slope = (loss[1] - loss[0]) / (2 * part->reach);
	error = fabs(slope - length) / length;
	print_message("# layer %zu, %-16s: slope %.6f, gradient %.6f, off by %.2g\n", layer, part->what, slope, length,
		      error);
	mem_free(into);
	mem_free(params);
	mem_free(moved);
	return error;
}

/* The entry of a run with the steepest gradient, as a run of its own. */
static struct part steepest(const char *what, const struct part *part, const float *gradient)
{
	size_t best = part->begin;

	for (size_t i = part->begin; i < part->begin + part->count; i++)
		if (fabsf(gradient[i]) > fabsf(gradient[best]))
			best = i;
	return (struct part){ what, best, 1, part->reach };
}

/* The gradient of every trained parameter of a layer; t is left open on `into`. */
static float *gradient_of(size_t layer, float *into, struct tuned *t)
{
	float *gradient;
	size_t trained;

	read_layer(layer, into, t);
	trained = trained_floats(t);
	gradient = mem_alloc(trained, sizeof(*gradient));
	memcpy(gradient, into, trained * sizeof(*gradient));
	write_params(layer, into, t, gradient); /* moments 0 */
	loss_now();
	read_layer(layer, into, t);
	for (size_t i = 0; i < trained; i++)
		gradient[i] = into[trained + i] / 0.1f;
	return gradient;
}

static double worst_of_layer(size_t layer)
{
	float *into = mem_alloc(floats[layer], sizeof(*into)), *gradient;
	const struct tuned_plan *plan = &layers[layer].plan;
	const size_t groups = plan->module[LIN_UP].rows * plan->module[LIN_UP].cols / GROUP;
	double worst = 0;
	struct tuned t;

	gradient = gradient_of(layer, into, &t);
	{
		const struct part parts[] = {
			{ "up scales", (size_t)(t.module[LIN_UP].factors - into), groups, 0.02f },
			{ "up zero-points", (size_t)(t.module[LIN_UP].zeros - into), groups, 0.05f },
			{ "q scales", (size_t)(t.module[LIN_Q].factors - into), 64, 0.02f },
			{ "v scales", (size_t)(t.module[LIN_V].factors - into), 64, 0.02f },
			{ "down scales", (size_t)(t.module[LIN_DOWN].factors - into), 64, 0.02f },
			{ "attention norm", (size_t)(t.norm[NORM_ATTN] - into), plan->norm[NORM_ATTN], 0.02f },
			{ "mlp norm", (size_t)(t.norm[NORM_MLP] - into), plan->norm[NORM_MLP], 0.02f },
		};
		const struct part alone[] = {
			steepest("one v scale", &parts[3], gradient), steepest("one zero-point", &parts[1], gradient),
			steepest("one down scale", &parts[4], gradient), steepest("one norm", &parts[5], gradient),
		};

		for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
			worst = fmax(worst, slope_error(layer, &parts[i], gradient));
		for (size_t i = 0; i < sizeof(alone) / sizeof(alone[0]); i++)
			worst = fmax(worst, slope_error(layer, &alone[i], gradient));
	}
	mem_free(into);
	mem_free(gradient);
	return worst;
}

static void test_gradient_of_the_whole_model(void **unused)
{
	struct err err = ERR_INIT;
	double worst = 0;

	(void)unused;
	must(distill_model_begin(&model, &err), &err);
	for (size_t l = 0; l < inputs.layers; l++)
		worst = fmax(worst, worst_of_layer(l));
	print_message("# the worst is off by %.2g\n", worst);
	assert_true(worst < 1e-3);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_gradient_of_the_whole_model) };

	return cmocka_run_group_tests(tests, open_all, close_all);
}
