/* Recipes: defaults, every field's right and wrong values, canonical form, options, overrides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/recipe.h"

static int read_text(struct recipe *r, const char *text, struct problems *problems, struct err *err)
{
	struct json *object = json_parse(text, strlen(text), err);
	int rc;

	if (!object)
		fail_msg("%s: %s", text, err ? err->text : "");
	rc = recipe_from_json(r, object, problems, err);
	json_free(object);
	return rc;
}

static void read_good(struct recipe *r, const char *text)
{
	struct err err = ERR_INIT;

	if (read_text(r, text, NULL, &err) != 0)
		fail_msg("%s: %s", text, err.text);
}

static char *print(const struct recipe *r)
{
	struct json *object = recipe_to_json(r);
	char *text = json_print(object, false);

	json_free(object);
	return text;
}

#define DEFAULTS "{\"kind\":\"quantize\",\"bits\":4,\"group_size\":64,\"method\":\"neuqi\"," \
	"\"zero_point\":\"float\",\"symmetric\":false,\"rounding\":\"ldlq\",\"effort\":\"balanced\",\"refine\":2," \
	"\"distill\":\"full\",\"distill_samples\":0,\"block_epochs\":1,\"epochs\":3,\"train_codes\":true," \
	"\"propagate\":\"original\",\"samples\":128,\"seq_len\":0,\"seed\":0,\"max_shard_size\":5000000000," \
	"\"calibration\":\"builtin\",\"eval\":[\"builtin\"],\"eval_windows\":16,\"reference\":null," \
	"\"embeddings\":16,\"lm_head\":0," \
	"\"format\":[\"dense\"]," \
	"\"override\":[]}"

/* --- reading ------------------------------------------------------------------ */

static void test_defaults(void **state)
{
	struct recipe r;
	char *text;

	(void)state;
	read_good(&r, "{}");
	text = print(&r);
	assert_string_equal(text, DEFAULTS);
	mem_free(text);
	recipe_deinit(&r);
	recipe_init(&r);
	text = print(&r);
	assert_string_equal(text, DEFAULTS);
	mem_free(text);
	recipe_deinit(&r);
}

#define FULL "{\"kind\":\"evaluate\",\"bits\":2,\"group_size\":-1,\"method\":\"minmax\"," \
	"\"zero_point\":\"integer\",\"symmetric\":true,\"rounding\":\"nearest\",\"effort\":\"best\",\"refine\":32," \
	"\"distill\":\"block\",\"distill_samples\":9,\"block_epochs\":64,\"epochs\":1,\"train_codes\":false," \
	"\"propagate\":\"quantized\",\"samples\":7,\"seq_len\":512,\"seed\":9007199254740992,\"max_shard_size\":1," \
	"\"calibration\":\"d_1\",\"eval\":[\"d_2\",\"builtin\"],\"eval_windows\":3,\"reference\":\"m_1\"," \
	"\"embeddings\":6,\"lm_head\":8," \
	"\"format\":[\"packed\",\"dense\"]," \
	"\"override\":[{\"match\":\"down\",\"skip\":true},{\"match\":\"^up$\",\"bits\":8,\"group_size\":-1," \
	"\"method\":\"neuqi\",\"zero_point\":\"float\",\"symmetric\":false,\"rounding\":\"ldlq\"}]}"

static void test_canonical(void **state)
{
	struct recipe r;
	char *text;

	(void)state;
	read_good(&r, FULL);
	assert_int_equal(r.kind, RECIPE_EVALUATE);
	assert_int_equal(r.method, METHOD_MINMAX);
	assert_int_equal(r.zero_point, ZERO_INTEGER);
	assert_int_equal(r.rounding, ROUND_NEAREST);
	assert_int_equal(r.propagate, PROPAGATE_QUANTIZED);
	assert_int_equal(r.override_count, 2);
	assert_int_equal(r.effort, EFFORT_BEST);
	assert_int_equal(r.distill, DISTILL_BLOCK);
	text = print(&r);
	assert_string_equal(text, FULL);
	mem_free(text);
	recipe_deinit(&r);
	/* another order of the members, the same bytes */
	read_good(&r, "{\"samples\":128,\"bits\":4,\"override\":[],\"kind\":\"quantize\"}");
	text = print(&r);
	assert_string_equal(text, DEFAULTS);
	mem_free(text);
	recipe_deinit(&r);
}

/* --- effort ------------------------------------------------------------------- */

