/* What formats do not hold: refused before anything is written, with the reason and what would fit; and values that do not
 * fit exactly, refused while writing, by module, row and group. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/codec_case.h"

#define Q "model.layers.0.self_attn.q_proj"

/* --- modules ------------------------------------------------------------------------------------- */

static const struct {
	const char *format, *name;
	uint64_t rows, cols;
	int bits;
	int64_t group;
	enum zero_kind kind;
	const char *sentence;
} refused[] = {
	{ "awq", Q, 64, 128, 2, 64, KIND_INTEGER, Q ": awq holds 4 bits, not 2; mlx, compressed-tensors, gptq and gguf hold "
	  "this module as it is" },
	{ "awq", Q, 64, 128, 8, 64, KIND_SYMMETRIC, "awq holds 4 bits, not 8" },
	{ "awq", Q, 60, 128, 4, 64, KIND_INTEGER, "awq needs a multiple of 8 output channels, not 60; leave the module out with "
	  "an override \"skip\"; mlx, compressed-tensors and gguf hold" },
	{ "awq", Q, 64, 128, 4, 16, KIND_INTEGER, "awq holds groups of 32, 64, 128 columns or one per output channel, not 16; "
	  "compressed-tensors and gptq hold" },
	{ "awq", Q, 64, 1024, 4, 512, KIND_INTEGER, "awq holds groups of 32, 64, 128 columns or one" },
	{ "awq", Q, 64, 128, 4, 64, KIND_FLOAT, "awq holds integer zero-points; ask for \"zero_point\": \"integer\" or "
	  "\"symmetric\": true; mlx and gguf hold this module as it is" },
	{ "awq", "lm_head", 64, 128, 4, 64, KIND_INTEGER, "lm_head: awq holds the linear modules of the blocks, not this one" },
	{ "gptq", Q, 64, 128, 5, 64, KIND_INTEGER, "gptq holds 2, 3, 4 or 8 bits, not 5; mlx and gguf hold" },
	{ "gptq", Q, 64, 128, 1, 64, KIND_INTEGER, "gptq holds 2, 3, 4 or 8 bits, not 1; gguf holds this module as it is" },
	{ "gptq", Q, 48, 128, 4, 64, KIND_INTEGER, "gptq needs a multiple of 32 output channels, not 48" },
	{ "gptq", Q, 64, 120, 4, -1, KIND_INTEGER, "gptq needs a multiple of 32 input channels, not 120" },
	{ "gptq", Q, 64, 192, 4, 48, KIND_INTEGER, "gptq holds groups of 16, 32, 64, 128, 256, 512, 1024 columns or one per "
	  "output channel, not 48" },
	{ "gptq", Q, 64, 128, 4, 64, KIND_HALVES, "gptq holds integer zero-points" },
	{ "gptq", "model.embed_tokens", 64, 128, 4, 64, KIND_INTEGER, "gptq holds the linear modules of the blocks and lm_head, "
	  "not this one" },
	{ "compressed-tensors", Q, 64, 128, 6, 64, KIND_INTEGER, "compressed-tensors holds 4 and 8 bits, and 2 and 3 within 4, "
	  "not 6; mlx and gguf hold" },
	{ "compressed-tensors", Q, 64, 128, 4, 64, KIND_QUARTERS, "compressed-tensors holds integer zero-points" },
	{ "compressed-tensors", Q, 64, 128, 3, 64, KIND_QUARTERS, "compressed-tensors holds 3 bits with zero-points that are "
	  "multiples of 1/2" },
	{ "compressed-tensors", Q, 64, 128, 2, 64, KIND_FLOAT, "compressed-tensors holds 2 bits with zero-points that are "
	  "multiples of 1/4; ask for those, for \"zero_point\": \"integer\" or \"symmetric\": true; mlx and gguf hold" },
	{ "compressed-tensors", "model.embed_tokens", 64, 128, 4, 64, KIND_SYMMETRIC, "the linear modules of the blocks and "
	  "lm_head" },
	{ "mlx", Q, 64, 128, 7, 64, KIND_FLOAT, "mlx holds 2, 3, 4, 5, 6 or 8 bits, not 7; dense holds" },
	{ "mlx", Q, 64, 128, 1, 64, KIND_FLOAT, "mlx holds 2, 3, 4, 5, 6 or 8 bits, not 1" },
	{ "mlx", Q, 64, 128, 4, 16, KIND_FLOAT, "mlx holds groups of a multiple of 32 columns, not 16; dense holds" },
	{ "mlx", Q, 64, 100, 4, -1, KIND_FLOAT, "mlx holds groups of a multiple of 32 columns, not 100" },
	{ "mlx", Q, 64, 128, 4, 96, KIND_FLOAT, "mlx needs groups that divide the 128 input channels; groups of 96 do not" },
	{ "packed", Q, 64, 128, 9, 64, KIND_FLOAT, "packed holds 1 to 8 bits, not 9" },
	{ "dense", Q, 64, 128, 4, 0, KIND_FLOAT, "needs groups that divide the 128 input channels; groups of 0 do not" },
	{ "dense", Q, 64, 128, 0, -1, KIND_FLOAT, "dense holds 1 to 8 bits, not 0" },
	{ "dense-f16", Q, 64, 128, -3, -1, KIND_FLOAT, "holds 1 to 8 bits, not -3" },
};

