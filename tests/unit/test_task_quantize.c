/* The quantize task with distillation, on one layer of the sample model: what the result says, what the layer
 * file holds, and that nothing else is left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/digest.h"
#include "common/file.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/sealed_backend.h"
#include "tests/lib/tested_backend.h"
#include "worker/model/layer_blob.h"
#include "worker/task.h"
#include "worker/tensor_file.h"

enum { SEQ_LEN = 32, SAMPLES = 10, PER_SHARD = 4, SHARDS = 3, SPEC_BYTES = 4096 };

static struct source *model;
static struct backend *backend;
static bool (*progress)(void *ctx, double fraction, const char *what);

static const char *source_path(const char *relative)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%s", getenv("QUARRY_ROOT"), relative);
	return path;
}

/* --- running tasks -------------------------------------------------------------------------------- */

static struct json *run(const char *kind, const char *spec_text, const char *out, struct task_input *inputs,
			size_t count, struct err *err)
{
	struct json *spec = json_parse(spec_text, strlen(spec_text), err), *result = NULL;
	struct task_env env = { .backend = backend, .model = model, .inputs = inputs, .input_count = count,
				.out_dir = out, .progress = progress };

	if (!spec || dir_make(out, err) != 0) {
		json_free(spec);
		return NULL;
	}
	if (task_run(kind, spec, &env, &result, err) != 0)
		assert_null(result);
	json_free(spec);
	return result;
}

static int open_all(void **state)
{
	char spec[256], text[512], out[16];
	struct err err = ERR_INIT;
	struct task_input in = { .name = "text", .path = text };

	(void)state;
	model = source_dir_open(source_path("examples/fable-tiny"), &err);
	assert_non_null(model);
	backend = case_open(tested_backend(), 2);
	snprintf(text, sizeof(text), "%s", source_path("examples/texts/calibration.jsonl"));
	snprintf(spec, sizeof(spec), "{\"role\":\"calibration\",\"name\":\"c.jsonl\",\"format\":\"jsonl\",\"samples\":%d,"
		 "\"seq_len\":%d}", SAMPLES, SEQ_LEN);
	json_free(run("tokenize", spec, "cal", &in, 1, &err));
	in = (struct task_input){ .name = "tokens", .path = "cal/tokens" };
	for (int s = 0; s < SHARDS; s++) {
		snprintf(spec, sizeof(spec), "{\"shard\":%d,\"first\":%d,\"count\":%d,\"seq_len\":%d}", s, s * PER_SHARD,
			 SAMPLES - s * PER_SHARD < PER_SHARD ? SAMPLES - s * PER_SHARD : PER_SHARD, SEQ_LEN);
		snprintf(out, sizeof(out), "x%d", s);
		json_free(run("embed", spec, out, &in, 1, &err));
	}
	return err.code == ERR_NONE ? 0 : -1;
}

static int close_all(void **state)
{
	(void)state;
	case_close(backend);
	model->close(model);
	return 0;
}

#define SETTINGS(bits, zero, symmetric) "\"bits\":" #bits ",\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"" \
	zero "\",\"symmetric\":" symmetric ",\"rounding\":\"ldlq\""

/* For what fails on purpose, many times. */
#define QUICK "\"bits\":2,\"group_size\":64,\"method\":\"minmax\",\"zero_point\":\"float\",\"symmetric\":false," \
	"\"rounding\":\"nearest\""

/* `extra`: fields before the modules, each with its comma. `skip`: part of the names to leave alone. */
static void layer_spec(char spec[SPEC_BYTES], const char *extra, const char *settings, const char *skip)
{
	static const char *const suffixes[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
		"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
	int used = snprintf(spec, SPEC_BYTES, "{\"layer\":0,\"damp\":0.01,%s\"modules\":[", extra);

	for (int i = 0; i < 7; i++)
		used += snprintf(spec + used, SPEC_BYTES - (size_t)used,
				 "%s{\"name\":\"model.layers.0.%s\",\"skip\":%s,%s}", i ? "," : "", suffixes[i],
				 skip && strstr(suffixes[i], skip) ? "true" : "false", settings);
	snprintf(spec + used, SPEC_BYTES - (size_t)used, "]}");
}

static struct json *quantize(const char *extra, const char *settings, const char *skip, const char *out,
			     struct err *err)
{
	struct task_input in[SHARDS] = { { .name = "hidden-0", .path = "x0/hidden" },
					 { .name = "hidden-1", .path = "x1/hidden" },
					 { .name = "hidden-2", .path = "x2/hidden" } };
	char spec[SPEC_BYTES];

	layer_spec(spec, extra, settings, skip);
	return run("quantize", spec, out, in, SHARDS, err);
}

static struct json *must_quantize(const char *extra, const char *settings, const char *skip, const char *out)
{
	struct err err = ERR_INIT;
	struct json *result = quantize(extra, settings, skip, out, &err);

	if (!result)
		fail_msg("%s", err.text);
	return result;
}

/* --- looking at what came out ------------------------------------------------------------------------- */

static void check_only_file(const char *dir, const char *name)
{
	DIR *d = opendir(dir);
	size_t files = 0;

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		assert_string_equal(e->d_name, name ? name : "nothing");
		files++;
	}
	closedir(d);
	assert_int_equal(files, name != NULL);
}