static void check_bundle(const char *text, int64_t refine, enum distill distill, int64_t block_epochs,
			 int64_t epochs)
{
	struct recipe r;

	read_good(&r, text);
	if (r.refine != refine || r.distill != distill || r.block_epochs != block_epochs || r.epochs != epochs ||
	    r.distill_samples != 0 || !r.train_codes)
		fail_msg("%s: refine %d, distill %s of %d, epochs %d and %d, codes %d", text, (int)r.refine,
			 distill_name(r.distill), (int)r.distill_samples, (int)r.block_epochs, (int)r.epochs,
			 r.train_codes);
	recipe_deinit(&r);
}

static void test_effort_bundles(void **state)
{
	(void)state;
	check_bundle("{}", 2, DISTILL_FULL, 1, 3);
	check_bundle("{\"effort\":\"fast\"}", 2, DISTILL_NONE, 1, 3);
	check_bundle("{\"effort\":\"balanced\"}", 2, DISTILL_FULL, 1, 3);
	check_bundle("{\"effort\":\"best\"}", 4, DISTILL_FULL, 2, 4);
	/* A field that is given wins, wherever it stands. */
	check_bundle("{\"effort\":\"fast\",\"refine\":0}", 0, DISTILL_NONE, 1, 3);
	check_bundle("{\"refine\":0,\"effort\":\"best\"}", 0, DISTILL_FULL, 2, 4);
	check_bundle("{\"effort\":\"best\",\"distill\":\"block\"}", 4, DISTILL_BLOCK, 2, 4);
	check_bundle("{\"distill\":\"end-to-end\",\"epochs\":9,\"effort\":\"fast\"}", 2, DISTILL_END_TO_END, 1, 9);
	check_bundle("{\"block_epochs\":5,\"effort\":\"best\"}", 4, DISTILL_FULL, 5, 4);
}

static void test_distilled_sequences(void **state)
{
	static const struct { const char *text; int64_t distilled, all; bool blocks, model; } cases[] = {
		{ "{\"effort\":\"fast\"}", 0, 128, false, false },
		{ "{\"effort\":\"fast\",\"distill_samples\":500}", 0, 128, false, false },
		{ "{}", 128, 128, true, true },
		{ "{\"distill\":\"block\",\"distill_samples\":16}", 16, 128, true, false },
		{ "{\"distill\":\"end-to-end\",\"distill_samples\":256,\"samples\":100}", 256, 256, false, true },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct recipe r;

		read_good(&r, cases[i].text);
		assert_int_equal(recipe_distill_sequences(&r), cases[i].distilled);
		assert_int_equal(recipe_sequences(&r), cases[i].all);
		assert_int_equal(recipe_distills_blocks(&r), cases[i].blocks);
		assert_int_equal(recipe_distills_model(&r), cases[i].model);
		recipe_deinit(&r);
	}
}