static void test_refused_modules(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		struct codec_module m = codec_case_module(refused[i].name, refused[i].rows, refused[i].cols, refused[i].bits,
							  refused[i].group, refused[i].kind);
		const struct codec *codec = codec_find(refused[i].format);
		struct problems p = { 0 };

		assert_int_equal(codec->check(&m, NULL), -1);
		assert_int_equal(codec->check(&m, &p), -1);
		assert_int_equal(p.count, 1);
		if (!strstr(p.items[0], refused[i].sentence) || strncmp(p.items[0], refused[i].name, strlen(refused[i].name)))
			fail_msg("row %zu says: %s", i, p.items[0]);
		problems_deinit(&p);
		m.settings.skip = true;
		assert_int_equal(codec->check(&m, NULL), 0);
	}
}

/* Every reason is told, not the first. */
static void test_every_reason(void **state)
{
	struct codec_module m = codec_case_module("lm_head", 60, 100, 2, 48, KIND_FLOAT);
	struct problems p = { 0 };

	(void)state;
	assert_int_equal(codec_find("awq")->check(&m, &p), -1);
	assert_int_equal(p.count, 5);
	problems_deinit(&p);
}

static void test_what_zero_points_to_choose(void **state)
{
	static const struct { const char *format; int bits; unsigned parts; } asked[] = {
		{ "gptq", 2, 1 }, { "awq", 4, 1 }, { "compressed-tensors", 2, 4 }, { "compressed-tensors", 3, 2 },
		{ "compressed-tensors", 4, 1 }, { "compressed-tensors", 8, 1 }, { "compressed-tensors", 9, 1 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
		struct codec_module m = codec_case_module(Q, 32, 32, asked[i].bits, -1, KIND_FLOAT);

		assert_int_equal(codec_find(asked[i].format)->zero_parts(&m), asked[i].parts);
		m.zero_parts = asked[i].parts;
		assert_int_equal(codec_find(asked[i].format)->check(&m, NULL), asked[i].bits == 9 ? -1 : 0);
	}
	assert_null(codec_find("mlx")->zero_parts);
	assert_null(codec_find("exl3"));
}

/* --- models -------------------------------------------------------------------------------------- */

enum { MODULES = 7 };

static void block(struct codec_module *m, int bits, int64_t group, enum zero_kind kind)
{
	static const char *const names[MODULES] = {
		"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj",
		"model.layers.0.self_attn.o_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj",
		"model.layers.0.mlp.down_proj",
	};

	for (int i = 0; i < MODULES; i++) {
		m[i] = codec_case_module(names[i], 64, 128, bits, group, kind);
		m[i].linear = (enum block_linear)i;
	}
}

static void expect_model(const char *format, const struct codec_module *m, const char *sentence)
{
	struct problems p = { 0 };
	const int rc = codec_find(format)->check_model(m, MODULES, &p);

	assert_int_equal(rc, codec_find(format)->check_model(m, MODULES, NULL));
	if (!sentence && rc != 0)
		fail_msg("%s: %s", format, p.items[0]);
	if (sentence && (rc != -1 || !strstr(p.items[0], sentence)))
		fail_msg("%s: %s", format, p.count ? p.items[0] : "nothing is refused");
	problems_deinit(&p);
}

static void test_joined_modules(void **state)
{
	static const char *const all[] = { "gptq", "awq", "compressed-tensors" };
	struct codec_module m[MODULES];

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		block(m, 4, 64, KIND_INTEGER);
		expect_model(all[i], m, NULL);
		m[LIN_K].settings.skip = true;
		expect_model(all[i], m, "q_proj and model.layers.0.self_attn.k_proj: readers of");
		m[LIN_Q].settings.skip = m[LIN_V].settings.skip = m[LIN_DOWN].settings.skip = true;
		expect_model(all[i], m, NULL);
		m[LIN_UP].settings.group_size = 128;
		expect_model(all[i], m, "join these modules into gate_up_proj");
	}
	block(m, 4, 64, KIND_INTEGER);
	m[LIN_V].settings.bits = 8;
	expect_model("gptq", m, "into qkv_proj, so bits, group size and symmetry must be equal, or both be skipped");
	expect_model("compressed-tensors", m, "so stored bits, group size and symmetry must be equal");
	m[LIN_V].settings.bits = 2; /* in the same container */
	expect_model("compressed-tensors", m, NULL);
	m[LIN_V].layer = 1; /* another block */
	expect_model("gptq", m, NULL);
}

