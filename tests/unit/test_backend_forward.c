/* rms_norm and block_forward: the tested backend held to ref, and what backend.h promises of both. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"

#define SHAPE(hidden, heads, kv, dim, inter) { hidden, heads, kv, dim, inter, 1e-5f }

static const struct forward_case cases[] = {
	{ .name = "smallest", .shape = SHAPE(1, 1, 1, 2, 1), .n_seq = 1, .seq_len = 1 },
	{ .name = "one token", .shape = SHAPE(33, 3, 1, 8, 70), .n_seq = 3, .seq_len = 1, .biases = true },
	{ .name = "group ratio 3", .shape = SHAPE(96, 6, 2, 16, 257), .n_seq = 2, .seq_len = 63 },
	{ .name = "query tile", .shape = SHAPE(48, 4, 4, 12, 96), .n_seq = 1, .seq_len = 128 },
	{ .name = "query tile - 1", .shape = SHAPE(48, 4, 2, 12, 96), .n_seq = 2, .seq_len = 127 },
	{ .name = "query tile + 1", .shape = SHAPE(48, 4, 1, 12, 96), .n_seq = 2, .seq_len = 129,
	  .head_norms = true },
	{ .name = "row tile - 1", .shape = SHAPE(37, 2, 1, 10, 255), .n_seq = 1, .seq_len = 255,
	  .biases = true },
	{ .name = "row tile", .shape = SHAPE(64, 2, 2, 32, 256), .n_seq = 2, .seq_len = 256 },
	{ .name = "row tile + 1", .shape = SHAPE(40, 5, 5, 8, 257), .n_seq = 2, .seq_len = 257,
	  .biases = true, .head_norms = true },
	{ .name = "column tiles + 1", .shape = SHAPE(513, 9, 3, 64, 513), .n_seq = 1, .seq_len = 20,
	  .head_norms = true },
	{ .name = "wide heads", .shape = SHAPE(64, 6, 3, 128, 100), .n_seq = 3, .seq_len = 17,
	  .biases = true, .head_norms = true },
	{ .name = "a head wider than a tile", .shape = SHAPE(24, 2, 1, 520, 30), .n_seq = 1, .seq_len = 5 },
	{ .name = "many short sequences", .shape = SHAPE(32, 4, 2, 8, 64), .n_seq = 50, .seq_len = 7 },
};

enum { CASES = sizeof(cases) / sizeof(cases[0]) };

static void compare_results(const struct forward_case *c, const struct forward_result *got,
			    const struct forward_result *want)
{
	char what[128];

	snprintf(what, sizeof(what), "%s: y", c->name);
	case_assert_close(what, got->y, want->y, want->y_len, 1e-4 * case_max_abs(want->y, want->y_len));
	for (int i = 0; i < 4; i++) {
		assert_int_equal(got->site_len[i], want->site_len[i]);
		snprintf(what, sizeof(what), "%s: site %d", c->name, i);
		case_assert_close(what, got->site[i], want->site[i], want->site_len[i],
				  1e-4 * case_max_abs(want->site[i], want->site_len[i]));
	}
}

static void same_bytes(const char *what, const float *a, const float *b, size_t n)
{
	if (memcmp(a, b, n * sizeof(*a)) != 0)
		fail_msg("%s: bytes differ", what);
}

static void test_near_ref(void **state)
{
	struct backend *ref = case_open("ref", 1), *fast = case_open(tested_backend(), 2);

	(void)state;
	for (int i = 0; i < CASES; i++) {
		struct forward_case c = cases[i];
		struct forward_result want, got;

		forward_case_init(&c);
		want = forward_case_run(&c, ref, true, true);
		got = forward_case_run(&c, fast, true, true);
		compare_results(&c, &got, &want);
		forward_result_deinit(&want);
		forward_result_deinit(&got);
		forward_case_deinit(&c);
	}
	case_close(ref);
	case_close(fast);
}

static void test_each_level(void **state)
{
	struct backend *ref = case_open("ref", 1);

	(void)state;
	for (int level = 0; level < tested_levels(); level++) {
		struct forward_case c = cases[8];
		struct forward_result want, got;
		struct backend *fast = tested_open(level, 2);

		if (tested_levels() > 1)
			assert_string_equal(strrchr(fast->ops->identity(fast), ' ') + 1, tested_level_name(level));
		forward_case_init(&c);
		want = forward_case_run(&c, ref, true, true);
		got = forward_case_run(&c, fast, true, true);
		compare_results(&c, &got, &want);
		forward_result_deinit(&want);
		forward_result_deinit(&got);
		forward_case_deinit(&c);
		case_close(fast);
	}
	case_close(ref);
}

/* Without y, without taps, in place: the same bytes as with everything. */
static void forms_agree(const struct forward_case *c, struct backend *be)
{
	struct forward_result all = forward_case_run(c, be, true, true);
	struct forward_result plain = forward_case_run(c, be, true, false);
	struct forward_result taps = forward_case_run(c, be, false, true);
	float *in_place = case_copy(c->x, all.y_len * sizeof(float));
	struct err err = ERR_INIT;

	same_bytes("y without taps", plain.y, all.y, all.y_len);
	for (int i = 0; i < 4; i++)
		same_bytes("a site without y", taps.site[i], all.site[i], all.site_len[i]);
	assert_int_equal(be->ops->block_forward(be, &c->shape, &c->w, &c->rope, in_place, c->n_seq,
						c->seq_len, in_place, NULL, NULL, &err), 0);
	same_bytes("y in place", in_place, all.y, all.y_len);
	assert_int_equal(be->ops->block_forward(be, &c->shape, &c->w, &c->rope, c->x, c->n_seq, c->seq_len,
						NULL, NULL, NULL, &err), 0);
	free(in_place);
	forward_result_deinit(&all);
	forward_result_deinit(&plain);
	forward_result_deinit(&taps);
}

