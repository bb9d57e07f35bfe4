/* Every format, bits, group and kind of zero-point over awkward shapes: what is written is read back by the
 * independent reader to the same codes and to scales and offsets equal to the rounding the format states. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/half.h"
#include "tests/lib/codec_case.h"

#define MODULE "model.layers.0.self_attn.q_proj"

static const struct { uint64_t rows, cols; } shapes[] = {
	{ 1, 32 }, { 3, 96 }, { 8, 40 }, { 32, 32 }, { 33, 128 }, { 40, 384 }, { 64, 256 }, { 96, 1152 }, { 5, 7 },
	{ 264, 64 }, { 160, 1024 },
};
static const int64_t groups[] = { -1, 8, 16, 32, 48, 64, 96, 128, 256, 512 };

/* --- what must fit, said once more --------------------------------------------------------------- */

static bool in(int64_t value, const int64_t *list)
{
	for (; *list; list++)
		if (*list == value)
			return true;
	return false;
}

static bool mlx_fits(const struct codec_module *m, enum zero_kind kind)
{
	static const int64_t bits[] = { 2, 3, 4, 5, 6, 8, 0 };

	(void)kind;
	return in(m->settings.bits, bits) && codec_group(m) % 32 == 0;
}

static bool gptq_fits(const struct codec_module *m, enum zero_kind kind)
{
	static const int64_t bits[] = { 2, 3, 4, 8, 0 }, sizes[] = { -1, 16, 32, 64, 128, 256, 512, 1024, 0 };

	return in(m->settings.bits, bits) && m->rows % 32 == 0 && m->cols % 32 == 0 &&
	       (in(m->settings.group_size, sizes) || codec_group(m) == m->cols) && kind >= KIND_INTEGER;
}

static bool awq_fits(const struct codec_module *m, enum zero_kind kind)
{
	static const int64_t sizes[] = { -1, 32, 64, 128, 0 };

	return m->settings.bits == 4 && m->rows % 8 == 0 && kind >= KIND_INTEGER &&
	       (in(m->settings.group_size, sizes) || codec_group(m) == m->cols);
}

static bool compressed_fits(const struct codec_module *m, enum zero_kind kind)
{
	switch (m->settings.bits) {
	case 2:
		return kind != KIND_FLOAT;
	case 3:
		return kind != KIND_FLOAT && kind != KIND_QUARTERS;
	case 4:
	case 8:
		return kind >= KIND_INTEGER;
	}
	return false;
}

static bool all_fits(const struct codec_module *m, enum zero_kind kind)
{
	(void)m;
	(void)kind;
	return true;
}

static const struct expectation {
	const char *format;
	bool (*fits)(const struct codec_module *m, enum zero_kind kind);
} formats[] = {
	{ "packed", all_fits }, { "mlx", mlx_fits }, { "gptq", gptq_fits }, { "awq", awq_fits },
	{ "compressed-tensors", compressed_fits },
};

/* --- one case ------------------------------------------------------------------------------------ */

/* Codes of 2 and 3 bits are multiplied in the container of compressed-tensors. */
static unsigned times(const struct codec_case *c)
{
	return strcmp(c->codec->name, "compressed-tensors") == 0 && c->v.bits < 4 ? 1u << (4 - c->v.bits) : 1;
}

static void describe(const struct codec_case *c, enum zero_kind kind, size_t row, size_t col, const char *what)
{
	fail_msg("%s, %d bits, groups of %lld, %s, %zu x %zu: %s of row %zu, column %zu", c->codec->name, c->v.bits,
		 (long long)c->m.settings.group_size, zero_kind_name(kind), c->v.rows, c->v.cols, what, row, col);
}

static void compare(const struct codec_case *c, enum zero_kind kind, const struct stored_module *back)
{
	const unsigned t = times(c);

	for (size_t n = 0; n < c->v.rows; n++)
		for (size_t k = 0; k < c->v.cols; k++) {
			const size_t i = n * (c->v.cols / c->v.group) + k / c->v.group;
			const size_t j = n * back->groups + back->group_of[k];
			const double s = c->v.scales[i], z = c->v.zeros[i], offset = -(s * z);

			if (back->codes[n * c->v.cols + k] != t * c->v.codes[n * c->v.cols + k])
				describe(c, kind, n, k, "code");
			if (back->scales[j] * t != s)
				describe(c, kind, n, k, "scale");
			if (kind == KIND_FLOAT ? fabs(back->offsets[j] - offset) > 0x1p-22 * fabs(offset)
					       : back->offsets[j] != offset)
				describe(c, kind, n, k, "offset");
			if (kind != KIND_FLOAT && back->zeros[j] != z * t)
				describe(c, kind, n, k, "zero-point");
		}
}

