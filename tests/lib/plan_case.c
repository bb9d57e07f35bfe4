#include "tests/lib/plan_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"

static int add_dtype(void *ctx, const struct model_tensor *t)
{
	return json_set_string(ctx, t->name, "BF16");
}

static void read_recipe(struct plan_case *c, const char *recipe_text)
{
	char text[1024];
	struct json *recipe;

	snprintf(text, sizeof(text), "%s", recipe_text);
	for (char *p = text; *p; p++)
		*p = *p == '\'' ? '"' : *p;
	recipe = json_parse(text, strlen(text), &c->err);
	assert_non_null(recipe);
	if (recipe_from_json(&c->recipe, recipe, NULL, &c->err) != 0)
		fail_msg("%s", c->err.text);
	json_free(recipe);
}

void plan_case_init(struct plan_case *c, const char *recipe)
{
	char path[4200], *text;
	size_t len;

	memset(c, 0, sizeof(*c));
	snprintf(path, sizeof(path), "%s/examples/fable-tiny/config.json", getenv("QUARRY_ROOT"));
	text = file_read_all(path, 1 << 20, &len, &c->err);
	assert_non_null(text);
	assert_int_equal(model_config_parse(&c->config, text, len, NULL, &c->err), 0);
	mem_free(text);
	read_recipe(c, recipe);
	plan_resolve(&c->recipe, &c->config);
	c->dtypes = json_new_object();
	assert_int_equal(model_each_tensor(&c->config, add_dtype, c->dtypes), 0);
	c->shards[0] = "model-00001-of-00002.safetensors";
	c->shards[1] = "model-00002-of-00002.safetensors";
	c->shard_bytes[0] = c->shard_bytes[1] = 1000000;
	c->request = (struct plan_request){
		.recipe = &c->recipe, .config = &c->config, .dtypes = c->dtypes, .shards = c->shards,
		.shard_bytes = c->shard_bytes, .shard_count = 2, .model_bytes = 2000000,
		.calibration = { .id = "d_1", .name = "calibration.jsonl", .format = "jsonl", .sha256 = "aa",
				 .bytes = 1131770 },
		.evals = { { .id = "d_2", .name = "evaluation.txt", .format = "text", .sha256 = "bb",
			     .bytes = 130755, .max_windows = c->recipe.eval_windows } },
		.disk_free_bytes = UINT64_MAX };
}

int plan_case_make(struct plan_case *c)
{
	return plan_make(&c->plan, &c->request, &c->problems, &c->err);
}

void plan_case_deinit(struct plan_case *c)
{
	plan_deinit(&c->plan);
	problems_deinit(&c->problems);
	recipe_deinit(&c->recipe);
	json_free(c->dtypes);
}

size_t plan_case_count(const struct plan_case *c, enum task_kind kind)
{
	size_t count = 0;

	for (size_t i = 0; i < c->plan.task_count; i++)
		count += c->plan.tasks[i].kind == kind;
	return count;
}

const struct plan_task *plan_case_nth(const struct plan_case *c, enum task_kind kind, int64_t layer, int64_t shard,
				      size_t nth)
{
	for (size_t i = 0; i < c->plan.task_count; i++) {
		const struct plan_task *t = &c->plan.tasks[i];

		if (t->kind == kind && t->layer == layer && t->shard == shard && nth-- == 0)
			return t;
	}
	fail_msg("no task of kind %d layer %d shard %d", (int)kind, (int)layer, (int)shard);
	return NULL;
}

const struct plan_task *plan_case_task(const struct plan_case *c, enum task_kind kind, int64_t layer, int64_t shard)
{
	return plan_case_nth(c, kind, layer, shard, 0);
}

const struct plan_input *plan_case_input(const struct plan_task *t, const char *name)
{
	for (size_t i = 0; i < t->input_count; i++)
		if (strcmp(t->inputs[i].name, name) == 0)
			return &t->inputs[i];
	return NULL;
}

const struct plan_task *plan_case_maker(const struct plan_case *c, const struct plan_task *t, const char *name,
					const char *output)
{
	const struct plan_input *in = plan_case_input(t, name);

	if (!in || in->from < 0)
		fail_msg("the task has no input %s that another makes", name);
	assert_string_equal(in->output, output);
	return &c->plan.tasks[in->from];
}