static float *read_tensor(const char *path, const char *name, size_t rows, size_t cols)
{
	float *values = case_poisoned(rows * cols);
	struct layer_blob blob;
	struct err err = ERR_INIT;

	assert_int_equal(layer_blob_open(&blob, path, &err), 0);
	if (layer_blob_read_f32(&blob, name, 0, rows, values, &err) != 0)
		fail_msg("%s", err.text);
	layer_blob_close(&blob);
	return values;
}

/* How many of the tensor's elements differ between two layer files. */
static size_t differing(const char *a, const char *b, const char *name, size_t rows, size_t cols)
{
	float *x = read_tensor(a, name, rows, cols), *y = read_tensor(b, name, rows, cols);
	size_t n = 0;

	for (size_t i = 0; i < rows * cols; i++)
		n += x[i] != y[i];
	free(x);
	free(y);
	return n;
}

static void check_norm_dtype(const char *path)
{
	static const char *const norms[] = { "model.layers.0.input_layernorm.weight",
					     "model.layers.0.post_attention_layernorm.weight" };
	struct checkpoint ck;
	struct st_header header;
	struct err err = ERR_INIT;

	assert_int_equal(checkpoint_open(&ck, model, NULL, &err), 0);
	assert_int_equal(st_header_read_path(&header, path, &err), 0);
	for (int i = 0; i < 2; i++) {
		const struct st_tensor *t = st_find(&header, norms[i]);

		assert_non_null(t);
		assert_int_equal(t->dtype, checkpoint_find(&ck, norms[i], NULL)->dtype);
		assert_int_equal(t->dtype, ST_BF16);
		assert_int_equal(t->ndim, 1);
	}
	st_header_deinit(&header);
	checkpoint_close(&ck);
}

static const struct json *row_of(const struct json *result, const char *suffix)
{
	for (const struct json *row = json_first(json_get(result, "modules")); row; row = json_next(row))
		if (strstr(json_get_string(row, "name", ""), suffix))
			return row;
	fail_msg("no row for %s", suffix);
	return NULL;
}

/* --- distillation ---------------------------------------------------------------------------------- */

#define DISTILL(samples) "\"distill\":{\"samples\":" #samples ",\"epochs\":2,\"batch\":2,\"train_codes\":true,\"seed\":3," \
	"\"rates\":{\"code\":0.01,\"scale\":0.01,\"zero\":0.001,\"norm\":0.02}},"

static void test_distilled(void **state)
{
	struct json *plain = must_quantize("", SETTINGS(2, "float", "false"), NULL, "plain");
	struct json *result = must_quantize(DISTILL(10), SETTINGS(2, "float", "false"), NULL, "distilled");
	const struct json *d = json_get(result, "distill"), *curve = json_get(d, "curve");
	const double before = json_get_number(d, "before", NAN), after = json_get_number(d, "after", NAN);

	(void)state;
	print_message("# block loss %.5f to %.5f\n", before, after);
	assert_true(before > 0 && before < 1 && after < 0.95 * before);
	assert_true(json_get_bool(d, "kept", false));
	assert_int_equal(json_get_int(d, "steps", -1), 10);
	assert_int_equal(json_size(curve), 10);
	assert_true(json_number(json_at(json_at(curve, 9), 0), 0) == 10);
	assert_true(json_number(json_at(json_at(curve, 9), 1), NAN) < before);
	assert_null(json_get(plain, "distill"));
	for (const struct json *row = json_first(json_get(result, "modules")); row; row = json_next(row)) {
		const struct json *same = row_of(plain, strrchr(json_get_string(row, "name", ""), '.'));
		const double distilled = json_get_number(row, "loss_distilled", NAN);

		assert_true(json_get_number(row, "loss", NAN) == json_get_number(same, "loss", 0));
		assert_true(distilled > 0 && distilled != json_get_number(same, "loss", 0));
		assert_true(distilled < json_get_number(row, "energy", 0));
		assert_null(json_get(same, "loss_distilled"));
	}
	check_only_file("distilled", "layer");
	check_norm_dtype("distilled/layer");
	assert_true(differing("plain/layer", "distilled/layer", "model.layers.0.input_layernorm.weight", 192, 1) > 0);
	assert_true(differing("plain/layer", "distilled/layer", "model.layers.0.mlp.down_proj.weight", 192, 512) > 0);
	json_free(plain);
	json_free(result);
}

