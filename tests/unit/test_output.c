/* Whole checkpoints in every format: planned, written, and read back by the independent readers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/half.h"
#include "formats/embedding.h"
#include "formats/gguf_read.h"
#include "formats/gguf_source.h"
#include "tests/lib/output_case.h"

static const struct output_case_model small = { "llama", 128, 192, true, ST_BF16 };
static const struct output_case_model untied = { "qwen2", 128, 256, false, ST_F16 };
static const struct output_case_model plain = { "qwen3", 64, 96, true, ST_F32 };
static const struct output_case_model wide = { "llama", 256, 512, false, ST_BF16 };

/* --- safetensors --------------------------------------------------------------------------------- */

static void expect_module(struct output_case *c, const struct json *config, size_t i)
{
	const struct codec_case *want = &c->cases[i];
	const struct codec_module *m = &c->modules[i];
	const size_t groups = want->v.cols / want->v.group;
	struct stored_module got;
	struct err err = ERR_INIT;
	size_t times;

	if (stored_module_read(config, m->name, m->rows, m->cols, output_case_stored(c), &got, &err) != 0)
		fail_msg("%s: %s", m->name, err.text);
	assert_int_equal(got.rows, want->v.rows);
	assert_int_equal(got.cols, want->v.cols);
	times = (size_t)1 << (got.settings.bits > m->settings.bits ? got.settings.bits - m->settings.bits : 0);
	for (size_t k = 0; k < want->v.rows * want->v.cols; k++)
		if (got.codes[k] != want->codes[k] * times)
			fail_msg("%s: code %zu is %d, not %d", m->name, k, got.codes[k], want->codes[k]);
	for (size_t r = 0; r < got.rows; r++)
		for (size_t k = 0; k < got.cols; k++) {
			const size_t g = r * got.groups + got.group_of[k], w = r * groups + k / want->v.group;
			const double offset = -(double)want->scales[w] * (double)want->zeros[w];

			if (got.scales[g] * (double)times != (double)want->scales[w] ||
			    fabs(got.offsets[g] - offset) > fabs(offset) * 0x1p-22)
				fail_msg("%s: row %zu, column %zu: scale %g and offset %g, not %g and %g", m->name, r, k,
					 got.scales[g], got.offsets[g], (double)want->scales[w], offset);
		}
	stored_module_deinit(&got);
}

/* A plain tensor, as numbers of `dtype`. */
static float *read_floats(struct output_case *c, const char *name, enum st_dtype dtype, size_t *count)
{
	struct stored_source source = output_case_stored(c);
	struct err err = ERR_INIT;
	struct stored_tensor t;
	float *out;

	if (source.read(source.ctx, name, &t, &err) != 0)
		fail_msg("there is no tensor %s", name);
	assert_string_equal(st_dtype_name(t.dtype), st_dtype_name(dtype));
	*count = t.len / (dtype == ST_F32 ? 4 : 2);
	out = mem_alloc(*count, sizeof(float));
	if (dtype == ST_F32)
		memcpy(out, t.bytes, t.len);
	else if (dtype == ST_F16)
		f16_to_f32_array(t.bytes, out, *count);
	else
		bf16_to_f32_array(t.bytes, out, *count);
	mem_free(t.bytes);
	return out;
}

static float rounded(float x, enum st_dtype dtype)
{
	return dtype == ST_F32 ? x : dtype == ST_F16 ? f16_to_f32(f32_to_f16(x)) : bf16_to_f32(f32_to_bf16(x));
}

static void expect_carried(struct output_case *c, const char *name, enum st_dtype dtype)
{
	size_t count;
	float *got = read_floats(c, name, dtype, &count);

	for (size_t i = 0; i < count; i++)
		if (got[i] != rounded(output_case_value(c, name, i), dtype))
			fail_msg("%s: element %zu is %.9g, not %.9g", name, i, (double)got[i],
				 (double)output_case_value(c, name, i));
	mem_free(got);
}

