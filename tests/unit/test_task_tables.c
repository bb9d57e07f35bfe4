/* Tasks that compute with the finished checkpoint read embedding and output head as it will store them: they give, to the
 * bit, what they give for a model whose tables were rounded beforehand. On the sample model, tied and with a head of its
 * own, and its layers at 2 bits. */
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
#include "common/checkpoint.h"
#include "common/file.h"
#include "formats/embedding.h"
#include "tests/lib/distill_case.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"

enum { SEQUENCES = 6, SEQ_LEN = 48, PATH_BYTES = 600 };

static char sample[512];
static struct distill_case small;       /* its model is the sample's */
static struct backend *backend;

/* --- models ------------------------------------------------------------------------------------ */

struct copying { struct checkpoint *ck; struct st_item items[64]; size_t count; int embeddings, lm_head; };

static void round_table(int bits, const char *name, float *values, const size_t dim[2])
{
	struct err err = ERR_INIT;

	if (embedding_round(bits, name, 0, values, dim[0], dim[1], &err) != 0)
		fail_msg("%s", err.text);
}

/* The head of an untied copy: the embedding, a little moved. */
static float *make_head(struct copying *c, const size_t dim[2])
{
	float *values = case_random(dim[0] * dim[1], 0.01f, 77), *embedding = case_poisoned(dim[0] * dim[1]);
	struct err err = ERR_INIT;

	assert_int_equal(checkpoint_read_f32(c->ck, MODEL_EMBED_NAME, 0, dim[0], embedding, &err), 0);
	for (size_t i = 0; i < dim[0] * dim[1]; i++)
		values[i] += embedding[i];
	free(embedding);
	return values;
}

static int copy_tensor(void *ctx, const struct model_tensor *t)
{
	struct copying *c = ctx;
	const size_t n = t->dim[0] * (t->dim[1] ? t->dim[1] : 1);
	const bool head = strcmp(t->name, MODEL_HEAD_NAME) == 0;
	float *values = head ? make_head(c, t->dim) : case_poisoned(n);
	struct err err = ERR_INIT;

	if (!head && checkpoint_read_f32(c->ck, t->name, 0, t->dim[0], values, &err) != 0)
		fail_msg("%s", err.text);
	if (head || strcmp(t->name, MODEL_EMBED_NAME) == 0)
		round_table(head ? c->lm_head : c->embeddings, t->name, values, t->dim);
	c->items[c->count++] = (struct st_item){
		.tensor = { .name = mem_strdup(t->name), .dtype = ST_F32, .ndim = t->dim[1] ? 2 : 1,
			    .shape = { t->dim[0], t->dim[1] } },
		.data = values,
	};
	return 0;
}

static void copy_config(const char *dir, bool tied, const struct checkpoint *ck, struct model_config *config)
{
	struct err err = ERR_INIT;
	struct json *o = json_parse(ck->config_text, ck->config_len, &err);
	char path[PATH_BYTES], *text;

	json_remove(o, "tie_word_embeddings");
	assert_int_equal(json_set_bool(o, "tie_word_embeddings", tied), 0);
	text = json_print(o, false);
	assert_int_equal(model_config_parse(config, text, strlen(text), NULL, &err), 0);
	snprintf(path, sizeof(path), "%s/config.json", dir);
	assert_int_equal(file_write_atomic(path, text, strlen(text), &err), 0);
	mem_free(text);
	json_free(o);
}

/* The sample model in float32 with tables of so many bits (16: as they are), in folder `dir`. */
static struct source *make_model(const char *dir, bool tied, int embeddings, int lm_head)
{
	static struct copying c;
	struct model_config config;
	struct checkpoint ck;
	struct err err = ERR_INIT;
	char path[PATH_BYTES];
	struct source *made;

	c = (struct copying){ .ck = &ck, .embeddings = embeddings, .lm_head = lm_head };
	assert_int_equal(checkpoint_open(&ck, small.model, NULL, &err), 0);
	assert_int_equal(dir_make(dir, &err), 0);
	copy_config(dir, tied, &ck, &config);
	assert_int_equal(model_each_tensor(&config, copy_tensor, &c), 0);
	snprintf(path, sizeof(path), "%s/model.safetensors", dir);
	assert_int_equal(st_write_file(path, c.items, c.count, NULL, NULL, 0, &err), 0);
	for (size_t i = 0; i < c.count; i++) {
		mem_free(c.items[i].tensor.name);
		free((void *)(uintptr_t)c.items[i].data);
	}
	checkpoint_close(&ck);
	made = source_dir_open(dir, &err);
	assert_non_null(made);
	return made;
}