static void test_evaluation_texts(void **state)
{
	static const struct { const char *text; size_t count; int64_t windows; } cases[] = {
		{ "{\"eval\":\"none\"}", 0, 0 }, { "{\"eval\":[]}", 0, 0 }, { "{\"eval\":[\"none\"]}", 0, 0 },
		{ "{\"eval\":\"d_1\"}", 1, 0 }, { "{\"eval\":[\"d_1\",\"d_2\"]}", 2, 0 },
		{ "{\"eval\":\"builtin\"}", 1, 16 }, { "{\"eval\":[\"builtin\",\"d_1\"]}", 2, 0 },
		{ "{\"eval\":\"d_1\",\"eval_windows\":5}", 1, 5 }, { "{\"eval_windows\":0}", 1, 0 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct recipe r;

		read_good(&r, cases[i].text);
		assert_int_equal(r.eval_count, cases[i].count);
		assert_int_equal(r.eval_windows, cases[i].windows);
		recipe_deinit(&r);
	}
}

/* --- refusing ----------------------------------------------------------------- */

static const struct refusal { const char *text; enum err_code code; const char *says; } refusals[] = {
	{ "[]", ERR_INVALID, "a recipe must be a JSON object" },
	{ "{\"bit\":4}", ERR_INVALID, "\"bit\" is no field of a recipe" },
	{ "{\"backend\":\"cpu\"}", ERR_INVALID, "\"backend\" is no field" },
	{ "{\"kind\":\"prune\"}", ERR_INVALID, "\"kind\" must be quantize or evaluate, not \"prune\"" },
	{ "{\"bits\":0}", ERR_INVALID, "\"bits\" must be an integer from 1 to 8" },
	{ "{\"bits\":9}", ERR_INVALID, "\"bits\"" },
	{ "{\"bits\":2.5}", ERR_INVALID, "\"bits\"" },
	{ "{\"bits\":\"4\"}", ERR_INVALID, "\"bits\"" },
	{ "{\"bits\":null}", ERR_INVALID, "\"bits\"" },
	{ "{\"group_size\":0}", ERR_INVALID, "or -1 for one group per output channel" },
	{ "{\"group_size\":-2}", ERR_INVALID, "\"group_size\"" },
	{ "{\"group_size\":1048577}", ERR_INVALID, "\"group_size\"" },
	{ "{\"method\":\"gptq\"}", ERR_INVALID, "\"method\" must be neuqi or minmax, not \"gptq\"" },
	{ "{\"zero_point\":\"int\"}", ERR_INVALID, "\"zero_point\" must be float or integer" },
	{ "{\"symmetric\":1}", ERR_INVALID, "\"symmetric\" must be true or false" },
	{ "{\"rounding\":true}", ERR_INVALID, "\"rounding\" must be ldlq or nearest" },
	{ "{\"effort\":\"most\"}", ERR_INVALID, "\"effort\" must be fast, balanced or best, not \"most\"" },
	{ "{\"effort\":2}", ERR_INVALID, "\"effort\"" },
	{ "{\"refine\":-1}", ERR_INVALID, "\"refine\" must be an integer from 0 to 32" },
	{ "{\"refine\":33}", ERR_INVALID, "\"refine\"" },
	{ "{\"refine\":\"x\"}", ERR_INVALID, "\"refine\"" },
	{ "{\"distill\":\"all\"}", ERR_INVALID, "\"distill\" must be none, block, end-to-end or full, not \"all\"" },
	{ "{\"distill\":0}", ERR_INVALID, "\"distill\"" },
	{ "{\"distill_samples\":-1}", ERR_INVALID, "\"distill_samples\" must be an integer from 0 to 1000000" },
	{ "{\"distill_samples\":1000001}", ERR_INVALID, "\"distill_samples\"" },
	{ "{\"block_epochs\":0}", ERR_INVALID, "\"block_epochs\" must be an integer from 1 to 64" },
	{ "{\"block_epochs\":65}", ERR_INVALID, "\"block_epochs\"" },
	{ "{\"epochs\":0}", ERR_INVALID, "\"epochs\" must be an integer from 1 to 64" },
	{ "{\"epochs\":1.5}", ERR_INVALID, "\"epochs\"" },
	{ "{\"train_codes\":1}", ERR_INVALID, "\"train_codes\" must be true or false" },
	{ "{\"train_codes\":\"true\"}", ERR_INVALID, "\"train_codes\"" },
	{ "{\"propagate\":\"both\"}", ERR_INVALID, "\"propagate\" must be original or quantized" },
	{ "{\"samples\":0}", ERR_INVALID, "\"samples\" must be an integer from 1 to 1000000" },
	{ "{\"seq_len\":1}", ERR_INVALID, "\"seq_len\" must be at least 2" },
	{ "{\"seq_len\":-1}", ERR_INVALID, "\"seq_len\"" },
	{ "{\"seed\":-1}", ERR_INVALID, "\"seed\"" },
	{ "{\"max_shard_size\":0}", ERR_INVALID, "\"max_shard_size\"" },
	{ "{\"max_shard_size\":\"5GB\"}", ERR_INVALID, "\"max_shard_size\"" },
	{ "{\"calibration\":\"\"}", ERR_INVALID, "\"calibration\" must be a text of 1 to 255 bytes" },
	{ "{\"calibration\":5}", ERR_INVALID, "\"calibration\"" },
	{ "{\"eval\":5}", ERR_INVALID, "\"eval\"" },
	{ "{\"eval\":[\"none\",\"d_1\"]}", ERR_INVALID, "\"none\" beside other texts" },
	{ "{\"eval\":[\"d_1\",7]}", ERR_INVALID, "\"eval\"" },
	{ "{\"eval\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]}", ERR_INVALID, "names 9 "
	"texts; at most 8" },
	{ "{\"eval_windows\":-1}", ERR_INVALID, "\"eval_windows\"" },
	{ "{\"kind\":\"evaluate\",\"reference\":\"\"}", ERR_INVALID, "\"reference\" must be a text" },
	{ "{\"kind\":\"evaluate\",\"reference\":7}", ERR_INVALID, "\"reference\" must be a text" },
	{ "{\"reference\":\"m_1\"}", ERR_INVALID, "\"reference\" is for kind \"evaluate\"" },
	{ "{\"embeddings\":5}", ERR_INVALID, "\"embeddings\" must be 16 (as the source has it), 8, 6 or 4" },
	{ "{\"embeddings\":0}", ERR_INVALID, "\"embeddings\" must be 16" },
	{ "{\"embeddings\":\"8\"}", ERR_INVALID, "\"embeddings\" must be 16" },
	{ "{\"embeddings\":8.5}", ERR_INVALID, "\"embeddings\" must be 16" },
	{ "{\"lm_head\":2}", ERR_INVALID, "\"lm_head\" must be 16 (as the source has it), 8, 6 or 4, or 0 for the default" },
	{ "{\"lm_head\":null}", ERR_INVALID, "\"lm_head\" must be 16" },
	{ "{\"format\":\"dense\"}", ERR_INVALID, "\"format\" must be an array" },
	{ "{\"format\":[]}", ERR_INVALID, "\"format\" must be an array" },
	{ "{\"format\":[\"gguf\",\"exl3\"]}", ERR_INVALID, "\"exl3\", which is unknown; accepted are packed, mlx, gguf, "
	"compressed-tensors, gptq, awq, dense, dense-f16 or dense-f32" },
	{ "{\"format\":[\"dense\",\"zip\"]}", ERR_INVALID, "\"zip\", which is unknown" },
	{ "{\"format\":[\"dense\",\"dense\"]}", ERR_INVALID, "\"dense\" twice" },
	{ "{\"format\":[3]}", ERR_INVALID, "\"format\"" },
	{ "{\"override\":{}}", ERR_INVALID, "\"override\" must be an array" },
	{ "{\"override\":[1]}", ERR_INVALID, "override 1: must be an object" },
	{ "{\"override\":[{\"match\":\"a\",\"bits\":2},{\"bits\":2}]}", ERR_INVALID, "override 2: \"match\" "
	"must be" },
	{ "{\"override\":[{\"match\":\"\",\"bits\":2}]}", ERR_INVALID, "override 1: \"match\" must be" },
	{ "{\"override\":[{\"match\":\"(\",\"bits\":2}]}", ERR_INVALID, "no extended regular expression: "
	"\"(\"" },
	{ "{\"override\":[{\"match\":\"(a)\\\\1\",\"bits\":2}]}", ERR_INVALID, "back-reference" },
	{ "{\"override\":[{\"match\":\"((a{1,255}){1,255}){1,255}\",\"bits\":2}]}", ERR_INVALID, "repeats "
	"too much" },
	{ "{\"override\":[{\"match\":\"(((((((((((((a+)+)+)+)+)+)+)+)+)+)+)+)+)\",\"bits\":2}]}",
	ERR_INVALID, "repeats too much" },
	{ "{\"override\":[{\"match\":\"a{99999999999999999999}\",\"bits\":2}]}", ERR_INVALID, "repeats too "
	"much" },
	{ "{\"override\":[{\"match\":\"a\"}]}", ERR_INVALID, "give either \"skip\": true or settings" },
	{ "{\"override\":[{\"match\":\"a\",\"skip\":false}]}", ERR_INVALID, "give either" },
	{ "{\"override\":[{\"match\":\"a\",\"skip\":true,\"bits\":2}]}", ERR_INVALID, "give either" },
	{ "{\"override\":[{\"match\":\"a\",\"skip\":1}]}", ERR_INVALID, "\"skip\" must be true or false" },
	{ "{\"override\":[{\"match\":\"a\",\"samples\":1}]}", ERR_INVALID, "override 1: unknown field "
	"\"samples\"" },
	{ "{\"override\":[{\"match\":\"a\",\"bits\":12}]}", ERR_INVALID, "override 1: \"bits\" must be" },
};

static void test_refusals(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		struct recipe r;
		struct err err = ERR_INIT;

		if (read_text(&r, refusals[i].text, NULL, &err) == 0)
			fail_msg("%s is accepted", refusals[i].text);
		if (!strstr(err.text, refusals[i].says))
			fail_msg("%s says \"%s\", not \"%s\"", refusals[i].text, err.text, refusals[i].says);
		if (err.code != refusals[i].code)
			fail_msg("%s: %s", refusals[i].text, err_name(err.code));
	}
}

