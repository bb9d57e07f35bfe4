/* Writing checkpoints when something gives way: memory, the sink, the source, whoever waits; and values that a format
 * cannot hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/half.h"
#include "formats/output_spec.h"
#include "tests/lib/output_case.h"

static const struct output_case_model model = { "llama", 64, 96, false, ST_BF16 };

static const char *const formats[] = { "packed", "mlx", "compressed-tensors", "gptq", "awq", "dense", "dense-f16", "gguf" };
enum { FORMATS = sizeof(formats) / sizeof(formats[0]) };

static bool takes_tables(const char *format)
{
	return strcmp(format, "mlx") == 0 || strcmp(format, "gguf") == 0 || strncmp(format, "dense", 5) == 0;
}

static struct output_case *begin(const char *format)
{
	struct output_case *c = mem_alloc(1, sizeof(*c));

	output_case_init(c, &model, 4, 32, KIND_INTEGER);
	if (takes_tables(format))
		output_case_tables(c, 8, 4);
	output_case_values(c);
	c->discard = true;
	return c;
}

static void end(struct output_case *c)
{
	output_case_deinit(c);
	mem_free(c);
}

/* Each allocation in turn. */
static void every_allocation_may_fail(void **state)
{
	(void)state;
	for (int f = 0; f < FORMATS; f++) {
		struct output_case *c = begin(formats[f]);
		uint64_t n = 1;
		int rc = -1;

		for (; rc != 0 && n < 1000000; n += n < 300 ? 1 : n / 8) {
			struct err err = ERR_INIT;

			mem_fail_after(n);
			rc = output_case_write(c, formats[f], 20000, &err);
			mem_fail_after(0);
			if (rc != 0 && err.code != ERR_NOMEM)
				fail_msg("%s, allocation %llu: %s: %s", formats[f], (unsigned long long)n, err_name(err.code),
					 err.text);
		}
		assert_int_equal(rc, 0);
		assert_true(n > 50);
		end(c);
	}
}

static void fail_each(const char *format, struct output_case *c, uint64_t *which, enum err_code code)
{
	int rc = -1;

	for (*which = 1; rc != 0 && *which < 100000; (*which)++) {
		struct err err = ERR_INIT;

		rc = output_case_write(c, format, 20000, &err);
		if (rc != 0)
			assert_int_equal(err.code, code);
	}
	assert_int_equal(rc, 0);
	assert_true(*which > 5);
	*which = 0;
}

static void every_read_write_and_step_may_fail(void **state)
{
	(void)state;
	for (int f = 0; f < FORMATS; f++) {
		struct output_case *c = begin(formats[f]);

		fail_each(formats[f], c, &c->fail_read, ERR_IO);
		fail_each(formats[f], c, &c->fail_write, ERR_IO);
		fail_each(formats[f], c, &c->stop_at, ERR_CANCELLED);
		end(c);
	}
}

/* --- values -------------------------------------------------------------------------------------- */

