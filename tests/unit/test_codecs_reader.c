/* The reader against damaged and foreign checkpoints: each ends in one sentence, never in a crash or a guess. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/codec_case.h"

#define Q "model.layers.0.self_attn.q_proj"

static struct json *parse(const char *text)
{
	struct err err = ERR_INIT;
	struct json *config = json_parse(text, strlen(text), &err);

	if (!config)
		fail_msg("%s: %s", text, err.text);
	return config;
}

/* --- config.json --------------------------------------------------------------------------------- */

#define GPTQ(members) "{\"quantization_config\":{\"quant_method\":\"gptq\"," members "}}"
#define AWQ(members) "{\"quantization_config\":{\"quant_method\":\"awq\"," members "}}"
#define CT(members) "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\"," members "}}"
#define CT_GROUP(targets, weights) CT("\"format\":\"pack-quantized\",\"config_groups\":{\"a\":{\"targets\":[" targets \
	"],\"weights\":{" weights "}}}")

static const struct { const char *config, *sentence; } refused[] = {
	{ "{\"quantization_config\":{\"quant_method\":\"exl3\"}}", "names the quantization method 'exl3'" },
	{ "{\"quantization_config\":{}}", "names the quantization method '(none)'" },
	{ "{\"quantization\":{\"bits\":4}}", "group_size" },
	{ "{\"quantization\":{\"bits\":9,\"group_size\":64}}", "bits" },
	{ "{\"quantization\":{\"bits\":4,\"group_size\":64,\"mode\":\"mxfp4\"}}", "mode 'mxfp4' is not known" },
	{ "{\"quantization\":{\"bits\":4,\"group_size\":64,\"" Q "\":{\"bits\":4,\"group_size\":0}}}", "group_size" },
	{ GPTQ("\"bits\":4"), "group_size" },
	{ GPTQ("\"bits\":1,\"group_size\":64"), "bits" },
	{ GPTQ("\"bits\":4,\"group_size\":-2"), "group_size" },
	{ GPTQ("\"bits\":4,\"group_size\":0"), "groups of 0" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"+:.*q_proj\":{\"bits\":12}}"), "12 bits and groups of 64" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:.*(?:q|k)_proj\":{}}"), "by the pattern '.*(?:q|k)_proj'" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:layers\\\\.\\\\d+\":{}}"), "which this reader does not understand" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:a*?\":{}}"), "does not understand" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:[a\\\\]]\":{}}"), "does not understand" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:[a\":{}}"), "does not understand" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:(\":{}}"), "does not understand" },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:a\\\\\":{}}"), "does not understand" },
	{ AWQ("\"bits\":8,\"group_size\":64"), "bits" },
	{ AWQ("\"bits\":4,\"group_size\":64,\"version\":\"gemv\""), "awq version 'gemv' is not known" },
	{ CT("\"format\":\"float-quantized\""), "format 'float-quantized' is not known" },
	{ CT_GROUP("\"Linear\"", "\"num_bits\":3,\"group_size\":64"), "num_bits 3 has no one way to be packed" },
	{ CT_GROUP("\"Linear\"", "\"num_bits\":4,\"type\":\"float\""), "weights of type 'float'" },
	{ CT_GROUP("\"Linear\"", "\"num_bits\":4,\"strategy\":\"block\""), "strategy 'block' is not known" },
	{ CT_GROUP("\"Linear\"", "\"num_bits\":4,\"strategy\":\"group\",\"group_size\":null"), "group_size" },
	{ CT_GROUP("\"Linear\"", "\"strategy\":\"channel\""), "num_bits" },
	{ CT_GROUP("\"re:a++\"", "\"num_bits\":4"), "does not understand" },
	{ "{\"quantization_config\":{\"quant_method\":\"quarry\",\"modules\":{\"" Q "\":{\"bits\":0,\"group_size\":8}}}}", "bits" },
	{ "{\"quantization_config\":{\"quant_method\":\"quarry\",\"modules\":{\"" Q "\":{\"bits\":2,\"group_size\":0}}}}",
	  "groups of 0" },
};

static void test_refused_configs(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		struct json *config = parse(refused[i].config);
		struct stored_settings s;
		struct stored_module m;
		struct err err = ERR_INIT;
		struct codec_case none = { 0 };

		assert_int_equal(stored_settings_of(config, Q, &s, &err), -1);
		if (!strstr(err.text, refused[i].sentence))
			fail_msg("row %zu says: %s", i, err.text);
		assert_int_equal(stored_module_read(config, Q, 0, 0, codec_case_source(&none), &m, &err), -1);
		assert_null(m.codes);
		json_free(config);
	}
}

