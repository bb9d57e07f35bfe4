/* The chain of tasks on the sample model, without a coordinator: each task's outputs feed the next, as the
 * job graph does. Small settings keep it quick; what is asserted are relations that must hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/safetensors.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/backend/backend.h"
#include "worker/layer_gram.h"
#include "worker/task.h"

enum { LAYERS = 4, SEQ_LEN = 128, SAMPLES = 6, PER_SHARD = 4, SHARDS = 2, PATH_BYTES = 512 };

static struct source *model;
static struct backend *backend;

static const char *source_path(const char *relative)
{
	static char path[PATH_BYTES];

	snprintf(path, sizeof(path), "%s/%s", getenv("QUARRY_ROOT"), relative);
	return path;
}

static int open_all(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	backend = case_open(tested_backend(), 2);
	model = source_dir_open(source_path("examples/fable-tiny"), &err);
	if (!model)
		print_error("%s\n", err.text);
	return model ? 0 : -1;
}

static int close_all(void **state)
{
	(void)state;
	backend->ops->close(backend);
	model->close(model);
	return 0;
}

/* Runs a task into the folder `out`; inputs are "name=path" strings. */
static struct json *run_parsed(const char *kind, const struct json *spec, const char *out, const char *const *inputs,
			       struct err *err)
{
	struct json *result = NULL;
	struct task_input list[32];
	char names[32][32];
	size_t n = 0;
	struct task_env env = { .backend = backend, .model = model, .inputs = list, .out_dir = out };

	for (; inputs && inputs[n]; n++) {
		const char *equals = strchr(inputs[n], '=');

		snprintf(names[n], sizeof(names[n]), "%.*s", (int)(equals - inputs[n]), inputs[n]);
		list[n] = (struct task_input){ .name = names[n], .path = equals + 1 };
	}
	env.input_count = n;
	if (task_run(kind, spec, &env, &result, err) != 0)
		assert_null(result);
	return result;
}

static struct json *run(const char *kind, const char *spec_text, const char *out, const char *const *inputs,
			struct err *err)
{
	struct json *spec = json_parse(spec_text, strlen(spec_text), err), *result;

	assert_non_null(spec);
	assert_int_equal(dir_make(out, err), 0);
	result = run_parsed(kind, spec, out, inputs, err);
	json_free(spec);
	return result;
}

static struct json *must_run(const char *kind, const char *spec, const char *out, const char *const *inputs)
{
	struct err err = ERR_INIT;
	struct json *result = run(kind, spec, out, inputs, &err);

	if (!result)
		print_error("%s: %s\n", kind, err.text);
	assert_non_null(result);
	return result;
}

static void tokenize_texts(void)
{
	char text[PATH_BYTES + 8], spec[256];
	struct json *result;

	snprintf(text, sizeof(text), "text=%s", source_path("examples/texts/calibration.jsonl"));
	snprintf(spec, sizeof(spec), "{\"role\":\"calibration\",\"name\":\"calibration.jsonl\",\"format\":\"jsonl\","
		 "\"samples\":%d,\"seq_len\":%d}", SAMPLES, SEQ_LEN);
	result = must_run("tokenize", spec, "cal", (const char *[]){ text, NULL });
	assert_int_equal(json_get_int(result, "sequences", -1), SAMPLES);
	json_free(result);
	snprintf(text, sizeof(text), "text=%s", source_path("examples/texts/evaluation.txt"));
	snprintf(spec, sizeof(spec), "{\"role\":\"eval\",\"name\":\"evaluation.txt\",\"format\":\"text\","
		 "\"max_windows\":5,\"seq_len\":%d}", SEQ_LEN);
	result = must_run("tokenize", spec, "eval", (const char *[]){ text, NULL });
	assert_int_equal(json_get_int(result, "sequences", -1), 5);
	json_free(result);
}

