/* head_kl_tile of the reference backend, held to softmax over all ids at once and to differences of that. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/train_case.h"

static struct backend *ref;

static int open_ref(void **state)
{
	(void)state;
	ref = case_open("ref", 1);
	return 0;
}

static int close_ref(void **state)
{
	(void)state;
	case_close(ref);
	return 0;
}

static void expect_code(int rc, struct err *err, enum err_code code, const char *part)
{
	assert_int_equal(rc, -1);
	if (err->code != code || !strstr(err->text, part))
		fail_msg("code %s and \"%s\", not %s and \"%s\"", err_name(err->code), err->text,
			 err_name(code), part);
	err_clear(err);
}

enum { ROWS = 5, HIDDEN = 9, VOCAB = 23 };

struct head_case { float *x, *x_ref, *w, *w_ref; double kl[ROWS]; float dx[ROWS * HIDDEN]; };

struct states { double max[ROWS], sum[ROWS], target[ROWS], top_logit[ROWS]; int32_t top_id[ROWS]; };

static void head_case_init(struct head_case *h)
{
	h->x = case_random(ROWS * HIDDEN, 2, 51);
	h->x_ref = case_random(ROWS * HIDDEN, 2, 52);
	h->w = case_random(VOCAB * HIDDEN, 1, 53);
	h->w_ref = case_random(VOCAB * HIDDEN, 1, 54);
}

static void head_case_deinit(struct head_case *h)
{
	free(h->x);
	free(h->x_ref);
	free(h->w);
	free(h->w_ref);
}

static struct head_state clear_state(struct states *s)
{
	*s = (struct states){ 0 };
	for (int r = 0; r < ROWS; r++)
		s->max[r] = s->top_logit[r] = -INFINITY;
	return (struct head_state){ s->max, s->sum, s->target, s->top_logit, s->top_id };
}

static struct head_state see_tiles(const float *x, const float *w, size_t height, struct states *s)
{
	static const int32_t targets[ROWS];
	struct head_state state = clear_state(s);

	for (size_t at = 0; at < VOCAB; at += height) {
		const size_t n = VOCAB - at < height ? VOCAB - at : height;

		assert_int_equal(ref->ops->head_tile(ref, x, ROWS, HIDDEN, w + at * HIDDEN, n, (int32_t)at,
						     targets, &state, NULL), 0);
	}
	return state;
}

/* kl and dx of x against x_ref, in tiles of `height` ids, onto what kl and dx hold; either may be NULL. */
static void kl_of(const struct head_case *h, const float *x, size_t height, double *kl, float *dx)
{
	struct states s, s_ref;
	const struct head_state state = see_tiles(x, h->w, height, &s);
	const struct head_state ref_state = see_tiles(h->x_ref, h->w_ref, height, &s_ref);

	for (size_t at = 0; at < VOCAB; at += height) {
		const size_t n = VOCAB - at < height ? VOCAB - at : height;

		assert_int_equal(ref->ops->head_kl_tile(ref, x, h->x_ref, ROWS, HIDDEN, h->w + at * HIDDEN,
							h->w_ref + at * HIDDEN, n, &state, &ref_state, kl, dx,
							NULL), 0);
	}
}

/* Softmax of w x of one row, all ids at once. */
static void dense_softmax(const float *w, const double *x, double *p)
{
	double sum = 0;

	for (int n = 0; n < VOCAB; n++) {
		double logit = 0;

		for (int k = 0; k < HIDDEN; k++)
			logit += x[k] * w[n * HIDDEN + k];
		p[n] = exp(logit);
		sum += p[n];
	}
	for (int n = 0; n < VOCAB; n++)
		p[n] /= sum;
}

static double dense_kl(const struct head_case *h, const double *x, int row)
{
	double x_ref[HIDDEN], p[VOCAB], p_ref[VOCAB], kl = 0;

	for (int k = 0; k < HIDDEN; k++)
		x_ref[k] = h->x_ref[row * HIDDEN + k];
	dense_softmax(h->w, x, p);
	dense_softmax(h->w_ref, x_ref, p_ref);
	for (int n = 0; n < VOCAB; n++)
		kl += p_ref[n] * log(p_ref[n] / p[n]);
	return kl;
}

static void test_head_kl(void **state)
{
	const double step = 1e-5;
	struct head_case h = { 0 };
	double numeric[ROWS * HIDDEN], worst = 0;

	(void)state;
	head_case_init(&h);
	kl_of(&h, h.x, 7, h.kl, h.dx);
	for (int r = 0; r < ROWS; r++) {
		double x[HIDDEN], want;

		for (int k = 0; k < HIDDEN; k++)
			x[k] = h.x[r * HIDDEN + k];
		want = dense_kl(&h, x, r);
		assert_true(want > 0.01);
		if (!(fabs(h.kl[r] - want) <= 1e-12 * (1 + want)))
			fail_msg("row %d: kl %.17g, not %.17g", r, h.kl[r], want);
		worst = fmax(worst, fabs(h.kl[r] - want));
		for (int k = 0; k < HIDDEN; k++) {
			const double middle = x[k];

			x[k] = middle + step;
			numeric[r * HIDDEN + k] = dense_kl(&h, x, r);
			x[k] = middle - step;
			numeric[r * HIDDEN + k] -= dense_kl(&h, x, r);
			numeric[r * HIDDEN + k] /= 2 * step;
			x[k] = middle;
		}
	}
	print_message("# head_kl_tile: kl %.1e, dx against central differences %.1e\n", worst,
		      train_distance_float(h.dx, numeric, ROWS * HIDDEN));
	assert_true(train_distance_float(h.dx, numeric, ROWS * HIDDEN) <= 1e-6);
	head_case_deinit(&h);
}