static void scales_that_are_no_halves_are_refused(void **state)
{
	static const char *const strict[] = { "mlx", "gguf", "compressed-tensors", "gptq", "awq" };

	(void)state;
	for (size_t i = 0; i < sizeof(strict) / sizeof(strict[0]); i++) {
		struct output_case *c = begin("packed");
		struct err err = ERR_INIT;

		for (int m = 0; m < OUTPUT_CASE_MODULES; m++)
			c->modules[m].settings.symmetric = true;
		for (int m = 0; m < OUTPUT_CASE_MODULES; m++)
			for (size_t g = 0; g < c->cases[m].v.rows * (c->cases[m].v.cols / 32); g++)
				c->cases[m].zeros[g] = 8;
		c->cases[3].scales[5] = 0.1f;
		assert_int_equal(output_case_write(c, strict[i], 1 << 30, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		if (!strstr(err.text, "model.layers.0.self_attn.o_proj: row 2, group 1 has the scale"))
			fail_msg("%s says: %s", strict[i], err.text);
		assert_int_equal(output_case_write(c, "packed", 1 << 30, &err), 0);
		end(c);
	}
}

static int huge_rows(void *ctx, const char *tensor, uint64_t row, uint64_t rows, void *out, struct err *err)
{
	(void)ctx, (void)row, (void)err;
	for (uint64_t i = 0; i < rows * (strstr(tensor, "norm") ? 1 : 64); i++)
		((uint16_t *)out)[i] = f32_to_bf16(1e20f);
	return 0;
}

/* A carried tensor that is rounded to F16 must fit. */
static void carried_tensors_beyond_halves_are_refused(void **state)
{
	static const char *const rounding[] = { "mlx", "gptq", "dense-f16" };
	struct err err = ERR_INIT;

	(void)state;
	for (size_t i = 0; i < sizeof(rounding) / sizeof(rounding[0]); i++) {
		struct output_case *c = begin("packed");

		c->source.rows = huge_rows;
		assert_int_equal(output_case_write(c, rounding[i], 1 << 30, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_non_null(strstr(err.text, "model.embed_tokens.weight holds "));
		assert_non_null(strstr(err.text, ", which F16 cannot hold; dense keeps"));
		err_clear(&err);
		if (output_case_write(c, "dense", 1 << 30, &err) != 0)
			fail_msg("%s", err.text);
		end(c);
	}
}

static char *no_texts(void *ctx, const char *file, size_t *len, struct err *err)
{
	(void)ctx, (void)file, (void)err;
	*len = 0;
	return NULL;
}

static char *odd_tokenizer(void *ctx, const char *file, size_t *len, struct err *err)
{
	const char *text = strcmp(file, "tokenizer.json") == 0 ? "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}" : "{";

	(void)ctx, (void)err;
	*len = strlen(text);
	return strcmp(file, "tokenizer_config.json") == 0 || strcmp(file, "tokenizer.json") == 0 ? mem_strdup(text) : NULL;
}

static void gguf_needs_a_tokenizer_it_can_name(void **state)
{
	const struct output_format *gguf = output_format_find("gguf"), *mlx = output_format_find("mlx");
	struct output_case *c = begin("gguf");
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(output_check_texts(gguf, &c->model, &c->source, &err), 0);
	c->source.text = no_texts;
	assert_int_equal(output_check_texts(gguf, &c->model, &c->source, &err), -1);
	assert_int_equal(err.code, ERR_REFUSED);
	assert_int_equal(output_check_texts(mlx, &c->model, &c->source, &err), 0);
	assert_int_equal(output_case_write(c, "gguf", 1 << 30, &err), -1);
	assert_non_null(strstr(err.text, "tokenizer.json"));
	c->source.text = odd_tokenizer; /* and settings that are no JSON */
	assert_int_equal(output_check_texts(gguf, &c->model, &c->source, &err), -1);
	assert_non_null(strstr(err.text, "tokenizer_config.json"));
	end(c);
}

/* --- modules in specs ---------------------------------------------------------------------------- */

#define ROW(name, layer, rest) "{\"name\":\"" name "\",\"layer\":" #layer ",\"skip\":false,\"bits\":4,\"group_size\":32," \
	"\"method\":\"neuqi\",\"zero_point\":\"float\",\"symmetric\":false,\"rounding\":\"ldlq\"" rest "}"

/* The list with row `at` replaced (or added). */
static int read_changed(const struct output_case *c, size_t at, const char *row, struct err *err)
{
	struct json *list = output_modules_json(c->modules, c->model.count), *changed = json_new_array();
	struct output_modules m;
	size_t i = 0;
	int rc;

	for (const struct json *old = json_first(list); old; old = json_next(old), i++)
		assert_int_equal(json_push(changed, i == at ? json_parse(row, strlen(row), err) : json_copy(old)), 0);
	if (at == i)
		assert_int_equal(json_push(changed, json_parse(row, strlen(row), err)), 0);
	rc = output_modules_read(&m, &c->config, changed, err);
	if (rc == 0)
		output_modules_deinit(&m);
	json_free(list);
	json_free(changed);
	return rc;
}

static void modules_in_specs_are_checked(void **state)
{
	static const struct { size_t at; const char *row, *says; } rows[] = {
		{ 0, ROW("model.layers.0.self_attn.k_proj", 0, ""), "k_proj of the spec is not the one that the model has" },
		{ 0, ROW("model.layers.0.self_attn.q_proj", 1, ""), "is not the one" },
		{ 0, "{\"name\":\"model.layers.0.self_attn.q_proj\",\"layer\":0}", "\"bits\"" },
		{ 0, "{\"layer\":0}", "\"name\"" },
		{ 0, "7", "\"name\"" },
		{ 7, ROW("model.layers.1.self_attn.q_proj", 1, ",\"zero_parts\":0"), "\"zero_parts\" must be" },
		{ 14, ROW("model.norm", -1, ""), "is neither embedding nor head" },
		{ 14, ROW("lm_head", 0, ""), "is neither embedding nor head" },
	};
	struct output_case *c = begin("packed");
	struct output_modules m;
	struct err err = ERR_INIT;
	struct json *list;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		err_clear(&err);
		if (read_changed(c, rows[i].at, rows[i].row, &err) != -1 || !strstr(err.text, rows[i].says))
			fail_msg("row %zu: %s", i, err.text);
	}
	c->modules[3].settings.group_size = 48;
	assert_int_equal(read_changed(c, 0, ROW("model.layers.0.self_attn.q_proj", 0, ""), &err), -1);
	assert_non_null(strstr(err.text, "groups that do not divide"));
	c->modules[3].settings.group_size = 32;
	output_case_tables(c, 8, 8);
	list = output_modules_json(c->modules, c->model.count);
	assert_int_equal(output_modules_read(&m, &c->config, list, &err), 0);
	assert_int_equal(m.count, c->model.count);
	for (size_t i = 0; i < m.count; i++) {
		assert_string_equal(m.items[i].name, c->modules[i].name);
		assert_int_equal(m.items[i].layer, c->modules[i].layer);
		assert_int_equal(m.items[i].linear, c->modules[i].linear);
		assert_int_equal(m.items[i].rows, c->modules[i].rows);
		assert_int_equal(m.items[i].cols, c->modules[i].cols);
		assert_int_equal(m.items[i].settings.bits, c->modules[i].settings.bits);
	}
	output_modules_deinit(&m);
	c->config.tied_embeddings = true;
	assert_int_equal(output_modules_read(&m, &c->config, list, &err), -1);
	assert_non_null(strstr(err.text, "lm_head of the spec is the embedding"));
	json_free(list);
	end(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_allocation_may_fail),
		cmocka_unit_test(every_read_write_and_step_may_fail),
		cmocka_unit_test(scales_that_are_no_halves_are_refused),
		cmocka_unit_test(carried_tensors_beyond_halves_are_refused),
		cmocka_unit_test(gguf_needs_a_tokenizer_it_can_name),
		cmocka_unit_test(modules_in_specs_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