static void test_every_problem(void **state)
{
	struct problems problems = { 0 };
	struct err err = ERR_INIT;
	struct recipe r;

	(void)state;
	assert_int_equal(read_text(&r, "{\"bits\":0,\"x\":1,\"format\":[\"mlz\",\"owq\"],\"seq_len\":1}",
				   &problems, &err), -1);
	assert_int_equal(problems.count, 5);
	assert_string_equal(problems.items[0], err.text);
	assert_non_null(strstr(problems.items[3], "\"owq\""));
	assert_non_null(strstr(problems.items[4], "\"seq_len\""));
	problems_deinit(&problems);
}

static void test_many_overrides(void **state)
{
	(void)state;
	for (int count = 64; count <= 65; count++) {
		struct json *object = json_new_object(), *array = json_new_array();
		struct recipe r;
		int rc;

		for (int i = 0; i < count; i++) {
			struct json *o = json_new_object();

			json_set_string(o, "match", "a");
			json_set_bool(o, "skip", true);
			json_push(array, o);
		}
		json_set(object, "override", array);
		rc = recipe_from_json(&r, object, NULL, NULL);
		assert_int_equal(rc, count == 64 ? 0 : -1);
		if (rc == 0)
			recipe_deinit(&r);
		json_free(object);
	}
}