static void test_forms_agree(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);

		for (int i = 0; i < CASES; i += 4) {
			struct forward_case c = cases[i];

			forward_case_init(&c);
			forms_agree(&c, be);
			forward_case_deinit(&c);
		}
		case_close(be);
	}
}

static void test_threads_do_not_matter(void **state)
{
	static const int threads[] = { 2, 3, 7 };

	(void)state;
	for (int i = 0; i < CASES; i++) {
		struct forward_case c = cases[i];
		struct backend *one = case_open(tested_backend(), 1);
		struct forward_result want;

		forward_case_init(&c);
		want = forward_case_run(&c, one, true, true);
		for (int t = 0; t < 3; t++) {
			struct backend *many = case_open(tested_backend(), threads[t]);
			struct forward_result got = forward_case_run(&c, many, true, true);

			same_bytes(c.name, got.y, want.y, want.y_len);
			for (int s = 0; s < 4; s++)
				same_bytes(c.name, got.site[s], want.site[s], want.site_len[s]);
			forward_result_deinit(&got);
			case_close(many);
		}
		forward_result_deinit(&want);
		forward_case_deinit(&c);
		case_close(one);
	}
}

/* More sequences than one group holds, and a sequence's bytes do not depend on its neighbours. */
static void test_groups_of_sequences(void **state)
{
	struct forward_case c = { .name = "groups", .shape = SHAPE(8, 1, 1, 4, 12), .n_seq = 45,
				  .seq_len = 100 };
	struct backend *fast = case_open(tested_backend(), 2);
	struct forward_result all, one;
	size_t sequence = c.seq_len * c.shape.hidden;

	(void)state;
	forward_case_init(&c);
	all = forward_case_run(&c, fast, true, false);
	c.n_seq = 1;
	for (size_t i = 0; i < 45; i += 11) {
		struct forward_case single = c;

		single.x = c.x + i * sequence;
		one = forward_case_run(&single, fast, true, true);
		same_bytes("a sequence alone", one.y, all.y + i * sequence, sequence);
		forward_result_deinit(&one);
	}
	forward_result_deinit(&all);
	forward_case_deinit(&c);
	case_close(fast);
}