static void expect_dense(struct output_case *c, size_t i, enum st_dtype dtype)
{
	const struct codec_values *v = &c->cases[i].v;
	char name[MODEL_NAME_MAX];
	size_t count;
	float *got;

	snprintf(name, sizeof(name), "%s.weight", c->modules[i].name);
	got = read_floats(c, name, dtype, &count);
	assert_int_equal(count, v->rows * v->cols);
	for (size_t k = 0; k < count; k++) {
		const size_t g = k / v->group;
		const float want = v->scales[g] * ((float)v->codes[k] - v->zeros[g]);

		if (got[k] != rounded(want, dtype))
			fail_msg("%s: element %zu is %.9g, not %.9g", name, k, (double)got[k], (double)want);
	}
	mem_free(got);
}

/* What the writer reports of rounding, by brute force. */
static void expect_rounding(const struct output_case *c, enum st_dtype dtype)
{
	double most = 0;

	for (size_t i = 0; i < OUTPUT_CASE_MODULES; i++) {
		const struct codec_values *v = &c->cases[i].v;

		for (size_t k = 0; !c->modules[i].settings.skip && k < v->rows * v->cols; k++) {
			const size_t g = k / v->group;
			const float want = v->scales[g] * ((float)v->codes[k] - v->zeros[g]);

			if (want != 0)
				most = fmax(most, fabs(((double)rounded(want, dtype) - (double)want) / (double)want));
		}
	}
	if (fabs(c->stats.rounding - most) > 1e-6 * most)
		fail_msg("%s says it rounds by %g, which is %g", c->plan.format->name, c->stats.rounding, most);
}

struct check { struct output_case *c; const struct json *config; };

static bool is_dense(const struct output_case *c)
{
	return c->plan.format->codec->tables == CODEC_TABLES_ROUNDED;
}

static enum st_dtype dense_dtype(const struct output_case *c)
{
	const char *word = c->plan.format->codec->config_dtype;

	return strcmp(word, "float32") == 0 ? ST_F32 : strcmp(word, "float16") == 0 ? ST_F16 : ST_BF16;
}

static int expect_tensor(void *ctx, const struct model_tensor *t)
{
	const struct check *k = ctx;
	const char *other = k->c->plan.format->codec->other_dtype;
	enum st_dtype dtype = k->c->dtype;

	if (other)
		st_dtype_from_name(other, &dtype);
	for (size_t i = 0; i < k->c->model.count; i++) {
		const struct codec_module *m = &k->c->modules[i];
		const size_t len = strlen(m->name);

		if (m->settings.skip || strncmp(t->name, m->name, len) != 0 || strcmp(t->name + len, ".weight") != 0)
			continue;
		if (m->layer >= 0 && is_dense(k->c))
			expect_dense(k->c, i, dense_dtype(k->c));
		else if (m->layer >= 0)
			expect_module(k->c, k->config, i);
		if (m->layer >= 0)
			return 0;
		if (k->c->plan.format->codec->tables != CODEC_TABLES_CARRIED)
			return 0; /* tests of their own */
	}
	expect_carried(k->c, t->name, dtype);
	return 0;
}

static struct json *parse(const struct buf *text)
{
	struct err err = ERR_INIT;
	struct json *value = json_parse(text->data, text->len, &err);

	if (!value)
		fail_msg("%s in %s", err.text, buf_text(text));
	return value;
}

/* Every tensor is where the index says. */
static void expect_index(struct output_case *c)
{
	const struct json *map;
	struct json *index;

	if (c->plan.file_count == 1 && !c->plan.format->codec->always_index) {
		assert_int_equal(c->index.len, 0);
		return;
	}
	index = parse(&c->index);
	map = json_get(index, "weight_map");
	assert_int_equal(json_get_int(json_get(index, "metadata"), "total_size", 0), c->plan.bytes);
	assert_int_equal(json_size(map), c->plan.tensor_count);
	for (size_t i = 0; i < c->plan.file_count; i++)
		for (size_t t = c->plan.files[i].first; t < c->plan.files[i].end; t++)
			assert_string_equal(json_get_string(map, c->plan.tensors[t].name, ""), c->plan.files[i].name);
	json_free(index);
}

