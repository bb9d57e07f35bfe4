/* Planning without a database: the graph, the files, the sentences. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/plan_case.h"

/* --- the graph ---------------------------------------------------------------- */

static void the_graph_without_distillation(void **state)
{
	struct plan_case f;
	const struct plan_task *t;

	(void)state;
	plan_case_init(&f, "{'effort':'fast'}");
	assert_int_equal(plan_case_make(&f), 0);
	assert_int_equal(f.recipe.seq_len, 1024);
	assert_int_equal(f.plan.per_shard, 16); /* 256 MiB holds 341 sequences of 1024 x 192 floats */
	assert_int_equal(f.plan.shards, 8);
	assert_int_equal(plan_case_count(&f, KIND_VERIFY), 2);
	assert_int_equal(plan_case_count(&f, KIND_TOKENIZE), 2);
	assert_int_equal(plan_case_count(&f, KIND_EMBED), 8);
	assert_int_equal(plan_case_count(&f, KIND_CAPTURE), 3 * 8);
	assert_int_equal(plan_case_count(&f, KIND_QUANTIZE), 4);
	assert_int_equal(plan_case_count(&f, KIND_DISTILL), 0);
	assert_int_equal(plan_case_count(&f, KIND_EVALUATE), 2);
	assert_int_equal(plan_case_count(&f, KIND_ASSEMBLE), 2);
	for (size_t i = 0; i < f.plan.task_count; i++)
		for (size_t j = 0; j < f.plan.tasks[i].input_count; j++)
			assert_true(f.plan.tasks[i].inputs[j].from < (int64_t)i);
	t = plan_case_task(&f, KIND_QUANTIZE, 2, -1);
	assert_int_equal(t->input_count, 8);
	for (int64_t s = 0; s < 8; s++) {
		const struct plan_task *from = &f.plan.tasks[t->inputs[s].from];

		assert_int_equal(from->kind, KIND_CAPTURE);
		assert_int_equal(from->layer, 1); /* X(2) is what capture(1) makes */
		assert_int_equal(from->shard, s);
	}
	assert_true(plan_case_task(&f, KIND_CAPTURE, 2, 0)->rank < plan_case_task(&f, KIND_QUANTIZE, 0, -1)->rank);
	assert_true(plan_case_task(&f, KIND_QUANTIZE, 0, -1)->rank < plan_case_task(&f, KIND_QUANTIZE, 1, -1)->rank);
	plan_case_deinit(&f);
}

/* Weights are held against 16-bit floats where a format of the job stores them. */
static void halves_are_checked_for(void **state)
{
	static const struct { const char *recipe, *format; } rows[] = {
		{ "{'format':['dense']}", NULL }, { "{'format':['dense-f32','dense']}", NULL },
		{ "{'format':['dense','dense-f16']}", "dense-f16" }, { "{'format':['dense','mlx']}", "mlx" },
		{ "{'format':['gguf']}", "gguf" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct plan_case f;
		const char *format;
		const char *text;
		struct json *spec;

		plan_case_init(&f, rows[i].recipe);
		assert_int_equal(plan_case_make(&f), 0);
		text = plan_case_task(&f, KIND_VERIFY, -1, 1)->spec;
		spec = json_parse(text, strlen(text), NULL);
		format = json_get_string(spec, "halves_for", NULL);
		if (!rows[i].format ? format != NULL : !format || strcmp(format, rows[i].format) != 0)
			fail_msg("%s: weights are checked for %s", rows[i].recipe, format ? format : "nothing");
		json_free(spec);
		plan_case_deinit(&f);
	}
}

static void the_sequential_graph(void **state)
{
	struct plan_case f;
	const struct plan_task *t;

	(void)state;
	plan_case_init(&f, "{'effort':'fast','propagate':'quantized','samples':20,'seq_len':128,'eval':'none'}");
	assert_int_equal(plan_case_make(&f), 0);
	assert_int_equal(f.plan.shards, 2);
	assert_int_equal(plan_case_count(&f, KIND_EVALUATE), 0);
	t = plan_case_task(&f, KIND_CAPTURE, 1, 1);
	assert_non_null(plan_case_input(t, "hidden"));
	assert_non_null(plan_case_input(t, "layer"));
	assert_int_equal(f.plan.tasks[t->inputs[1].from].kind, KIND_QUANTIZE);
	assert_int_equal(f.plan.tasks[t->inputs[1].from].layer, 1);
	/* The last shard holds what is left. */
	assert_non_null(strstr(plan_case_task(&f, KIND_EMBED, -1, 1)->spec, "\"first\":16,\"count\":4"));
	plan_case_deinit(&f);
}

static void shards_hold_at_most_256_mib(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'samples':15,'seq_len':2048}");
	f.config.hidden = 5120; /* 40 MiB a sequence */
	assert_int_equal(plan_case_make(&f), 0);
	assert_int_equal(f.plan.per_shard, 6);
	assert_int_equal(f.plan.shards, 3);
	plan_case_deinit(&f);
}