struct stopper { int stop_at, seen; };

static int stop_tap(void *ctx, int site, const float *x, size_t rows, size_t cols)
{
	struct stopper *s = ctx;

	assert_true(x != NULL && rows > 0 && cols > 0);
	s->seen++;
	return site == s->stop_at;
}

static void test_tap_stops(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct forward_case c = cases[2];
		float *y;

		forward_case_init(&c);
		y = case_poisoned(forward_case_rows(&c) * c.shape.hidden);
		for (int site = 0; site < 4; site++) {
			struct stopper s = { .stop_at = site };
			struct err err = ERR_INIT;

			assert_int_equal(be->ops->block_forward(be, &c.shape, &c.w, &c.rope, c.x, c.n_seq,
								c.seq_len, y, stop_tap, &s, &err), -1);
			assert_int_equal(s.seen, site + 1);
			assert_int_equal(err.code, ERR_NONE);
		}
		free(y);
		forward_case_deinit(&c);
		case_close(be);
	}
}

/* A first row so large that the output it makes overflows float32. */
static void expect_not_finite(struct backend *be, struct forward_case *c, const float *weight, size_t cols)
{
	float *target = (float *)(uintptr_t)weight, *old = case_copy(weight, cols * sizeof(*old));
	float *y = case_poisoned(forward_case_rows(c) * c->shape.hidden);
	struct err err = ERR_INIT;

	for (size_t i = 0; i < cols; i++)
		target[i] = 3e38f;
	assert_int_equal(be->ops->block_forward(be, &c->shape, &c->w, &c->rope, c->x, c->n_seq, c->seq_len,
						y, NULL, NULL, &err), -1);
	if (err.code != ERR_NUMERIC)
		fail_msg("%s: code %s, text %s", be->ops->name, err_name(err.code), err.text);
	memcpy(target, old, cols * sizeof(*old));
	free(old);
	free(y);
}