/* --- overrides ---------------------------------------------------------------- */

static void test_modules(void **state)
{
	struct recipe r;
	struct module_settings s;

	(void)state;
	read_good(&r, "{\"bits\":2,\"override\":[{\"match\":\"mlp\\\\.\",\"bits\":3,\"group_size\":128},"
		      "{\"match\":\"layers\\\\.0\\\\.\",\"method\":\"minmax\",\"zero_point\":\"integer\",\"symmetric\":true,"
		      "\"rounding\":\"nearest\"},{\"match\":\"down_proj$\",\"bits\":8},{\"match\":\"layers\\\\.[0-9]{2}\\\\.\",\"skip\":true},"
		      "{\"match\":\"layers\\\\.11\\\\.mlp\",\"bits\":5}]}");
	assert_int_equal(recipe_module(&r, "model.layers.1.self_attn.q_proj", &s, NULL), 0);
	assert_true(!s.skip && s.bits == 2 && s.group_size == 64 && s.method == METHOD_NEUQI && !s.symmetric);
	assert_int_equal(recipe_module(&r, "model.layers.1.mlp.up_proj", &s, NULL), 0);
	assert_true(s.bits == 3 && s.group_size == 128 && s.zero_point == ZERO_FLOAT);
	assert_int_equal(recipe_module(&r, "model.layers.0.mlp.down_proj", &s, NULL), 0);
	assert_true(s.bits == 8 && s.group_size == 128 && s.method == METHOD_MINMAX &&
		    s.zero_point == ZERO_INTEGER && s.symmetric && s.rounding == ROUND_NEAREST);
	assert_int_equal(recipe_module(&r, "model.layers.10.mlp.up_proj", &s, NULL), 0);
	assert_true(s.skip);
	assert_int_equal(recipe_module(&r, "model.layers.11.mlp.up_proj", &s, NULL), 0);
	assert_true(!s.skip && s.bits == 5 && s.group_size == 128);
	recipe_deinit(&r);
}

