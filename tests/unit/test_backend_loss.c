/* squared_error: the tested backend held to ref, and what backend.h promises of both. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/tested_backend.h"
#include "tests/lib/forward_case.h"

/* Around the lanes of a vector, the fours of a thread, the items and blocks that elements are shared out in. */
static const size_t sizes[] = { 0, 1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 1023, 1024, 1025, 16383,
				16384, 16385, 100003, 1024 * 1024 + 3, 512 * 16384 + 1 };

enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };

static const double scale = 2.0 / 12345;

struct operands { float *y, *target; size_t n; };

static struct operands operands_of(size_t n)
{
	return (struct operands){ case_random(n + 1, 30, n + 1), case_random(n + 1, 29, n + 2), n };
}

static void operands_free(struct operands *o)
{
	free(o->y);
	free(o->target);
}

static double must_sum(struct backend *be, const float *y, const float *target, size_t n, float *dy)
{
	struct err err = ERR_INIT;
	double sum = NAN;

	if (be->ops->squared_error(be, y, target, n, scale, dy, &sum, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
	return sum;
}

static void assert_near(size_t n, double got, double want)
{
	if (!(fabs(got - want) <= 1e-12 * want))
		fail_msg("the sum of %zu is %.17g, not %.17g", n, got, want);
}

static void assert_gradient(const struct operands *o, const float *dy)
{
	for (size_t i = 0; i < o->n; i++) {
		const float want = (float)(scale * ((double)o->y[i] - (double)o->target[i]));

		if (memcmp(&dy[i], &want, sizeof(want)) != 0)
			fail_msg("element %zu of %zu is %.9g, not %.9g", i, o->n, (double)dy[i], (double)want);
	}
}

static void test_near_ref(void **state)
{
	struct backend *ref = case_open("ref", 1);

	(void)state;
	for (int level = 0; level < tested_levels(); level++) {
		struct backend *be = tested_open(level, 2);

		for (int i = 0; i < SIZES; i++) {
			struct operands o = operands_of(sizes[i]);
			float *want = case_poisoned(o.n), *got = case_poisoned(o.n + 1);
			const double sum = must_sum(ref, o.y, o.target, o.n, want);

			assert_gradient(&o, want);
			assert_near(o.n, must_sum(be, o.y, o.target, o.n, got), sum);
			assert_gradient(&o, got);
			assert_true(isnan(got[o.n]));
			free(want);
			free(got);
			operands_free(&o);
		}
		case_close(be);
	}
	case_close(ref);
}

/* With the gradient or without, onto y, from any address, from either kind of memory: the same bits. */
static void check_ways(struct backend *be, size_t n)
{
	struct operands o = operands_of(n);
	const size_t bytes = (n + 1) * sizeof(float);
	float *dy = case_poisoned(n + 1), *onto = case_copy(o.y, bytes);
	float *y_own = be->ops->memory_take(be, bytes, "a test", NULL);
	float *target_own = be->ops->memory_take(be, bytes, "a test", NULL);
	const double sum = must_sum(be, o.y, o.target, n, dy);
	float *back;

	assert_true(y_own && target_own);
	assert_true(must_sum(be, o.y, o.target, n, NULL) == sum);
	assert_true(must_sum(be, onto, o.target, n, onto) == sum);
	assert_memory_equal(onto, dy, n * sizeof(float));

	memcpy(onto + 1, o.y, n * sizeof(float));
	assert_true(must_sum(be, onto + 1, o.target, n, dy + 1) == sum);
	assert_gradient(&o, dy + 1);

	case_hand(be, y_own + 1, o.y, n);
	case_hand(be, target_own, o.target, n);
	assert_true(must_sum(be, y_own + 1, target_own, n, NULL) == sum);
	assert_true(must_sum(be, y_own + 1, o.target, n, dy) == sum);
	assert_gradient(&o, dy);
	assert_true(must_sum(be, o.y, target_own, n, NULL) == sum);
	assert_true(must_sum(be, y_own + 1, o.target, n, y_own + 1) == sum);
	back = case_fetch(be, y_own + 1, n);
	assert_gradient(&o, back);
	free(back);
	be->ops->memory_give(be, y_own);
	be->ops->memory_give(be, target_own);
	free(dy);
	free(onto);
	operands_free(&o);
}

static void test_every_way(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);

		for (int i = 0; i < SIZES; i++)
			check_ways(be, sizes[i]);
		case_close(be);
	}
}

static void test_threads_do_not_matter(void **state)
{
	static const int threads[] = { 2, 3, 7 };

	(void)state;
	for (int i = 0; i < SIZES; i++) {
		struct operands o = operands_of(sizes[i]);
		struct backend *one = case_open(tested_backend(), 1);
		const double want = must_sum(one, o.y, o.target, o.n, NULL);

		case_close(one);
		for (int t = 0; t < 3; t++) {
			struct backend *many = case_open(tested_backend(), threads[t]);

			assert_true(must_sum(many, o.y, o.target, o.n, NULL) == want);
			case_close(many);
		}
		operands_free(&o);
	}
}

/* One element of many, at the start, within and at the end. */
static void test_not_finite_is_an_error(void **state)
{
	static const float bad[] = { NAN, INFINITY, -INFINITY };
	static const size_t at[] = { 0, 777, 33333, 40000 };

	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct operands o = operands_of(40001);
		float *dy = case_poisoned(o.n);

		for (int i = 0; i < 3 * 4 * 2; i++) {
			float *element = (i % 2 ? o.y : o.target) + at[i / 2 % 4], old = *element;
			struct err err = ERR_INIT;
			double sum;

			*element = bad[i / 8];
			assert_int_equal(be->ops->squared_error(be, o.y, o.target, o.n, scale, i % 4 ? dy : NULL, &sum, &err), -1);
			assert_int_equal(err.code, ERR_NUMERIC);
			assert_non_null(strstr(err.text, "squared_error"));
			*element = old;
		}
		must_sum(be, o.y, o.target, o.n, dy);
		assert_gradient(&o, dy);
		free(dy);
		operands_free(&o);
		case_close(be);
	}
}

/* Numbers at the ends of float32: their difference and its square are numbers of a double. */
static void test_far_apart(void **state)
{
	static const float y[3] = { 3e38f, 1e-45f, -3e38f }, target[3] = { -3e38f, -1e-45f, -3e38f };

	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 1);
		const double far = 2.0 * (double)y[0];
		double sum = NAN;
		float dy[3] = { NAN, NAN, NAN };

		assert_int_equal(be->ops->squared_error(be, y, target, 3, 1e-30, dy, &sum, NULL), 0);
		assert_near(3, sum, far * far);
		assert_true(dy[0] == (float)(1e-30 * far) && dy[1] == 0 && dy[2] == 0);
		case_close(be);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_near_ref),
		cmocka_unit_test(test_every_way),
		cmocka_unit_test(test_threads_do_not_matter),
		cmocka_unit_test(test_not_finite_is_an_error),
		cmocka_unit_test(test_far_apart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