/* A skipped module keeps its bytes while the others are trained around it. */
static void test_skipped(void **state)
{
	struct json *result = must_quantize(DISTILL(10), SETTINGS(2, "integer", "false"), "down_proj", "skipped");
	struct checkpoint ck;
	float *got = read_tensor("skipped/layer", "model.layers.0.mlp.down_proj.weight", 192, 512);
	float *want = case_poisoned(192 * 512);
	struct err err = ERR_INIT;

	(void)state;
	assert_true(json_get_number(json_get(result, "distill"), "after", NAN) <
		    json_get_number(json_get(result, "distill"), "before", NAN));
	assert_int_equal(checkpoint_open(&ck, model, NULL, &err), 0);
	assert_int_equal(checkpoint_read_f32(&ck, "model.layers.0.mlp.down_proj.weight", 0, 192, want, &err), 0);
	assert_memory_equal(got, want, 192 * 512 * sizeof(float));
	assert_true(json_get_bool(row_of(result, "down_proj"), "skip", false));
	checkpoint_close(&ck);
	free(got);
	free(want);
	json_free(result);
	result = must_quantize(DISTILL(4), SETTINGS(2, "float", "false"), "_proj", "all-skipped");
	assert_null(json_get(result, "distill"));
	json_free(result);
}

/* Zero-points of an integer grid stay integers. */
static void test_integer_zeros(void **state)
{
	struct json *result = must_quantize(DISTILL(4), SETTINGS(3, "integer", "false"), NULL, "integer");
	float *zeros = read_tensor("integer/layer", "model.layers.0.mlp.up_proj.zeros", 512, 3);

	(void)state;
	for (size_t i = 0; i < 512 * 3; i++)
		assert_true(zeros[i] == floorf(zeros[i]) && zeros[i] >= 0 && zeros[i] <= 7);
	free(zeros);
	json_free(result);
}

/* H of the first samples only, whatever else the shards hold and however the limits cut the pieces. */
static void test_samples(void **state)
{
	struct json *all = must_quantize("", SETTINGS(2, "float", "false"), NULL, "all");
	struct json *few = must_quantize("\"samples\":5,", SETTINGS(2, "float", "false"), NULL, "few");
	struct json *more = must_quantize("\"samples\":5,\"distill\":{\"samples\":7,\"epochs\":1,\"rates\":{\"code\":0,"
					  "\"scale\":0,\"zero\":0,\"norm\":0}},",
					  SETTINGS(2, "float", "false"), NULL, "more");

	(void)state;
	assert_int_equal(json_get_int(all, "tokens", -1), SAMPLES * SEQ_LEN);
	assert_int_equal(json_get_int(few, "tokens", -1), 5 * SEQ_LEN);
	assert_int_equal(json_get_int(more, "tokens", -1), 5 * SEQ_LEN);
	assert_true(json_get_number(row_of(few, "q_proj"), "energy", 0) !=
		    json_get_number(row_of(all, "q_proj"), "energy", 0));
	/* The same layer: training at rate 0 changes nothing. */
	assert_false(json_get_bool(json_get(more, "distill"), "kept", true));
	assert_int_equal(json_get_int(json_get(more, "distill"), "steps", -1), 2);
	for (int i = 0; i < 2; i++) {
		char a[DIGEST_HEX], b[DIGEST_HEX];
		struct err err = ERR_INIT;

		assert_int_equal(digest_file("few/layer", a, NULL, &err), 0);
		assert_int_equal(digest_file(i ? "all/layer" : "more/layer", b, NULL, &err), 0);
		assert_int_equal(strcmp(a, b) == 0, i == 0);
	}
	json_free(all);
	json_free(few);
	json_free(more);
}

static void test_same_bytes(void **state)
{
	struct backend *two = backend;
	char a[DIGEST_HEX], b[DIGEST_HEX];
	struct err err = ERR_INIT;

	(void)state;
	json_free(must_quantize(DISTILL(10), SETTINGS(3, "float", "true"), NULL, "again-2"));
	backend = case_open(tested_backend(), 1);
	json_free(must_quantize(DISTILL(10), SETTINGS(3, "float", "true"), NULL, "again-1"));
	case_close(backend);
	backend = two;
	assert_int_equal(digest_file("again-1/layer", a, NULL, &err), 0);
	assert_int_equal(digest_file("again-2/layer", b, NULL, &err), 0);
	assert_string_equal(a, b);
}

