/* The graph with distillation: who waits for whom, which of a task's outputs is read, what tasks are told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/plan_case.h"

static void make_good(struct plan_case *c, const char *recipe)
{
	plan_case_init(c, recipe);
	if (plan_case_make(c) != 0)
		fail_msg("%s: %s", recipe, c->err.text);
	for (size_t i = 0; i < c->plan.task_count; i++)
		for (size_t j = 0; j < c->plan.tasks[i].input_count; j++)
			assert_true(c->plan.tasks[i].inputs[j].from < (int64_t)i);
}

static void spec_holds(const struct plan_task *t, const char *text)
{
	if (!strstr(t->spec, text))
		fail_msg("\"%s\" is not in %s", text, t->spec);
}

static const char *layer_name(int64_t layer)
{
	static char name[32];

	snprintf(name, sizeof(name), "layer-%d", (int)layer);
	return name;
}

static const char *target_name(int64_t shard)
{
	static char name[32];

	snprintf(name, sizeof(name), "target-%d", (int)shard);
	return name;
}

static const struct plan_task *the_distill_task(const struct plan_case *c)
{
	assert_int_equal(plan_case_count(c, KIND_DISTILL), 1);
	return plan_case_task(c, KIND_DISTILL, -1, -1);
}

/* --- dependencies ------------------------------------------------------------- */

static void the_default_graph(void **state)
{
	struct plan_case c;
	const struct plan_task *d;

	(void)state;
	make_good(&c, "{}");
	assert_int_equal(plan_case_count(&c, KIND_CAPTURE), 4 * 8); /* X(4), the targets, too */
	assert_int_equal(plan_case_count(&c, KIND_QUANTIZE), 4);
	d = the_distill_task(&c);
	assert_int_equal(d->input_count, 1 + 4 + 8);
	assert_int_equal(plan_case_maker(&c, d, "tokens", "tokens")->kind, KIND_TOKENIZE);
	assert_non_null(strstr(plan_case_maker(&c, d, "tokens", "tokens")->spec, "calibration"));
	for (int64_t l = 0; l < 4; l++)
		assert_ptr_equal(plan_case_maker(&c, d, layer_name(l), "layer"),
				 plan_case_task(&c, KIND_QUANTIZE, l, -1));
	for (int64_t s = 0; s < 8; s++)
		assert_ptr_equal(plan_case_maker(&c, d, target_name(s), "hidden"),
				 plan_case_task(&c, KIND_CAPTURE, 3, s));
	assert_true(plan_case_task(&c, KIND_QUANTIZE, 3, -1)->rank < d->rank);
	assert_true(d->rank < plan_case_task(&c, KIND_EVALUATE, -1, 0)->rank);
	plan_case_deinit(&c);
}

static void layers_come_from_the_distill_task(void **state)
{
	struct plan_case c;
	size_t files = 0;

	(void)state;
	make_good(&c, "{}");
	for (int64_t l = 0; l < 4; l++)
		assert_ptr_equal(plan_case_maker(&c, plan_case_nth(&c, KIND_EVALUATE, -1, 0, 1), layer_name(l), layer_name(l)),
				 the_distill_task(&c));
	for (size_t i = 0; i < c.plan.task_count; i++) {
		const struct plan_task *t = &c.plan.tasks[i];

		if (t->kind != KIND_ASSEMBLE)
			continue;
		files++;
		assert_int_equal(t->input_count, 4);
		assert_ptr_equal(plan_case_maker(&c, t, "layer-2", "layer-2"), the_distill_task(&c));
	}
	assert_int_equal(files, 2);
	plan_case_deinit(&c);
}

static void quantized_is_held_against_the_original(void **state)
{
	static const char *const recipes[] = { "{'effort':'fast','eval_windows':40}", "{'eval_windows':40}" };
	struct plan_case c;

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		make_good(&c, recipes[i]);
		assert_int_equal(c.plan.chunks[0], 2);
		for (int64_t chunk = 0; chunk < 2; chunk++) {
			const struct plan_task *original = plan_case_nth(&c, KIND_EVALUATE, -1, chunk, 0);
			const struct plan_task *quantized = plan_case_nth(&c, KIND_EVALUATE, -1, chunk, 1);

			spec_holds(original, "\"model\":\"original\"");
			spec_holds(original, "\"keep_hidden\":true");
			assert_int_equal(original->input_count, 1);
			spec_holds(quantized, "\"model\":\"quantized\"");
			assert_null(strstr(quantized->spec, "keep_hidden"));
			assert_ptr_equal(plan_case_maker(&c, quantized, "reference", "hidden"), original);
			assert_int_equal(quantized->input_count, 2 + 4);
		}
		plan_case_deinit(&c);
	}
	make_good(&c, "{'kind':'evaluate'}");
	assert_null(strstr(plan_case_task(&c, KIND_EVALUATE, -1, 0)->spec, "keep_hidden"));
	assert_int_equal(c.plan.disk_bytes, 0);
	plan_case_deinit(&c);
	plan_case_init(&c, "{'kind':'evaluate','reference':'m_1'}");
	c.request.reference.config = &c.config;
	assert_int_equal(plan_case_make(&c), 0);
	assert_int_equal(c.plan.disk_bytes, 16 * 1024 * 192 * 4); /* the reference's hidden states of 16 windows */
	plan_case_deinit(&c);
}

