/* The task `distill` on the sample model: it helps, what it writes are layers, and what it is given decides alone what
 * comes out. test_task_distill_resume.c has what happens when it is interrupted. */
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
#include "tests/lib/tested_backend.h"
#include "worker/model/layer_blob.h"

enum { SEQUENCES = 6, SEQ_LEN = 48, PATH_BYTES = 600 };

static struct distill_case small;
static char model_dir[512];

#define SPEC(more) "{\"sequences\":6,\"epochs\":2,\"batch\":2,\"seed\":7" more "}"

static const char usual[] = SPEC("");

static int make_inputs(void **state)
{
	const struct distill_case_options options = {
		.model_dir = model_dir, .dir = "inputs", .sequences = SEQUENCES, .seq_len = SEQ_LEN, .per_shard = 4,
	};

	(void)state;
	snprintf(model_dir, sizeof(model_dir), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	distill_case_make(&small, &options);
	return 0;
}

static int free_inputs(void **state)
{
	(void)state;
	distill_case_free(&small);
	return 0;
}

static struct json *run_into(const struct distill_case *c, const char *out, const char *spec)
{
	const struct distill_run_options run = { .spec = spec, .out = out };

	return distill_case_must_run(c, &run);
}

static double loss_of(const struct json *result, const char *when, const char *which)
{
	return json_get_number(json_get(result, when), which, NAN);
}

/* The layer that the task was given. */
static const char *input_of(const struct distill_case *c, size_t layer)
{
	char name[32];

	snprintf(name, sizeof(name), "layer-%zu", layer);
	for (size_t i = 0; i < c->input_count; i++)
		if (strcmp(c->inputs[i].name, name) == 0)
			return c->inputs[i].path;
	fail_msg("no input %s", name);
	return NULL;
}

/* --- what it is for ---------------------------------------------------------------------------------- */

static void assert_it_helps(const char *backend)
{
	char out[64];
	const struct distill_run_options run = { .backend = backend, .spec = usual, .out = out };
	const struct json *point;
	struct json *result;
	size_t steps = 0;

	snprintf(out, sizeof(out), "helps-%s", backend);
	result = distill_case_must_run(&small, &run);
	print_message("# %s: KL %.4f -> %.4f, hidden %.4f -> %.4f\n", backend, loss_of(result, "before", "kl"),
		      loss_of(result, "after", "kl"), loss_of(result, "before", "hidden"),
		      loss_of(result, "after", "hidden"));
	assert_true(loss_of(result, "after", "kl") < 0.9 * loss_of(result, "before", "kl"));
	assert_true(json_get_bool(result, "kept", false));
	assert_int_equal(json_get_int(result, "steps", -1), 6);
	assert_int_equal(json_get_int(result, "resumed_at", -1), 0);
	for (point = json_first(json_get(result, "curve")); point; point = json_next(point)) {
		assert_true(json_number(json_at(point, 0), NAN) == (double)++steps);
		assert_true(json_number(json_at(point, 1), NAN) > 0 && json_number(json_at(point, 2), NAN) > 0);
	}
	assert_int_equal(steps, 6);
	assert_false(file_exists("helps-ref/scratch"));
	json_free(result);
}

static void test_it_helps(void **state)
{
	(void)state;
	assert_it_helps("ref");
	assert_it_helps(tested_backend());
}

/* --- what it writes ------------------------------------------------------------------------------------- */

static void read_tensor(struct layer_blob *b, const struct st_tensor *t, void *bytes)
{
	struct err err = ERR_INIT;

	if (layer_blob_read_raw(b, t, 0, bytes, (size_t)(t->end - t->begin), &err) != 0)
		fail_msg("%s", err.text);
}

static bool same_tensor(struct layer_blob *a, struct layer_blob *b, const char *name)
{
	const struct st_tensor *t = st_find(&a->header, name), *u = st_find(&b->header, name);
	void *left, *right;
	size_t bytes;
	bool same;

	assert_non_null(t);
	assert_non_null(u);
	assert_int_equal(t->dtype, u->dtype);
	assert_int_equal(t->ndim, u->ndim);
	assert_memory_equal(t->shape, u->shape, t->ndim * sizeof(t->shape[0]));
	bytes = (size_t)(t->end - t->begin);
	left = mem_alloc(bytes, 1);
	right = mem_alloc(bytes, 1);
	read_tensor(a, t, left);
	read_tensor(b, u, right);
	same = memcmp(left, right, bytes) == 0;
	mem_free(left);
	mem_free(right);
	return same;
}

static bool ends_with(const char *text, const char *end)
{
	size_t len = strlen(text), end_len = strlen(end);

	return len >= end_len && strcmp(text + len - end_len, end) == 0;
}

struct changes { const char *end; bool expected; };

/* In each layer, the tensors with these endings changed or did not; what is the same in any case is checked too. */
static void assert_changes(const struct distill_case *c, const char *out, const struct changes *want)
{
	struct err err = ERR_INIT;

	for (size_t l = 0; l < c->layers; l++) {
		struct layer_blob in, made;
		char path[PATH_BYTES];

		snprintf(path, sizeof(path), "%s/layer-%zu", out, l);
		assert_int_equal(layer_blob_open(&in, input_of(c, l), &err), 0);
		assert_int_equal(layer_blob_open(&made, path, &err), 0);
		assert_int_equal(in.header.count, made.header.count);
		assert_int_equal(in.header.meta_count, made.header.meta_count);
		for (size_t i = 0; i < in.header.meta_count; i++)
			assert_string_equal(in.header.meta_values[i], st_meta(&made.header, in.header.meta_keys[i]));
		for (const struct changes *w = want; w->end; w++) {
			size_t seen = 0;

			for (size_t i = 0; i < in.header.count; i++) {
				const char *name = in.header.tensors[i].name;

				if (!ends_with(name, w->end))
					continue;
				seen++;
				if (same_tensor(&in, &made, name) == w->expected)
					fail_msg("%s of layer %zu %s", name, l,
						 w->expected ? "did not change" : "changed");
			}
			assert_true(seen > 0);
		}
		layer_blob_close(&in);
		layer_blob_close(&made);
	}
}

static void test_layers_come_out(void **state)
{
	static const struct changes want[] = {
		{ ".codes", true }, { ".scales", true }, { ".zeros", true }, { "layernorm.weight", true }, { NULL, false },
	};

	(void)state;
	json_free(run_into(&small, "layers", usual));
	assert_changes(&small, "layers", want);
}

static void test_codes_stay(void **state)
{
	static const struct changes want[] = {
		{ ".codes", false }, { ".scales", true }, { ".zeros", true }, { "layernorm.weight", true }, { NULL, false },
	};
	struct json *result;

	(void)state;
	result = run_into(&small, "stay", SPEC(",\"train_codes\":false,\"rates\":{\"norm\":0.01}"));
	assert_true(loss_of(result, "after", "kl") < loss_of(result, "before", "kl"));
	assert_changes(&small, "stay", want);
	json_free(result);
}

static void test_integer_zeros_and_skipped_modules(void **state)
{
	static const struct changes want[] = {
		{ ".codes", true }, { ".scales", true }, { ".zeros", false }, { "o_proj.weight", false }, { NULL, false },
	};
	const struct distill_case_options options = {
		.model_dir = model_dir, .dir = "integer", .sequences = 2, .seq_len = 32, .per_shard = 2, .skip = "o_proj",
		.settings = "\"bits\":3,\"group_size\":-1,\"method\":\"minmax\",\"zero_point\":\"integer\","
			    "\"symmetric\":false,\"rounding\":\"nearest\"",
	};
	struct distill_case c;
	struct json *result;

	(void)state;
	distill_case_make(&c, &options);
	result = run_into(&c, "integer-out", "{\"sequences\":2,\"epochs\":8,\"batch\":1,\"seed\":1,\"rates\":{\"code\":0.05}}");
	assert_true(loss_of(result, "after", "kl") < loss_of(result, "before", "kl"));
	assert_changes(&c, "integer-out", want);
	json_free(result);
	distill_case_free(&c);
}

/* A training that only does harm. */
static void test_never_worse(void **state)
{
	char path[PATH_BYTES];
	struct json *result;

	(void)state;
	result = run_into(&small, "worse", SPEC(",\"rates\":{\"code\":1,\"scale\":1,\"zero\":1,\"norm\":1}"));
	assert_false(json_get_bool(result, "kept", true));
	assert_true(loss_of(result, "after", "kl") == loss_of(result, "before", "kl"));
	for (size_t l = 0; l < small.layers; l++) {
		struct err err = ERR_INIT;
		size_t in_len, out_len;
		char *in = file_read_all(input_of(&small, l), 1 << 24, &in_len, &err), *out;

		snprintf(path, sizeof(path), "worse/layer-%zu", l);
		out = file_read_all(path, 1 << 24, &out_len, &err);
		assert_int_equal(in_len, out_len);
		assert_memory_equal(in, out, in_len);
		mem_free(in);
		mem_free(out);
	}
	json_free(result);
}

/* --- what decides --------------------------------------------------------------------------------------- */

static void test_any_number_of_threads(void **state)
{
	struct distill_run_options run = { .spec = usual };
	char out[64];

	(void)state;
	for (run.threads = 1; run.threads <= 3; run.threads++) {
		snprintf(out, sizeof(out), "threads-%d", run.threads);
		run.out = out;
		json_free(distill_case_must_run(&small, &run));
		distill_case_assert_same(&small, "threads-1", out);
	}
}

static void test_the_seed_counts(void **state)
{
	(void)state;
	json_free(run_into(&small, "seed-7", usual));
	json_free(run_into(&small, "seed-8", "{\"sequences\":6,\"epochs\":2,\"batch\":2,\"seed\":8}"));
	assert_false(distill_case_same(&small, "seed-7", "seed-8"));
}

/* Batches that do not divide the sequences, and sequences that are not all there are. */
static void test_odd_batches(void **state)
{
	struct json *result;

	(void)state;
	result = run_into(&small, "odd", "{\"sequences\":5,\"epochs\":1,\"batch\":3,\"seed\":0}");
	assert_int_equal(json_get_int(result, "steps", -1), 2);
	json_free(result);
	result = run_into(&small, "odd", "{\"sequences\":2,\"epochs\":3,\"batch\":9,\"seed\":0}");
	assert_int_equal(json_get_int(result, "steps", -1), 3);
	json_free(result);
}

/* --- what it refuses --------------------------------------------------------------------------------------- */

static void assert_refused(const struct distill_case *c, const char *spec, enum err_code code, const char *word)
{
	const struct distill_run_options run = { .spec = spec, .out = "refused" };
	struct err err = ERR_INIT;

	assert_null(distill_case_run(c, &run, &err));
	if (err.code != code || !strstr(err.text, word))
		fail_msg("%s: %s: %s; expected %s and \"%s\"", spec, err_name(err.code), err.text, err_name(code), word);
}

static void test_bad_specs(void **state)
{
	(void)state;
	assert_refused(&small, "{}", ERR_INVALID, "sequences");
	assert_refused(&small, "{\"sequences\":7,\"epochs\":1,\"batch\":2,\"seed\":0}", ERR_INVALID, "7 sequences");
	assert_refused(&small, "{\"sequences\":0,\"epochs\":1,\"batch\":2,\"seed\":0}", ERR_INVALID, "sequences");
	assert_refused(&small, "{\"sequences\":6,\"epochs\":65,\"batch\":2,\"seed\":0}", ERR_INVALID, "epochs");
	assert_refused(&small, "{\"sequences\":6,\"epochs\":1,\"batch\":0,\"seed\":0}", ERR_INVALID, "batch");
	assert_refused(&small, "{\"sequences\":6,\"epochs\":1,\"batch\":1}", ERR_INVALID, "seed");
	assert_refused(&small, SPEC(",\"checkpoint_percent\":0"), ERR_INVALID, "checkpoint_percent");
	assert_refused(&small, SPEC(",\"weight_hidden\":-1"), ERR_INVALID, "weight_hidden");
	assert_refused(&small, SPEC(",\"rates\":{\"zero\":2}"), ERR_INVALID, "zero");
}

/* One input missing, or another file in its place. */
static void assert_bad_input(const char *name, const char *path, enum err_code code, const char *word)
{
	struct distill_case c = small;

	for (size_t i = 0; i < c.input_count; i++) {
		if (strcmp(c.inputs[i].name, name) != 0)
			continue;
		if (path)
			c.inputs[i].path = path;
		else
			c.inputs[i] = c.inputs[--c.input_count];
		break;
	}
	assert_refused(&c, usual, code, word);
}

static void test_bad_inputs(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	assert_bad_input("tokens", NULL, ERR_INVALID, "tokens");
	assert_bad_input("layer-2", NULL, ERR_INVALID, "layer-2");
	assert_bad_input("target-1", NULL, ERR_INVALID, "target-1");
	assert_bad_input("target-0", "inputs/cal/tokens", ERR_CORRUPT, "hidden");
	assert_bad_input("layer-2", input_of(&small, 1), ERR_CORRUPT, "layers.2");
	assert_bad_input("layer-1", "inputs/cal/tokens", ERR_CORRUPT, "layers.1");
	assert_int_equal(file_write_atomic("noise", "noise", 5, &err), 0);
	assert_bad_input("tokens", "noise", ERR_CORRUPT, "noise");
	assert_bad_input("layer-0", "noise", ERR_CORRUPT, "noise");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_it_helps),
		cmocka_unit_test(test_layers_come_out),
		cmocka_unit_test(test_codes_stay),
		cmocka_unit_test(test_integer_zeros_and_skipped_modules),
		cmocka_unit_test(test_never_worse),
		cmocka_unit_test(test_any_number_of_threads),
		cmocka_unit_test(test_the_seed_counts),
		cmocka_unit_test(test_odd_batches),
		cmocka_unit_test(test_bad_specs),
		cmocka_unit_test(test_bad_inputs),
	};

	return cmocka_run_group_tests(tests, make_inputs, free_inputs);
}
