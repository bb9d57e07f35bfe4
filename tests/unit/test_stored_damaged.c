/* Damaged, hostile and foreign checkpoints: one sentence for each fault, and no crash; failures of memory and of I/O. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/half.h"
#include "formats/gguf_read.h"
#include "formats/stored_folder.h"
#include "formats/stored_parts.h"
#include "tests/lib/stored_case.h"

#define DIR "checkpoint"
#define WEIGHTS DIR "/model.safetensors"
#define Q "model.layers.0.self_attn.q_proj"

static void write_plain(const char *format, enum zero_kind kind, int64_t group, uint64_t shard)
{
	struct stored_case c;

	stored_case_init(&c, (struct stored_options){ "llama", false, 4, group, kind, 0, 16, 16, ST_F16 });
	stored_case_write(&c, format, DIR, shard);
	stored_case_deinit(&c);
}

/* The first sentence of opening and scanning; "" when nothing is wrong. *count of sentences. */
static const char *sentence_of(const char *path, char out[ERR_TEXT_MAX], size_t *count)
{
	struct problems problems = { 0 };
	struct stored_folder f;
	struct err err = ERR_INIT;

	out[0] = '\0';
	if (stored_folder_open(&f, path, &problems, &err) == 0) {
		stored_folder_scan(&f, NULL, NULL, &problems, &err);
		stored_folder_close(&f);
	}
	snprintf(out, ERR_TEXT_MAX, "%s", err.text);
	*count = problems.count;
	if (problems.count)
		assert_string_equal(problems.items[0], err.text);
	problems_deinit(&problems);
	return out;
}

static void expect(const char *path, const char *part, size_t count)
{
	char text[ERR_TEXT_MAX];
	size_t found;

	sentence_of(path, text, &found);
	if (!strstr(text, part))
		fail_msg("expected '%s' in: %s", part, text);
	if (found != count)
		fail_msg("%zu sentences, expected %zu; the first: %s", found, count, text);
}

/* --- tensors ------------------------------------------------------------------------------------- */

static void remove_codes(struct loaded *l) { loaded_remove(l, Q ".codes"); }
static void remove_zeros(struct loaded *l) { loaded_remove(l, Q ".zeros"); }
static void remove_norm(struct loaded *l) { loaded_remove(l, "model.norm.weight"); }

static void add_more(struct loaded *l)
{
	loaded_add(l, "model.layers.0.surprise\n.weight", ST_F16, 1, 1, 0, "\0\0", 2);
}

static void add_plain_weight(struct loaded *l)
{
	void *zeros = mem_alloc(256 * 256, 2);

	loaded_add(l, Q ".weight", ST_F16, 2, 256, 256, zeros, 256 * 256 * 2);
	mem_free(zeros);
}

static void turn_shape(struct loaded *l)
{
	struct st_tensor *t = &loaded_find(l, "model.layers.1.mlp.down_proj.codes")->tensor;
	const uint64_t rows = t->shape[0];

	t->shape[0] = t->shape[1];
	t->shape[1] = rows;
}

static void turn_norm(struct loaded *l)
{
	struct st_tensor *t = &loaded_find(l, "model.norm.weight")->tensor;

	t->ndim = 2;
	t->shape[1] = t->shape[0];
	t->shape[0] = 1;
}

static void other_type(struct loaded *l) { loaded_find(l, Q ".scales")->tensor.dtype = ST_I32; }
static void norm_type(struct loaded *l) { loaded_find(l, "model.norm.weight")->tensor.dtype = ST_I16; }

static void set_float(struct loaded *l, const char *name, size_t at, float value)
{
	((float *)(uintptr_t)loaded_find(l, name)->data)[at] = value;
}

static void negative_scale(struct loaded *l) { set_float(l, Q ".scales", 3, -0.5f); }
static void no_scale(struct loaded *l) { set_float(l, Q ".scales", 3, 0); }
static void infinite_scale(struct loaded *l) { set_float(l, Q ".scales", 5, 1e38f * 10); }
static void nan_zero(struct loaded *l) { set_float(l, Q ".zeros", 6, (float)strtod("nan", NULL)); }

static void nan_norm(struct loaded *l)
{
	((uint16_t *)(uintptr_t)loaded_find(l, "model.layers.1.input_layernorm.weight")->data)[7] = 0x7e00;
}