static void expect_all(struct output_case *c)
{
	struct check k = { .c = c };
	struct json *config = parse(&c->written_config);

	k.config = config;
	assert_string_equal(codec_detect(config, NULL), is_dense(c) ? "dense" : c->plan.format->name);
	assert_int_equal(model_each_tensor(&c->config, expect_tensor, &k), 0);
	expect_index(c);
	if (is_dense(c))
		expect_rounding(c, dense_dtype(c));
	else
		assert_true(c->stats.rounding == 0);
	assert_non_null(strstr(buf_text(&c->written_config), "\"rope_theta\": 10000.0")); /* numbers keep their text */
	json_free(config);
}

static const char *const codec_formats[] = {
	"packed", "mlx", "compressed-tensors", "gptq", "awq", "dense", "dense-f16", "dense-f32",
};
enum { CODEC_FORMATS = sizeof(codec_formats) / sizeof(codec_formats[0]) };

static const struct {
	const struct output_case_model *model;
	int bits;
	int64_t group;
	enum zero_kind kind;
	int holds;              /* how many of codec_formats */
} models[] = {
	{ &small, 4, 64, KIND_FLOAT, 5 }, { &small, 4, 32, KIND_INTEGER, 8 }, { &small, 4, -1, KIND_SYMMETRIC, 8 },
	{ &small, 2, 64, KIND_QUARTERS, 6 }, { &small, 3, 64, KIND_HALVES, 6 }, { &small, 8, 32, KIND_INTEGER, 7 },
	{ &untied, 2, 64, KIND_FLOAT, 5 }, { &untied, 3, -1, KIND_FLOAT, 5 }, { &untied, 5, 128, KIND_FLOAT, 5 },
	{ &untied, 4, 64, KIND_SYMMETRIC, 8 }, { &untied, 1, 64, KIND_FLOAT, 4 }, { &untied, 7, 32, KIND_FLOAT, 4 },
	{ &plain, 6, 32, KIND_FLOAT, 5 }, { &plain, 4, 16, KIND_FLOAT, 4 }, { &plain, 8, 32, KIND_SYMMETRIC, 7 },
	{ &wide, 2, 256, KIND_FLOAT, 5 }, { &wide, 4, 128, KIND_INTEGER, 8 },
};

static void every_format_comes_back(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
		struct output_case *c = mem_alloc(1, sizeof(*c));
		int held = 0;

		output_case_init(c, models[i].model, models[i].bits, models[i].group, models[i].kind);
		output_case_values(c);
		for (int f = 0; f < CODEC_FORMATS; f++) {
			struct err err = ERR_INIT;

			if (output_check(output_format_find(codec_formats[f]), &c->model, NULL) != 0)
				continue;
			held++;
			if (output_case_write(c, codec_formats[f], i % 2 ? 100000 : 1 << 30, &err) != 0)
				fail_msg("row %zu, %s: %s", i, codec_formats[f], err.text);
			expect_all(c);
		}
		if (held != models[i].holds)
			fail_msg("row %zu: %d formats hold it, not %d", i, held, models[i].holds);
		output_case_deinit(c);
		mem_free(c);
	}
}

/* Bits, groups and skipped modules that differ. */
static void mixed_settings_come_back(void **state)
{
	static const char *const formats[] = { "packed", "mlx", "compressed-tensors", "gptq", "dense" };
	struct output_case *c = mem_alloc(1, sizeof(*c));

	(void)state;
	output_case_init(c, &wide, 4, 64, KIND_INTEGER);
	for (size_t i = 0; i < OUTPUT_CASE_MODULES; i++) {
		if (i % LIN_COUNT == LIN_DOWN)
			c->modules[i].settings.bits = 8;
		if (i % LIN_COUNT == LIN_GATE || i % LIN_COUNT == LIN_UP)
			c->modules[i].settings.group_size = 32;
		c->modules[i].settings.skip = i == LIN_O;
	}
	output_case_values(c);
	for (size_t f = 0; f < sizeof(formats) / sizeof(formats[0]); f++) {
		struct err err = ERR_INIT;

		assert_int_equal(output_check(output_format_find(formats[f]), &c->model, NULL), 0);
		if (output_case_write(c, formats[f], 200000, &err) != 0)
			fail_msg("%s: %s", formats[f], err.text);
		assert_true(c->plan.file_count > 2);
		expect_all(c);
	}
	output_case_deinit(c);
	mem_free(c);
}

/* --- files --------------------------------------------------------------------------------------- */