static void chunks_of_an_evaluation(void **state)
{
	static const struct { uint64_t bytes; int64_t windows, chunks; } cases[] = {
		{ 130755, 16, 1 }, { 130755, 0, 2 }, { 65536, 0, 1 }, { 65537, 0, 2 }, { 130755, 17, 2 },
		{ 1u << 30, 0, 256 }, { 1u << 30, 100, 7 }, { 2000, 0, 1 },
	};
	struct plan_case f;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		plan_case_init(&f, "{}");
		f.request.evals[0].bytes = cases[i].bytes;
		f.request.evals[0].max_windows = cases[i].windows;
		assert_int_equal(plan_case_make(&f), 0);
		assert_int_equal(f.plan.chunks[0], cases[i].chunks);
		assert_int_equal(plan_case_count(&f, KIND_EVALUATE), 2 * cases[i].chunks);
		plan_case_deinit(&f);
	}
}

static void an_evaluate_job_only_evaluates(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'kind':'evaluate'}");
	assert_int_equal(plan_case_make(&f), 0);
	assert_int_equal(f.plan.task_count, 2);
	assert_non_null(strstr(f.plan.tasks[1].spec, "\"model\":\"original\""));
	plan_case_deinit(&f);
	plan_case_init(&f, "{'kind':'evaluate','eval':'none'}");
	assert_int_equal(plan_case_make(&f), -1);
	plan_case_deinit(&f);
}

/* --- files -------------------------------------------------------------------- */

static void files_are_cut_in_model_order(void **state)
{
	struct plan_case f;
	size_t assemble = 0;

	(void)state;
	plan_case_init(&f, "{'bits':3,'group_size':32,'max_shard_size':800000}");
	assert_int_equal(plan_case_make(&f), 0);
	assert_int_equal(f.plan.output_count, 2);
	assert_string_equal(f.plan.outputs[1].format->name, "dense");
	assert_int_equal(f.plan.outputs[1].bytes, 3542400); /* BF16 throughout: as large as the source */
	assert_int_equal(f.plan.outputs[1].files, 5);
	/* Packed: 1,572,864 weights at 3 bits and one pair of floats per 32, the rest as it was. */
	assert_int_equal(f.plan.outputs[0].bytes, 1572864 * 3 / 8 + 1572864 / 32 * 8 + (3542400 - 2 * 1572864));
	for (size_t i = 0; i < f.plan.task_count; i++) {
		const struct plan_task *t = &f.plan.tasks[i];

		if (t->kind != KIND_ASSEMBLE)
			continue;
		if (assemble++ == f.plan.outputs[0].files) {
			assert_non_null(strstr(t->spec, "{\"format\":\"dense\",\"file\":0,\"name\":"
							"\"model-00001-of-00005.safetensors\",\"max_shard_size\":800000,"
							"\"modules\":[{\"name\":\"model.layers.0.self_attn.q_proj\","
							"\"layer\":0,\"skip\":false,\"bits\":3,\"group_size\":32,"));
			assert_non_null(plan_case_input(t, "layer-0"));
			assert_null(plan_case_input(t, "layer-3"));
		}
	}
	assert_int_equal(assemble, f.plan.outputs[0].files + 5);
	plan_case_deinit(&f);
}

static double bits_of(const struct plan_case *f, const char *format)
{
	for (size_t i = 0; i < f->plan.output_count; i++)
		if (strcmp(f->plan.outputs[i].format->name, format) == 0)
			return f->plan.outputs[i].bits_per_weight;
	fail_msg("no output %s", format);
	return 0;
}

/* Codes, scales and offsets of the quantized modules, and nothing else. */
static void bits_per_weight_are_those_of_theory(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'bits':4,'group_size':64,'format':['mlx','gguf','dense','dense-f32'],"
			 "'override':[{'match':'k_proj','skip':true}]}");
	assert_int_equal(plan_case_make(&f), 0);
	assert_int_equal(f.plan.output_count, 5);
	assert_true(bits_of(&f, "packed") == 4 + 64.0 / 64);
	assert_true(bits_of(&f, "mlx") == 4 + 32.0 / 64);
	assert_true(bits_of(&f, "gguf") == 4 + 32.0 / 32); /* Q4_1: d and m for 32 weights */
	assert_true(bits_of(&f, "dense") == 16);
	assert_true(bits_of(&f, "dense-f32") == 32);
	assert_int_equal(f.plan.outputs[2].files, 1);
	plan_case_deinit(&f);
	plan_case_init(&f, "{'override':[{'match':'.','skip':true}]}");
	assert_int_equal(plan_case_make(&f), 0);
	assert_true(bits_of(&f, "dense") == 0);
	plan_case_deinit(&f);
}