static void infinite_embedding(struct loaded *l)
{
	((uint16_t *)(uintptr_t)loaded_find(l, MODEL_EMBED_NAME)->data)[300 * 256 + 9] = 0x7c00;
}

static void test_tensors(void **state)
{
	static const struct { void (*change)(struct loaded *l); const char *sentence; size_t count; } cases[] = {
		{ remove_codes, Q " is quantized as config.json says, but its tensors are missing", 3 }, /* the others are left over */
		{ remove_zeros, "tensor " Q ".zeros is missing", 1 },
		{ remove_norm, "tensor \"model.norm.weight\" is missing, or is not one of F16, BF16 or F32", 1 },
		{ add_more, "model.safetensors holds tensor \"model.layers.0.surprise?.weight\" (F16), which is no part of a llama model", 1 },
		{ add_plain_weight, "model.safetensors holds tensor \"" Q ".codes\" (U32), which is no part of", 3 },
		{ turn_shape, "model.layers.1.mlp.down_proj", 1 },
		{ turn_norm, "tensor \"model.norm.weight\" has 2 dimensions, 1 x 256; config.json asks for 1, 256 x 1", 1 },
		{ other_type, "tensor " Q ".scales has type I32", 2 },
		{ norm_type, "tensor \"model.norm.weight\" is missing, or is not one of", 2 },
		{ negative_scale, Q " has scales that are not positive", 1 },
		{ no_scale, Q " has scales that are not positive", 1 },
		{ infinite_scale, "the scale of row 1, group 1 is not finite", 1 },
		{ nan_zero, "the zero-point of row 1, group 2 is not finite", 1 },
		{ nan_norm, "element 7 of tensor \"model.layers.1.input_layernorm.weight\" is not finite", 1 },
		{ infinite_embedding, "element [300, 9] of tensor \"model.embed_tokens.weight\" is not finite", 1 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct loaded l;

		write_plain("packed", KIND_FLOAT, 64, 0);
		l = loaded_read(WEIGHTS);
		cases[i].change(&l);
		loaded_write(&l);
		expect(DIR, cases[i].sentence, cases[i].count);
	}
}

/* Every fault is told, not the first alone. */
static void test_several(void **state)
{
	struct loaded l;

	(void)state;
	write_plain("packed", KIND_FLOAT, 64, 0);
	l = loaded_read(WEIGHTS);
	negative_scale(&l);
	remove_norm(&l);
	add_more(&l);
	nan_norm(&l);
	loaded_write(&l);
	expect(DIR, Q " has scales that are not positive", 4);
}

static int keep_second(void *ctx, const char *file)
{
	char *name = ctx;

	snprintf(name, 64, "%s", file);
	return strstr(name, "model-00002-") != NULL;
}

/* The name of the second of several shards. */
static const char *second_shard(char name[64])
{
	struct stored_folder f;
	struct err err = ERR_INIT;

	name[0] = '\0';
	if (stored_folder_open(&f, DIR, NULL, &err) != 0)
		fail_msg("%s", err.text);
	stored_folder_files(&f, keep_second, name);
	stored_folder_close(&f);
	return name;
}

/* --- files --------------------------------------------------------------------------------------- */

static char *config_with(const char *old, const char *new)
{
	size_t len;
	char *text = file_text(DIR, "config.json", &len), *at = strstr(text, old), *out;
	struct buf b;

	if (!at)
		fail_msg("config.json has no %s", old);
	buf_init(&b, 1 << 20);
	buf_append(&b, text, (size_t)(at - text));
	buf_puts(&b, new);
	buf_puts(&b, at + strlen(old));
	out = buf_take(&b);
	buf_deinit(&b);
	mem_free(text);
	return out;
}

static void change_config(const char *old, const char *new)
{
	char *text = config_with(old, new);

	file_put(DIR, "config.json", text, strlen(text));
	mem_free(text);
}

static void test_configs(void **state)
{
	static const struct { enum zero_kind kind; const char *old, *new, *sentence; size_t count; } cases[] = {
		{ KIND_FLOAT, "\"quarry\"", "\"exl3\"", "names the quantization method 'exl3'", 1 },
		{ KIND_FLOAT, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0", "\"num_hidden_layers\" must be an integer", 1 },
		{ KIND_FLOAT, "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "\"model_type\" is \"mamba\"", 1 },
		{ KIND_FLOAT, "\"" Q "\":{\"skip\":false,\"bits\":4", "\"" Q "\":{\"skip\":false,\"bits\":9", "bits", 1 },
		{ KIND_FLOAT, "\"" Q "\":{\"skip\":false,\"bits\":4", "\"" Q "\":{\"skip\":false,\"bits\":3", Q, 1 },
		{ KIND_FLOAT, "\"quant_method\":\"quarry\"", "\"quant_method\":\"quarry\",\"embeddings\":7", "\"embeddings\" must be 16, 8, 6 or 4",
		  1 },
		{ KIND_FLOAT, "\"" Q "\":{\"skip\":false,\"bits\":4,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"float\"",
		  "\"" Q "\":{\"skip\":false,\"bits\":4,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"integer\"",
		  Q " has zero-points in steps of 1/1 as config.json says, but its values are others", 1 },
		{ KIND_INTEGER, "\"" Q "\":{\"skip\":false,\"bits\":4,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"integer\","
		  "\"symmetric\":false", "\"" Q "\":{\"skip\":false,\"bits\":4,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"integer\","
		  "\"symmetric\":true", Q " is symmetric as config.json says, but its zero-points are not", 1 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[ERR_TEXT_MAX];
		size_t count;

		write_plain("packed", cases[i].kind, 64, 0);
		change_config(cases[i].old, cases[i].new);
		sentence_of(DIR, text, &count);
		if (!strstr(text, cases[i].sentence) || count != cases[i].count)
			fail_msg("row %zu: %zu sentences, the first: %s", i, count, text);
	}
}

static void test_files(void **state)
{
	static const char not_json[] = "{", list[] = "[1]";
	char name[64], path[128], sentence[128], *text, *at;
	size_t len;

	(void)state;
	expect("nowhere", "cannot open nowhere", 1);
	assert_int_equal(dir_make("empty", NULL), 0);
	expect("empty", "empty holds no checkpoint: there is neither config.json nor a .gguf file", 1);
	write_plain("packed", KIND_FLOAT, 64, 0);
	assert_int_equal(truncate(WEIGHTS, 100000), 0);
	expect(DIR, "model.safetensors", 1);
	write_plain("packed", KIND_FLOAT, 64, 200000);
	snprintf(path, sizeof(path), DIR "/%s", second_shard(name));
	assert_int_equal(unlink(path), 0);
	snprintf(sentence, sizeof(sentence), "names %s, which is not in " DIR, name);
	expect(DIR, sentence, 1);
	write_plain("packed", KIND_FLOAT, 64, 200000);
	text = file_text(DIR, "model.safetensors.index.json", &len);
	at = strstr(text, name);
	memcpy(at, "../../../../../../../../etc/passwd", strlen(name));
	file_put(DIR, "model.safetensors.index.json", text, len);
	mem_free(text);
	expect(DIR, "which is not the plain name of a file beside it", 2);
	write_plain("packed", KIND_FLOAT, 64, 0);
	file_put(DIR, "config.json", not_json, 1);
	expect(DIR, "config.json", 1);
	file_put(DIR, "config.json", list, 3);
	expect(DIR, "config.json", 1);
	assert_int_equal(unlink(DIR "/config.json"), 0);
	expect(DIR, "config.json", 1);
}

/* --- gguf ---------------------------------------------------------------------------------------- */

static void replace(char *text, size_t len, const char *old, const char *new)
{
	char *at = memmem(text, len, old, strlen(old));

	if (!at)
		fail_msg("the file has no %s", old);
	memcpy(at, new, strlen(new));
}

static void test_gguf_files(void **state)
{
	static const struct { const char *old, *new, *sentence; size_t count; } cases[] = {
		{ "GGUF", "GGML", "is no gguf file", 1 },
		{ "blk.0.attn_q.weight", "blk.0.attn_x.weight", "gguf tensor blk.0.attn_x.weight is none that a model", 1 },
		{ "blk.1.attn_q.weight", "blk.9.attn_q.weight", "gguf tensor blk.9.attn_q.weight is none", 1 },
		{ "{\n  \"version\"", "[\n  \"version\"", "the gguf file's tokenizer.huggingface.json: ", 1 },
		{ "\"vocab_size\": 1024", "\"vocab_size\": 1025", "tensor \"model.embed_tokens.weight\" has 2 dimensions, 1024 x 256", 1 },
		{ "\"intermediate_size\": 512", "\"intermediate_size\": 544", "gguf tensor blk.0.ffn_gate.weight has 512 x 256 weights; the "
		  "model has 544 x 256", 6 },
		{ "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "model.gguf holds tensor \"blk.1.attn_norm.weight\", which is no part",
		  9 },
		{ "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "tensor \"model.layers.2.input_layernorm.weight\" is missing", 9 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *text, got[ERR_TEXT_MAX];
		size_t len, count;

		write_plain("gguf", KIND_FLOAT, 64, 0);
		text = file_text(DIR, "model.gguf", &len);
		replace(text, len, cases[i].old, cases[i].new);
		file_put(DIR, "model.gguf", text, len);
		mem_free(text);
		sentence_of(DIR "/model.gguf", got, &count);
		if (!strstr(got, cases[i].sentence) || count != cases[i].count)
			fail_msg("row %zu: %zu sentences, the first: %s", i, count, got);
	}
	write_plain("gguf", KIND_FLOAT, 64, 0);
	file_put(DIR, "other.gguf", "GGUF", 4);
	expect(DIR, "holds 2 .gguf files; name one of them", 1);
}

/* Without the config.json inside, one is made of the metadata. */
static void test_gguf_metadata(void **state)
{
	static const char *const families[] = { "llama", "qwen2", "qwen3" };

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct stored_case c;
		struct stored_folder f;
		struct err err = ERR_INIT;
		size_t len;
		char *text;

		stored_case_init(&c, (struct stored_options){ families[i], i > 0, 4, 64, KIND_FLOAT, 0, 16, 16, ST_F16 });
		stored_case_write(&c, "gguf", DIR, 0);
		text = file_text(DIR, "model.gguf", &len);
		replace(text, len, "quarry.source_config", "quarry.source_xxxxxx");
		file_put(DIR, "model.gguf", text, len);
		mem_free(text);
		if (stored_folder_open(&f, DIR, NULL, &err) != 0 || stored_folder_scan(&f, NULL, NULL, NULL, &err) != 0)
			fail_msg("%s: %s", families[i], err.text);
		assert_string_equal(f.config.family, families[i]);
		assert_int_equal(f.config.hidden, c.config.hidden);
		assert_int_equal(f.config.head_dim, c.config.head_dim);
		assert_int_equal(f.config.kv_heads, c.config.kv_heads);
		assert_int_equal(f.config.max_position, c.config.max_position);
		assert_int_equal(f.config.tied_embeddings, c.config.tied_embeddings);
		assert_float_equal(f.config.rms_eps, c.config.rms_eps, 0);
		assert_float_equal(f.config.rope.theta, c.config.rope.theta, 0);
		stored_folder_close(&f);
		stored_case_deinit(&c);
	}
}

/* --- foreign values ------------------------------------------------------------------------------ */

/* What other programs write as mlx: negative scales, and none where all weights of a group are equal. */
static void test_foreign_mlx(void **state)
{
	struct stored_folder f;
	struct output_source source;
	struct err err = ERR_INIT;
	struct loaded l;
	uint16_t *scales, *biases;
	uint8_t *codes = mem_alloc(256 * 256, 1), *before = mem_alloc(256 * 256, 1);
	float s[256 * 4], z[256 * 4], s0[256 * 4], z0[256 * 4];

	(void)state;
	write_plain("mlx", KIND_FLOAT, 64, 0);
	assert_int_equal(stored_folder_open(&f, DIR, NULL, &err), 0);
	assert_int_equal(stored_folder_scan(&f, NULL, NULL, NULL, &err), 0);
	source = stored_folder_source(&f);
	assert_int_equal(source.module(source.ctx, 0, before, s0, z0, &err), 0);
	stored_folder_close(&f);
	l = loaded_read(WEIGHTS);
	scales = (uint16_t *)(uintptr_t)loaded_find(&l, Q ".scales")->data;
	biases = (uint16_t *)(uintptr_t)loaded_find(&l, Q ".biases")->data;
	scales[0] ^= 0x8000;
	scales[1] = scales[2] = scales[3] = 0;
	biases[1] = f32_to_f16(0.75f);
	biases[2] = f32_to_f16(-0.75f);
	biases[3] = 0;
	loaded_write(&l);
	assert_int_equal(stored_folder_open(&f, DIR, NULL, &err), 0);
	if (stored_folder_scan(&f, NULL, NULL, NULL, &err) != 0)
		fail_msg("%s", err.text);
	source = stored_folder_source(&f);
	assert_int_equal(source.module(source.ctx, 0, codes, s, z, &err), 0);
	for (int k = 0; k < 64; k++) { /* -s q + b */
		const double was = -(double)s0[0] * before[k] - (double)s0[0] * (double)z0[0];

		assert_float_equal((double)s[0] * (codes[k] - (double)z[0]), was, 1e-6);
		assert_true(s[0] > 0);
		assert_float_equal(s[1] * (codes[64 + k] - z[1]), 0.75, 0);
		assert_float_equal(s[2] * (codes[128 + k] - z[2]), -0.75, 0);
		assert_float_equal(s[3] * (codes[192 + k] - z[3]), 0, 0);
	}
	stored_folder_close(&f);
	mem_free(codes);
	mem_free(before);
}

/* gptq in activation order: handed on as the numbers it stands for. */
static void test_activation_order(void **state)
{
	struct stored_folder f;
	struct output_model model;
	struct output_source source;
	struct err err = ERR_INIT;
	struct loaded l;
	struct stored_module m;
	int32_t *groups;
	float *rows = mem_alloc(256 * 256, sizeof(float)), *piece = mem_alloc(256 * 256, sizeof(float));
	uint8_t *codes = mem_alloc(256 * 256, 1);
	float s[1024], z[1024];
	enum st_dtype dtype;
	double row[256];

	(void)state;
	write_plain("gptq", KIND_INTEGER, 64, 0);
	l = loaded_read(WEIGHTS);
	groups = (int32_t *)(uintptr_t)loaded_find(&l, Q ".g_idx")->data;
	for (int k = 0; k < 256; k++)
		groups[k] = (k * 7 + 3) % 4;
	loaded_write(&l);
	assert_int_equal(stored_folder_open(&f, DIR, NULL, &err), 0);
	if (stored_folder_scan(&f, NULL, NULL, NULL, &err) != 0)
		fail_msg("%s", err.text);
	assert_non_null(strstr(f.linear[0].why_plain, "activation order"));
	assert_null(f.linear[1].why_plain);
	assert_true(f.modules[0].settings.skip);
	stored_folder_model(&f, &model);
	source = stored_folder_source(&f);
	assert_int_equal(model.dtype(model.ctx, Q ".weight", &dtype), 0);
	assert_int_equal(dtype, ST_F32);
	assert_int_equal(source.rows(source.ctx, Q ".weight", 0, 256, rows, &err), 0);
	assert_int_equal(source.rows(source.ctx, Q ".weight", 100, 20, piece, &err), 0); /* keeps the module */
	assert_memory_equal(piece, rows + 100 * 256, 20 * 256 * sizeof(float));
	assert_int_equal(source.rows(source.ctx, Q ".weight", 7, 1, piece, &err), 0);
	assert_memory_equal(piece, rows + 7 * 256, 256 * sizeof(float));
	assert_int_equal(source.module(source.ctx, 0, codes, s, z, &err), -1);
	assert_int_equal(stored_decode(&f, 0, &m, NULL, &err), 0);
	stored_module_row(&m, 100, row);
	for (int k = 0; k < 256; k++)
		assert_float_equal(rows[100 * 256 + k], (float)row[k], 0);
	stored_module_deinit(&m);
	stored_folder_close(&f);
	mem_free(rows);
	mem_free(piece);
	mem_free(codes);
}

/* Any bytes: the numbers that stored_blocks() finds are those that gr_decode() computes. */
static void test_blocks(void **state)
{
	static const uint32_t types[] = { 2, 3, 6, 7, 8, 10, 11, 12, 13, 14 };
	unsigned char bytes[2 * 256 * 2];
	float want[512];
	double got[512];
	uint64_t x = 88172645463325252u;

	(void)state;
	for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
		uint32_t elements, size;
		struct stored_module m;
		struct err err = ERR_INIT;

		gr_type_block(types[t], &elements, &size);
		for (int round = 0; round < 50; round++) {
			for (size_t i = 0; i < 2 * size; i++) {
				x ^= x << 13, x ^= x >> 7, x ^= x << 17;
				bytes[i] = (unsigned char)(x >> 32);
			}
			if (stored_blocks(types[t], "t", bytes, 1, 2 * elements, &m, &err) != 0) {
				assert_non_null(strstr(err.text, "is not finite"));
				continue;
			}
			gr_decode(types[t], bytes, 2, want);
			stored_module_row(&m, 0, got);
			for (size_t e = 0; e < 2 * elements; e++)
				if (fabs(got[e] - (double)want[e]) > 1e-5 * (fabs(m.offsets[m.group_of[e]]) + fabs((double)want[e])))
					fail_msg("type %u, element %zu: %g, gr_decode says %g", types[t], e, got[e], (double)want[e]);
			stored_module_deinit(&m);
		}
	}
}

/* --- the machine --------------------------------------------------------------------------------- */

static int use(const char *path, struct err *err)
{
	struct problems problems = { 0 };
	struct stored_folder f;
	struct output_source source;
	float values[256];
	size_t len;
	char *text;
	int rc = stored_folder_open(&f, path, &problems, err);

	if (rc != 0) {
		problems_deinit(&problems);
		return rc;
	}
	rc = stored_folder_scan(&f, NULL, NULL, &problems, err);
	source = stored_folder_source(&f);
	if (rc == 0) {
		stored_folder_cast(&f, ST_F32);
		rc = source.rows(source.ctx, MODEL_FINAL_NORM_NAME, 0, 256, values, err);
	}
	if (rc == 0) {
		err_clear(err);
		text = source.text(source.ctx, "config.json", &len, err);
		rc = text ? 0 : -1;
		mem_free(text);
	}
	problems_deinit(&problems);
	stored_folder_close(&f);
	return rc;
}

static void test_no_memory(void **state)
{
	static const char *const formats[] = { "mlx", "gguf", "gptq" };

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct err err = ERR_INIT;
		uint64_t calls, stride;

		write_plain(formats[i], i == 2 ? KIND_INTEGER : KIND_FLOAT, 64, 0);
		mem_fail_after(0);
		calls = mem_fail_after(0);
		assert_int_equal(use(DIR, &err), 0);
		calls = mem_fail_after(0) - calls;
		stride = calls / 150 + 1;
		for (uint64_t n = 1; n <= calls; n += stride) {
			int rc;

			err_clear(&err);
			mem_fail_after(n);
			rc = use(DIR, &err);
			mem_fail_after(0);
			if (rc == 0)
				continue; /* a failure that was made up for */
			if (err.code != ERR_NOMEM)
				fail_msg("%s, allocation %llu of %llu: %s", formats[i], (unsigned long long)n, (unsigned long long)calls,
					 err.text);
		}
	}
}