/* A limit that nothing fits still gives each module or tensor a file of its own, whole. */
static void files_are_cut_at_modules(void **state)
{
	struct output_case *c = mem_alloc(1, sizeof(*c));
	struct output_plan p;
	struct err err = ERR_INIT;
	size_t units = 0;

	(void)state;
	output_case_init(c, &small, 4, 64, KIND_FLOAT);
	assert_int_equal(output_plan_make(&p, output_format_find("packed"), &c->model, 1, &err), 0);
	for (size_t i = 0; i < p.file_count; i++) {
		const struct output_tensor *first = &p.tensors[p.files[i].first];

		assert_int_equal(p.files[i].end - p.files[i].first, first->module == SIZE_MAX ? 1 : 3);
		assert_int_equal(p.files[i].first, i == 0 ? 0 : p.files[i - 1].end);
		units++;
	}
	assert_int_equal(p.files[p.file_count - 1].end, p.tensor_count);
	assert_int_equal(units, 1 + OUTPUT_CASE_LAYERS * (2 + LIN_COUNT) + 1);
	assert_string_equal(p.files[1].name, "model-00002-of-00020.safetensors");
	output_plan_deinit(&p);
	assert_int_equal(output_plan_make(&p, output_format_find("packed"), &c->model, UINT64_MAX, &err), 0);
	assert_int_equal(p.file_count, 1);
	assert_string_equal(p.files[0].name, "model.safetensors");
	assert_int_equal(p.files[0].bytes, p.bytes);
	output_plan_deinit(&p);
	output_case_deinit(c);
	mem_free(c);
}

static int note_layer(void *ctx, int64_t layer)
{
	int64_t *sum = ctx;

	*sum = *sum * 10 + layer + 1;
	return *sum > 100 ? -7 : 0;
}

static void files_name_the_layers_they_need(void **state)
{
	struct output_case *c = mem_alloc(1, sizeof(*c));
	struct output_plan p;
	struct err err = ERR_INIT;
	int64_t layers = 0;

	(void)state;
	output_case_init(c, &small, 4, 64, KIND_FLOAT);
	c->modules[LIN_Q].settings.skip = true; /* comes from the layer all the same */
	assert_int_equal(output_plan_make(&p, output_format_find("gguf"), &c->model, 1, &err), 0);
	assert_int_equal(output_file_layers(&p, 0, note_layer, &layers), 0);
	assert_int_equal(layers, 12);
	layers = 100;
	assert_int_equal(output_file_layers(&p, 0, note_layer, &layers), -7);
	output_plan_deinit(&p);
	assert_int_equal(output_plan_make(&p, output_format_find("dense"), &c->model, 1, &err), 0);
	layers = 0;
	assert_int_equal(output_file_layers(&p, 0, note_layer, &layers), 0);
	assert_int_equal(layers, 0); /* the embedding */
	assert_int_equal(output_file_layers(&p, p.file_count - 2, note_layer, &layers), 0);
	assert_int_equal(layers, 2);
	output_plan_deinit(&p);
	output_case_deinit(c);
	mem_free(c);
}

/* --- what config.json says ----------------------------------------------------------------------- */

static struct json *config_of(const char *format, struct output_case *c, const char *source, const char *recipe)
{
	struct err err = ERR_INIT;
	struct json *r = recipe ? json_parse(recipe, strlen(recipe), &err) : NULL, *value;
	struct buf out;

	buf_init(&out, 1 << 20);
	if (output_config(output_format_find(format), &c->model, source, r, &out, &err) != 0)
		fail_msg("%s", err.text);
	value = parse(&out);
	buf_deinit(&out);
	json_free(r);
	return value;
}