/* A backend with memory of its own that says no when all sequences would stay in it: nth is the take that fails. */
static struct { const struct backend_ops *real; size_t asked, nth; } full;

static void *take_unless_full(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	if (strcmp(what, "the sequences of a training") != 0 || ++full.asked != full.nth)
		return full.real->memory_take(be, bytes, what, err);
	err_set_nomem(err, what);
	return NULL;
}

static void run_on(struct backend *be, size_t nth, const char *out, char digest[DIGEST_HEX])
{
	struct backend *usual = backend;
	struct backend_ops ops = *be->ops;
	struct err err = ERR_INIT;
	char path[64];

	full.real = be->ops;
	full.asked = 0;
	full.nth = nth;
	ops.memory_take = take_unless_full;
	be->ops = &ops;
	backend = be;
	json_free(must_quantize(DISTILL(10), SETTINGS(2, "float", "false"), NULL, out));
	backend = usual;
	snprintf(path, sizeof(path), "%s/layer", out);
	assert_int_equal(digest_file(path, digest, NULL, &err), 0);
	be->ops = full.real;
	case_close(be);
}

/* Sequences in ordinary memory, all on the backend, and through files when the backend is full: the same layer. */
static void test_sequences_anywhere(void **state)
{
	char plain[DIGEST_HEX], own[DIGEST_HEX], none[DIGEST_HEX], little[DIGEST_HEX];

	(void)state;
	run_on(case_open("cpu", 2), 1, "on-plain", plain);
	assert_int_equal(full.asked, 0);
	run_on(sealed_open(case_open("cpu", 2)), 0, "on-own", own);
	assert_int_equal(full.asked, 2);
	run_on(sealed_open(case_open("cpu", 2)), 1, "on-none", none);
	assert_int_equal(full.asked, 1);
	run_on(sealed_open(case_open("cpu", 2)), 2, "on-little", little);
	assert_int_equal(full.asked, 2);
	assert_string_equal(own, plain);
	assert_string_equal(none, plain);
	assert_string_equal(little, plain);
}

/* --- progress --------------------------------------------------------------------------------------- */

static double reached;
static int told_without_loss, told_with_loss;

/* Never backwards; stops the task in the second epoch. */
static bool watch(void *ctx, double fraction, const char *what)
{
	(void)ctx;
	assert_true(fraction >= reached && fraction <= 1);
	reached = fraction;
	if (!strstr(what, "distilling"))
		return true;
	assert_non_null(strstr(what, "layer 0: distilling, epoch "));
	if (strstr(what, ", loss 0.0"))
		told_with_loss++;
	else
		told_without_loss++;
	return strstr(what, "epoch 2 of 2") == NULL;
}

static void test_progress(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	progress = watch;
	assert_null(quantize(DISTILL(10), SETTINGS(3, "float", "false"), NULL, "stopped", &err));
	progress = NULL;
	assert_int_equal(err.code, ERR_CANCELLED);
	check_only_file("stopped", NULL);
	assert_int_equal(told_without_loss, 8); /* the probe of the start */
	assert_int_equal(told_with_loss, 10 + 8 + 1);
	assert_true(reached > 0.64 && reached < 0.66);
}

/* --- what must be refused or fail cleanly --------------------------------------------------------------- */