static void test_bad_pattern_later(void **state)
{
	struct recipe_override bad = { .regex = "(" };
	struct recipe r = { .overrides = &bad, .override_count = 1 };
	struct module_settings s;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(recipe_module(&r, "x", &s, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
}

static void test_settings_json(void **state)
{
	struct module_settings s = {
		.bits = 3, .group_size = -1, .method = METHOD_MINMAX, .zero_point = ZERO_INTEGER,
		.symmetric = true, .rounding = ROUND_NEAREST, .zero_parts = 0,
	}, back;
	struct json *object = json_new_object();
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(module_settings_to_json(&s, object), 0);
	assert_int_equal(module_settings_from_json(&back, object, &err), 0);
	assert_true(back.bits == 3 && back.group_size == -1 && back.method == METHOD_MINMAX && !back.skip);
	assert_true(back.zero_point == ZERO_INTEGER && back.symmetric && back.rounding == ROUND_NEAREST);
	assert_null(json_get(object, "zero_parts"));
	assert_int_equal(back.zero_parts, 0);
	assert_int_equal(json_set_int(object, "zero_parts", 129), 0);
	assert_int_equal(module_settings_from_json(&back, object, &err), -1);
	assert_non_null(strstr(err.text, "\"zero_parts\" must be an integer from 1 to 128"));
	err_clear(&err);
	json_remove(object, "bits");
	assert_int_equal(module_settings_from_json(&back, object, &err), -1);
	assert_non_null(strstr(err.text, "\"bits\""));
	assert_int_equal(module_settings_from_json(&back, NULL, &err), -1);
	json_free(object);
}

/* What the planner fills in travels with the rest. */
static void test_settings_zero_parts(void **state)
{
	struct module_settings s = { .bits = 2, .group_size = 64, .zero_parts = 4 }, back;
	struct json *object = json_new_object();
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(module_settings_to_json(&s, object), 0);
	assert_int_equal(json_get_int(object, "zero_parts", -1), 4);
	assert_int_equal(module_settings_from_json(&back, object, &err), 0);
	assert_int_equal(back.zero_parts, 4);
	json_free(object);
}

static void test_words(void **state)
{
	(void)state;
	assert_string_equal(init_method_name(METHOD_MINMAX), "minmax");
	assert_string_equal(zero_point_name(ZERO_FLOAT), "float");
	assert_string_equal(rounding_name(ROUND_LDLQ), "ldlq");
	assert_string_equal(propagate_name(PROPAGATE_QUANTIZED), "quantized");
	assert_string_equal(effort_name(EFFORT_BALANCED), "balanced");
	assert_string_equal(distill_name(DISTILL_END_TO_END), "end-to-end");
}

static void test_groups(void **state)
{
	struct problems problems = { 0 };

	(void)state;
	assert_int_equal(recipe_check_group(192, 64, "m", &problems), 0);
	assert_int_equal(recipe_check_group(192, -1, "m", &problems), 0);
	assert_int_equal(recipe_check_group(192, 48, "m", &problems), 0);
	assert_int_equal(recipe_check_group(192, 192, "m", &problems), 0);
	assert_int_equal(problems.count, 0);
	assert_int_equal(recipe_check_group(192, 128, "model.layers.0.mlp.up_proj", &problems), -1);
	assert_int_equal(recipe_check_group(100, 64, "m", &problems), -1);
	assert_int_equal(recipe_check_group(64, 128, "m", NULL), -1);
	assert_int_equal(problems.count, 2);
	assert_string_equal(problems.items[0], "model.layers.0.mlp.up_proj has 192 input channels, which "
			    "groups of 128 "
			    "do not divide; these do: 16, 32, 64, and -1 (one group per output channel) "
			    "always fits");
	assert_string_equal(problems.items[1], "m has 100 input channels, which groups of 64 do not divide; "
			    "-1 (one group per output channel) fits");
	problems_deinit(&problems);
}

/* --- options ------------------------------------------------------------------ */

static const struct option_case { const char *name, *value, *json; } good_options[] = {
	{ "bits", "3", "{\"bits\":3}" },
	{ "group-size", "-1", "{\"group_size\":-1}" },
	{ "group_size", "32", "{\"group_size\":32}" },
	{ "method", "minmax", "{\"method\":\"minmax\"}" },
	{ "zero-point", "integer", "{\"zero_point\":\"integer\"}" },
	{ "symmetric", NULL, "{\"symmetric\":true}" },
	{ "symmetric", "false", "{\"symmetric\":false}" },
	{ "rounding", "nearest", "{\"rounding\":\"nearest\"}" },
	{ "effort", "best", "{\"effort\":\"best\"}" },
	{ "refine", "0", "{\"refine\":0}" },
	{ "distill", "none", "{\"distill\":\"none\"}" },
	{ "distill", "end-to-end", "{\"distill\":\"end-to-end\"}" },
	{ "distill-samples", "64", "{\"distill_samples\":64}" },
	{ "block-epochs", "2", "{\"block_epochs\":2}" },
	{ "epochs", "4", "{\"epochs\":4}" },
	{ "train-codes", "false", "{\"train_codes\":false}" },
	{ "train-codes", "true", "{\"train_codes\":true}" },
	{ "propagate", "quantized", "{\"propagate\":\"quantized\"}" },
	{ "calibration", "text.jsonl", "{\"calibration\":\"text.jsonl\"}" },
	{ "samples", "16", "{\"samples\":16}" },
	{ "seq-len", "256", "{\"seq_len\":256}" },
	{ "eval", "none", "{\"eval\":[\"none\"]}" },
	{ "eval-windows", "4", "{\"eval_windows\":4}" },
	{ "embeddings", "8", "{\"embeddings\":8}" },
	{ "lm-head", "4", "{\"lm_head\":4}" },
	{ "lm_head", "16", "{\"lm_head\":16}" },
	{ "format", "dense,packed", "{\"format\":[\"dense\",\"packed\"]}" },
	{ "seed", "9007199254740992", "{\"seed\":9007199254740992}" },
	{ "max-shard-size", "5GB", "{\"max_shard_size\":5000000000}" },
	{ "max-shard-size", "500mb", "{\"max_shard_size\":500000000}" },
	{ "max-shard-size", "2GiB", "{\"max_shard_size\":2147483648}" },
	{ "max-shard-size", "12345", "{\"max_shard_size\":12345}" },
	{ "override", "down_proj:skip", "{\"override\":[{\"match\":\"down_proj\",\"skip\":true}]}" },
	{ "override", "[[:digit:]]:bits=4,group-size=64,method=neuqi,zero_point=float,symmetric=true,rounding=ldlq",
	  "{\"override\":[{\"match\":\"[[:digit:]]\",\"bits\":4,\"group_size\":64,\"method\":\"neuqi\","
	  "\"zero_point\":\"float\",\"symmetric\":true,\"rounding\":\"ldlq\"}]}" },
};

static void test_options(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(good_options) / sizeof(good_options[0]); i++) {
		struct json *object = json_new_object();
		struct err err = ERR_INIT;
		char *text;

		if (recipe_option(object, good_options[i].name, good_options[i].value, &err) != 0)
			fail_msg("--%s: %s", good_options[i].name, err.text);
		assert_int_equal(err.code, ERR_NONE);
		text = json_print(object, false);
		assert_string_equal(text, good_options[i].json);
		mem_free(text);
		json_free(object);
	}
}

static const struct bad_option { const char *name, *value; enum err_code code; const char *says; } bad_options[] = {
	{ "bits", "four", ERR_INVALID, "--bits: \"four\" is not an integer" },
	{ "bits", "", ERR_INVALID, "--bits: \"\" is not an integer" },
	{ "bits", "4x", ERR_INVALID, "not an integer" },
	{ "bits", "99999999999999999999", ERR_INVALID, "not an integer" },
	{ "bits", "12", ERR_INVALID, "--bits: \"bits\" must be an integer from 1 to 8" },
	{ "bits", NULL, ERR_INVALID, "--bits needs a value" },
	{ "group-size", "0", ERR_INVALID, "--group-size: \"group_size\" must be" },
	{ "symmetric", "yes", ERR_INVALID, "--symmetric: \"yes\" is not true or false" },
	{ "effort", "max", ERR_INVALID, "--effort: \"effort\" must be fast, balanced or best, not \"max\"" },
	{ "refine", "33", ERR_INVALID, "--refine: \"refine\" must be an integer from 0 to 32" },
	{ "distill", "yes", ERR_INVALID, "--distill: \"distill\" must be none, block" },
	{ "epochs", "0", ERR_INVALID, "--epochs: \"epochs\" must be" },
	{ "embeddings", "3", ERR_INVALID, "--embeddings: \"embeddings\" must be 16" },
	{ "lm-head", "q8", ERR_INVALID, "--lm-head: \"q8\" is not an integer" },
	{ "train-codes", "yes", ERR_INVALID, "--train-codes: \"yes\" is not true or false" },
	{ "format", "dense,exl2", ERR_INVALID, "--format: \"format\" names \"exl2\"" },
	{ "format", "dense,,packed", ERR_INVALID, "--format: \"format\" names \"\"" },
	{ "format", "", ERR_INVALID, "--format" },
	{ "max-shard-size", "5 GB", ERR_INVALID, "\"5 GB\" is not a size such as 5GB" },
	{ "max-shard-size", "GB", ERR_INVALID, "is not a size" },
	{ "max-shard-size", "0", ERR_INVALID, "is not a size" },
	{ "max-shard-size", "-1", ERR_INVALID, "is not a size" },
	{ "max-shard-size", "9999999999999999TB", ERR_INVALID, "is not a size" },
	{ "override", "down_proj", ERR_INVALID, "is not an override such as" },
	{ "override", ":skip", ERR_INVALID, "\"match\" must be" },
	{ "override", "a:", ERR_INVALID, "give either" },
	{ "override", "a:bits", ERR_INVALID, "\"bits\" is not a setting such as" },
	{ "override", "a:samples=4", ERR_INVALID, "\"samples=4\" is not a setting such as" },
	{ "override", "a:bits=4,bits=3", ERR_INVALID, "\"bits\" is given twice" },
	{ "override", "a:bits=40", ERR_INVALID, "--override: --bits: \"bits\" must be" },
	{ "override", "(:skip", ERR_INVALID, "no extended regular expression" },
	{ "calibration", "", ERR_INVALID, "--calibration" },
};

static void test_bad_options(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(bad_options) / sizeof(bad_options[0]); i++) {
		const struct bad_option *o = &bad_options[i];
		struct json *object = json_new_object();
		struct err err = ERR_INIT;

		if (recipe_option(object, o->name, o->value, &err) != -1)
			fail_msg("--%s %s is accepted", o->name, o->value ? o->value : "");
		if (!strstr(err.text, o->says))
			fail_msg("--%s %s says \"%s\", not \"%s\"", o->name, o->value ? o->value : "",
				 err.text, o->says);
		assert_int_equal(err.code, o->code);
		assert_int_equal(json_size(object), 0);
		json_free(object);
	}
	assert_int_equal(recipe_option(NULL, "workers", "3", NULL), 1);
	assert_int_equal(recipe_option(NULL, "backend", "cpu", NULL), 1);
	assert_int_equal(recipe_option(NULL, "kind", "evaluate", NULL), 1);
	assert_int_equal(recipe_option(NULL, "bit", "3", NULL), 1);
	assert_int_equal(recipe_option(NULL, "bitsy", "3", NULL), 1);
}

