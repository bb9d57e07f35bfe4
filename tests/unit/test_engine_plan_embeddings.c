/* Planning of embeddings and heads in fewer than 16 bits: what is refused and in which words, and which tasks are told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/plan_case.h"

/* fable-tiny's shape, whose head is its embedding, or with a head of its own; 192 columns, or 256. */
struct shape { bool untied; size_t hidden; };

static void begin(struct plan_case *f, const char *recipe, struct shape shape)
{
	plan_case_init(f, recipe);
	f->config.tied_embeddings = !shape.untied;
	if (shape.untied)
		assert_int_equal(json_set_string(f->dtypes, "lm_head.weight", "BF16"), 0);
	if (shape.hidden)
		f->config.hidden = shape.hidden;
	if (shape.untied && !strstr(recipe, "lm_head"))
		f->recipe.lm_head = 0;
	plan_resolve(&f->recipe, &f->config);
}

/* --- what is left out -------------------------------------------------------------------------- */

static void the_head_follows_a_tied_embedding(void **state)
{
	static const struct { const char *recipe; bool untied; int64_t embeddings, lm_head; } cases[] = {
		{ "{}", false, 16, 16 }, { "{}", true, 16, 16 },
		{ "{'embeddings':8}", false, 8, 8 }, { "{'embeddings':8}", true, 8, 16 },
		{ "{'embeddings':8,'lm_head':0}", false, 8, 8 }, { "{'embeddings':8,'lm_head':4}", true, 8, 4 },
		{ "{'lm_head':4}", true, 16, 4 }, { "{'embeddings':4,'lm_head':4}", false, 4, 4 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct plan_case f;

		begin(&f, cases[i].recipe, (struct shape){ cases[i].untied, 0 });
		assert_int_equal(f.recipe.embeddings, cases[i].embeddings);
		assert_int_equal(f.recipe.lm_head, cases[i].lm_head);
		assert_int_equal(plan_case_make(&f), 0);
		plan_case_deinit(&f);
	}
}

/* --- refusals ---------------------------------------------------------------------------------- */

static const struct refusal { const char *recipe; struct shape shape; const char *says[3]; } refusals[] = {
	{ "{'embeddings':8,'lm_head':4}", { false, 0 },
	  { "the model's output head is its embedding, so \"lm_head\" 4 must equal \"embeddings\" 8; leave \"lm_head\" out, "
	    "and it does" } },
	{ "{'lm_head':8}", { false, 0 }, { "so \"lm_head\" 8 must equal \"embeddings\" 16" } },
	{ "{'embeddings':6}", { false, 0 },
	  { "\"embeddings\" 6 needs a multiple of 256 columns, and the model has 192; 16, 8 and 4 fit" } },
	{ "{'embeddings':6,'lm_head':6}", { true, 0 },
	  { "\"embeddings\" 6 needs a multiple of 256 columns", "\"lm_head\" 6 needs a multiple of 256 columns" } },
	{ "{'embeddings':4,'group_size':-1}", { false, 200 },
	  { "\"embeddings\" 4 needs a multiple of 32 columns, and the model has 200; 16 fits" } },
	{ "{'embeddings':8,'format':['gptq'],'symmetric':true}", { false, 0 },
	  { "format gptq does not hold \"embeddings\" 8; ask for \"embeddings\" 16, or for another format: mlx, gguf and dense "
	    "hold 8 bits" } },
	{ "{'lm_head':8,'format':['gptq','mlx'],'symmetric':true}", { true, 0 },
	  { "format gptq does not hold \"lm_head\" 8; ask for \"lm_head\" 16" } },
	{ "{'embeddings':6,'lm_head':4,'format':['mlx','compressed-tensors'],'symmetric':true}", { true, 256 },
	  { "format mlx does not hold \"embeddings\" 6; ask for \"embeddings\" 16, 8 or 4, or for another format: gguf and "
	    "dense hold 6 bits",
	    "format compressed-tensors does not hold \"embeddings\" 6", "format compressed-tensors does not hold \"lm_head\" 4" } },
	{ "{'embeddings':4,'format':['awq'],'zero_point':'integer'}", { false, 0 },
	  { "format awq does not hold \"embeddings\" 4" } },
};

static void what_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		const struct refusal *c = &refusals[i];
		struct plan_case f;
		size_t said = 0;

		begin(&f, c->recipe, c->shape);
		if (plan_case_make(&f) != -1)
			fail_msg("%s: planned", c->recipe);
		assert_int_equal(f.err.code, ERR_REFUSED);
		while (said < 3 && c->says[said])
			said++;
		for (size_t k = 0; k < f.problems.count || k < said; k++)
			if (k >= said || k >= f.problems.count || !strstr(f.problems.items[k], c->says[k]))
				fail_msg("%s: problem %zu is \"%s\"", c->recipe, k,
					 k < f.problems.count ? f.problems.items[k] : "missing");
		plan_case_deinit(&f);
	}
}