static void test_refused(void **state)
{
	static const struct { const char *extra, *says; } bad[] = {
		{ "\"distill\":{},", "samples" },
		{ "\"distill\":{\"samples\":0},", "samples" },
		{ "\"distill\":{\"samples\":4,\"epochs\":65},", "epochs" },
		{ "\"distill\":{\"samples\":4,\"batch\":0},", "batch" },
		{ "\"distill\":{\"samples\":4,\"seed\":-1},", "seed" },
		{ "\"distill\":{\"samples\":4,\"rates\":{\"code\":-1}},", "code" },
		{ "\"distill\":{\"samples\":4,\"rates\":{\"norm\":2}},", "norm" },
		{ "\"refine\":33,", "refine" },
		{ "\"samples\":-1,", "samples" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct err err = ERR_INIT;

		assert_null(quantize(bad[i].extra, QUICK, NULL, "refused", &err));
		assert_int_equal(err.code, ERR_INVALID);
		assert_non_null(strstr(err.text, bad[i].says));
	}
	check_only_file("refused", NULL);
}

/* The n-th write or read fails: an error and nothing left behind. */
static void check_io_failures(enum file_op op, uint64_t step, int at_least)
{
	int failures = 0;

	for (uint64_t n = 1;; n += step) {
		struct err err = ERR_INIT;
		struct json *result;

		file_fail_after(op, n);
		result = quantize(DISTILL(2), QUICK, NULL, "io", &err);
		file_fail_after(op, 0);
		if (result) {
			json_free(result);
			break;
		}
		check_only_file("io", NULL);
		assert_true(err.code == ERR_IO || err.code == ERR_NOSPC);
		failures++;
	}
	assert_int_equal(dir_remove("io", NULL), 0);
	print_message("# %d failures of operation %d\n", failures, (int)op);
	assert_true(failures >= at_least);
}

static void test_io_failures(void **state)
{
	(void)state;
	check_io_failures(FILE_WRITE, 1, 5);
	check_io_failures(FILE_OPEN, 1, 4);
	check_io_failures(FILE_READ, 7, 4);
}

static void test_out_of_memory(void **state)
{
	int failures = 0;

	(void)state;
	assert_int_equal(dir_make("memory", NULL), 0);
	for (uint64_t n = 1;; n += 1 + n / 12) {
		struct err err = ERR_INIT;
		struct json *result;
		uint64_t before, after;

		before = mem_fail_after(n);
		result = quantize(DISTILL(2), QUICK, NULL, "memory", &err);
		after = mem_fail_after(0);
		json_free(result);
		if (result && after - before < n)
			break;
		if (result) { /* it went on without */
			assert_true(backend->ops->own_memory);
			assert_int_equal(dir_remove("memory", NULL), 0);
			continue;
		}
		check_only_file("memory", NULL);
		assert_true(err.code == ERR_NOMEM || err.code == ERR_INVALID || err.code == ERR_CORRUPT);
		failures++;
	}
	assert_true(failures > 20);
}

static void test_shards_differ(void **state)
{
	struct err err = ERR_INIT;
	struct task_input in[2] = { { .name = "hidden-0", .path = "x0/hidden" },
				    { .name = "hidden-1", .path = "short/hidden" } };
	struct task_input tokens = { .name = "tokens", .path = "cut/tokens" };
	struct task_input text = { .name = "text", .path = source_path("examples/texts/calibration.jsonl") };

	(void)state;
	json_free(run("tokenize", "{\"role\":\"calibration\",\"name\":\"c.jsonl\",\"format\":\"jsonl\",\"samples\":2,"
		      "\"seq_len\":16}", "cut", &text, 1, &err));
	json_free(run("embed", "{\"shard\":0,\"first\":0,\"count\":2,\"seq_len\":16}", "short", &tokens, 1, &err));
	assert_null(run("quantize", "{\"layer\":0,\"modules\":[]}", "differ", in, 2, &err));
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_non_null(strstr(err.text, "short/hidden"));
	in[1].name = "hidden-2";
	assert_null(run("quantize", "{\"layer\":0,\"modules\":[]}", "differ", in, 2, &err));
	assert_non_null(strstr(err.text, "hidden-1"));
	assert_null(run("quantize", "{\"layer\":0,\"modules\":[]}", "differ", in, 0, &err));
	assert_int_equal(err.code, ERR_INVALID);
}

/* Hidden states of another model. */
static void test_other_width(void **state)
{
	struct tensor_file f;
	struct err err = ERR_INIT;
	struct task_input in = { .name = "hidden-0", .path = "narrow" };
	char spec[SPEC_BYTES];
	const float row[64] = { 0 };

	(void)state;
	assert_int_equal(hidden_file_create(&f, "narrow", 1, 1, 64, &err), 0);
	assert_int_equal(hidden_file_write(&f, 0, 1, row, &err), 0);
	tensor_file_close(&f);
	layer_spec(spec, "", QUICK, NULL);
	assert_null(run("quantize", spec, "narrow-out", &in, 1, &err));
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_non_null(strstr(err.text, "narrow does not hold hidden states of this model"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_distilled),
		cmocka_unit_test(test_skipped),
		cmocka_unit_test(test_integer_zeros),
		cmocka_unit_test(test_samples),
		cmocka_unit_test(test_same_bytes),
		cmocka_unit_test(test_sequences_anywhere),
		cmocka_unit_test(test_progress),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_io_failures),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_shards_differ),
		cmocka_unit_test(test_other_width),
	};

	return cmocka_run_group_tests(tests, open_all, close_all);
}
