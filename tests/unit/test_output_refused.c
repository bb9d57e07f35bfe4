/* What no checkpoint of a format can hold, refused when a job is planned: bits x group x zero-points x format, each with
 * its sentence; and that many equal sentences are told once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "formats/codecs.h"
#include "tests/lib/output_case.h"
#include "tests/lib/plan_case.h"

#define FIRST "model.layers.0.self_attn.q_proj (and 27 more): "

/* fable-tiny: 4 layers of 7 modules, 192 and 512 columns, 64 to 512 rows. sentence NULL: it is held. */
static const struct { const char *format, *settings, *sentence; } rows[] = {
	{ "mlx", "'bits':4", NULL },
	{ "mlx", "'bits':2,'group_size':32", NULL },
	{ "mlx", "'bits':8,'group_size':-1", NULL },
	{ "mlx", "'bits':4,'zero_point':'integer'", NULL },
	{ "mlx", "'bits':1", FIRST "mlx holds 2, 3, 4, 5, 6 or 8 bits, not 1; gguf holds this module as it is" },
	{ "mlx", "'bits':7", FIRST "mlx holds 2, 3, 4, 5, 6 or 8 bits, not 7; dense holds this module as it is" },
	{ "mlx", "'bits':4,'group_size':16", FIRST "mlx holds groups of a multiple of 32 columns, not 16; dense holds" },
	{ "mlx", "'bits':4,'group_size':16,'symmetric':true", "columns, not 16; compressed-tensors and gptq hold this module" },
	{ "gguf", "'bits':4", NULL },
	{ "gguf", "'bits':1,'group_size':32", NULL },
	{ "gguf", "'bits':7", NULL }, /* with integer zero-points, which the plan says */
	{ "gguf", "'bits':8,'symmetric':true", NULL },
	{ "gguf", "'bits':8", FIRST "gguf holds 8 bits only with \"symmetric\": true; mlx holds this module as it is" },
	{ "gguf", "'bits':8,'zero_point':'integer'", FIRST "gguf holds 8 bits only with \"symmetric\": true; mlx, "
	  "compressed-tensors and gptq hold" },
	{ "gguf", "'bits':4,'group_size':48,'override':[{'match':'down','group_size':64}]",
	  "model.layers.0.self_attn.q_proj (and 23 more): gguf holds groups of a multiple of 32 columns or one per output "
	  "channel, not 48" },
	{ "compressed-tensors", "'bits':4", NULL },
	{ "compressed-tensors", "'bits':2", NULL },
	{ "compressed-tensors", "'bits':3,'group_size':16", NULL },
	{ "compressed-tensors", "'bits':8,'symmetric':true,'group_size':-1", NULL },
	{ "compressed-tensors", "'bits':5", FIRST "compressed-tensors holds 4 and 8 bits, and 2 and 3 within 4, not 5; mlx "
	  "holds this module" },
	{ "compressed-tensors", "'bits':4,'override':[{'match':'layers.0.self_attn.k','bits':8}]",
	  "model.layers.0.self_attn.q_proj and model.layers.0.self_attn.k_proj (and 1 more): readers of compressed-tensors join "
	  "these modules into qkv_proj, so stored bits, group size and symmetry must be equal" },
	{ "compressed-tensors", "'bits':4,'override':[{'match':'gate','skip':true}]",
	  "gate_proj and model.layers.0.mlp.up_proj (and 3 more): readers of compressed-tensors join" },
	{ "compressed-tensors", "'bits':4,'override':[{'match':'layers.0.mlp.down','bits':8}]", NULL },
	{ "gptq", "'bits':4", NULL },
	{ "gptq", "'bits':2,'group_size':-1", NULL },
	{ "gptq", "'bits':3,'group_size':16", NULL },
	{ "gptq", "'bits':6", FIRST "gptq holds 2, 3, 4 or 8 bits, not 6; mlx and gguf hold this module as it is" },
	{ "gptq", "'bits':4,'group_size':8", FIRST "gptq holds groups of 16, 32, 64, 128, 256, 512, 1024 columns or one per output "
	  "channel, not 8; compressed-tensors holds" },
	{ "gptq", "'bits':4,'zero_point':'integer','override':[{'match':'down','symmetric':true}]",
	  "gptq holds symmetric or asymmetric modules, not both; model.layers.3.mlp.down_proj is symmetric and" },
	{ "awq", "'bits':4", NULL },
	{ "awq", "'bits':4,'group_size':32,'symmetric':true", NULL },
	{ "awq", "'bits':3", FIRST "awq holds 4 bits, not 3; mlx, compressed-tensors, gptq and gguf hold" },
	{ "awq", "'bits':4,'group_size':16", FIRST "awq holds groups of 32, 64, 128 columns or one per output channel, not 16" },
	{ "awq", "'bits':4,'override':[{'match':'down','group_size':128}]",
	  "model.layers.0.mlp.down_proj (and 3 more): awq has one group size for all modules, and most have 64, not 128" },
	{ "dense", "'bits':1,'group_size':8", NULL },
	{ "dense-f16", "'bits':7", NULL },
	{ "dense-f32", "'bits':8,'symmetric':true", NULL },
	{ "packed", "'bits':1,'group_size':1", NULL },
	/* Zero-points: the plan takes the coarsest that is asked for; what then does not fit is refused. */
	{ "gptq','mlx','gguf','compressed-tensors','awq','dense", "'bits':4", NULL },
	{ "gguf','compressed-tensors", "'bits':2", NULL },
	{ "gguf','gptq", "'bits':8", FIRST "gguf holds 8 bits only with \"symmetric\": true; mlx, compressed-tensors and gptq hold" },
};