static void config_json_is_rewritten(void **state)
{
	static const char source[] = "{\"a\":[1,{\"torch_dtype\":\"x\"}],\"quantization_config\":{\"bits\":1},\"dtype\":\"bfloat16\","
				     "\"quantization\":7,\"b\":1e-05}";
	struct output_case *c = mem_alloc(1, sizeof(*c));
	struct err err = ERR_INIT;
	struct json *o;
	struct buf out;

	(void)state;
	output_case_init(c, &small, 4, 64, KIND_FLOAT);
	output_case_tables(c, 8, 0);
	o = config_of("packed", c, source, "{\"bits\":5,\"method\":\"minmax\",\"samples\":3}");
	assert_string_equal(json_get_string(o, "dtype", ""), "bfloat16");
	assert_int_equal(json_get_int(json_get(o, "quantization_config"), "bits", 0), 5);
	assert_int_equal(json_get_int(json_get(o, "quantization_config"), "group_size", 0), 64);
	assert_string_equal(json_get_string(json_get(o, "quantization_config"), "method", ""), "minmax");
	assert_int_equal(json_get_int(json_get(o, "quantization_config"), "embeddings", 0), 8);
	assert_int_equal(json_get_int(json_get(o, "quantization_config"), "lm_head", 0), 8); /* tied */
	assert_int_equal(json_size(json_get(json_get(o, "quantization_config"), "modules")), OUTPUT_CASE_MODULES);
	assert_null(json_get(json_get(o, "quantization_config"), "samples"));
	json_free(o);
	o = config_of("dense-f16", c, source, NULL);
	assert_string_equal(json_get_string(o, "dtype", ""), "float16");
	assert_null(json_get(o, "quantization_config"));
	assert_null(json_get(o, "quantization"));
	assert_non_null(json_get(o, "b"));
	json_free(o);
	o = config_of("dense", c, "{}", NULL);
	assert_string_equal(json_get_string(o, "torch_dtype", ""), "bfloat16");
	json_free(o);
	o = config_of("mlx", c, source, NULL);
	assert_int_equal(json_get_int(json_get(o, "quantization"), "group_size", 0), 64);
	assert_int_equal(json_get_int(json_get(json_get(o, "quantization"), "model.embed_tokens"), "bits", 0), 8);
	json_free(o);
	buf_init(&out, 1 << 20);
	assert_int_equal(output_config(output_format_find("dense"), &c->model, "[1]", NULL, &out, &err), -1);
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_int_equal(output_config(output_format_find("dense"), &c->model, "{\"a\":", NULL, &out, &err), -1);
	buf_reset(&out);
	assert_int_equal(output_config(output_format_find("gguf"), &c->model, source, NULL, &out, &err), 0);
	assert_int_equal(out.len, 0);
	buf_deinit(&out);
	output_case_deinit(c);
	mem_free(c);
}

static void an_extra_file_repeats_the_settings(void **state)
{
	struct output_case *c = mem_alloc(1, sizeof(*c));
	struct err err = ERR_INIT;
	struct json *extra, *config;
	char *one, *other;

	(void)state;
	output_case_init(c, &small, 4, 64, KIND_INTEGER);
	output_case_values(c);
	assert_int_equal(output_case_write(c, "awq", 1 << 30, &err), 0);
	assert_int_equal(c->extra.len, 0);
	assert_int_equal(output_case_write(c, "gptq", 1 << 30, &err), 0);
	extra = parse(&c->extra);
	config = parse(&c->written_config);
	one = json_print(extra, false);
	other = json_print(json_get(config, "quantization_config"), false);
	assert_string_equal(one, other);
	mem_free(one);
	mem_free(other);
	json_free(extra);
	json_free(config);
	output_case_deinit(c);
	mem_free(c);
}

/* --- tables -------------------------------------------------------------------------------------- */

/* Row r of a table as its readers compute it. */
static void rounded_row(const struct output_case *c, const char *tensor, int bits, uint64_t r, float *out)
{
	struct err err = ERR_INIT;

	for (size_t k = 0; k < c->config.hidden; k++)
		out[k] = output_case_value(c, tensor, r * c->config.hidden + k);
	assert_int_equal(embedding_round(bits, tensor, r, out, 1, c->config.hidden, &err), 0);
}