static void test_repeated_options(void **state)
{
	struct json *object = json_new_object();
	struct err err = ERR_INIT;
	char *text;

	(void)state;
	assert_int_equal(recipe_option(object, "bits", "2", NULL), 0);
	assert_int_equal(recipe_option(object, "bits", "3", NULL), 0);
	assert_int_equal(recipe_option(object, "eval", "a,b.txt", NULL), 0);
	assert_int_equal(recipe_option(object, "eval", "c.txt", NULL), 0);
	assert_int_equal(recipe_option(object, "eval", "none", &err), -1);
	assert_int_equal(recipe_option(object, "override", "a:skip", NULL), 0);
	assert_int_equal(recipe_option(object, "override", "b:bits=3", NULL), 0);
	text = json_print(object, false);
	assert_string_equal(text, "{\"bits\":3,\"eval\":[\"a,b.txt\",\"c.txt\"],\"override\":[{\"match\":\"a\",\"skip\":true},"
			    "{\"match\":\"b\",\"bits\":3}]}");
	mem_free(text);
	json_free(object);
}

/* --- running out of memory ---------------------------------------------------- */

static bool read_with_failure(struct json *object, uint64_t n)
{
	struct problems problems = { 0 };
	struct err err = ERR_INIT;
	struct recipe r;
	int rc;

	mem_fail_after(n);
	rc = recipe_from_json(&r, object, &problems, &err);
	mem_fail_after(0);
	problems_deinit(&problems);
	if (rc == 0)
		recipe_deinit(&r);
	else
		assert_int_equal(err.code, ERR_NOMEM);
	return rc == 0;
}