/* A gguf file is one task that needs every layer. */
static void one_task_writes_a_gguf_file(void **state)
{
	const struct plan_task *t = NULL;
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'format':['gguf'],'max_shard_size':1000,'embeddings':8}");
	assert_int_equal(plan_case_make(&f), 0);
	for (size_t i = 0; i < f.plan.task_count; i++)
		if (f.plan.tasks[i].kind == KIND_ASSEMBLE && strstr(f.plan.tasks[i].spec, "\"format\":\"gguf\""))
			t = &f.plan.tasks[i];
	assert_non_null(t);
	assert_non_null(strstr(t->spec, "\"file\":0,\"name\":\"model.gguf\""));
	assert_non_null(strstr(t->spec, "{\"name\":\"model.embed_tokens\",\"layer\":-1,\"skip\":false,\"bits\":8,"));
	assert_int_equal(t->input_count, 4);
	plan_case_deinit(&f);
}

/* --- zero-points -------------------------------------------------------------- */

static const struct { const char *recipe; unsigned parts; const char *warning; } zeros[] = {
	{ "{'format':['mlx','gguf','dense']}", 0, NULL },
	{ "{'format':['gptq']}", 1, "format gptq holds integer zero-points: those of 28 modules are chosen so, in every "
	  "format of the job" },
	{ "{'format':['awq','mlx']}", 1, "format awq holds integer" },
	{ "{'bits':2,'format':['compressed-tensors','mlx']}", 4, "format compressed-tensors holds zero-points that are "
	  "multiples of 1/4: those of 28 modules" },
	{ "{'bits':3,'format':['compressed-tensors']}", 2, "multiples of 1/2" },
	{ "{'bits':3,'format':['compressed-tensors','gptq']}", 1, "format gptq holds integer" },
	{ "{'bits':7,'format':['gguf']}", 1, "format gguf holds integer" },
	{ "{'zero_point':'integer','format':['gptq']}", 0, NULL },
	{ "{'symmetric':true,'format':['gptq','compressed-tensors']}", 0, NULL },
	{ "{'format':['gptq'],'override':[{'match':'.','skip':true}]}", 0, NULL },
};

/* The strictest format decides for all, and the plan says so. */
static void zero_points_suit_every_format(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(zeros) / sizeof(zeros[0]); i++) {
		struct plan_case f;

		plan_case_init(&f, zeros[i].recipe);
		if (plan_case_make(&f) != 0)
			fail_msg("%s: %s", zeros[i].recipe, f.err.text);
		for (size_t m = 0; m < f.plan.module_count; m++)
			assert_int_equal(f.plan.modules[m].settings.zero_parts, zeros[i].parts);
		assert_int_equal(f.plan.warnings.count, zeros[i].warning ? 1 : 0);
		if (zeros[i].warning && !strstr(f.plan.warnings.items[0], zeros[i].warning))
			fail_msg("%s warns: %s", zeros[i].recipe, f.plan.warnings.items[0]);
		if (zeros[i].parts > 0)
			assert_non_null(strstr(plan_case_task(&f, KIND_QUANTIZE, 0, -1)->spec, "\"zero_parts\":"));
		plan_case_deinit(&f);
	}
}

/* --- sentences ---------------------------------------------------------------- */

static void every_problem_is_listed(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'group_size':100,'seq_len':4096,'override':[{'match':'down_proj','group_size':48}]}");
	f.request.calibration.bytes = 1000;
	f.request.evals[0].bytes = 10;
	assert_int_equal(plan_case_make(&f), -1);
	assert_int_equal(f.err.code, ERR_REFUSED);
	assert_int_equal(f.problems.count, 5); /* both group sizes once, not once a layer */
	assert_non_null(strstr(f.problems.items[0], "seq_len 4096"));
	assert_non_null(strstr(f.problems.items[1], "calibration.jsonl"));
	assert_non_null(strstr(f.problems.items[2], "evaluation.txt"));
	assert_non_null(strstr(f.problems.items[3], "group_size 100 does not divide the 192 input columns of "
						    "model.layers.0.self_attn.q_proj"));
	assert_non_null(strstr(f.problems.items[3], "64, 96 and 192 do"));
	assert_non_null(strstr(f.problems.items[4], "group_size 48"));
	plan_case_deinit(&f);
}