static void embed_and_capture(void)
{
	char spec[128], out[64], in[64];

	for (int s = 0; s < SHARDS; s++) {
		int first = s * PER_SHARD, count = SAMPLES - first < PER_SHARD ? SAMPLES - first : PER_SHARD;

		snprintf(spec, sizeof(spec), "{\"shard\":%d,\"first\":%d,\"count\":%d,\"seq_len\":%d}", s, first, count,
			 SEQ_LEN);
		snprintf(out, sizeof(out), "x0-%d", s);
		json_free(must_run("embed", spec, out, (const char *[]){ "tokens=cal/tokens", NULL }));
		for (int l = 0; l + 1 < LAYERS; l++) {
			snprintf(spec, sizeof(spec), "{\"layer\":%d,\"shard\":%d}", l, s);
			snprintf(in, sizeof(in), "hidden=x%d-%d/hidden", l, s);
			snprintf(out, sizeof(out), "x%d-%d", l + 1, s);
			json_free(must_run("capture", spec, out, (const char *[]){ in, NULL }));
		}
	}
}

static void layer_spec(char *spec, size_t cap, int layer, const char *settings, const char *skip)
{
	static const char *const suffixes[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
		"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
	int used = snprintf(spec, cap, "{\"layer\":%d,\"damp\":0.01,\"modules\":[", layer);

	for (int i = 0; i < 7; i++)
		used += snprintf(spec + used, cap - (size_t)used, "%s{\"name\":\"model.layers.%d.%s\",\"skip\":%s,%s}",
				 i ? "," : "", layer, suffixes[i],
				 skip && strstr(suffixes[i], skip) ? "true" : "false", settings);
	snprintf(spec + used, cap - (size_t)used, "]}");
}

#define SETTINGS(bits, group) "\"bits\":" #bits ",\"group_size\":" #group ",\"method\":\"neuqi\"," \
	"\"zero_point\":\"float\",\"symmetric\":false,\"rounding\":\"ldlq\""

static struct json *quantize_layer(int layer, const char *settings, const char *skip, const char *out)
{
	char spec[4096], in[SHARDS][64];

	layer_spec(spec, sizeof(spec), layer, settings, skip);
	for (int s = 0; s < SHARDS; s++)
		snprintf(in[s], sizeof(in[s]), "hidden-%d=x%d-%d/hidden", s, layer, s);
	return must_run("quantize", spec, out, (const char *[]){ in[0], in[1], NULL });
}

static double perplexity(const char *which, const char *prefix)
{
	char spec[128], in[LAYERS][64];
	struct json *result;
	double nll, predictions;

	for (int l = 0; l < LAYERS; l++)
		snprintf(in[l], sizeof(in[l]), "layer-%d=%s%d/layer", l, prefix, l);
	snprintf(spec, sizeof(spec), "{\"model\":\"%s\",\"text\":0,\"chunk\":0,\"chunks\":1,\"seq_len\":%d}", which,
		 SEQ_LEN);
	result = must_run("evaluate", spec, "evaluated",
			  (const char *[]){ "tokens=eval/tokens", in[0], in[1], in[2], in[3], NULL });
	nll = json_get_number(result, "nll", NAN);
	predictions = json_get_number(result, "predictions", NAN);
	assert_int_equal(json_get_int(result, "windows", -1), 5);
	assert_true(predictions == 5 * (SEQ_LEN - 1));
	json_free(result);
	return exp(nll / predictions);
}

static void quantize_all(const char *settings, const char *prefix)
{
	char out[64];

	for (int l = 0; l < LAYERS; l++) {
		snprintf(out, sizeof(out), "%s%d", prefix, l);
		json_free(quantize_layer(l, settings, NULL, out));
	}
}

static void test_chain(void **state)
{
	double original, eight, four, two;

	(void)state;
	tokenize_texts();
	embed_and_capture();
	original = perplexity("original", "none");
	quantize_all(SETTINGS(8, 64), "eight");
	quantize_all(SETTINGS(4, 64), "four");
	quantize_all(SETTINGS(2, 64), "two");
	eight = perplexity("quantized", "eight");
	four = perplexity("quantized", "four");
	two = perplexity("quantized", "two");
	print_message("# perplexity: original %.3f, 8 bits %.3f, 4 bits %.3f, 2 bits %.3f\n", original, eight, four, two);
	assert_true(original > 5 && original < 60);
	assert_true(fabs(eight / original - 1) < 0.005);
	assert_true(four / original < 1.08);
	assert_true(two > four && two < 4 * original);
}

static void test_losses_and_skip(void **state)
{
	struct json *result = quantize_layer(1, SETTINGS(3, 64), "o_proj", "skipped");
	const struct json *rows = json_get(result, "modules");
	struct st_header header = { 0 };
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(json_size(rows), 7);
	for (const struct json *row = json_first(rows); row; row = json_next(row)) {
		double loss = json_get_number(row, "loss", NAN), nearest = json_get_number(row, "loss_nearest", NAN);

		if (json_get_bool(row, "skip", false)) {
			assert_non_null(strstr(json_get_string(row, "name", ""), "o_proj"));
			continue;
		}
		if (!(loss > 0 && loss < nearest))
			print_error("%s: %g against %g\n", json_get_string(row, "name", ""), loss, nearest);
		assert_true(loss > 0 && loss < nearest);
		assert_true(loss < json_get_number(row, "energy", 0));
	}
	assert_int_equal(st_header_read_path(&header, "skipped/layer", &err), 0);
	assert_non_null(st_find(&header, "model.layers.1.self_attn.o_proj.weight"));
	assert_null(st_find(&header, "model.layers.1.self_attn.o_proj.codes"));
	assert_non_null(st_find(&header, "model.layers.1.input_layernorm.weight"));
	assert_null(st_find(&header, "model.layers.1.self_attn.q_proj.weight"));
	st_header_deinit(&header);
	json_free(result);
}

static void test_same_bytes_again(void **state)
{
	char a[DIGEST_HEX], b[DIGEST_HEX];
	struct backend *two = backend;
	struct err err = ERR_INIT;

	(void)state;
	json_free(quantize_layer(2, SETTINGS(2, -1), NULL, "again-1"));
	backend = case_open(tested_backend(), 1);
	json_free(quantize_layer(2, SETTINGS(2, -1), NULL, "again-2"));
	backend->ops->close(backend);
	backend = two;
	assert_int_equal(digest_file("again-1/layer", a, NULL, &err), 0);
	assert_int_equal(digest_file("again-2/layer", b, NULL, &err), 0);
	assert_string_equal(a, b);
}

/* The whole model's modules as a spec lists them: layer 1 as `skipped/layer` has it, the others not quantized. */
static void assemble_spec(char *out, size_t size, const char *format, int file, const char *name, const char *rest)
{
	static const char *const linears[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
					       "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
	size_t used = (size_t)snprintf(out, size, "{\"format\":\"%s\",\"file\":%d,\"name\":\"%s\","
				       "\"max_shard_size\":800000,\"modules\":[", format, file, name);

	for (int i = 0; i < LAYERS * 7; i++)
		used += (size_t)snprintf(out + used, size - used, "%s{\"name\":\"model.layers.%d.%s\",\"layer\":%d,"
					 "\"skip\":%s,\"bits\":3,\"group_size\":64,\"method\":\"neuqi\","
					 "\"zero_point\":\"float\",\"symmetric\":false,\"rounding\":\"ldlq\"}",
					 i ? "," : "", i / 7, linears[i % 7], i / 7,
					 i / 7 != 1 || i % 7 == 3 ? "true" : "false");
	snprintf(out + used, size - used, "]%s}", rest);
}

static void test_assemble(void **state)
{
	const char *inputs[] = { "layer-0=plain/layer", "layer-1=skipped/layer", "layer-2=plain2/layer", NULL };
	struct st_header header = { 0 };
	struct err err = ERR_INIT;
	struct json *result;
	char spec[16384];

	(void)state;
	json_free(quantize_layer(0, SETTINGS(3, 64), "_proj", "plain"));
	json_free(quantize_layer(2, SETTINGS(3, 64), "_proj", "plain2"));
	assemble_spec(spec, sizeof(spec), "dense", 1, "model-00002-of-00005.safetensors", "");
	result = must_run("assemble", spec, "dense", inputs);
	assert_true(json_get_number(result, "rounding", NAN) <= 1.0 / 256);
	assert_true(json_get_number(result, "rounding", NAN) > 0);
	json_free(result);
	assert_int_equal(st_header_read_path(&header, "dense/file", &err), 0);
	assert_non_null(st_find(&header, "model.layers.1.mlp.gate_proj.weight"));
	assert_string_equal(st_meta(&header, "format"), "pt");
	st_header_deinit(&header);
	assemble_spec(spec, sizeof(spec), "packed", 1, "model-00002-of-00004.safetensors", "");
	json_free(must_run("assemble", spec, "packed", inputs));
	assert_int_equal(st_header_read_path(&header, "packed/file", &err), 0);
	assert_non_null(st_find(&header, "model.layers.1.mlp.gate_proj.codes"));
	assert_non_null(st_meta(&header, "model.layers.1.mlp.gate_proj"));
	st_header_deinit(&header);
}

static void test_assemble_refuses(void **state)
{
	static const struct { const char *format, *name, *rest; int file; enum err_code code; const char *says; } rows[] = {
		{ "exl3", "model.safetensors", "", 0, ERR_INVALID, "\"format\" is exl3" },
		{ "dense", "model.safetensors", "", 0, ERR_INVALID, "names file 0 of format dense model.safetensors" },
		{ "dense", "model-00002-of-00005.safetensors", "", 9, ERR_INVALID, "names file 9" },
		{ "gptq", "model.safetensors", "", 0, ERR_REFUSED, "gptq holds integer zero-points" },
		{ "dense", "model-00003-of-00005.safetensors", "", 2, ERR_INVALID, "layer-2" },
	};
	const char *inputs[] = { "layer-1=skipped/layer", NULL }, *wrong[] = { "layer-0=plain/layer", "layer-1=plain/layer", "layer-2=plain2/layer",
								  NULL };
	struct err err = ERR_INIT;
	char spec[16384];

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assemble_spec(spec, sizeof(spec), rows[i].format, rows[i].file, rows[i].name, rows[i].rest);
		assert_null(run("assemble", spec, "refused", inputs, &err));
		if (!strstr(err.text, rows[i].says) || err.code != rows[i].code)
			fail_msg("row %zu: %s: %s", i, err_name(err.code), err.text);
	}
	assert_null(run("assemble", "{\"format\":\"dense\",\"file\":0,\"name\":\"model.safetensors\",\"max_shard_size\":1,"
			"\"modules\":[{}]}", "refused", inputs, &err));
	assert_non_null(strstr(err.text, "\"modules\" must be a list of the model's 28 linear modules"));
	/* A layer that is not what the plan says: its modules are not packed. */
	assemble_spec(spec, sizeof(spec), "dense", 1, "model-00002-of-00005.safetensors", "");
	assert_null(run("assemble", spec, "refused", wrong, &err));
	assert_int_equal(err.code, ERR_CORRUPT);
}

/* Memory and disk may give way anywhere. */
static void test_assemble_fails_cleanly(void **state)
{
	const char *inputs[] = { "layer-0=plain/layer", "layer-1=skipped/layer", "layer-2=plain2/layer", NULL };
	struct json *result = NULL;
	char spec[16384];
	uint64_t n = 1;

	(void)state;
	assemble_spec(spec, sizeof(spec), "dense", 1, "model-00002-of-00005.safetensors", "");
	for (; !result && n < 100000; n += n < 100 ? 1 : n / 8) {
		struct err err = ERR_INIT;
		struct json *parsed = json_parse(spec, strlen(spec), &err);

		assert_non_null(parsed);
		assert_int_equal(dir_make("failing", &err), 0);
		mem_fail_after(n);
		result = run_parsed("assemble", parsed, "failing", inputs, &err);
		mem_fail_after(0);
		json_free(parsed);
		if (!result && err.code != ERR_NOMEM)
			fail_msg("allocation %llu: %s: %s", (unsigned long long)n, err_name(err.code), err.text);
	}
	assert_true(n > 100);
	json_free(result);
	for (n = 1, result = NULL; !result && n < 1000; n++) {
		struct err err = ERR_INIT;

		file_fail_after(FILE_WRITE, n);
		result = run("assemble", spec, "failing", inputs, &err);
		file_fail_after(FILE_WRITE, 0);
		assert_true(result || err.code == ERR_NOSPC);
	}
	assert_true(n > 5);
	json_free(result);
}

static void test_verify(void **state)
{
	struct json *result = must_run("verify", "{\"file\":\"model-00001-of-00002.safetensors\"}", "verified", NULL);
	char hex[DIGEST_HEX];
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(digest_file(source_path("examples/fable-tiny/model-00001-of-00002.safetensors"), hex, NULL, &err), 0);
	assert_string_equal(json_get_string(result, "sha256", ""), hex);
	json_free(result);
}

static void test_too_little_text(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(file_write_atomic("short.jsonl", "{\"text\":\"too short\"}\n", 21, &err), 0);
	assert_null(run("tokenize", "{\"role\":\"calibration\",\"name\":\"short.jsonl\",\"format\":\"jsonl\",\"samples\":4,"
			"\"seq_len\":64}", "short", (const char *[]){ "text=short.jsonl", NULL }, &err));
	assert_int_equal(err.code, ERR_REFUSED);
	assert_non_null(strstr(err.text, "short.jsonl"));
	assert_non_null(strstr(err.text, "--seq-len"));
}

/* The sequences that a seed takes: the same again, others for another seed, never one twice. */
static void test_seed(void **state)
{
	char text[PATH_BYTES + 8], spec[256], digest[4][DIGEST_HEX];
	static const int seeds[4] = { 0, 7, 7, 8 };
	struct err err = ERR_INIT;

	(void)state;
	snprintf(text, sizeof(text), "text=%s", source_path("examples/texts/calibration.jsonl"));
	for (int i = 0; i < 4; i++) {
		snprintf(spec, sizeof(spec), "{\"role\":\"calibration\",\"name\":\"c.jsonl\",\"format\":\"jsonl\","
			 "\"samples\":20,\"seq_len\":64,\"seed\":%d}", seeds[i]);
		json_free(must_run("tokenize", spec, "seeded", (const char *[]){ text, NULL }));
		assert_int_equal(digest_file("seeded/tokens", digest[i], NULL, &err), 0);
	}
	assert_string_not_equal(digest[0], digest[1]);
	assert_string_equal(digest[1], digest[2]);
	assert_string_not_equal(digest[2], digest[3]);
}

static bool stop_at_half(void *ctx, double fraction, const char *what)
{
	(void)ctx;
	(void)what;
	return fraction < 0.5;
}

static void test_cancel(void **state)
{
	char spec[4096];
	struct task_input list[SHARDS] = { { .name = "hidden-0", .path = "x0-0/hidden" },
					   { .name = "hidden-1", .path = "x0-1/hidden" } };
	struct task_env env = { .backend = backend, .model = model, .inputs = list, .input_count = SHARDS,
				.out_dir = "cancelled", .progress = stop_at_half };
	struct err err = ERR_INIT;
	struct json *parsed, *result;

	(void)state;
	assert_int_equal(dir_make("cancelled", &err), 0);
	layer_spec(spec, sizeof(spec), 0, SETTINGS(2, 64), NULL);
	parsed = json_parse(spec, strlen(spec), &err);
	assert_int_equal(task_run("quantize", parsed, &env, &result, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	json_free(parsed);
}

/* Four sequences, one a piece. */
static int capture_in_pieces(const char *out, bool (*progress)(void *, double, const char *), struct err *err)
{
	struct json *spec = json_parse("{\"layer\":0,\"shard\":0}", 21, err), *result = NULL;
	struct task_input input = { .name = "hidden", .path = "x0-0/hidden" };
	struct task_env env = { .backend = backend, .model = model, .inputs = &input, .input_count = 1, .out_dir = out,
				.piece_tokens = SEQ_LEN, .progress = progress };
	int rc;

	assert_int_equal(dir_make(out, err), 0);
	rc = task_run("capture", spec, &env, &result, err);
	json_free(spec);
	json_free(result);
	return rc;
}

static void test_capture_in_pieces(void **state)
{
	char first[DIGEST_HEX], again[DIGEST_HEX];
	struct err err = ERR_INIT;

	(void)state;
	if (capture_in_pieces("pieces-1", NULL, &err) != 0 || capture_in_pieces("pieces-2", NULL, &err) != 0)
		fail_msg("%s", err.text);
	assert_int_equal(digest_file("pieces-1/hidden", first, NULL, &err), 0);
	assert_int_equal(digest_file("pieces-2/hidden", again, NULL, &err), 0);
	assert_string_equal(first, again);
	assert_int_equal(capture_in_pieces("pieces-2", stop_at_half, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
}

/* Every allocation of a task fails once: an error each time, never a crash, and success in the end. */
static void test_allocation_failures(void **state)
{
	struct err err = ERR_INIT;
	int failures = 0;

	(void)state;
	for (uint64_t n = 1; ; n++) {
		struct json *spec = json_parse("{\"layer\":0,\"shard\":1}", 21, &err), *result = NULL;
		struct task_input input = { .name = "hidden", .path = "x0-1/hidden" };
		struct task_env env = { .backend = backend, .model = model, .inputs = &input, .input_count = 1,
					.out_dir = "alloc", .piece_tokens = SEQ_LEN };
		int rc;

		assert_int_equal(dir_make("alloc", &err), 0);
		mem_fail_after(n);
		rc = task_run("capture", spec, &env, &result, &err);
		mem_fail_after(0);
		json_free(spec);
		json_free(result);
		if (rc == 0)
			break;
		failures++;
		assert_true(err.code == ERR_NOMEM || err.code == ERR_INVALID || err.code == ERR_CORRUPT);
	}
	assert_true(failures > 20);
}

/* --- H against the golden matrices: 128 x 512 tokens of the same calibration text ------------------ */

static void golden_inputs(void)
{
	char text[PATH_BYTES + 8], in[64], out[64];

	snprintf(text, sizeof(text), "text=%s", source_path("examples/texts/calibration.jsonl"));
	json_free(must_run("tokenize", "{\"role\":\"calibration\",\"name\":\"calibration.jsonl\",\"format\":\"jsonl\","
			   "\"samples\":128,\"seq_len\":512}", "gcal", (const char *[]){ text, NULL }));
	json_free(must_run("embed", "{\"shard\":0,\"first\":0,\"count\":128,\"seq_len\":512}", "g0",
			   (const char *[]){ "tokens=gcal/tokens", NULL }));
	for (int l = 0; l + 1 < LAYERS; l++) {
		char spec[64];

		snprintf(spec, sizeof(spec), "{\"layer\":%d,\"shard\":0}", l);
		snprintf(in, sizeof(in), "hidden=g%d/hidden", l);
		snprintf(out, sizeof(out), "g%d", l + 1);
		json_free(must_run("capture", spec, out, (const char *[]){ in, NULL }));
	}
}

/* Largest |h - golden| relative to sqrt(h_ii h_jj). */
static double gram_error(const double *h, const float *golden, size_t n)
{
	double worst = 0;

	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < n; j++) {
			double scale = sqrt((double)golden[i * n + i] * (double)golden[j * n + j]);

			worst = fmax(worst, fabs(h[i * n + j] - (double)golden[i * n + j]) / scale);
		}
	return worst;
}

static void check_site(const struct st_header *header, int fd, const char *path, int layer,
		       const struct linear_shape *shape, const struct layer_gram *g)
{
	char name[128];
	const struct st_tensor *t;
	size_t n = g->cols[shape->site];
	float *golden = mem_alloc(n * n, sizeof(*golden));
	struct err err = ERR_INIT;
	double worst, *h;

	snprintf(name, sizeof(name), "layers.%d.%s", layer, shape->suffix);
	t = st_find(header, name);
	if (!t) { /* k and v share q's matrix, up shares gate's */
		mem_free(golden);
		return;
	}
	assert_int_equal(file_pread(fd, golden, n * n * 4, header->data_start + t->begin, path, &err), 0);
	h = mem_alloc(n * n, sizeof(*h));
	assert_int_equal(backend->ops->memory_copy(backend, h, g->h[shape->site], n * n * sizeof(*h), &err), 0);
	for (size_t i = 0; i < n; i++)
		assert_true(g->diagonal[shape->site][i] == h[i * n + i]);
	worst = gram_error(h, golden, n);
	mem_free(h);
	print_message("# %s: %.2e\n", name, worst);
	assert_true(worst < 1e-4);
	mem_free(golden);
}

static void test_golden_hessians(void **state)
{
	char path[PATH_BYTES], input[64];
	struct st_header header = { 0 };
	struct err err = ERR_INIT;
	const struct layer_pass pass = { .wanted = { true, true, true, true }, .share = 1 };
	int fd, seen = 0;

	(void)state;
	golden_inputs();
	snprintf(path, sizeof(path), "%s", source_path("tests/data/golden/neuqi/hessians.safetensors"));
	assert_int_equal(st_header_read_path(&header, path, &err), 0);
	fd = file_open(path, 0, 0, &err);
	assert_true(fd >= 0);
	for (int l = 0; l < LAYERS; l++) {
		struct layer_forward f;
		struct layer_gram g = { 0 };
		struct hidden_shards shards;
		struct task_input in = { .name = "hidden-0", .path = input };
		struct task_env env = { .backend = backend, .model = model, .inputs = &in, .input_count = 1 };

		snprintf(input, sizeof(input), "g%d/hidden", l);
		assert_int_equal(layer_forward_init(&f, &env, 512, &err), 0);
		assert_int_equal(layer_forward_load(&f, (size_t)l, NULL, &err), 0);
		assert_int_equal(hidden_shards_open(&shards, &env, &err), 0);
		assert_int_equal(layer_gram_collect(&g, &f, &shards, &pass, &err), 0);
		hidden_shards_close(&shards);
		for (int lin = 0; lin < LIN_COUNT; lin++) {
			struct linear_shape shape = model_linear(&f.ck.config, (enum block_linear)lin);

			check_site(&header, fd, path, l, &shape, &g);
			seen++;
		}
		layer_gram_deinit(&g);
		layer_forward_deinit(&f);
	}
	assert_int_equal(seen, LAYERS * LIN_COUNT);
	close(fd);
	st_header_deinit(&header);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_verify),
		cmocka_unit_test(test_too_little_text),
		cmocka_unit_test(test_chain),
		cmocka_unit_test(test_losses_and_skip),
		cmocka_unit_test(test_same_bytes_again),
		cmocka_unit_test(test_assemble),
		cmocka_unit_test(test_assemble_refuses),
		cmocka_unit_test(test_assemble_fails_cleanly),
		cmocka_unit_test(test_seed),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_capture_in_pieces),
		cmocka_unit_test(test_allocation_failures),
		cmocka_unit_test(test_golden_hessians),
	};

	return cmocka_run_group_tests(tests, open_all, close_all);
}