static void test_one_kind_of_checkpoint(void **state)
{
	struct codec_module m[MODULES];

	(void)state;
	block(m, 4, 64, KIND_INTEGER);
	m[LIN_DOWN].settings.group_size = 32;
	expect_model("awq", m, "down_proj: awq has one group size for all modules, and most have 64, not 32");
	expect_model("gptq", m, NULL);
	m[LIN_DOWN].settings.symmetric = true;
	expect_model("gptq", m, "gptq holds symmetric or asymmetric modules, not both; model.layers.0.mlp.down_proj is symmetric");
	expect_model("compressed-tensors", m, NULL);
}

/* --- values -------------------------------------------------------------------------------------- */

struct bad_value {
	const char *format;
	int bits;
	enum zero_kind kind;
	size_t group;           /* of row 33, groups of 32: which one is changed, and how */
	float scale, zero;      /* 0: kept, NAN: set to NaN */
	enum err_code code;
	const char *sentence;
};

static const struct bad_value bad_values[] = {
	{ "packed", 4, KIND_FLOAT, 1, NAN, 0, ERR_NUMERIC, "row 33, group 1 has scale nan" },
	{ "dense", 4, KIND_FLOAT, 1, -0.5f, 0, ERR_NUMERIC, "row 33, group 1 has scale -0.5" },
	{ "mlx", 4, KIND_FLOAT, 2, INFINITY, 0, ERR_NUMERIC, "row 33, group 2 has scale inf" },
	{ "gptq", 4, KIND_INTEGER, 2, 0, NAN, ERR_NUMERIC, "row 33, group 2 has scale" },
	{ "mlx", 4, KIND_FLOAT, 3, 0.1f, 0, ERR_NUMERIC, Q ": row 33, group 3 has the scale 0.100000001, which is not a 16-bit "
	  "float" },
	{ "mlx", 4, KIND_FLOAT, 3, 0x1p-25f, 0, ERR_NUMERIC, "row 33, group 3 has the scale" },
	{ "mlx", 4, KIND_FLOAT, 3, 65520, 0, ERR_NUMERIC, "row 33, group 3 has the scale 65520" },
	{ "mlx", 4, KIND_FLOAT, 3, 0.5f, 0.1f, ERR_NUMERIC, "row 33, group 3 has the offset -0.05" },
	{ "mlx", 4, KIND_FLOAT, 3, 32768, -3, ERR_NUMERIC, "row 33, group 3 has the offset 98304, which is not within the "
	  "16-bit floats" },
	{ "mlx", 4, KIND_INTEGER, 3, 3e38f, 9, ERR_NUMERIC, "which is not a 32-bit float" },
	{ "gptq", 4, KIND_INTEGER, 0, 0.1f, 0, ERR_NUMERIC, "row 33, group 0 has the scale" },
	{ "gptq", 4, KIND_INTEGER, 0, 0, 1.5f, ERR_NUMERIC, "the zero-point 1.5, which is not an integer of 0 to 15" },
	{ "gptq", 4, KIND_INTEGER, 0, 0, 16, ERR_NUMERIC, "the zero-point 16, which" },
	{ "gptq", 2, KIND_INTEGER, 0, 0, -1, ERR_NUMERIC, "the zero-point -1, which is not an integer of 0 to 3" },
	{ "gptq", 2, KIND_INTEGER, 0, 0, -0.5f, ERR_NUMERIC, "the zero-point -0.5" },
	{ "gptq", 8, KIND_SYMMETRIC, 0, 0, 127, ERR_NUMERIC, "the zero-point 127, which is not an integer of 128 to 128" },
	{ "awq", 4, KIND_INTEGER, 1, 0, 1e30f, ERR_NUMERIC, "which is not an integer of 0 to 15" },
	{ "awq", 4, KIND_INTEGER, 1, 0.3f, 0, ERR_NUMERIC, "row 33, group 1 has the scale" },
	{ "compressed-tensors", 2, KIND_QUARTERS, 1, 0, 1.125f, ERR_NUMERIC, "which is not a multiple of 1/4 of 0 to 3.75" },
	{ "compressed-tensors", 2, KIND_QUARTERS, 1, 0, 4, ERR_NUMERIC, "the zero-point 4, which is not a multiple" },
	{ "compressed-tensors", 3, KIND_SYMMETRIC, 1, 0, 3.5f, ERR_NUMERIC, "not a multiple of 1/2 of 4 to 4" },
	{ "compressed-tensors", 2, KIND_INTEGER, 1, 0x1p-24f, 0, ERR_NUMERIC, "the scale, before it is divided for the "
	  "container, 5.96046448e-08" },
};