static bool says(const struct problems *p, const char *sentence)
{
	for (size_t i = 0; i < p->count; i++)
		if (strstr(p->items[i], sentence))
			return true;
	return false;
}

static void the_table_of_refusals(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct plan_case f;
		char recipe[512];

		snprintf(recipe, sizeof(recipe), "{'format':['%s'],%s}", rows[i].format, rows[i].settings);
		plan_case_init(&f, recipe);
		if (plan_case_make(&f) == 0 && rows[i].sentence)
			fail_msg("row %zu, %s, is accepted", i, recipe);
		if (!rows[i].sentence && f.problems.count > 0)
			fail_msg("row %zu, %s: %s", i, recipe, f.problems.items[0]);
		if (rows[i].sentence && !says(&f.problems, rows[i].sentence))
			fail_msg("row %zu, %s, says %s", i, recipe, f.problems.items[0]);
		assert_int_equal(f.err.code, rows[i].sentence ? ERR_REFUSED : ERR_NONE);
		plan_case_deinit(&f);
	}
}

/* All formats and all their reasons, each once. */
static void every_format_is_asked(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'bits':7,'group_size':16,'format':['mlx','gptq','awq']}");
	assert_int_equal(plan_case_make(&f), -1);
	assert_int_equal(f.problems.count, 5);
	assert_true(says(&f.problems, "mlx holds 2, 3, 4, 5, 6 or 8 bits, not 7"));
	assert_true(says(&f.problems, "mlx holds groups of a multiple of 32"));
	assert_true(says(&f.problems, "gptq holds 2, 3, 4 or 8 bits, not 7"));
	assert_true(says(&f.problems, "awq holds 4 bits, not 7"));
	assert_true(says(&f.problems, "awq holds groups of 32, 64, 128 columns"));
	plan_case_deinit(&f);
}

/* Groups that divide nothing are told once, not by each format. */
static void groups_that_do_not_divide_are_told_once(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'group_size':100,'format':['mlx','gptq','gguf']}");
	assert_int_equal(plan_case_make(&f), -1);
	assert_int_equal(f.problems.count, 2); /* of 192 and of 512 columns */
	plan_case_deinit(&f);
}

