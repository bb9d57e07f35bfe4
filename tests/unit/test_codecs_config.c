/* What formats write to config.json for mixed models, and that the reader understands it module by module. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/version.h"
#include "tests/lib/codec_case.h"

enum { MODULES = 7, BLOCKS = 2, ALL = MODULES * BLOCKS };

#define SAME "\"bits\":4,\"group_size\":64"

static char names[ALL][64];

static void model(struct codec_module m[ALL], enum zero_kind kind)
{
	static const char *const suffixes[MODULES] = {
		"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
		"mlp.up_proj", "mlp.down_proj",
	};

	for (int i = 0; i < ALL; i++) {
		snprintf(names[i], sizeof(names[i]), "model.layers.%d.%s", i / MODULES, suffixes[i % MODULES]);
		m[i] = codec_case_module(names[i], 64, 256, 4, 64, kind);
		m[i].layer = i / MODULES;
		m[i].linear = (enum block_linear)(i % MODULES);
	}
}

/* down_proj of block 0 has 8 bits; gate and up of block 1 are skipped; the rest 4 bits, groups of 64. */
static void mixed(struct codec_module m[ALL], enum zero_kind kind)
{
	model(m, kind);
	m[LIN_DOWN].settings.bits = 8;
	m[LIN_DOWN].settings.group_size = -1;
	m[MODULES + LIN_GATE].settings.skip = m[MODULES + LIN_UP].settings.skip = true;
}

static struct json *config_of(const char *format, const struct codec_module *m, size_t count, const char *source)
{
	struct json *config = json_new_object(), *from = source ? json_parse(source, strlen(source), NULL) : NULL;

	assert_int_equal(codec_find(format)->config(m, count, from, config), 0);
	json_free(from);
	return config;
}

static void expect_text(struct json *config, const char *expected)
{
	char *text = json_print(config, false);

	assert_string_equal(text, expected);
	mem_free(text);
	json_free(config);
}

static void expect_settings(const struct json *config, const struct codec_module *m, const char *format)
{
	struct stored_settings s;
	struct err err = ERR_INIT;
	const bool mlx = strcmp(format, "mlx") == 0;

	if (stored_settings_of(config, m->name, &s, &err) != 0)
		fail_msg("%s, %s: %s", format, m->name, err.text);
	if (m->settings.skip && mlx)
		return; /* its tensors tell */
	if (s.quantized == m->settings.skip)
		fail_msg("%s: %s is %squantized", format, m->name, s.quantized ? "" : "not ");
	if (!s.quantized)
		return;
	assert_int_equal(s.bits, m->settings.bits);
	assert_int_equal(s.group_size, mlx && m->settings.group_size == -1 ? 128 : m->settings.group_size);
}

static void test_mlx(void **state)
{
	struct codec_module m[ALL];

	(void)state;
	mixed(m, KIND_FLOAT);
#define MLX "{\"group_size\":64,\"bits\":4,\"mode\":\"affine\",\"model.layers.0.mlp.down_proj\":{\"group_size\":128,\"bits\":8}}"
	expect_text(config_of("mlx", m, ALL, "{}"), "{\"quantization\":" MLX ",\"quantization_config\":" MLX "}");
}

/* Readers of mlx know the rotary settings at the top only. */
static void test_mlx_rope(void **state)
{
	struct codec_module m[ALL];

	(void)state;
	model(m, KIND_FLOAT);
	for (int i = 0; i < ALL; i++)
		m[i].settings.skip = true;
	expect_text(config_of("mlx", m, ALL, "{\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"default\"}}"),
		    "{\"rope_theta\":500000}");
	expect_text(config_of("mlx", m, ALL, "{\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"llama3\",\"factor\":8.0}}"),
		    "{\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}");
	expect_text(config_of("mlx", m, ALL, "{\"rope_parameters\":{\"rope_theta\":5e5,\"type\":\"linear\",\"factor\":2},"
					   "\"rope_theta\":1e4,\"rope_scaling\":null}"), "{}");
	expect_text(config_of("mlx", m, ALL, NULL), "{}");
}

#define GPTQ_HEAD(version) "{\"quantization_config\":{\"quant_method\":\"gptq\",\"method\":\"gptq\",\"checkpoint_format\":" \
	version ",\"format\":" version ","
#define GPTQ_TAIL "\"lm_head\":false,\"pack_dtype\":\"int32\",\"dynamic\":"
#define GPTQ_META ",\"meta\":{\"quantizer\":[\"quarry:" QUARRY_VERSION "\"]}}}"

