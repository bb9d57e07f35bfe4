/* evaluate tasks that compare two models: one keeps its last hidden states, the other reads them. On the sample model
 * and its layers at 2 bits, with small settings. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/source.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/task.h"
#include "worker/tensor_file.h"

enum { LAYERS = 4, SEQ_LEN = 96, SAMPLES = 6, WINDOWS = 5, HIDDEN = 192, PATH_BYTES = 512, INPUTS_MAX = 8 };

static struct source *model;
static struct backend *backend;
static bool (*progress)(void *ctx, double fraction, const char *what);

/* --- running tasks ------------------------------------------------------------------------------ */

static const char *source_path(const char *relative)
{
	static char path[PATH_BYTES];

	snprintf(path, sizeof(path), "%s/%s", getenv("QUARRY_ROOT"), relative);
	return path;
}

/* Runs a task into folder `out`; inputs are "name=path" strings, ended by NULL. */
static struct json *run(const char *kind, const char *spec_text, const char *out, const char *const *inputs,
			struct err *err)
{
	struct json *spec = json_parse(spec_text, strlen(spec_text), NULL), *result = NULL;
	struct task_input list[INPUTS_MAX];
	char names[INPUTS_MAX][32];
	struct task_env env = { .backend = backend, .model = model, .inputs = list, .out_dir = out,
				.progress = progress };

	if (!spec)
		return err_set_nomem(err, "a spec"), NULL;
	for (; inputs[env.input_count]; env.input_count++) {
		const char *input = inputs[env.input_count], *equals = strchr(input, '=');

		assert_true(env.input_count < INPUTS_MAX);
		snprintf(names[env.input_count], sizeof(names[0]), "%.*s", (int)(equals - input), input);
		list[env.input_count] = (struct task_input){ .name = names[env.input_count], .path = equals + 1 };
	}
	if (task_run(kind, spec, &env, &result, err) != 0)
		assert_null(result);
	json_free(spec);
	return result;
}

static struct json *must_run(const char *kind, const char *spec, const char *out, const char *const *inputs)
{
	struct err err = ERR_INIT;
	struct json *result;

	assert_int_equal(dir_make(out, &err), 0);
	result = run(kind, spec, out, inputs, &err);
	if (!result)
		fail_msg("%s: %s", kind, err.text);
	return result;
}