static void expect_table(struct output_case *c, const struct json *config, const char *module, int bits)
{
	char tensor[64];
	struct stored_module got;
	struct err err = ERR_INIT;
	float want[512];
	double row[512];

	snprintf(tensor, sizeof(tensor), "%s.weight", module);
	if (stored_module_read(config, module, c->config.vocab, c->config.hidden, output_case_stored(c), &got, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t r = 0; r < got.rows; r++) {
		rounded_row(c, tensor, bits, r, want);
		stored_module_row(&got, r, row);
		for (size_t k = 0; k < got.cols; k++)
			if (fabs(row[k] - (double)want[k]) > 1e-6)
				fail_msg("%s: row %zu, column %zu is %g, not %g", tensor, r, k, row[k], (double)want[k]);
	}
	stored_module_deinit(&got);
}

static void expect_rounded_table(struct output_case *c, const char *tensor, int bits)
{
	const enum st_dtype dtype = dense_dtype(c);
	size_t count;
	float *got = read_floats(c, tensor, dtype, &count), want[512];

	for (size_t r = 0; r < c->config.vocab; r++) {
		rounded_row(c, tensor, bits, r, want);
		for (size_t k = 0; k < c->config.hidden; k++)
			if (got[r * c->config.hidden + k] != rounded(want[k], dtype))
				fail_msg("%s: row %zu, column %zu", tensor, r, k);
	}
	mem_free(got);
}

static void tables_come_back(void **state)
{
	struct output_case *c = mem_alloc(1, sizeof(*c));
	struct err err = ERR_INIT;
	struct json *config;

	(void)state;
	output_case_init(c, &wide, 4, 64, KIND_FLOAT);
	output_case_tables(c, 4, 8);
	output_case_values(c);
	assert_int_equal(output_case_write(c, "mlx", 400000, &err), 0);
	config = parse(&c->written_config);
	expect_table(c, config, "model.embed_tokens", 4);
	expect_table(c, config, "lm_head", 8);
	expect_all(c);
	json_free(config);
	assert_int_equal(output_case_write(c, "packed", 400000, &err), 0);
	expect_all(c); /* as the source has them */
	for (int f = 5; f < CODEC_FORMATS; f++) {
		assert_int_equal(output_case_write(c, codec_formats[f], 400000, &err), 0);
		expect_rounded_table(c, "model.embed_tokens.weight", 4);
		expect_rounded_table(c, "lm_head.weight", 8);
	}
	output_case_deinit(c);
	mem_free(c);
}

/* --- gguf ---------------------------------------------------------------------------------------- */

static int read_file(void *ctx, uint64_t offset, void *out, size_t len, struct err *err)
{
	const struct buf *b = ctx;

	(void)err;
	assert_true(offset + len <= b->len);
	memcpy(out, b->data + offset, len);
	return 0;
}

/* What the row of a tensor should be, and how exactly. */
static double wanted_row(const struct output_case *c, const struct gs_tensor *t, uint64_t r, float *out)
{
	for (size_t i = 0; i < c->model.count; i++) {
		const struct codec_module *m = &c->modules[i];
		const struct codec_values *v = &c->cases[m->layer < 0 ? 0 : i].v;
		const size_t len = strlen(m->name);
		double largest = 0;

		if (m->settings.skip || strncmp(t->name, m->name, len) != 0 || strcmp(t->name + len, ".weight") != 0)
			continue;
		if (m->layer < 0) {
			rounded_row(c, t->name, m->settings.bits, r, out);
			return 1e-6;
		}
		for (size_t k = 0; k < v->cols; k++) {
			const size_t g = (r * v->cols + k) / v->group;

			out[k] = v->scales[g] * ((float)v->codes[r * v->cols + k] - v->zeros[g]);
			largest = fmax(largest, (double)v->scales[g] * (fabs((double)v->zeros[g]) + 256));
		}
		return largest * 0x1p-22;
	}
	for (uint64_t k = 0; k < t->cols; k++)
		out[k] = output_case_value(c, t->name, r * t->cols + k);
	return 0;
}

static void expect_gguf_tensor(struct output_case *c, const struct gr_file *g, const struct gs_tensor *s,
			       const struct gr_tensor *t)
{
	const struct buf *file = &c->files[0].bytes;
	uint32_t elements, bytes;
	float got[1024], want[1024];

	assert_true(gr_type_block(t->type, &elements, &bytes) && s->cols <= 1024);
	(void)g;
	for (uint64_t r = 0; r < s->rows; r++) {
		const size_t blocks = s->cols / elements;
		const double exact = wanted_row(c, s, s->heads && s->ndim == 2 ? gs_row(s, r) : r, want);

		gr_decode(t->type, file->data + t->begin + r * blocks * bytes, blocks, got);
		for (uint64_t k = 0; k < s->cols; k++) {
			const uint64_t from = s->ndim == 1 && s->heads ? gs_row(s, k) : k;

			if (fabs((double)got[k] - (double)want[from]) > exact)
				fail_msg("%s: row %llu, column %llu is %.9g, not %.9g", s->name, (unsigned long long)r,
					 (unsigned long long)k, (double)got[k], (double)want[from]);
		}
	}
}

static void expect_gguf(struct output_case *c)
{
	struct buf *file = &c->files[0].bytes;
	struct err err = ERR_INIT;
	struct gr_text config = { "", 0 }, tokenizer = { "", 0 };
	struct gs_model model;
	struct gr_file g;
	size_t found = 0;

	if (gr_open(&g, "model.gguf", file->len, read_file, file, &err) != 0 || gs_model(&g, &model, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < g.tensor_count; i++) {
		struct gs_tensor t;
		const int rc = gs_tensor(&model, &g.tensors[i], &t, &err);

		if (rc < 0)
			fail_msg("%s", err.text);
		if (rc == 0)
			expect_gguf_tensor(c, &g, &t, &g.tensors[i]);
		found += rc == 0;
	}
	assert_int_equal(found, c->plan.tensor_count);
	assert_true(gs_config(&g, &config));
	assert_int_equal(config.len, strlen(c->config_text));
	assert_true(gs_text(&g, "tokenizer.json", &tokenizer));
	assert_int_equal(tokenizer.len, c->tokenizer_len);
	assert_memory_equal(tokenizer.at, c->tokenizer, tokenizer.len);
	assert_false(gs_text(&g, "tokenizer_config.json", &tokenizer)); /* the model has none */
	gr_close(&g);
}

static const struct { const struct output_case_model *model; int bits; int64_t group; enum zero_kind kind; int embeddings, head; }
gguf_models[] = {
	{ &small, 4, 64, KIND_FLOAT, 0, 0 }, { &small, 2, 32, KIND_INTEGER, 8, 0 }, { &untied, 5, 32, KIND_FLOAT, 4, 8 },
	{ &untied, 8, -1, KIND_SYMMETRIC, 0, 4 }, { &plain, 3, 32, KIND_FLOAT, 0, 0 }, { &wide, 2, 256, KIND_FLOAT, 6, 6 },
	{ &wide, 4, -1, KIND_FLOAT, 0, 8 }, { &wide, 3, 256, KIND_SYMMETRIC, 0, 0 }, { &wide, 6, -1, KIND_SYMMETRIC, 4, 0 },
};

static void gguf_comes_back(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(gguf_models) / sizeof(gguf_models[0]); i++) {
		struct output_case *c = mem_alloc(1, sizeof(*c));
		struct err err = ERR_INIT;
		struct problems p = { 0 };

		output_case_init(c, gguf_models[i].model, gguf_models[i].bits, gguf_models[i].group, gguf_models[i].kind);
		output_case_tables(c, gguf_models[i].embeddings, gguf_models[i].head);
		c->modules[LIN_K].settings.skip = i % 2; /* its rows are reordered all the same */
		output_case_values(c);
		if (output_check(output_format_find("gguf"), &c->model, &p) != 0)
			fail_msg("row %zu: %s", i, p.items[0]);
		if (output_case_write(c, "gguf", 1, &err) != 0)
			fail_msg("row %zu: %s", i, err.text);
		assert_int_equal(c->plan.file_count, 1);
		assert_string_equal(c->files[0].name, "model.gguf");
		assert_int_equal(c->written_config.len + c->extra.len + c->index.len, 0);
		expect_gguf(c);
		output_case_deinit(c);
		mem_free(c);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_format_comes_back),
		cmocka_unit_test(mixed_settings_come_back),
		cmocka_unit_test(files_are_cut_at_modules),
		cmocka_unit_test(files_name_the_layers_they_need),
		cmocka_unit_test(config_json_is_rewritten),
		cmocka_unit_test(an_extra_file_repeats_the_settings),
		cmocka_unit_test(tables_come_back),
		cmocka_unit_test(gguf_comes_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