static void what_is_accepted(void **state)
{
	static const struct { const char *recipe; struct shape shape; } cases[] = {
		{ "{'embeddings':8,'format':['mlx','gguf','dense']}", { false, 0 } },
		{ "{'embeddings':4,'lm_head':8,'format':['mlx','gguf','dense']}", { true, 0 } },
		{ "{'embeddings':6,'format':['gguf','dense']}", { false, 256 } },
		{ "{'embeddings':6,'lm_head':16,'format':['packed']}", { true, 256 } },
		{ "{'kind':'evaluate','embeddings':6,'lm_head':4}", { false, 0 } }, /* ignored */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct plan_case f;

		begin(&f, cases[i].recipe, cases[i].shape);
		if (plan_case_make(&f) != 0)
			fail_msg("%s: %s", cases[i].recipe, f.err.text);
		plan_case_deinit(&f);
	}
}

static void every_refusal_without_memory(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		bool refused = false;

		for (uint64_t nth = 1; !refused; nth++) {
			struct plan_case f;

			begin(&f, refusals[i].recipe, refusals[i].shape);
			mem_fail_after(nth);
			assert_int_equal(plan_case_make(&f), -1);
			mem_fail_after(0);
			refused = f.err.code == ERR_REFUSED;
			if (!refused)
				assert_int_equal(f.err.code, ERR_NOMEM);
			plan_case_deinit(&f);
		}
	}
}

/* --- what tasks are told ----------------------------------------------------------------------- */

static bool told(const struct plan_task *t, const char *member)
{
	return strstr(t->spec, member) != NULL;
}

/* Evaluation of the quantized model and distillation, and nobody else. */
static void check_specs(const char *recipe, struct shape shape, const char *embeddings, const char *lm_head)
{
	struct plan_case f;

	begin(&f, recipe, shape);
	if (plan_case_make(&f) != 0)
		fail_msg("%s: %s", recipe, f.err.text);
	assert_int_equal(plan_case_count(&f, KIND_DISTILL), 1);
	for (size_t i = 0; i < f.plan.task_count; i++) {
		const struct plan_task *t = &f.plan.tasks[i];
		const bool finished = t->kind == KIND_DISTILL ||
				      (t->kind == KIND_EVALUATE && told(t, "\"model\":\"quantized\""));

		if (t->kind == KIND_ASSEMBLE)
			continue;
		if (told(t, "\"embeddings\"") != (finished && embeddings) || told(t, "\"lm_head\"") != (finished && lm_head) ||
		    (finished && embeddings && !told(t, embeddings)) || (finished && lm_head && !told(t, lm_head)))
			fail_msg("%s: %s: %s", recipe, task_kind_name(t->kind), t->spec);
	}
	plan_case_deinit(&f);
}

static void who_is_told(void **state)
{
	const struct shape tied = { false, 0 }, untied = { true, 0 };

	(void)state;
	check_specs("{'effort':'balanced'}", tied, NULL, NULL);
	check_specs("{'embeddings':8}", tied, "\"embeddings\":8", "\"lm_head\":8");
	check_specs("{'embeddings':8}", untied, "\"embeddings\":8", NULL);
	check_specs("{'lm_head':4}", untied, NULL, "\"lm_head\":4");
	check_specs("{'embeddings':4,'lm_head':8,'propagate':'quantized'}", untied, "\"embeddings\":4", "\"lm_head\":8");
}

/* Distillation holds the original's head beside its own. */
static void memory_of_two_heads(void **state)
{
	static const char *const recipes[] = { "{'eval':'none'}", "{'eval':'none','lm_head':8}" };
	uint64_t bytes[2];

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct plan_case f;

		begin(&f, recipes[i], (struct shape){ true, 0 });
		f.config.vocab = 1000000; /* so that nothing else needs as much */
		assert_int_equal(plan_case_make(&f), 0);
		bytes[i] = f.plan.memory_bytes;
		plan_case_deinit(&f);
	}
	assert_int_equal(bytes[1] - bytes[0], 1000000u * 192 * sizeof(float));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_head_follows_a_tied_embedding), cmocka_unit_test(what_is_refused),
		cmocka_unit_test(what_is_accepted), cmocka_unit_test(every_refusal_without_memory),
		cmocka_unit_test(who_is_told), cmocka_unit_test(memory_of_two_heads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