static void only_what_is_asked_for(void **state)
{
	struct plan_case c;

	(void)state;
	make_good(&c, "{'distill':'block'}");
	assert_int_equal(plan_case_count(&c, KIND_DISTILL), 0);
	assert_int_equal(plan_case_count(&c, KIND_CAPTURE), 3 * 8);
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 0, -1), "\"distill\":{");
	plan_case_deinit(&c);
	make_good(&c, "{'distill':'end-to-end'}");
	assert_int_equal(plan_case_count(&c, KIND_DISTILL), 1);
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 0, -1), "\"distill\":null");
	plan_case_deinit(&c);
	/* Nothing is lost where nothing is quantized. */
	make_good(&c, "{'override':[{'match':'layers','skip':true}]}");
	assert_int_equal(plan_case_count(&c, KIND_DISTILL), 0);
	assert_int_equal(plan_case_count(&c, KIND_CAPTURE), 3 * 8);
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 0, -1), "\"distill\":null");
	plan_case_deinit(&c);
	make_good(&c, "{'override':[{'match':'layers.0.','skip':true}]}");
	assert_int_equal(plan_case_count(&c, KIND_DISTILL), 1);
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 0, -1), "\"distill\":null");
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 1, -1), "\"distill\":{");
	plan_case_deinit(&c);
}

/* The captures from `t` down to the embedding; fails when one reads a quantized layer. */
static int original_captures_below(const struct plan_case *c, const struct plan_task *t)
{
	int count = 0;

	while (t->kind == KIND_CAPTURE) {
		assert_null(plan_case_input(t, "layer"));
		t = plan_case_maker(c, t, "hidden", "hidden");
		count++;
	}
	assert_int_equal(t->kind, KIND_EMBED);
	return count;
}

static void targets_are_the_originals_in_the_sequential_order_too(void **state)
{
	struct plan_case c;
	const struct plan_task *d, *q;

	(void)state;
	make_good(&c, "{'propagate':'quantized','samples':20,'seq_len':128}");
	assert_int_equal(plan_case_count(&c, KIND_CAPTURE), 4 * 2 + 3 * 2);
	d = the_distill_task(&c);
	for (int64_t s = 0; s < 2; s++)
		assert_int_equal(original_captures_below(&c, plan_case_maker(&c, d, target_name(s), "hidden")), 4);
	/* Layer 2 sees what the quantized layers 0 and 1 make. */
	q = plan_case_task(&c, KIND_QUANTIZE, 2, -1);
	q = plan_case_maker(&c, q, "hidden-0", "hidden");
	assert_ptr_equal(plan_case_maker(&c, q, "layer", "layer"), plan_case_task(&c, KIND_QUANTIZE, 1, -1));
	plan_case_deinit(&c);
	make_good(&c, "{'propagate':'quantized','samples':20,'seq_len':128,'distill':'block'}");
	assert_int_equal(plan_case_count(&c, KIND_CAPTURE), 3 * 2);
	plan_case_deinit(&c);
}

/* --- specs -------------------------------------------------------------------- */

static void tasks_are_told_how_to_train(void **state)
{
	struct plan_case c;

	(void)state;
	make_good(&c, "{'seed':5}");
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 1, -1),
		   "{\"layer\":1,\"damp\":0.01,\"samples\":128,\"refine\":2,\"distill\":{\"samples\":128,\"epochs\":1,\"batch\":4,"
		   "\"train_codes\":true,\"seed\":5,\"rates\":{\"code\":0.01,\"scale\":0.01,\"zero\":0.001,\"norm\":0.001}},"
		   "\"modules\":[");
	assert_string_equal(the_distill_task(&c)->spec,
		   "{\"sequences\":128,\"epochs\":3,\"batch\":2,\"train_codes\":true,\"seed\":5,\"rates\":{\"code\":0.01,"
		   "\"scale\":0.003,\"zero\":0.001,\"norm\":0.001},\"weight_hidden\":1,\"checkpoint_percent\":1}");
	plan_case_deinit(&c);
	make_good(&c, "{'effort':'best','train_codes':false,'epochs':7}");
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 1, -1), "\"refine\":4,\"distill\":{\"samples\":128,\"epochs\":2");
	spec_holds(the_distill_task(&c), "{\"sequences\":128,\"epochs\":7,\"batch\":2,\"train_codes\":false");
	plan_case_deinit(&c);
	make_good(&c, "{'effort':'fast','refine':0}");
	spec_holds(plan_case_task(&c, KIND_QUANTIZE, 1, -1), "\"refine\":0,\"distill\":null,");
	plan_case_deinit(&c);
}