/* Models that a format cannot describe. */
static void models_of_no_architecture(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'format':['gguf','mlx']}");
	snprintf(f.config.family, sizeof(f.config.family), "other");
	assert_int_equal(plan_case_make(&f), -1);
	assert_int_equal(f.problems.count, 1);
	assert_string_equal(f.problems.items[0], "gguf is written for models of type llama, mistral, qwen2 and qwen3");
	plan_case_deinit(&f);
}

/* --- the list of formats ------------------------------------------------------------------------- */

static void the_words_of_recipes_are_the_formats(void **state)
{
	size_t i = 0;

	(void)state;
	for (; output_formats[i].name; i++) {
		const struct output_format *f = &output_formats[i];

		assert_non_null(recipe_format_words[i]);
		assert_string_equal(recipe_format_words[i], f->name);
		assert_ptr_equal(output_format_find(f->name), f);
		assert_ptr_equal(codec_find(f->name), f->codec);
		if (f->codec)
			assert_string_equal(f->about, f->codec->about);
		assert_int_equal(f->always, f->codec && f->codec->always);
	}
	assert_null(recipe_format_words[i]);
	for (i = 0; codec_list[i]; i++)
		assert_non_null(output_format_find(codec_list[i]->name));
	assert_null(output_format_find("exl3"));
}

/* --- tables -------------------------------------------------------------------------------------- */

static const struct { const char *format; int bits; bool held; } tables[] = {
	{ "packed", 8, true }, { "packed", 6, true }, { "mlx", 8, true }, { "mlx", 4, true }, { "mlx", 6, false },
	{ "gguf", 8, true }, { "gguf", 6, true }, { "gguf", 4, true }, { "gptq", 8, false }, { "awq", 4, false },
	{ "compressed-tensors", 8, false }, { "dense", 6, true }, { "dense-f32", 4, true },
};

static void tables_that_a_format_cannot_hold(void **state)
{
	static const struct output_case_model model = { "llama", 256, 256, false, ST_BF16 };

	(void)state;
	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
		struct output_case *c = mem_alloc(1, sizeof(*c));
		struct problems p = { 0 };

		output_case_init(c, &model, 4, 64, KIND_INTEGER);
		output_case_tables(c, 16, tables[i].bits);
		if ((output_check(output_format_find(tables[i].format), &c->model, &p) == 0) != tables[i].held)
			fail_msg("%s, %d bits: %s", tables[i].format, tables[i].bits, p.count ? p.items[0] : "accepted");
		if (!tables[i].held)
			assert_non_null(strstr(p.items[0], "\"lm_head\""));
		problems_deinit(&p);
		output_case_deinit(c);
		mem_free(c);
	}
}

/* Whatever allocation fails: a refusal stays one, and nothing is accepted. */
static void checking_without_memory(void **state)
{
	static const struct output_case_model model = { "llama", 64, 96, true, ST_BF16 };
	struct output_case *c = mem_alloc(1, sizeof(*c));
	uint64_t n = 1;

	(void)state;
	output_case_init(c, &model, 7, 16, KIND_FLOAT);
	for (bool failed = true; failed && n < 100000; n++) {
		const uint64_t before = mem_fail_after(n);
		struct problems p = { 0 };

		assert_int_equal(output_check(output_format_find("awq"), &c->model, &p), -1);
		failed = mem_fail_after(0) - before >= n;
		problems_deinit(&p);
	}
	assert_true(n > 50);
	output_case_deinit(c);
	mem_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_table_of_refusals),
		cmocka_unit_test(every_format_is_asked),
		cmocka_unit_test(groups_that_do_not_divide_are_told_once),
		cmocka_unit_test(models_of_no_architecture),
		cmocka_unit_test(the_words_of_recipes_are_the_formats),
		cmocka_unit_test(tables_that_a_format_cannot_hold),
		cmocka_unit_test(checking_without_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
