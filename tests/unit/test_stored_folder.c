/* Checkpoints in every format, read back from disk: the same codes, scales and zero-points, the same rows, and the same files
 * when they are written again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/half.h"
#include "formats/embedding.h"
#include "formats/stored_folder.h"
#include "tests/lib/stored_case.h"

static void open_folder(struct stored_folder *f, const char *path)
{
	struct problems problems = { 0 };
	struct err err = ERR_INIT;

	if (stored_folder_open(f, path, &problems, &err) != 0)
		fail_msg("%s: %s", path, err.text);
	if (stored_folder_scan(f, NULL, NULL, &problems, &err) != 0)
		fail_msg("%s: %s", path, err.text);
	assert_int_equal(problems.count, 0);
}

/* --- what is read -------------------------------------------------------------------------------- */

static void expect_module(struct stored_folder *f, const struct output_source *source, const struct stored_case *c, size_t i)
{
	const struct codec_values *v = &c->linears[i].v;
	const struct codec_module *m = &f->modules[i];
	const size_t groups = v->cols / v->group, now = (size_t)m->cols / codec_group(m), run = now / groups;
	uint8_t *codes = mem_alloc(v->rows * v->cols, 1);
	float *scales = mem_alloc(v->rows * now, sizeof(float)), *zeros = mem_alloc(v->rows * now, sizeof(float));
	struct err err = ERR_INIT;

	if (source->module(source->ctx, i, codes, scales, zeros, &err) != 0)
		fail_msg("%s", err.text);
	/* compared as values: formats may keep codes of 2 bits in 4, and signed ones shifted */
	for (size_t n = 0; n < v->rows; n++)
		for (size_t k = 0; k < v->cols; k++) {
			const size_t g = n * groups + k / v->group, h = n * now + k / codec_group(m);
			const double was = (double)v->scales[g] * ((double)v->codes[n * v->cols + k] - (double)v->zeros[g]);
			const double is = (double)scales[h] * ((double)codes[n * v->cols + k] - (double)zeros[h]);

			if (was != is)
				fail_msg("%s [%zu, %zu]: %.9g, was %.9g", m->name, n, k, is, was);
		}
	assert_int_equal(run, 1); /* groups that were stored as several are one again */
	mem_free(codes);
	mem_free(scales);
	mem_free(zeros);
}

struct rows_case { struct stored_folder *f; const struct output_source *source; const struct stored_case *c; size_t linear; };

static int expect_plain(void *ctx, const struct model_tensor *t)
{
	struct rows_case *r = ctx;
	const uint64_t rows = t->dim[0], cols = t->dim[1] ? t->dim[1] : 1;
	struct output_model model;
	struct err err = ERR_INIT;
	enum st_dtype dtype;
	void *raw;

	if (t->layer >= 0 && t->dim[1] && !r->c->modules[r->linear++].settings.skip)
		return 0;
	stored_folder_model(r->f, &model);
	if (model.dtype(model.ctx, t->name, &dtype) != 0)
		fail_msg("%s has no type", t->name);
	raw = mem_alloc((size_t)(rows * cols), 4);
	if (r->source->rows(r->source->ctx, t->name, 0, rows, raw, &err) != 0)
		fail_msg("%s", err.text);
	for (uint64_t i = 0; i < rows * cols; i++) {
		const float was = stored_case_number(t->name, i), is = dtype == ST_F32 ? ((float *)raw)[i] :
			dtype == ST_F16 ? f16_to_f32(((uint16_t *)raw)[i]) : bf16_to_f32(((uint16_t *)raw)[i]);

		if (was != is)
			fail_msg("%s [%llu]: %g, was %g", t->name, (unsigned long long)i, (double)is, (double)was);
	}
	mem_free(raw);
	return 0;
}