static void shards_hold_the_sequences_that_are_used(void **state)
{
	static const struct {
		const char *recipe;
		size_t embeds, quantize_inputs, captures, targets;
		const char *tokenize, *last_embed;
	} cases[] = {
		/* More sequences to distill on than to measure with. */
		{ "{'samples':20,'distill_samples':40}", 3, 3, 4 * 3, 3, "\"samples\":40", "\"first\":32,\"count\":8" },
		{ "{'samples':20,'distill_samples':40,'distill':'block'}", 3, 3, 3 * 3, 0, "\"samples\":40",
		  "\"first\":32,\"count\":8" },
		{ "{'samples':20,'distill_samples':40,'distill':'end-to-end'}", 3, 2, 4 * 3, 3, "\"samples\":40",
		  "\"first\":32,\"count\":8" },
		/* Fewer. */
		{ "{'samples':40,'distill_samples':10}", 3, 3, 3 * 3 + 1, 1, "\"samples\":40", "\"first\":32,\"count\":8" },
		/* None. */
		{ "{'effort':'fast','samples':20,'distill_samples':40}", 2, 2, 3 * 2, 0, "\"samples\":20",
		  "\"first\":16,\"count\":4" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct plan_case c;

		make_good(&c, cases[i].recipe);
		assert_int_equal(plan_case_count(&c, KIND_EMBED), cases[i].embeds);
		assert_int_equal(plan_case_count(&c, KIND_CAPTURE), cases[i].captures);
		assert_int_equal(plan_case_task(&c, KIND_QUANTIZE, 3, -1)->input_count, cases[i].quantize_inputs);
		spec_holds(plan_case_task(&c, KIND_TOKENIZE, -1, -1), cases[i].tokenize);
		spec_holds(plan_case_task(&c, KIND_EMBED, -1, (int64_t)cases[i].embeds - 1), cases[i].last_embed);
		if (cases[i].targets > 0)
			assert_int_equal(the_distill_task(&c)->input_count, 1 + 4 + cases[i].targets);
		plan_case_deinit(&c);
	}
}

/* --- limits and estimates ----------------------------------------------------- */

static void the_text_must_do_for_distillation(void **state)
{
	struct plan_case c;

	(void)state;
	plan_case_init(&c, "{'samples':10,'distill_samples':2000}");
	assert_int_equal(plan_case_make(&c), -1);
	assert_non_null(strstr(c.problems.items[0], "too few for 2000 samples of 1024 tokens"));
	plan_case_deinit(&c);
}

static void distillation_has_its_cost(void **state)
{
	static const char *const recipes[] = { "{'effort':'fast','refine':0}", "{'effort':'fast'}", "{'distill':'block'}",
					       "{'effort':'balanced'}", "{'effort':'best'}" };
	int64_t last = 0, work[5];
	uint64_t disk[5], memory[5], packed = 0;

	(void)state;
	for (size_t i = 0; i < 5; i++) {
		struct plan_case c;
		int64_t sum = 0;

		make_good(&c, recipes[i]);
		for (size_t t = 0; t < c.plan.task_count; t++)
			sum += c.plan.tasks[t].work;
		if (sum <= last)
			fail_msg("%s: work %lld, not above %lld", recipes[i], (long long)sum, (long long)last);
		last = work[i] = sum;
		disk[i] = c.plan.disk_bytes;
		packed = c.plan.outputs[0].bytes;
		memory[i] = c.plan.memory_bytes;
		plan_case_deinit(&c);
	}
	assert_true(work[3] > 3 * work[1]); /* training dominates */
	assert_int_equal(disk[2], disk[0]); /* block distillation leaves nothing behind */
	/* The targets, and two checkpoints: three floats a weight, and the layers. */
	assert_int_equal(disk[3] - disk[0], 128ull * 1024 * 192 * 4 + 2 * (1572864 * 12 + packed));
	assert_true(memory[2] > memory[1]);
	assert_true(memory[3] >= memory[2]);
}

static void running_out_of_memory_is_an_error(void **state)
{
	uint64_t n;

	(void)state;
	for (n = 1; n < 100000; n += n < 100 ? 1 : 37) {
		struct plan_case c;
		int rc;

		plan_case_init(&c, "{'samples':20,'seq_len':64,'propagate':'quantized'}");
		mem_fail_after(n);
		rc = plan_case_make(&c);
		mem_fail_after(0);
		if (rc != 0)
			assert_int_equal(c.err.code, ERR_NOMEM);
		plan_case_deinit(&c);
		if (rc == 0)
			break;
	}
	assert_in_range(n, 101, 99999);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_default_graph),
		cmocka_unit_test(layers_come_from_the_distill_task),
		cmocka_unit_test(quantized_is_held_against_the_original),
		cmocka_unit_test(only_what_is_asked_for),
		cmocka_unit_test(targets_are_the_originals_in_the_sequential_order_too),
		cmocka_unit_test(tasks_are_told_how_to_train),
		cmocka_unit_test(shards_hold_the_sequences_that_are_used),
		cmocka_unit_test(the_text_must_do_for_distillation),
		cmocka_unit_test(distillation_has_its_cost),
		cmocka_unit_test(running_out_of_memory_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