static int prepare(void **state)
{
	const struct distill_case_options options = {
		.model_dir = sample, .dir = "inputs", .sequences = SEQUENCES, .seq_len = SEQ_LEN, .per_shard = 4,
	};

	(void)state;
	snprintf(sample, sizeof(sample), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	distill_case_make(&small, &options);
	backend = case_open(tested_backend(), 2);
	return 0;
}

static int close_all(void **state)
{
	(void)state;
	case_close(backend);
	distill_case_free(&small);
	return 0;
}

/* --- evaluate ---------------------------------------------------------------------------------- */

/* On the calibration tokens. more: members of the spec; reference: a path, or NULL. */
static struct json *evaluate(struct source *model, const char *which, const char *more, const char *reference,
			     struct err *err)
{
	struct task_input inputs[DISTILL_CASE_INPUTS + 1];
	struct task_env env = { .backend = backend, .model = model, .inputs = inputs, .out_dir = "out",
				.input_count = small.input_count };
	struct json *spec, *result = NULL;
	char text[512];

	snprintf(text, sizeof(text), "{\"model\":\"%s\",\"text\":0,\"chunk\":0,\"chunks\":1,\"seq_len\":%d%s}", which,
		 SEQ_LEN, more);
	spec = json_parse(text, strlen(text), NULL);
	assert_non_null(spec);
	memcpy(inputs, small.inputs, small.input_count * sizeof(inputs[0]));
	if (reference)
		inputs[env.input_count++] = (struct task_input){ .name = "reference", .path = reference };
	assert_int_equal(dir_remove("out", err), 0);
	assert_int_equal(dir_make("out", err), 0);
	if (task_run("evaluate", spec, &env, &result, err) != 0)
		assert_null(result);
	json_free(spec);
	return result;
}

static double score(struct source *model, const char *more, const char *reference, const char *what)
{
	struct err err = ERR_INIT;
	struct json *result = evaluate(model, "quantized", more, reference, &err);
	double value;

	if (!result)
		fail_msg("%s: %s", more, err.text);
	value = json_get_number(result, what, NAN);
	json_free(result);
	assert_true(isfinite(value));
	return value;
}

static double nll(struct source *model, const char *more)
{
	return score(model, more, NULL, "nll");
}

/* A model with untouched tables told to use bits, and one that has them. */
static void check_equal(const char *dir, struct source *plain, bool tied, int embeddings, int lm_head, double untouched)
{
	struct source *rounded = make_model(dir, tied, embeddings, lm_head);
	char more[128] = "", head[64] = "";
	double told, has;

	if (embeddings != 16)
		snprintf(more, sizeof(more), ",\"embeddings\":%d", embeddings);
	if (lm_head != 16)
		snprintf(head, sizeof(head), ",\"lm_head\":%d", lm_head);
	strncat(more, head, sizeof(more) - strlen(more) - 1);
	told = nll(plain, more);
	has = nll(rounded, "");
	print_message("# %s, embeddings %d, lm_head %d: nll %.6f; untouched %.6f\n", tied ? "tied" : "untied", embeddings,
		      lm_head, told, untouched);
	if (told != has || told == untouched)
		fail_msg("embeddings %d, lm_head %d: nll %.17g, not %.17g", embeddings, lm_head, told, has);
	rounded->close(rounded);
}

static void test_evaluate_tied(void **state)
{
	struct source *plain = make_model("tied", true, 16, 16);
	const double untouched = nll(plain, "");

	(void)state;
	assert_true(nll(small.model, "") == untouched); /* BF16 or float32, the same values */
	assert_true(nll(plain, ",\"embeddings\":16,\"lm_head\":16") == untouched);
	check_equal("tied-8", plain, true, 8, 8, untouched);
	check_equal("tied-4", plain, true, 4, 4, untouched);
	plain->close(plain);
}

static void test_evaluate_untied(void **state)
{
	struct source *plain = make_model("untied", false, 16, 16);
	const double untouched = nll(plain, "");

	(void)state;
	check_equal("untied-8-16", plain, false, 8, 16, untouched);
	check_equal("untied-16-4", plain, false, 16, 4, untouched);
	check_equal("untied-4-8", plain, false, 4, 8, untouched);
	plain->close(plain);
}

/* The reference keeps its own head: the loss is the same with and without one, and a model that differs from it by its head
 * alone is at a distance. */
static void test_evaluate_compared(void **state)
{
	struct source *plain = make_model("compared", false, 16, 16);
	struct err err = ERR_INIT;
	struct json *kept = evaluate(plain, "quantized", ",\"keep_hidden\":true", NULL, &err);
	static const char head_4[] = ",\"lm_head\":4", head_8[] = ",\"lm_head\":8";
	double four, eight;

	(void)state;
	assert_non_null(kept);
	assert_int_equal(rename("out/hidden", "kept"), 0);
	assert_true(score(plain, "", "kept", "kl") < 1e-4);
	four = score(plain, head_4, "kept", "kl");
	eight = score(plain, head_8, "kept", "kl");
	print_message("# kl of the head alone: %.5f in 4 bits, %.6f in 8\n", four, eight);
	assert_true(four > 20 * eight && eight > 0);
	assert_true(score(plain, head_4, "kept", "nll") == nll(plain, head_4));
	json_free(kept);
	plain->close(plain);
}

static void test_evaluate_refused(void **state)
{
	static const struct { const char *more; enum err_code code; const char *says; } cases[] = {
		{ ",\"embeddings\":5", ERR_INVALID, "\"embeddings\" of the task must be 16, 8, 6 or 4" },
		{ ",\"embeddings\":\"8\"", ERR_INVALID, "\"embeddings\" of the task must be" },
		{ ",\"lm_head\":0", ERR_INVALID, "\"lm_head\" of the task must be 16, 8, 6 or 4" },
		{ ",\"embeddings\":6", ERR_REFUSED, "model.embed_tokens.weight: rows of 192 columns are not stored in 6 bits" },
		{ ",\"lm_head\":6", ERR_REFUSED, "rows of 192 columns are not stored in 6 bits" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct err err = ERR_INIT;

		assert_null(evaluate(small.model, "quantized", cases[i].more, NULL, &err));
		if (err.code != cases[i].code || !strstr(err.text, cases[i].says))
			fail_msg("%s: %s: %s", cases[i].more, err_name(err.code), err.text);
	}
}

/* --- distill ----------------------------------------------------------------------------------- */

#define SPEC(more) "{\"sequences\":6,\"epochs\":2,\"batch\":2,\"seed\":7" more "}"

static struct json *distill(struct source *model, const char *spec, const char *out)
{
	struct distill_case c = small;

	c.model = model;
	return distill_case_must_run(&c, &(struct distill_run_options){ .spec = spec, .out = out });
}

static double kl_of(const struct json *result, const char *when)
{
	return json_get_number(json_get(result, when), "kl", NAN);
}

/* The student starts from rows as they will be stored. */
static void test_distill_embeddings(void **state)
{
	struct source *plain = make_model("student", false, 16, 16), *rounded = make_model("student-4", false, 4, 16);
	struct json *told = distill(plain, SPEC(",\"embeddings\":4"), "told");
	struct json *has = distill(rounded, SPEC(""), "has"), *untouched = distill(plain, SPEC(""), "untouched");

	(void)state;
	assert_true(kl_of(told, "before") == kl_of(has, "before") && kl_of(told, "after") == kl_of(has, "after"));
	distill_case_assert_same(&small, "told", "has");
	assert_false(distill_case_same(&small, "told", "untouched"));
	json_free(told);
	json_free(has);
	json_free(untouched);
	plain->close(plain);
	rounded->close(rounded);
}

/* Its predictions come from the head as it will be stored, the teacher's do not. */
static void test_distill_head(void **state)
{
	struct source *plain = make_model("headed", false, 16, 16);
	struct json *told = distill(plain, SPEC(",\"lm_head\":4"), "headed-4"), *untouched = distill(plain, SPEC(""), "headed-16");

	(void)state;
	print_message("# head in 4 bits: KL %.4f -> %.4f; in 16: %.4f -> %.4f\n", kl_of(told, "before"),
		      kl_of(told, "after"), kl_of(untouched, "before"), kl_of(untouched, "after"));
	assert_true(kl_of(told, "before") != kl_of(untouched, "before"));
	assert_true(kl_of(told, "after") < kl_of(told, "before"));
	assert_false(distill_case_same(&small, "headed-4", "headed-16"));
	json_free(told);
	json_free(untouched);
	plain->close(plain);
}

static void test_distill_refused(void **state)
{
	struct err err = ERR_INIT;
	const struct distill_run_options run = { .spec = SPEC(",\"lm_head\":3"), .out = "refused" };

	(void)state;
	assert_null(distill_case_run(&small, &run, &err));
	assert_int_equal(err.code, ERR_INVALID);
	assert_string_equal(err.text, "\"lm_head\" of the task must be 16, 8, 6 or 4");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_evaluate_tied), cmocka_unit_test(test_evaluate_untied),
		cmocka_unit_test(test_evaluate_compared), cmocka_unit_test(test_evaluate_refused),
		cmocka_unit_test(test_distill_embeddings), cmocka_unit_test(test_distill_head),
		cmocka_unit_test(test_distill_refused),
	};

	return cmocka_run_group_tests(tests, prepare, close_all);
}