static void test_gptq(void **state)
{
	struct codec_module m[ALL];

	(void)state;
	mixed(m, KIND_INTEGER);
	m[MODULES + LIN_Q].settings.bits = m[MODULES + LIN_K].settings.bits = m[MODULES + LIN_V].settings.bits = 3;
	expect_text(config_of("gptq", m, ALL, NULL), GPTQ_HEAD("\"gptq_v2\"") SAME ",\"desc_act\":false,\"sym\":false," GPTQ_TAIL
		"{\"+:^model\\\\.layers\\\\.0\\\\.mlp\\\\.down_proj$\":{\"bits\":8,\"group_size\":-1,\"desc_act\":false,\"sym\":false},"
		"\"+:^model\\\\.layers\\\\.1\\\\.self_attn\\\\.(q|k|v|qkv)_proj$\":{\"bits\":3,\"group_size\":64,\"desc_act\":false,"
		"\"sym\":false},\"-:^model\\\\.layers\\\\.1\\\\.mlp\\\\.(gate|up|gate_up)_proj$\":{}}" GPTQ_META);
	model(m, KIND_SYMMETRIC);
	expect_text(config_of("gptq", m, ALL, NULL), GPTQ_HEAD("\"gptq\"") SAME ",\"desc_act\":false,\"sym\":true," GPTQ_TAIL
		"{}" GPTQ_META);
}

/* A group that is the whole row but no listed size is written as -1; the head is named. */
static void test_gptq_odd(void **state)
{
	struct codec_module m[2] = {
		codec_case_module("model.layers.0.mlp.up_proj", 64, 96, 4, 96, KIND_INTEGER),
		codec_case_module("lm_head", 64, 96, 4, -1, KIND_INTEGER),
	};
	struct json *config = config_of("gptq", m, 2, NULL);
	const struct json *q = json_get(config, "quantization_config");

	(void)state;
	assert_int_equal(json_get_int(q, "group_size", 0), -1);
	assert_true(json_get_bool(q, "lm_head", false));
	assert_int_equal(json_size(json_get(q, "dynamic")), 0);
	json_free(config);
	m[1].settings.bits = 8;
	config = config_of("gptq", m, 2, NULL);
	assert_int_equal(json_get_int(json_get(json_get(json_get(config, "quantization_config"), "dynamic"), "+:^lm_head$"),
				      "bits", 0), 8);
	expect_settings(config, &m[1], "gptq");
	json_free(config);
}

static void test_awq(void **state)
{
	struct codec_module m[ALL];

	(void)state;
	model(m, KIND_INTEGER);
#define AWQ "{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"zero_point\":true," \
	"\"version\":\"gemm\",\"modules_to_not_convert\":"
	expect_text(config_of("awq", m, ALL, NULL), AWQ "null}}");
	m[MODULES + LIN_GATE].settings.skip = m[MODULES + LIN_UP].settings.skip = m[LIN_DOWN].settings.skip = true;
	expect_text(config_of("awq", m, ALL, NULL), AWQ "[\"model.layers.0.mlp.down_proj\",\"model.layers.1.mlp.gate_proj\","
		    "\"model.layers.1.mlp.up_proj\",\"model.layers.1.mlp.gate_up_proj\",\"lm_head\"]}}");
}

#define CT_HEAD "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\"," \
	"\"quantization_status\":\"compressed\",\"config_groups\":{"
#define CT_WEIGHTS(bits, strategy, group) "\"weights\":{\"num_bits\":" bits ",\"type\":\"int\",\"symmetric\":false," \
	"\"strategy\":\"" strategy "\",\"group_size\":" group ",\"block_structure\":null,\"dynamic\":false," \
	"\"actorder\":null,\"observer\":\"minmax\",\"observer_kwargs\":{}},\"input_activations\":null," \
	"\"output_activations\":null}"