static void no_space_is_said_before_the_start(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{}");
	f.request.disk_free_bytes = 1000000;
	assert_int_equal(plan_case_make(&f), -1);
	assert_int_equal(f.problems.count, 1);
	assert_non_null(strstr(f.problems.items[0], "no space"));
	plan_case_deinit(&f);
}

static void an_override_that_matches_nothing_is_a_warning(void **state)
{
	struct plan_case f;

	(void)state;
	plan_case_init(&f, "{'override':[{'match':'k_porj','bits':8}]}");
	assert_int_equal(plan_case_make(&f), 0);
	assert_int_equal(f.plan.warnings.count, 1);
	assert_non_null(strstr(f.plan.warnings.items[0], "k_porj"));
	plan_case_deinit(&f);
}

/* A reader that is known to misread what the format holds. */
static void mixed_settings_that_a_reader_misreads_are_a_warning(void **state)
{
	static const struct { const char *recipe; bool warned; } cases[] = {
		{ "{'zero_point':'integer','format':['compressed-tensors'],'override':[{'match':'mlp','bits':8}]}", true },
		{ "{'symmetric':true,'format':['compressed-tensors'],'override':[{'match':'mlp','bits':8}]}", false },
		{ "{'zero_point':'integer','format':['compressed-tensors'],'override':[{'match':'mlp','skip':true}]}", false },
		{ "{'zero_point':'integer','format':['mlx'],'override':[{'match':'mlp','bits':8}]}", false },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct plan_case f;

		plan_case_init(&f, cases[i].recipe);
		if (plan_case_make(&f) != 0)
			fail_msg("%s: %s", cases[i].recipe, f.err.text);
		assert_int_equal(f.plan.warnings.count, cases[i].warned ? 1 : 0);
		if (cases[i].warned)
			assert_non_null(strstr(f.plan.warnings.items[0], "transformers reads modules of several settings wrongly"));
		plan_case_deinit(&f);
	}
}

static void estimates_grow_with_the_model(void **state)
{
	struct plan_case small, large;

	(void)state;
	plan_case_init(&small, "{'effort':'fast'}");
	plan_case_init(&large, "{'effort':'fast'}");
	large.config.intermediate = 4096;
	assert_int_equal(plan_case_make(&small), 0);
	assert_int_equal(plan_case_make(&large), 0);
	assert_true(large.plan.memory_bytes > small.plan.memory_bytes);
	assert_true(small.plan.memory_bytes > 64u << 20 && small.plan.memory_bytes < 1u << 30);
	/* Four live layers of hidden states, those of 16 evaluation windows, the packed layers twice, the dense files. */
	assert_int_equal(small.plan.disk_bytes, (4ull * 128 + 16) * 1024 * 192 * 4 + 2 * small.plan.outputs[0].bytes +
						small.plan.outputs[1].bytes);
	plan_case_deinit(&small);
	plan_case_deinit(&large);
}

static void running_out_of_memory_is_an_error(void **state)
{
	struct plan_case f;
	uint64_t n;

	(void)state;
	for (n = 1; n < 100000; n += n < 100 ? 1 : 37) {
		plan_case_init(&f, "{'samples':8,'seq_len':64,'override':[{'match':'nothing','bits':8}]}");
		mem_fail_after(n);
		if (plan_case_make(&f) == 0) {
			mem_fail_after(0);
			plan_case_deinit(&f);
			break;
		}
		mem_fail_after(0);
		assert_int_equal(f.err.code, ERR_NOMEM);
		plan_case_deinit(&f);
	}
	assert_true(n > 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_graph_without_distillation),
		cmocka_unit_test(halves_are_checked_for),
		cmocka_unit_test(the_sequential_graph),
		cmocka_unit_test(shards_hold_at_most_256_mib),
		cmocka_unit_test(chunks_of_an_evaluation),
		cmocka_unit_test(an_evaluate_job_only_evaluates),
		cmocka_unit_test(files_are_cut_in_model_order),
		cmocka_unit_test(bits_per_weight_are_those_of_theory),
		cmocka_unit_test(one_task_writes_a_gguf_file),
		cmocka_unit_test(zero_points_suit_every_format),
		cmocka_unit_test(every_problem_is_listed),
		cmocka_unit_test(no_space_is_said_before_the_start),
		cmocka_unit_test(an_override_that_matches_nothing_is_a_warning),
		cmocka_unit_test(mixed_settings_that_a_reader_misreads_are_a_warning),
		cmocka_unit_test(estimates_grow_with_the_model),
		cmocka_unit_test(running_out_of_memory_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