static void write_and_read(struct codec_case *c, enum zero_kind kind)
{
	struct stored_module back;
	struct err err = ERR_INIT;

	if (codec_case_encode(c, &err) != 0)
		fail_msg("%s, %d bits, %s: %s", c->codec->name, c->v.bits, zero_kind_name(kind), err.text);
	assert_false(codec_case_overran(c));
	assert_string_equal(codec_detect(c->config, &err), c->codec->name);
	if (stored_module_read(c->config, MODULE, c->v.rows, c->v.cols, codec_case_source(c), &back, &err) != 0)
		fail_msg("%s, %d bits, groups of %lld, %s, %zu x %zu: %s", c->codec->name, c->v.bits,
			 (long long)c->m.settings.group_size, zero_kind_name(kind), c->v.rows, c->v.cols, err.text);
	assert_int_equal(back.rows, c->v.rows);
	assert_int_equal(back.cols, c->v.cols);
	compare(c, kind, &back);
	stored_module_deinit(&back);
}

static void one_case(const struct expectation *e, struct codec_module m, enum zero_kind kind, unsigned *written)
{
	const struct codec *codec = codec_find(e->format);
	struct problems problems = { 0 };
	struct codec_case c;
	const int rc = codec->check(&m, &problems);

	if ((rc == 0) != e->fits(&m, kind) || (rc == 0) != (problems.count == 0) || codec->check(&m, NULL) != rc)
		fail_msg("%s, %d bits, groups of %lld, %s, %llu x %llu: check says %d, %s", e->format, m.settings.bits,
			 (long long)m.settings.group_size, zero_kind_name(kind), (unsigned long long)m.rows,
			 (unsigned long long)m.cols, rc, problems.count ? problems.items[0] : "no problem");
	problems_deinit(&problems);
	if (rc != 0)
		return;
	codec_case_init(&c, m, m.rows * 1000 + m.cols + (uint64_t)m.settings.bits);
	codec_case_room(&c, codec);
	write_and_read(&c, kind);
	codec_case_deinit(&c);
	++*written;
}

static void test_round_trip(void **state)
{
	const struct expectation *e = *state;
	unsigned written = 0;

	for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
		for (int bits = 1; bits <= 8; bits++)
			for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++)
				for (enum zero_kind kind = 0; kind < KINDS; kind++)
					if (groups[g] == -1 || shapes[s].cols % (uint64_t)groups[g] == 0)
						one_case(e, codec_case_module(MODULE, shapes[s].rows, shapes[s].cols, bits, groups[g],
									      kind), kind, &written);
	assert_true(written >= 30);
}

/* --- dense --------------------------------------------------------------------------------------- */

static void compare_dense(const struct codec_case *c)
{
	for (size_t i = 0; i < c->v.rows * c->v.cols; i++) {
		const size_t g = i / c->v.cols * (c->v.cols / c->v.group) + i % c->v.cols / c->v.group;
		volatile float difference = (float)c->v.codes[i] - c->v.zeros[g];
		const float exact = c->v.scales[g] * difference;
		const uint16_t *half = c->bytes[0];

		if (c->tensors[0].dtype == ST_F32)
			assert_true(((const float *)c->bytes[0])[i] == exact);
		else
			assert_int_equal(half[i], c->tensors[0].dtype == ST_F16 ? f32_to_f16(exact) : f32_to_bf16(exact));
	}
}

static void test_dense(void **state)
{
	static const char *const names[] = { "dense", "dense-f16", "dense-f32" };

	(void)state;
	for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
		for (int bits = 1; bits <= 8; bits++)
			for (size_t f = 0; f < 3; f++) {
				struct err err = ERR_INIT;
				struct codec_case c;

				codec_case_init(&c, codec_case_module(MODULE, shapes[s].rows, shapes[s].cols, bits, -1, KIND_FLOAT),
						(uint64_t)bits);
				codec_case_room(&c, codec_find(names[f]));
				assert_int_equal(codec_case_encode(&c, &err), 0);
				assert_false(codec_case_overran(&c));
				compare_dense(&c);
				assert_string_equal(codec_detect(c.config, &err), "dense");
				codec_case_deinit(&c);
			}
}