static bool write_with_failure(const struct recipe *r, uint64_t n)
{
	struct json *object;

	mem_fail_after(n);
	object = recipe_to_json(r);
	mem_fail_after(0);
	json_free(object);
	return object != NULL;
}

static bool option_with_failure(const struct option_case *o, uint64_t n)
{
	struct json *object = json_new_object();
	struct err err = ERR_INIT;
	int rc;

	mem_fail_after(n);
	rc = recipe_option(object, o->name, o->value, &err);
	mem_fail_after(0);
	if (rc != 0 && err.code != ERR_NOMEM)
		fail_msg("--%s, allocation %u: %s", o->name, (unsigned)n, err.text);
	json_free(object);
	return rc == 0;
}

static void test_out_of_memory(void **state)
{
	struct json *object = json_parse(FULL, strlen(FULL), NULL);
	struct recipe r;
	uint64_t n;

	(void)state;
	for (n = 1; n < 1000 && !read_with_failure(object, n); n++)
		;
	assert_in_range(n, 10, 999);
	read_good(&r, FULL);
	for (n = 1; n < 1000 && !write_with_failure(&r, n); n++)
		;
	assert_in_range(n, 30, 999);
	for (size_t i = 0; i < sizeof(good_options) / sizeof(good_options[0]); i++) {
		for (n = 1; n < 1000 && !option_with_failure(&good_options[i], n); n++)
			;
		assert_in_range(n, 5, 999);
	}
	recipe_deinit(&r);
	json_free(object);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_canonical),
		cmocka_unit_test(test_effort_bundles),
		cmocka_unit_test(test_distilled_sequences),
		cmocka_unit_test(test_evaluation_texts),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_every_problem),
		cmocka_unit_test(test_many_overrides),
		cmocka_unit_test(test_modules),
		cmocka_unit_test(test_bad_pattern_later),
		cmocka_unit_test(test_settings_json),
		cmocka_unit_test(test_settings_zero_parts),
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_groups),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_bad_options),
		cmocka_unit_test(test_repeated_options),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests_name("recipe", tests, NULL, NULL);
}