static void test_values_that_do_not_fit(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(bad_values) / sizeof(bad_values[0]); i++) {
		const struct bad_value *b = &bad_values[i];
		struct err err = ERR_INIT;
		struct codec_case c;

		codec_case_init(&c, codec_case_module(Q, 64, 128, b->bits, 32, b->kind), i);
		codec_case_room(&c, codec_find(b->format));
		assert_int_equal(codec_case_encode(&c, &err), 0);
		if (b->scale != 0)
			c.scales[33 * 4 + b->group] = b->scale;
		if (b->zero != 0)
			c.zeros[33 * 4 + b->group] = b->zero;
		assert_int_equal(codec_case_encode(&c, &err), -1);
		assert_false(codec_case_overran(&c));
		if (err.code != b->code || !strstr(err.text, b->sentence))
			fail_msg("row %zu says: %s", i, err.text);
		codec_case_deinit(&c);
	}
}

/* The smallest halves are exact, and so are offsets that were divided by the scale and rounded. */
static void test_values_at_the_edge(void **state)
{
	struct err err = ERR_INIT;
	struct codec_case c;
	struct stored_module back;

	(void)state;
	codec_case_init(&c, codec_case_module(Q, 32, 32, 4, -1, KIND_FLOAT), 5);
	c.scales[0] = 0x1p-24f;
	c.zeros[0] = 0;
	c.scales[1] = 65504;
	c.zeros[1] = -1;
	codec_case_room(&c, codec_find("mlx"));
	assert_int_equal(codec_case_encode(&c, &err), 0);
	assert_int_equal(stored_module_read(c.config, Q, 0, 0, codec_case_source(&c), &back, &err), 0);
	assert_true(back.scales[0] == 0x1p-24 && back.offsets[0] == 0 && !signbit(back.offsets[0]));
	assert_true(back.scales[1] == 65504 && back.offsets[1] == 65504);
	stored_module_deinit(&back);
	codec_case_deinit(&c);
}

static void test_wrong_values(void **state)
{
	for (const struct codec *const *codec = codec_list; *codec; codec++) {
		struct err err = ERR_INIT;
		struct codec_case c;

		(void)state;
		codec_case_init(&c, codec_case_module(Q, 64, 128, 4, 32, KIND_INTEGER), 1);
		codec_case_room(&c, *codec);
		c.codes[5 * 128 + 70] = 16;
		assert_int_equal(codec_case_encode(&c, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_non_null(strstr(err.text, "row 5, group 2 holds the code 16, more than 4 bits"));
		c.v.bits = 3;
		assert_int_equal(codec_case_encode(&c, &err), -1);
		assert_int_equal(err.code, ERR_REFUSED);
		assert_non_null(strstr(err.text, "values of 64 x 128, 3 bits, groups of 32 were given; the plan says 64 x 128, 4 "
					    "bits, groups of 32"));
		codec_case_deinit(&c);
	}
}

/* Memory that runs out while sentences are made takes sentences away, never the refusal. */
static void test_refused_without_memory(void **state)
{
	struct codec_module m = codec_case_module("lm_head", 60, 100, 2, 48, KIND_FLOAT);

	(void)state;
	for (uint64_t nth = 1; nth < 40; nth++) {
		struct problems p = { 0 };

		mem_fail_after(nth);
		assert_int_equal(codec_find("awq")->check(&m, &p), -1);
		mem_fail_after(0);
		assert_true(p.count <= 5);
		problems_deinit(&p);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused_modules),
		cmocka_unit_test(test_every_reason),
		cmocka_unit_test(test_what_zero_points_to_choose),
		cmocka_unit_test(test_joined_modules),
		cmocka_unit_test(test_one_kind_of_checkpoint),
		cmocka_unit_test(test_values_that_do_not_fit),
		cmocka_unit_test(test_values_at_the_edge),
		cmocka_unit_test(test_wrong_values),
		cmocka_unit_test(test_refused_without_memory),
	};

	return cmocka_run_group_tests_name("codecs_refused", tests, NULL, NULL);
}