static const struct { const char *config; bool quantized; int bits; int64_t group; } understood[] = {
	{ "{}", false, 0, 0 },
	{ "{\"quantization_config\":null}", false, 0, 0 },
	{ "{\"quantization\":{\"bits\":4,\"group_size\":64,\"" Q "\":false}}", false, 0, 0 },
	{ "{\"quantization\":{\"bits\":4,\"group_size\":64,\"" Q "\":{\"bits\":3,\"group_size\":32}}}", true, 3, 32 },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:q_proj\":{},\"layers\":{\"bits\":2}}"), true, 4, 64 },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:.*k_proj\":{},\"+:model[.a-z]+0\":{\"bits\":8},\"-:m\":{}}"), true,
	  8, 64 },
	{ GPTQ("\"bits\":4,\"group_size\":64,\"dynamic\":{\"-:.*q_proj\":{}}"), false, 4, 64 },
	{ AWQ("\"bits\":4,\"group_size\":32,\"modules_to_not_convert\":[\"k_proj\"]"), true, 4, 32 },
	{ AWQ("\"bits\":4,\"group_size\":32,\"version\":\"GEMM\",\"modules_to_not_convert\":[\"self_attn\"]"), false, 4, 32 },
	{ CT_GROUP("\"Linear\"", "\"num_bits\":4,\"group_size\":32"), true, 4, 32 },
	{ CT_GROUP("\"re:.*q_proj\"", "\"num_bits\":8"), true, 8, -1 },
	{ CT_GROUP("\"re:.*k_proj\",\"" Q "\"", "\"num_bits\":2,\"strategy\":\"channel\""), true, 2, -1 },
	{ CT_GROUP("\"re:.*k_proj\",\"Embedding\"", "\"num_bits\":4"), false, 0, 0 },
	{ CT("\"format\":\"pack-quantized\",\"ignore\":[\"re:.*q_proj\"]"), false, 0, 0 },
	{ "{\"quantization_config\":{\"quant_method\":\"quarry\",\"modules\":{\"" Q "\":{\"skip\":true}}}}", false, 0, 0 },
};

static void test_understood_configs(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(understood) / sizeof(understood[0]); i++) {
		struct json *config = parse(understood[i].config);
		struct stored_settings s;
		struct err err = ERR_INIT;

		if (stored_settings_of(config, Q, &s, &err) != 0)
			fail_msg("row %zu: %s", i, err.text);
		assert_int_equal(s.quantized, understood[i].quantized);
		if (s.quantized) {
			assert_int_equal(s.bits, understood[i].bits);
			assert_int_equal(s.group_size, understood[i].group);
		}
		json_free(config);
	}
}

/* --- tensors ------------------------------------------------------------------------------------- */

static const struct { const char *format; enum zero_kind kind; } written[] = {
	{ "packed", KIND_FLOAT }, { "mlx", KIND_FLOAT }, { "gptq", KIND_INTEGER }, { "awq", KIND_INTEGER },
	{ "compressed-tensors", KIND_INTEGER },
};
enum { FORMATS = sizeof(written) / sizeof(written[0]) };

static void make(struct codec_case *c, size_t i)
{
	struct err err = ERR_INIT;

	codec_case_init(c, codec_case_module(Q, 32, 64, 4, 32, written[i].kind), i);
	codec_case_room(c, codec_find(written[i].format));
	assert_int_equal(codec_case_encode(c, &err), 0);
}

static int read_back(struct codec_case *c, struct err *err)
{
	struct stored_module m;
	const int rc = stored_module_read(c->config, Q, 32, 64, codec_case_source(c), &m, err);

	if (rc == 0)
		stored_module_deinit(&m);
	assert_null(m.codes);
	return rc;
}

static void expect_corrupt(struct codec_case *c, const char *what)
{
	struct err err = ERR_INIT;

	if (read_back(c, &err) != -1 || err.code != ERR_CORRUPT || !strstr(err.text, Q))
		fail_msg("%s, %s: %s", c->codec->name, what, err.text);
}