static void test_head_kl_tile_heights(void **state)
{
	static const size_t heights[] = { 1, 4, 22, 23, 100 };
	struct head_case h = { 0 };

	(void)state;
	head_case_init(&h);
	kl_of(&h, h.x, 7, h.kl, h.dx);
	for (size_t i = 0; i < sizeof(heights) / sizeof(heights[0]); i++) {
		double kl[ROWS], kl_alone[ROWS] = { 0 };
		float dx[ROWS * HIDDEN] = { 0 }, dx_alone[ROWS * HIDDEN] = { 0 };

		for (int r = 0; r < ROWS; r++)
			kl[r] = 3;
		kl_of(&h, h.x, heights[i], kl, dx);
		kl_of(&h, h.x, heights[i], kl_alone, NULL);
		kl_of(&h, h.x, heights[i], NULL, dx_alone);
		kl_of(&h, h.x, heights[i], NULL, NULL);
		case_assert_close("dx", dx, h.dx, ROWS * HIDDEN, 1e-6 * case_max_abs(h.dx, ROWS * HIDDEN));
		assert_memory_equal(dx_alone, dx, sizeof(dx));
		for (int r = 0; r < ROWS; r++)
			if (!(fabs(kl[r] - 3 - h.kl[r]) <= 1e-12 && fabs(kl_alone[r] - h.kl[r]) <= 1e-12))
				fail_msg("tiles of %zu, row %d: kl %.17g onto 3 and %.17g, not %.17g",
					 heights[i], r, kl[r], kl_alone[r], h.kl[r]);
	}
	head_case_deinit(&h);
}

static void test_head_kl_of_equals(void **state)
{
	struct head_case h = { 0 };

	(void)state;
	head_case_init(&h);
	memcpy(h.w_ref, h.w, VOCAB * HIDDEN * sizeof(float));
	kl_of(&h, h.x_ref, 7, h.kl, h.dx);
	for (int r = 0; r < ROWS; r++)
		assert_true(h.kl[r] == 0);
	assert_true(case_max_abs(h.dx, ROWS * HIDDEN) == 0);
	head_case_deinit(&h);
}

static void test_head_kl_refuses(void **state)
{
	struct head_case h = { 0 };
	struct states s, s_ref, unseen;
	struct head_state seen, seen_ref, none = clear_state(&unseen);
	struct err err = ERR_INIT;

	(void)state;
	head_case_init(&h);
	seen = see_tiles(h.x, h.w, 7, &s);
	expect_code(ref->ops->head_kl_tile(ref, h.x, h.x_ref, ROWS, 0, h.w, h.w, 1, &seen, &seen, h.kl, h.dx,
					   &err), &err, ERR_INVALID, "head_kl_tile");
	expect_code(ref->ops->head_kl_tile(ref, h.x, h.x_ref, ROWS, HIDDEN, h.w, h.w, SIZE_MAX, &seen, &seen, h.kl,
					   h.dx, &err), &err, ERR_INVALID, "head_kl_tile");
	mem_fail_after(1);
	expect_code(ref->ops->head_kl_tile(ref, h.x, h.x_ref, ROWS, HIDDEN, h.w, h.w, 1, &seen, &seen, h.kl, h.dx,
					   &err), &err, ERR_NOMEM, "");
	mem_fail_after(0);
	expect_code(ref->ops->head_kl_tile(ref, h.x, h.x_ref, ROWS, HIDDEN, h.w, h.w, 1, &seen, &none, h.kl, h.dx,
					   &err), &err, ERR_NUMERIC, "head_kl_tile");
	for (int i = 0; i < ROWS * HIDDEN; i++)
		h.dx[i] = FLT_MAX;
	for (int i = 0; i < VOCAB * HIDDEN; i++) /* the logits of x = 0 stay 0 */
		h.w[i] = FLT_MAX / 2;
	memset(h.x, 0, ROWS * HIDDEN * sizeof(*h.x));
	memset(h.x_ref, 0, ROWS * HIDDEN * sizeof(*h.x));
	seen = see_tiles(h.x, h.w, 7, &s);
	seen_ref = see_tiles(h.x_ref, h.w, 7, &s_ref);
	s.sum[1] = 1; /* as if one id had all the probability */
	expect_code(ref->ops->head_kl_tile(ref, h.x, h.x_ref, ROWS, HIDDEN, h.w, h.w, 1, &seen, &seen_ref, h.kl,
					   h.dx, &err), &err, ERR_NUMERIC, "head_kl_tile");
	head_case_deinit(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_head_kl),
		cmocka_unit_test(test_head_kl_tile_heights),
		cmocka_unit_test(test_head_kl_of_equals),
		cmocka_unit_test(test_head_kl_refuses),
	};

	return cmocka_run_group_tests(tests, open_ref, close_ref);
}