static void test_compressed(void **state)
{
	struct codec_module m[ALL];

	(void)state;
	model(m, KIND_INTEGER);
	expect_text(config_of("compressed-tensors", m, ALL, NULL), CT_HEAD "\"group_0\":{\"targets\":[\"Linear\"],"
		CT_WEIGHTS("4", "group", "64") "},\"ignore\":[\"lm_head\"],\"kv_cache_scheme\":null}}");
	mixed(m, KIND_INTEGER);
	m[LIN_O].settings.bits = 2; /* stored in 4 */
	expect_text(config_of("compressed-tensors", m, MODULES, NULL), CT_HEAD "\"group_0\":{\"targets\":["
		"\"re:^model\\\\.layers\\\\.0\\\\.self_attn\\\\.q_proj$\",\"re:^model\\\\.layers\\\\.0\\\\.self_attn\\\\.k_proj$\","
		"\"re:^model\\\\.layers\\\\.0\\\\.self_attn\\\\.v_proj$\",\"re:^model\\\\.layers\\\\.0\\\\.self_attn\\\\.o_proj$\","
		"\"re:^model\\\\.layers\\\\.0\\\\.mlp\\\\.gate_proj$\",\"re:^model\\\\.layers\\\\.0\\\\.mlp\\\\.up_proj$\"],"
		CT_WEIGHTS("4", "group", "64") ",\"group_1\":{\"targets\":[\"re:^model\\\\.layers\\\\.0\\\\.mlp\\\\.down_proj$\"],"
		CT_WEIGHTS("8", "channel", "null") "},\"ignore\":[\"lm_head\"],\"kv_cache_scheme\":null}}");
	m[LIN_DOWN].settings.skip = true;
	expect_text(config_of("compressed-tensors", m + LIN_UP, 2, NULL), CT_HEAD "\"group_0\":{\"targets\":[\"Linear\"],"
		CT_WEIGHTS("4", "group", "64") "},\"ignore\":[\"lm_head\",\"model.layers.0.mlp.down_proj\"],"
		"\"kv_cache_scheme\":null}}");
}

static void test_packed(void **state)
{
	struct codec_module m[ALL];

	(void)state;
	mixed(m, KIND_FLOAT);
#define PACKED_ONE(skip) "{\"skip\":" skip ",\"bits\":4,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"float\"," \
	"\"symmetric\":false,\"rounding\":\"ldlq\"}"
	expect_text(config_of("packed", m + MODULES + LIN_O, 2, NULL), "{\"quantization_config\":{\"quant_method\":\"quarry\","
		    "\"version\":1,\"bits\":4,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"float\",\"symmetric\":false,"
		    "\"rounding\":\"ldlq\",\"modules\":{\"model.layers.1.self_attn.o_proj\":" PACKED_ONE("false") ","
		    "\"model.layers.1.mlp.gate_proj\":" PACKED_ONE("true") "}}}");
}

/* Nothing quantized: nothing to say. */
static void test_all_skipped(void **state)
{
	static const char *const formats[] = { "mlx", "gptq", "awq", "compressed-tensors" };
	struct codec_module m[ALL];

	(void)state;
	model(m, KIND_INTEGER);
	for (int i = 0; i < ALL; i++)
		m[i].settings.skip = true;
	for (size_t i = 0; i < 4; i++)
		expect_text(config_of(formats[i], m, ALL, "{}"), "{}");
}

static void test_settings_read_back(void **state)
{
	static const struct { const char *format; enum zero_kind kind; } formats[] = {
		{ "packed", KIND_FLOAT }, { "mlx", KIND_FLOAT }, { "gptq", KIND_INTEGER }, { "gptq", KIND_SYMMETRIC },
		{ "awq", KIND_INTEGER }, { "compressed-tensors", KIND_INTEGER }, { "compressed-tensors", KIND_SYMMETRIC },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		struct codec_module m[ALL];
		struct json *config;

		mixed(m, formats[i].kind);
		if (strcmp(formats[i].format, "awq") == 0) {
			m[LIN_DOWN].settings.bits = 4;
			m[LIN_DOWN].settings.group_size = 64;
		}
		config = config_of(formats[i].format, m, ALL, NULL);
		for (int k = 0; k < ALL; k++)
			expect_settings(config, &m[k], formats[i].format);
		json_free(config);
	}
}

/* Memory may run out anywhere: -1, and nothing is lost. */
static void test_out_of_memory(void **state)
{
	static const char *const formats[] = { "packed", "mlx", "gptq", "awq", "compressed-tensors" };
	static const char text[] = "{\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"llama3\"}}";
	struct json *source = json_parse(text, sizeof(text) - 1, NULL);
	struct codec_module m[ALL];

	(void)state;
	assert_non_null(source);
	mixed(m, KIND_INTEGER);
	for (size_t i = 0; i < 5; i++) {
		int rc = -1;

		for (uint64_t nth = 1; rc != 0; nth++) {
			struct json *config = json_new_object();

			mem_fail_after(nth);
			rc = codec_find(formats[i])->config(m, ALL, source, config);
			mem_fail_after(0);
			json_free(config);
			assert_true(nth < 2000);
			assert_true(nth > 10 || rc != 0);
		}
	}
	json_free(source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mlx),
		cmocka_unit_test(test_mlx_rope),
		cmocka_unit_test(test_gptq),
		cmocka_unit_test(test_gptq_odd),
		cmocka_unit_test(test_awq),
		cmocka_unit_test(test_compressed),
		cmocka_unit_test(test_packed),
		cmocka_unit_test(test_all_skipped),
		cmocka_unit_test(test_settings_read_back),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests_name("codecs_config", tests, NULL, NULL);
}