/* Each tensor in turn: missing, of another type, shape, rank or length. */
static void test_damaged_tensors(void **state)
{
	(void)state;
	for (size_t f = 0; f < FORMATS; f++) {
		struct codec_case c;

		make(&c, f);
		for (unsigned i = 0; i < c.count; i++) {
			const struct codec_tensor t = c.tensors[i];
			const size_t len = c.len[i];
			struct err err = ERR_INIT;

			if (strcmp(t.suffix, ".g_idx") != 0) {
				c.tensors[i].suffix = ".other";
				assert_int_equal(read_back(&c, &err), i == (strcmp(written[f].format, "mlx") == 0) ? 1 : -1);
			}
			c.tensors[i] = t;
			c.tensors[i].dtype = ST_U8;
			expect_corrupt(&c, "type");
			c.tensors[i] = t;
			c.tensors[i].ndim = 0;
			expect_corrupt(&c, "rank");
			c.tensors[i] = t;
			c.tensors[i].shape[0]++;
			expect_corrupt(&c, "length");
			c.tensors[i].shape[0] = 0;
			expect_corrupt(&c, "no rows");
			c.tensors[i].shape[0] = UINT64_MAX / 2;
			expect_corrupt(&c, "too many rows");
			c.tensors[i] = t;
			c.tensors[i].shape[0] = t.shape[0] / 2;
			c.len[i] = len / 2;
			expect_corrupt(&c, "half of the rows");
			c.len[i] = len;
			c.tensors[i] = t;
			if (t.ndim == 2 && t.shape[1] % 2 == 0) {
				c.tensors[i].shape[1] /= 2;
				c.len[i] = len / 2;
				expect_corrupt(&c, "half of the columns");
			}
			c.len[i] = len;
			c.tensors[i] = t;
		}
		assert_int_equal(read_back(&c, &(struct err)ERR_INIT), 0);
		codec_case_deinit(&c);
	}
}