static void test_io_fails(void **state)
{
	static const enum file_op ops[] = { FILE_OPEN, FILE_READ };

	(void)state;
	write_plain("gguf", KIND_FLOAT, 64, 0);
	for (size_t o = 0; o < 2; o++)
		for (uint64_t n = 1; n <= (o == 0 ? 2 : 12); n++) {
			struct err err = ERR_INIT;
			int rc;

			file_fail_after(ops[o], n);
			rc = use(DIR, &err);
			file_fail_after(ops[o], 0);
			assert_int_equal(rc, -1);
			assert_int_equal(err.code, ERR_IO);
		}
}

static int stop(void *ctx, double share, struct err *err)
{
	int *calls = ctx;

	assert_true(share >= 0 && share <= 1);
	return ++*calls == 5 ? err_set(err, ERR_CANCELLED, "interrupted") : 0;
}

static void test_stopped(void **state)
{
	struct stored_folder f;
	struct err err = ERR_INIT;
	int calls = 0;

	(void)state;
	write_plain("packed", KIND_FLOAT, 64, 0);
	assert_int_equal(stored_folder_open(&f, DIR, NULL, &err), 0);
	assert_int_equal(stored_folder_scan(&f, stop, &calls, NULL, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	assert_int_equal(calls, 5);
	stored_folder_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tensors), cmocka_unit_test(test_several), cmocka_unit_test(test_configs),
		cmocka_unit_test(test_files), cmocka_unit_test(test_gguf_files), cmocka_unit_test(test_gguf_metadata),
		cmocka_unit_test(test_foreign_mlx), cmocka_unit_test(test_activation_order), cmocka_unit_test(test_blocks),
		cmocka_unit_test(test_no_memory), cmocka_unit_test(test_io_fails), cmocka_unit_test(test_stopped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