/* Weights that are subnormal or the largest halves; codes that are not there do not count. */
static void test_dense_f16_ends(void **state)
{
	struct codec_case c;
	struct err err = ERR_INIT;

	(void)state;
	codec_case_init(&c, codec_case_module(MODULE, 3, 32, 4, -1, KIND_FLOAT), 3);
	for (size_t i = 0; i < 3; i++)
		c.zeros[i] = 0.3f;
	c.scales[0] = 0x1p-20f;
	c.scales[1] = 0x1p-25f; /* below the smallest half */
	c.scales[2] = 10000;
	for (size_t k = 0; k < 32; k++)
		c.codes[64 + k] %= 7; /* 67000 has no code */
	codec_case_room(&c, codec_find("dense-f16"));
	assert_int_equal(codec_case_encode(&c, &err), 0);
	compare_dense(&c);
	c.codes[64 + 9] = 7;
	assert_int_equal(codec_case_encode(&c, &err), -1);
	assert_int_equal(err.code, ERR_NUMERIC);
	assert_non_null(strstr(err.text, "row 2, group 0 has the weight 67000, which F16 cannot hold"));
	codec_case_room(&c, codec_find("dense"));
	assert_int_equal(codec_case_encode(&c, &err), 0);
	c.scales[2] = 0x1p127f;
	assert_int_equal(codec_case_encode(&c, &err), -1);
	assert_non_null(strstr(err.text, "BF16"));
	codec_case_deinit(&c);
}

/* Rows of one group do not say how many columns they have; the model does. */
static void test_packed_needs_the_model(void **state)
{
	struct codec_case c;
	struct stored_module back;
	struct err err = ERR_INIT;

	(void)state;
	codec_case_init(&c, codec_case_module(MODULE, 4, 30, 4, -1, KIND_FLOAT), 1);
	codec_case_room(&c, codec_find("packed"));
	assert_int_equal(codec_case_encode(&c, &err), 0);
	assert_int_equal(stored_module_read(c.config, MODULE, 4, 30, codec_case_source(&c), &back, &err), 0);
	compare(&c, KIND_INTEGER, &back);
	stored_module_deinit(&back);
	assert_int_equal(stored_module_read(c.config, MODULE, 0, 0, codec_case_source(&c), &back, &err), 0);
	assert_int_equal(back.cols, 32);
	stored_module_deinit(&back);
	assert_int_equal(stored_module_read(c.config, MODULE, 4, 24, codec_case_source(&c), &back, &err), -1);
	assert_int_equal(err.code, ERR_CORRUPT);
	codec_case_deinit(&c);
}

static void test_row_of_weights(void **state)
{
	struct codec_case c;
	struct stored_module back;
	struct err err = ERR_INIT;
	double row[64];

	(void)state;
	codec_case_init(&c, codec_case_module(MODULE, 32, 64, 4, 32, KIND_INTEGER), 9);
	codec_case_room(&c, codec_find("awq"));
	assert_int_equal(codec_case_encode(&c, &err), 0);
	assert_int_equal(stored_module_read(c.config, MODULE, 0, 0, codec_case_source(&c), &back, &err), 0);
	for (size_t n = 0; n < 32; n++) {
		stored_module_row(&back, n, row);
		for (size_t k = 0; k < 64; k++)
			assert_true(row[k] == (double)c.scales[2 * n + k / 32] *
					      ((double)c.codes[64 * n + k] - (double)c.zeros[2 * n + k / 32]));
	}
	stored_module_deinit(&back);
	codec_case_deinit(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		{ "packed: written and read", test_round_trip, NULL, NULL, (void *)&formats[0] },
		{ "mlx: written and read", test_round_trip, NULL, NULL, (void *)&formats[1] },
		{ "gptq: written and read", test_round_trip, NULL, NULL, (void *)&formats[2] },
		{ "awq: written and read", test_round_trip, NULL, NULL, (void *)&formats[3] },
		{ "compressed-tensors: written and read", test_round_trip, NULL, NULL, (void *)&formats[4] },
		cmocka_unit_test(test_dense),
		cmocka_unit_test(test_dense_f16_ends),
		cmocka_unit_test(test_packed_needs_the_model),
		cmocka_unit_test(test_row_of_weights),
	};

	return cmocka_run_group_tests_name("codecs", tests, NULL, NULL);
}