static void test_damaged_numbers(void **state)
{
	static const struct { size_t format; const char *suffix; size_t width; const char *sentence; } numbers[] = {
		{ 0, ".scales", 4, "the scale of row 0, group 1 is not finite" },
		{ 0, ".zeros", 4, "the zero-point of row 0, group 1 is not finite" },
		{ 1, ".scales", 2, "the scale of row 0, group 1 is not finite" },
		{ 1, ".biases", 2, "the bias of row 0, group 1 is not finite" },
		{ 2, ".scales", 2, "the scale of row 1, group 0 is not finite" },
		{ 2, ".g_idx", 4, "puts column 1 into group -1 of 2" },
		{ 3, ".scales", 2, "the scale of row 1, group 0 is not finite" },
		{ 4, ".weight_scale", 2, "the scale of row 0, group 1 is not finite" },
		{ 4, ".weight_shape", 8, "does not hold two sizes" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		struct err err = ERR_INIT;
		struct codec_case c;

		make(&c, numbers[i].format);
		memset((char *)codec_case_tensor(&c, numbers[i].suffix) + numbers[i].width, 0xff, numbers[i].width);
		assert_int_equal(read_back(&c, &err), -1);
		assert_int_equal(err.code, ERR_CORRUPT);
		if (!strstr(err.text, numbers[i].sentence))
			fail_msg("row %zu says: %s", i, err.text);
		codec_case_deinit(&c);
	}
}

static void test_settings_that_do_not_match(void **state)
{
	struct codec_case c;
	struct err err = ERR_INIT;
	struct json *q;

	(void)state;
	make(&c, 2);
	q = json_get(c.config, "quantization_config");
	json_remove(q, "bits");
	json_set_int(q, "bits", 5);
	assert_int_equal(read_back(&c, &err), -1);
	assert_non_null(strstr(err.text, "gptq with 5 bits is stored in planes"));
	json_remove(q, "bits");
	json_set_int(q, "bits", 8);
	expect_corrupt(&c, "other bits");
	json_remove(q, "bits");
	json_set_int(q, "bits", 4);
	json_remove(q, "group_size");
	json_set_int(q, "group_size", 48);
	expect_corrupt(&c, "other groups");
	json_remove(q, "group_size");
	json_set_int(q, "group_size", 32);
	json_remove(q, "checkpoint_format");
	json_set_string(q, "checkpoint_format", "gptq_p");
	assert_int_equal(read_back(&c, &err), -1);
	assert_non_null(strstr(err.text, "checkpoint_format 'gptq_p' is not known"));
	codec_case_deinit(&c);
}

/* Columns in any order of groups, as activation order leaves them; zero-points of version 1; signed bytes. */
static void test_foreign_files(void **state)
{
	struct err err = ERR_INIT;
	struct stored_module m;
	struct codec_case c;
	struct json *q;

	(void)state;
	make(&c, 2);
	q = json_get(c.config, "quantization_config");
	json_remove(q, "checkpoint_format");
	json_remove(q, "format"); /* then it is version 1 */
	for (uint32_t k = 0; k < 64; k++)
		((uint32_t *)codec_case_tensor(&c, ".g_idx"))[k] = k % 2;
	assert_int_equal(stored_module_read(c.config, Q, 0, 0, codec_case_source(&c), &m, &err), 0);
	assert_int_equal(m.group_of[63], 1);
	assert_int_equal(m.group_of[62], 0);
	for (size_t i = 0; i < 64; i++)
		assert_true(m.zeros[i] == c.zeros[i] + 1);
	stored_module_deinit(&m);
	codec_case_deinit(&c);

	make(&c, 4);
	c.tensors[3].dtype = ST_I8; /* (N,G), as they were before they were packed */
	c.tensors[3].shape[0] = 32;
	c.len[3] = 64;
	for (int i = 0; i < 64; i++)
		((int8_t *)c.bytes[3])[i] = (int8_t)(i % 16 - 8);
	assert_int_equal(stored_module_read(c.config, Q, 0, 0, codec_case_source(&c), &m, &err), 0);
	for (int i = 0; i < 64; i++)
		assert_true(m.zeros[i] == i % 16);
	stored_module_deinit(&m);
	c.tensors[3].shape[0] = 16;
	c.tensors[3].shape[1] = 4;
	expect_corrupt(&c, "zero-points of another shape");
	codec_case_deinit(&c);
}

/* mlx writes bfloat16 and negative scales itself, and 0 for a group of equal weights. */
static void test_foreign_mlx(void **state)
{
	struct err err = ERR_INIT;
	struct stored_module m;
	struct codec_case c;

	(void)state;
	make(&c, 1);
	c.tensors[1].dtype = c.tensors[2].dtype = ST_BF16;
	((uint16_t *)c.bytes[1])[0] = 0xBF80; /* -1 */
	((uint16_t *)c.bytes[2])[0] = 0x4040; /* 3 */
	((uint16_t *)c.bytes[1])[1] = 0;
	assert_int_equal(stored_module_read(c.config, Q, 0, 0, codec_case_source(&c), &m, &err), 0);
	assert_true(m.scales[0] == -1 && m.offsets[0] == 3 && m.zeros[0] == 3);
	assert_true(m.scales[1] == 0 && m.zeros[1] == 0);
	stored_module_deinit(&m);
	codec_case_deinit(&c);
}

static int broken_source(void *ctx, const char *name, struct stored_tensor *out, struct err *err)
{
	(void)ctx;
	(void)out;
	return err_set(err, ERR_IO, "reading %s: the disk is gone", name);
}

static void test_source_fails(void **state)
{
	(void)state;
	for (size_t f = 0; f < FORMATS; f++) {
		struct err err = ERR_INIT;
		struct stored_module m;
		struct codec_case c;

		make(&c, f);
		assert_int_equal(stored_module_read(c.config, Q, 0, 0, (struct stored_source){ broken_source, NULL }, &m, &err), -1);
		assert_int_equal(err.code, ERR_IO);
		codec_case_deinit(&c);
	}
}

static void test_out_of_memory(void **state)
{
	(void)state;
	for (size_t f = 0; f < FORMATS; f++) {
		struct codec_case c;
		int rc = -1;

		make(&c, f);
		for (uint64_t nth = 1; rc != 0; nth++) {
			struct err err = ERR_INIT;

			mem_fail_after(nth);
			rc = read_back(&c, &err);
			mem_fail_after(0);
			assert_true(rc == 0 || err.code == ERR_NOMEM);
			assert_true(nth < 20);
			assert_true(nth > 7 || rc != 0);
		}
		codec_case_deinit(&c);
	}
}

static void test_long_name(void **state)
{
	struct json *config = parse("{\"quantization\":{\"bits\":4,\"group_size\":64}}");
	struct err err = ERR_INIT;
	struct codec_case none = { 0 };
	struct stored_module m;
	char name[2000];

	(void)state;
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(stored_module_read(config, name, 0, 0, codec_case_source(&none), &m, &err), -1);
	assert_non_null(strstr(err.text, "too long a name"));
	json_free(config);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused_configs),
		cmocka_unit_test(test_understood_configs),
		cmocka_unit_test(test_damaged_tensors),
		cmocka_unit_test(test_damaged_numbers),
		cmocka_unit_test(test_settings_that_do_not_match),
		cmocka_unit_test(test_foreign_files),
		cmocka_unit_test(test_foreign_mlx),
		cmocka_unit_test(test_source_fails),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_long_name),
	};

	return cmocka_run_group_tests_name("codecs_reader", tests, NULL, NULL);
}