static void test_not_finite_is_an_error(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct forward_case c = cases[2];
		float big[3] = { 1, 2, 3 }, weight[3] = { 1, 3e38f, 1 }, out[3];
		struct err err = ERR_INIT;

		forward_case_init(&c);
		for (size_t i = 0; i < forward_case_rows(&c) * c.shape.hidden; i++)
			c.x[i] = 2.0f + fabsf(c.x[i]);
		expect_not_finite(be, &c, c.w.v, c.shape.hidden);
		expect_not_finite(be, &c, c.w.up, c.shape.hidden);
		expect_not_finite(be, &c, c.w.down, c.shape.intermediate);
		assert_int_equal(be->ops->rms_norm(be, big, weight, 1e-5f, 1, 3, out, &err), 0);
		weight[2] = 3.4e38f;
		assert_int_equal(be->ops->rms_norm(be, big, weight, 1e-5f, 1, 3, out, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		forward_case_deinit(&c);
		case_close(be);
	}
}

static void expect_invalid(struct backend *be, struct block_shape shape, size_t n_seq, size_t seq_len,
			   const char *part)
{
	const struct block_weights w = { 0 };
	const struct rope_table rope = { 0 };
	float dummy = 0;
	struct err err = ERR_INIT;

	assert_int_equal(be->ops->block_forward(be, &shape, &w, &rope, &dummy, n_seq, seq_len, &dummy, NULL,
						NULL, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	if (!strstr(err.text, part))
		fail_msg("\"%s\" lacks \"%s\"", err.text, part);
}

static void test_bad_shapes(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 1);
		struct err err = ERR_INIT;
		float x = 0;

		expect_invalid(be, (struct block_shape)SHAPE(8, 4, 3, 4, 8), 1, 1, "multiple of 3");
		expect_invalid(be, (struct block_shape)SHAPE(8, 4, 2, 3, 8), 1, 1, "head_dim 3 is odd");
		expect_invalid(be, (struct block_shape)SHAPE(0, 4, 2, 4, 8), 1, 1, "hidden 0");
		expect_invalid(be, (struct block_shape)SHAPE(8, 4, 2, 4, 1 << 25), 1, 1, "intermediate");
		expect_invalid(be, (struct block_shape)SHAPE(8, 4, 2, 4, 8), 0, 1, "0 sequences");
		expect_invalid(be, (struct block_shape)SHAPE(8, 4, 2, 4, 8), 1, 0, "0 tokens");
		assert_int_equal(be->ops->rms_norm(be, &x, &x, 0, 1, 0, &x, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(be->ops->rms_norm(be, &x, &x, 0, (size_t)-1, 2, &x, &err), -1);
		case_close(be);
	}
}

static void test_out_of_memory(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct forward_case c = cases[2];
		float *y;
		int rc = -1, failures = 0;

		forward_case_init(&c);
		y = case_poisoned(forward_case_rows(&c) * c.shape.hidden);
		for (uint64_t nth = 1; rc != 0; nth++) {
			struct stopper s = { .stop_at = -1 };
			struct err err = ERR_INIT;

			mem_fail_after(nth);
			rc = be->ops->block_forward(be, &c.shape, &c.w, &c.rope, c.x, c.n_seq, c.seq_len,
						    nth % 2 ? y : NULL, stop_tap, &s, &err);
			mem_fail_after(0);
			if (rc != 0)
				assert_int_equal(err.code, ERR_NOMEM);
			failures += rc != 0;
		}
		assert_true(failures >= 7 || tested_may_not_allocate(be));
		free(y);
		forward_case_deinit(&c);
		case_close(be);
	}
}

static void norm_case(struct backend *ref, struct backend *fast, size_t rows, size_t cols)
{
	float *x = case_random(rows * cols, 3, rows + cols), *weight = case_random(cols, 2, cols);
	float *want = case_poisoned(rows * cols), *got = case_poisoned(rows * cols);

	assert_int_equal(ref->ops->rms_norm(ref, x, weight, 1e-6f, rows, cols, want, NULL), 0);
	assert_int_equal(fast->ops->rms_norm(fast, x, weight, 1e-6f, rows, cols, got, NULL), 0);
	for (size_t i = 0; i < rows * cols; i++)
		case_assert_close("rms_norm", got + i, want + i, 1, 1e-5 * (1 + fabs((double)want[i])));
	assert_int_equal(fast->ops->rms_norm(fast, x, weight, 1e-6f, rows, cols, x, NULL), 0);
	same_bytes("rms_norm in place", x, got, rows * cols);
	free(x);
	free(weight);
	free(want);
	free(got);
}

static void test_rms_norm(void **state)
{
	static const size_t rows[] = { 0, 1, 2, 63, 64, 65, 200 };
	static const size_t cols[] = { 1, 2, 31, 32, 33, 64, 65, 1000 };
	struct backend *ref = case_open("ref", 1), *fast = case_open(tested_backend(), 3);

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		for (size_t j = 0; j < sizeof(cols) / sizeof(cols[0]); j++)
			norm_case(ref, fast, rows[i], cols[j]);
	case_close(ref);
	case_close(fast);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rms_norm),
		cmocka_unit_test(test_near_ref),
		cmocka_unit_test(test_each_level),
		cmocka_unit_test(test_forms_agree),
		cmocka_unit_test(test_threads_do_not_matter),
		cmocka_unit_test(test_groups_of_sequences),
		cmocka_unit_test(test_tap_stops),
		cmocka_unit_test(test_not_finite_is_an_error),
		cmocka_unit_test(test_bad_shapes),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