static void expect_same(struct stored_folder *f, const struct stored_case *c)
{
	const struct output_source source = stored_folder_source(f);
	struct rows_case r = { f, &source, c, 0 };

	assert_int_equal(f->linears, STORED_LAYERS * LIN_COUNT);
	for (size_t i = 0; i < f->linears; i++) {
		assert_string_equal(f->modules[i].name, c->modules[i].name);
		assert_int_equal(f->linear[i].quantized, !c->modules[i].settings.skip);
		assert_null(f->linear[i].why_plain);
		if (f->linear[i].quantized)
			expect_module(f, &source, c, i);
	}
	model_each_tensor(&f->config, expect_plain, &r);
	assert_int_equal(r.linear, f->linears);
}

/* --- every format -------------------------------------------------------------------------------- */

static const struct row {
	const char *format;
	struct stored_options options;
	const char *again;      /* the format that it is written to from the folder, to the same bytes as from the model */
} rows[] = {
	{ "packed", { "llama", false, 4, 64, KIND_FLOAT, 0, 16, 16, ST_BF16 }, "mlx" },
	{ "packed", { "qwen2", true, 3, -1, KIND_INTEGER, 1u << LIN_DOWN, 16, 16, ST_F32 }, "gguf" },
	{ "packed", { "llama", false, 2, 128, KIND_QUARTERS, 0, 16, 16, ST_F16 }, "compressed-tensors" },
	{ "packed", { "llama", false, 4, 128, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "gptq" },
	{ "mlx", { "llama", false, 4, 64, KIND_FLOAT, 0, 16, 16, ST_F16 }, "packed" },
	{ "mlx", { "qwen3", true, 3, 256, KIND_FLOAT, 1u << LIN_O, 16, 16, ST_F16 }, "gguf" },
	{ "mlx", { "llama", false, 2, -1, KIND_FLOAT, 0, 16, 16, ST_F16 }, "gguf" },
	{ "mlx", { "llama", false, 4, 32, KIND_INTEGER, 0, 16, 16, ST_F16 }, "awq" },
	{ "mlx", { "llama", false, 8, 128, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "gptq" },
	{ "gguf", { "llama", false, 4, 64, KIND_FLOAT, 0, 16, 16, ST_F16 }, "mlx" },
	{ "gguf", { "llama", true, 2, 256, KIND_FLOAT, 1u << LIN_Q | 1u << LIN_UP, 16, 16, ST_F16 }, "mlx" },
	{ "gguf", { "qwen2", true, 3, -1, KIND_FLOAT, 1u << LIN_K, 16, 16, ST_F16 }, "mlx" },
	{ "gguf", { "qwen3", true, 5, 32, KIND_FLOAT, 0, 16, 16, ST_F16 }, "mlx" },
	{ "gguf", { "qwen3", true, 5, 256, KIND_FLOAT, 0, 16, 16, ST_F16 }, "mlx" },
	{ "gguf", { "llama", false, 4, 32, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "gptq" },
	{ "gguf", { "llama", false, 5, 32, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "mlx" },
	{ "gguf", { "llama", false, 3, 256, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "gptq" },
	{ "gguf", { "llama", false, 6, 256, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "mlx" },
	{ "gguf", { "llama", false, 8, 32, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "gptq" },
	{ "gguf", { "llama", false, 4, 256, KIND_INTEGER, 0, 16, 16, ST_F16 }, "compressed-tensors" },
	{ "gguf", { "llama", false, 2, 256, KIND_QUARTERS, 0, 16, 16, ST_F16 }, "compressed-tensors" },
	{ "gguf", { "llama", false, 4, 32, KIND_INTEGER, 0, 16, 16, ST_F16 }, NULL },
	{ "gptq", { "llama", false, 4, 128, KIND_INTEGER, 0, 16, 16, ST_F16 }, "compressed-tensors" },
	{ "gptq", { "llama", true, 3, -1, KIND_SYMMETRIC, 1u << LIN_DOWN, 16, 16, ST_F16 }, "mlx" },
	{ "gptq", { "llama", false, 8, 64, KIND_INTEGER, 0, 16, 16, ST_F16 }, "mlx" },
	{ "awq", { "llama", false, 4, 64, KIND_INTEGER, 1u << LIN_O, 16, 16, ST_F16 }, "gptq" },
	{ "compressed-tensors", { "llama", false, 4, 64, KIND_INTEGER, 0, 16, 16, ST_F16 }, "awq" },
	{ "compressed-tensors", { "llama", false, 8, -1, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, "gptq" },
	{ "compressed-tensors", { "llama", false, 3, 64, KIND_HALVES, 0, 16, 16, ST_F16 }, NULL },
	{ "dense", { "qwen2", true, 4, 64, KIND_FLOAT, 0x7f, 16, 16, ST_BF16 }, "dense" },
};

static void write_again(struct stored_folder *f, struct stored_case *c, const struct row *row)
{
	const struct output_source source = stored_folder_source(f);
	const char *name = strcmp(row->again, "gguf") == 0 ? "model.gguf" : "model.safetensors";
	struct output_model model;
	struct problems problems = { 0 };
	struct err err = ERR_INIT;

	stored_case_write(c, row->again, "from-model", 0);
	stored_folder_model(f, &model);
	if (output_check(output_format_find(row->again), &model, &problems) != 0)
		fail_msg("%s to %s: %s", row->format, row->again, problems.items[0]);
	if (stored_write(&model, &source, f->config_text, row->again, "from-folder", 0, &err) != 0)
		fail_msg("%s to %s: %s", row->format, row->again, err.text);
	if (strcmp(row->again, "gguf") != 0 && strcmp(row->again, "packed") != 0) /* those carry texts and settings */
		assert_true(files_equal("from-model", "from-folder", name));
}

static void test_every_format(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct stored_case c;
		struct stored_folder f;

		print_message("# row %zu: %s\n", i, rows[i].format);
		stored_case_init(&c, rows[i].options);
		stored_case_write(&c, rows[i].format, "checkpoint", i % 2 ? 200000 : 0);
		open_folder(&f, "checkpoint");
		assert_string_equal(f.format, rows[i].format);
		expect_same(&f, &c);
		if (rows[i].again)
			write_again(&f, &c, &rows[i]);
		stored_folder_close(&f);
		stored_case_deinit(&c);
	}
}

/* gguf written again: the same tensors, read back. */
static void test_through_gguf(void **state)
{
	struct stored_case c;
	struct stored_folder f, g;
	struct output_model model;
	struct output_source source;
	struct err err = ERR_INIT;

	(void)state;
	stored_case_init(&c, (struct stored_options){ "llama", true, 4, 256, KIND_FLOAT, 1u << LIN_Q, 16, 16, ST_BF16 });
	stored_case_write(&c, "packed", "packed", 100000);
	open_folder(&f, "packed");
	stored_folder_model(&f, &model);
	source = stored_folder_source(&f);
	assert_int_equal(stored_write(&model, &source, f.config_text, "gguf", "gguf", 0, &err), 0);
	open_folder(&g, "gguf/model.gguf");
	expect_same(&g, &c);
	assert_string_equal(g.config_text, f.config_text);
	assert_string_equal(g.linear[1].type, "Q4_K");
	stored_folder_close(&g);
	stored_folder_close(&f);
	stored_case_deinit(&c);
}

/* --- settings ------------------------------------------------------------------------------------ */

static void test_settings(void **state)
{
	static const struct { const char *format; struct stored_options options; int bits; int64_t group; unsigned parts; } cases[] = {
		{ "packed", { "llama", false, 3, 64, KIND_HALVES, 0, 16, 16, ST_F16 }, 3, 64, 2 },
		{ "mlx", { "llama", false, 3, -1, KIND_FLOAT, 0, 16, 16, ST_F16 }, 3, -1, 0 },
		{ "mlx", { "llama", false, 3, 256, KIND_HALVES, 0, 16, 16, ST_F16 }, 3, -1, 2 }, /* K = 256 but for down */
		{ "gguf", { "llama", false, 3, 64, KIND_FLOAT, 0, 16, 16, ST_F16 }, 3, 64, 0 },
		{ "gguf", { "llama", false, 4, 64, KIND_SYMMETRIC, 0, 16, 16, ST_F16 }, 4, 64, 1 },
		{ "gptq", { "llama", false, 4, 64, KIND_INTEGER, 0, 16, 16, ST_F16 }, 4, 64, 1 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct stored_case c;
		struct stored_folder f;
		uint64_t bytes, weights;

		stored_case_init(&c, cases[i].options);
		stored_case_write(&c, cases[i].format, "checkpoint", 0);
		open_folder(&f, "checkpoint");
		assert_int_equal(f.modules[0].settings.bits, cases[i].bits);
		assert_int_equal(f.modules[0].settings.group_size, cases[i].group);
		assert_int_equal(codec_zero_parts(&f.modules[0]), cases[i].parts);
		assert_int_equal(f.modules[0].settings.symmetric, cases[i].options.kind == KIND_SYMMETRIC);
		stored_folder_quantized(&f, &bytes, &weights);
		assert_true(bytes > 0);
		assert_int_equal(weights, 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 512));
		assert_int_equal(stored_folder_parameters(&f), weights + 5 * 256 + 1024 * 256);
		stored_folder_close(&f);
		stored_case_deinit(&c);
	}
}

/* --- tables -------------------------------------------------------------------------------------- */

static void expect_table(struct stored_folder *f, const char *tensor, int bits)
{
	const struct output_source source = stored_folder_source(f);
	float *is = mem_alloc(STORED_VOCAB * STORED_HIDDEN, sizeof(float)), *was = mem_alloc(STORED_VOCAB * STORED_HIDDEN, sizeof(float));
	struct err err = ERR_INIT;

	for (uint64_t i = 0; i < STORED_VOCAB * STORED_HIDDEN; i++)
		was[i] = stored_case_number(tensor, i);
	assert_int_equal(embedding_round(bits, "t", 0, was, STORED_VOCAB, STORED_HIDDEN, &err), 0);
	if (source.rows(source.ctx, tensor, 0, STORED_VOCAB, is, &err) != 0)
		fail_msg("%s", err.text);
	for (uint64_t i = 0; i < STORED_VOCAB * STORED_HIDDEN; i++)
		assert_float_equal(is[i], was[i], 0);
	assert_int_equal(source.rows(source.ctx, tensor, 17, 3, is, &err), 0);
	for (uint64_t i = 0; i < 3 * STORED_HIDDEN; i++)
		assert_float_equal(is[i], was[17 * STORED_HIDDEN + i], 0);
	assert_int_equal(source.rows(source.ctx, tensor, STORED_VOCAB - 1, 2, is, &err), -1);
	mem_free(is);
	mem_free(was);
}

static void test_tables(void **state)
{
	/* Rounding to 6 bits again finds other scales: such a table is handed on as plain numbers. */
	static const struct { const char *format; int embeddings, head, found; } cases[] = {
		{ "mlx", 8, 4, 8 }, { "gguf", 4, 8, 4 }, { "gguf", 6, 8, 16 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct stored_case c;
		struct stored_folder f, g;
		struct output_model model;
		struct output_source source;
		struct err err = ERR_INIT;

		stored_case_init(&c, (struct stored_options){ "qwen2", true, 4, 64, KIND_FLOAT, 0, cases[i].embeddings, cases[i].head,
							       ST_F16 });
		stored_case_write(&c, cases[i].format, "checkpoint", 0);
		open_folder(&f, "checkpoint");
		assert_int_equal(f.table_bits[0], cases[i].found);
		assert_int_equal(f.table_bits[1], cases[i].head);
		assert_int_equal(f.count, f.linears + 1 + (cases[i].found != 16));
		assert_int_equal(f.tables[0].why_plain != NULL, cases[i].found == 16);
		expect_table(&f, MODEL_EMBED_NAME, cases[i].embeddings);
		expect_table(&f, MODEL_HEAD_NAME, cases[i].head);
		/* rounding again changes nothing: another format, and back */
		stored_folder_model(&f, &model);
		source = stored_folder_source(&f);
		assert_int_equal(stored_write(&model, &source, f.config_text, "packed", "packed", 0, &err), 0);
		open_folder(&g, "packed");
		assert_int_equal(g.table_bits[0], cases[i].found);
		assert_int_equal(g.table_bits[1], cases[i].head);
		if (cases[i].found != 16)
			expect_table(&g, MODEL_EMBED_NAME, cases[i].embeddings);
		stored_folder_close(&g);
		stored_folder_close(&f);
		stored_case_deinit(&c);
	}
}

/* What is asked of tables afterwards. */
static void test_asked_tables(void **state)
{
	struct stored_case c;
	struct stored_folder f;
	struct err err = ERR_INIT;

	(void)state;
	stored_case_init(&c, (struct stored_options){ "llama", false, 4, 64, KIND_FLOAT, 0, 16, 16, ST_F16 });
	stored_case_write(&c, "packed", "packed", 0);
	open_folder(&f, "packed");
	assert_int_equal(stored_folder_tables(&f, 0, 8, &err), -1);
	assert_non_null(strstr(err.text, "lm_head 8 and embeddings 16 must be equal"));
	assert_int_equal(stored_folder_tables(&f, 8, 0, &err), 0);
	assert_int_equal(f.count, f.linears + 1);
	assert_int_equal(f.modules[f.linears].settings.bits, 8);
	assert_int_equal(stored_folder_tables(&f, 16, 16, &err), 0);
	assert_int_equal(f.count, f.linears);
	stored_folder_close(&f);
	stored_case_deinit(&c);
}

/* --- casting ------------------------------------------------------------------------------------- */

static void test_cast(void **state)
{
	struct stored_case c;
	struct stored_folder f;
	struct output_model model;
	struct output_source source;
	struct err err = ERR_INIT;
	enum st_dtype dtype;
	uint16_t halves[STORED_HIDDEN];

	(void)state;
	stored_case_init(&c, (struct stored_options){ "llama", false, 4, 64, KIND_FLOAT, 0, 16, 16, ST_F32 });
	stored_case_write(&c, "packed", "packed", 0);
	open_folder(&f, "packed");
	stored_folder_model(&f, &model);
	source = stored_folder_source(&f);
	assert_int_equal(model.dtype(model.ctx, MODEL_FINAL_NORM_NAME, &dtype), 0);
	assert_int_equal(dtype, ST_F32);
	stored_folder_cast(&f, ST_F16);
	assert_int_equal(model.dtype(model.ctx, MODEL_FINAL_NORM_NAME, &dtype), 0);
	assert_int_equal(dtype, ST_F16);
	assert_int_equal(source.rows(source.ctx, MODEL_FINAL_NORM_NAME, 0, STORED_HIDDEN, halves, &err), 0);
	for (uint64_t i = 0; i < STORED_HIDDEN; i++)
		assert_float_equal(f16_to_f32(halves[i]), stored_case_number(MODEL_FINAL_NORM_NAME, i), 0);
	assert_int_equal(model.dtype(model.ctx, "model.layers.9.nothing", &dtype), -1);
	assert_int_equal(source.rows(source.ctx, "nothing", 0, 1, halves, &err), -1);
	stored_folder_close(&f);
	stored_case_deinit(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_format), cmocka_unit_test(test_through_gguf), cmocka_unit_test(test_settings),
		cmocka_unit_test(test_tables), cmocka_unit_test(test_asked_tables), cmocka_unit_test(test_cast),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