static void quantize_layer(int layer)
{
	static const char *const suffixes[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
		"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
	char spec[4096], in[64], out[64];
	int used = snprintf(spec, sizeof(spec), "{\"layer\":%d,\"damp\":0.01,\"modules\":[", layer);

	for (int i = 0; i < 7; i++)
		used += snprintf(spec + used, sizeof(spec) - (size_t)used,
				 "%s{\"name\":\"model.layers.%d.%s\",\"skip\":false,\"bits\":2,\"group_size\":64,"
				 "\"method\":\"neuqi\",\"zero_point\":\"float\",\"symmetric\":false,"
				 "\"rounding\":\"ldlq\"}", i ? "," : "", layer, suffixes[i]);
	snprintf(spec + used, sizeof(spec) - (size_t)used, "]}");
	snprintf(in, sizeof(in), "hidden-0=x%d/hidden", layer);
	snprintf(out, sizeof(out), "q%d", layer);
	json_free(must_run("quantize", spec, out, (const char *[]){ in, NULL }));
}

static void prepare_layers(void)
{
	char text[PATH_BYTES + 8], spec[256], in[64], out[64];

	snprintf(text, sizeof(text), "text=%s", source_path("examples/texts/calibration.jsonl"));
	snprintf(spec, sizeof(spec), "{\"role\":\"calibration\",\"name\":\"calibration.jsonl\",\"format\":\"jsonl\","
		 "\"samples\":%d,\"seq_len\":%d}", SAMPLES, SEQ_LEN);
	json_free(must_run("tokenize", spec, "cal", (const char *[]){ text, NULL }));
	snprintf(spec, sizeof(spec), "{\"shard\":0,\"first\":0,\"count\":%d,\"seq_len\":%d}", SAMPLES, SEQ_LEN);
	json_free(must_run("embed", spec, "x0", (const char *[]){ "tokens=cal/tokens", NULL }));
	for (int l = 0; l < LAYERS; l++) {
		quantize_layer(l);
		snprintf(spec, sizeof(spec), "{\"layer\":%d,\"shard\":0}", l);
		snprintf(in, sizeof(in), "hidden=x%d/hidden", l);
		snprintf(out, sizeof(out), "x%d", l + 1);
		if (l + 1 < LAYERS)
			json_free(must_run("capture", spec, out, (const char *[]){ in, NULL }));
	}
}

static int prepare(void **state)
{
	struct err err = ERR_INIT;
	char text[PATH_BYTES + 8], spec[256];

	(void)state;
	model = source_dir_open(source_path("examples/fable-tiny"), &err);
	backend = case_open(tested_backend(), 2);
	if (!model) {
		print_error("%s\n", err.text);
		return -1;
	}
	prepare_layers();
	snprintf(text, sizeof(text), "text=%s", source_path("examples/texts/evaluation.txt"));
	snprintf(spec, sizeof(spec), "{\"role\":\"eval\",\"name\":\"evaluation.txt\",\"format\":\"text\","
		 "\"max_windows\":%d,\"seq_len\":%d}", WINDOWS, SEQ_LEN);
	json_free(must_run("tokenize", spec, "eval", (const char *[]){ text, NULL }));
	return 0;
}

static int close_all(void **state)
{
	(void)state;
	backend->ops->close(backend);
	model->close(model);
	return 0;
}

/* An evaluate task of `which` ("original", "quantized") over chunk/chunks; reference: a path, or NULL. */
static struct json *evaluate(const char *which, int chunk, int chunks, const char *keep, const char *out,
			     const char *reference, struct err *err)
{
	char spec[256], input[PATH_BYTES];
	const char *inputs[INPUTS_MAX] = { "tokens=eval/tokens", "layer-0=q0/layer", "layer-1=q1/layer",
					   "layer-2=q2/layer", "layer-3=q3/layer" };

	snprintf(spec, sizeof(spec), "{\"model\":\"%s\",\"text\":0,\"chunk\":%d,\"chunks\":%d,\"seq_len\":%d%s}", which,
		 chunk, chunks, SEQ_LEN, keep);
	snprintf(input, sizeof(input), "reference=%s", reference ? reference : "");
	inputs[5] = reference ? input : NULL;
	return run("evaluate", spec, out, inputs, err);
}

static struct json *must_evaluate(const char *which, int chunk, int chunks, bool keep, const char *out,
				  const char *reference)
{
	struct err err = ERR_INIT;
	struct json *result;

	assert_int_equal(dir_remove(out, &err), 0);
	assert_int_equal(dir_make(out, &err), 0);
	result = evaluate(which, chunk, chunks, keep ? ",\"keep_hidden\":true" : "", out, reference, &err);
	if (!result)
		fail_msg("evaluate %s %d/%d: %s", which, chunk, chunks, err.text);
	return result;
}

static double number(const struct json *result, const char *name)
{
	double value = json_get_number(result, name, NAN);

	if (!isfinite(value))
		fail_msg("no number '%s'", name);
	return value;
}

static void assert_file(const char *path, size_t sequences)
{
	struct tensor_file f;
	struct err err = ERR_INIT;

	if (hidden_file_open(&f, path, &err) != 0)
		fail_msg("%s", err.text);
	assert_int_equal(f.sequences, sequences);
	assert_int_equal(f.seq_len, SEQ_LEN);
	assert_int_equal(f.width, HIDDEN);
	tensor_file_close(&f);
}

/* --- what comes out ----------------------------------------------------------------------------- */

static void test_against_itself(void **state)
{
	struct json *kept = must_evaluate("original", 0, 1, true, "kept", NULL);
	struct json *plain = must_evaluate("original", 0, 1, false, "plain", NULL);
	struct json *same = must_evaluate("original", 0, 1, true, "same", "kept/hidden");
	double predictions = WINDOWS * (SEQ_LEN - 1);
	char a[DIGEST_HEX], b[DIGEST_HEX];

	(void)state;
	assert_file("kept/hidden", WINDOWS);
	assert_true(dir_is_empty("plain"));
	assert_null(json_get(kept, "kl"));
	assert_null(json_get(kept, "top1"));
	assert_true(number(kept, "nll") == number(plain, "nll"));
	assert_true(number(same, "nll") == number(plain, "nll"));
	assert_true(number(same, "kl") >= 0 && number(same, "kl") <= 1e-6 * predictions);
	assert_true(number(same, "top1") == predictions);
	/* What is kept are the states before the comparison normalizes them. */
	assert_int_equal(digest_file("kept/hidden", a, NULL, NULL), 0);
	assert_int_equal(digest_file("same/hidden", b, NULL, NULL), 0);
	assert_string_equal(a, b);
	json_free(kept);
	json_free(plain);
	json_free(same);
}

static void test_quantized(void **state)
{
	struct json *plain = must_evaluate("quantized", 0, 1, false, "plain", NULL);
	struct json *compared = must_evaluate("quantized", 0, 1, false, "compared", "kept/hidden");
	double predictions = number(compared, "predictions"), kl = number(compared, "kl") / predictions;
	double top1 = number(compared, "top1") / predictions;

	(void)state;
	print_message("# 2 bits: kl %.4f, top-1 agreement %.4f\n", kl, top1);
	assert_true(number(plain, "nll") == number(compared, "nll"));
	assert_null(json_get(plain, "kl"));
	assert_true(kl > 0.01 && kl < 2);
	assert_true(top1 > 0.3 && top1 < 0.99);
	json_free(plain);
	json_free(compared);
}

/* More chunks than windows: the sums are the same, and a chunk without windows keeps and reads an empty file. */
static void test_chunks(void **state)
{
	struct json *whole = must_evaluate("quantized", 0, 1, false, "compared", "kept/hidden");
	double nll = 0, kl = 0, top1 = 0, predictions = 0;
	int empty = 0, chunks = WINDOWS + 2;

	(void)state;
	for (int c = 0; c < chunks; c++) {
		struct json *first = must_evaluate("original", c, chunks, true, "piece", NULL);
		struct json *second = must_evaluate("quantized", c, chunks, false, "compared", "piece/hidden");

		assert_file("piece/hidden", (size_t)number(first, "windows"));
		assert_true(number(first, "windows") == number(second, "windows"));
		empty += number(second, "windows") == 0;
		nll += number(second, "nll");
		kl += number(second, "kl");
		top1 += number(second, "top1");
		predictions += number(second, "predictions");
		json_free(first);
		json_free(second);
	}
	assert_int_equal(empty, 2);
	assert_true(predictions == number(whole, "predictions"));
	assert_true(top1 == number(whole, "top1"));
	assert_true(fabs(nll / number(whole, "nll") - 1) < 1e-6);
	assert_true(fabs(kl / number(whole, "kl") - 1) < 1e-5);
	json_free(whole);
}

/* --- what is refused ---------------------------------------------------------------------------- */

static void refused(const char *reference, int chunk, int chunks, enum err_code code, const char *words)
{
	struct err err = ERR_INIT;

	assert_null(evaluate("quantized", chunk, chunks, "", "compared", reference, &err));
	if (err.code != code || !strstr(err.text, words))
		fail_msg("%s: %s: %s", reference, err_name(err.code), err.text);
}

static void write_states(const char *path, size_t windows, size_t seq_len, size_t width)
{
	struct tensor_file f;
	float *zeros = mem_alloc(windows * seq_len * width, sizeof(float));
	struct err err = ERR_INIT;

	assert_non_null(zeros);
	assert_int_equal(hidden_file_create(&f, path, windows, seq_len, width, &err), 0);
	assert_int_equal(hidden_file_write(&f, 0, windows, zeros, &err), 0);
	tensor_file_close(&f);
	mem_free(zeros);
}

static void test_references_refused(void **state)
{
	(void)state;
	refused("kept/hidden", 0, 2, ERR_INVALID, "holds 5 windows of 96 tokens of width 192; this chunk has 2 windows");
	write_states("longer", WINDOWS, SEQ_LEN + 1, HIDDEN);
	refused("longer", 0, 1, ERR_INVALID, "5 windows of 97 tokens of width 192");
	write_states("wider", WINDOWS, SEQ_LEN, HIDDEN + 1);
	refused("wider", 0, 1, ERR_INVALID, "of width 193; this chunk has 5 windows of 96 tokens and the model has width 192");
	write_states("unsigned", WINDOWS, SEQ_LEN, HIDDEN);
	refused("unsigned", 0, 1, ERR_REFUSED, "another final norm or output embedding");
	refused("eval/tokens", 0, 1, ERR_CORRUPT, "'hidden'");
	refused("nowhere", 0, 1, ERR_NOT_FOUND, "nowhere");
}

static bool stop_at_scoring(void *ctx, double fraction, const char *what)
{
	(void)ctx;
	(void)fraction;
	return strcmp(what, "scoring predictions") != 0;
}

static void test_cancel(void **state)
{
	(void)state;
	progress = stop_at_scoring;
	refused("kept/hidden", 0, 1, ERR_CANCELLED, "scoring predictions");
	progress = NULL;
}

/* --- failures ----------------------------------------------------------------------------------- */

enum { FAIL_ALLOCATION, FAIL_OPEN, FAIL_READ, FAIL_WRITE, FAIL_KINDS };

static void fail_at(int kind, uint64_t nth)
{
	static const enum file_op ops[FAIL_KINDS] = { 0, FILE_OPEN, FILE_READ, FILE_WRITE };

	if (kind == FAIL_ALLOCATION)
		mem_fail_after(nth);
	else
		file_fail_after(ops[kind], nth);
}

/* Every allocation and every file operation of a task that reads and keeps hidden states fails once. */
static void test_failures(void **state)
{
	static const int least[FAIL_KINDS] = { 100, 8, 20, 2 };

	(void)state;
	json_free(must_evaluate("original", 0, WINDOWS, true, "piece", NULL));
	for (int kind = 0; kind < FAIL_KINDS; kind++) {
		struct json *result = NULL;
		int failures = -1;

		for (uint64_t nth = 1; !result; nth++) {
			struct err err = ERR_INIT;

			fail_at(kind, nth);
			result = evaluate("quantized", 0, WINDOWS, ",\"keep_hidden\":true", "compared", "piece/hidden", &err);
			fail_at(kind, 0);
			if (!result)
				assert_true(err.code != ERR_NONE && err.text[0]);
			failures++;
		}
		assert_true(number(result, "kl") > 0);
		json_free(result);
		print_message("# kind %d: %d failures\n", kind, failures);
		if (failures < least[kind])
			fail_msg("only %d failures of kind %d", failures, kind);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_itself), cmocka_unit_test(test_quantized),
		cmocka_unit_test(test_chunks), cmocka_unit_test(test_references_refused),
		cmocka_unit_test(test_cancel), cmocka_unit_test(test_failures),
	};

	return cmocka_run_group_tests(tests, prepare, close_all);
}
