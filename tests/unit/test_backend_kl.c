/* head_kl_tile: the tested backend held to ref, and what backend.h promises of it. */
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

static void same_bytes(const char *what, const void *a, const void *b, size_t bytes)
{
	if (memcmp(a, b, bytes) != 0)
		fail_msg("%s: bytes differ", what);
}

struct kl_case {
	size_t rows, hidden, vocab, tile;
	float *x, *x_ref, *w, *w_ref;
	int32_t *targets;
};

struct kl_result { double *kl; float *dx; };

static struct head_state new_state(size_t rows)
{
	struct head_state s = { .max = malloc(rows * 8), .sum = calloc(rows, 8), .target = calloc(rows, 8),
				.top_logit = malloc(rows * 8), .top_id = calloc(rows, 4) };

	assert_true(s.max && s.sum && s.target && s.top_logit && s.top_id);
	for (size_t i = 0; i < rows; i++)
		s.max[i] = s.top_logit[i] = -INFINITY;
	return s;
}

static void free_state(struct head_state *s)
{
	free(s->max);
	free(s->sum);
	free(s->target);
	free(s->top_logit);
	free(s->top_id);
}

static void kl_case_init(struct kl_case *c)
{
	const float spread = 3 / sqrtf((float)c->hidden);

	c->x = case_random(c->rows * c->hidden, 2, c->rows);
	c->x_ref = case_random(c->rows * c->hidden, 1, c->rows + 1);
	c->w = case_random(c->vocab * c->hidden, spread, c->vocab);
	c->w_ref = case_random(c->vocab * c->hidden, spread / 20, c->vocab + 1); /* the reference's table: another one */
	for (size_t i = 0; i < c->vocab * c->hidden; i++)
		c->w_ref[i] += c->w[i];
	c->targets = case_random_ids(c->rows, (int32_t)c->vocab, 4);
	for (size_t i = 0; i < c->rows * c->hidden; i++)
		c->x_ref[i] += c->x[i];
}

static void kl_case_deinit(struct kl_case *c)
{
	free(c->x);
	free(c->x_ref);
	free(c->w);
	free(c->w_ref);
	free(c->targets);
}

static void fold_all(const struct kl_case *c, struct backend *be, const float *x, const float *w,
		     struct head_state *state)
{
	for (size_t id = 0; id < c->vocab; id += c->tile) {
		const size_t n = c->vocab - id < c->tile ? c->vocab - id : c->tile;

		assert_int_equal(be->ops->head_tile(be, x, c->rows, c->hidden, w + id * c->hidden, n,
						    (int32_t)id, c->targets, state, NULL), 0);
	}
}

static struct kl_result run_kl(const struct kl_case *c, struct backend *be, bool with_kl, bool with_dx)
{
	struct head_state own = new_state(c->rows), ref = new_state(c->rows);
	struct kl_result r = { calloc(c->rows, sizeof(double)), case_random(c->rows * c->hidden, 0, 1) };

	assert_non_null(r.kl);
	fold_all(c, be, c->x, c->w, &own);
	fold_all(c, be, c->x_ref, c->w_ref, &ref);
	for (size_t id = 0; id < c->vocab; id += c->tile) {
		const size_t n = c->vocab - id < c->tile ? c->vocab - id : c->tile;

		assert_int_equal(be->ops->head_kl_tile(be, c->x, c->x_ref, c->rows, c->hidden,
						       c->w + id * c->hidden, c->w_ref + id * c->hidden, n,
						       &own, &ref,
						       with_kl ? r.kl : NULL, with_dx ? r.dx : NULL,
						       NULL), 0);
	}
	free_state(&own);
	free_state(&ref);
	return r;
}

static void free_kl(struct kl_result *r)
{
	free(r->kl);
	free(r->dx);
}

static void kl_near_ref(struct kl_case c, struct backend *ref, struct backend *fast, struct backend *other)
{
	const size_t n = c.rows * c.hidden;
	struct kl_result want, got, again, kl_alone, dx_alone;

	kl_case_init(&c);
	want = run_kl(&c, ref, true, true);
	got = run_kl(&c, fast, true, true);
	again = run_kl(&c, other, true, true);
	kl_alone = run_kl(&c, fast, true, false);
	dx_alone = run_kl(&c, fast, false, true);
	for (size_t i = 0; i < c.rows; i++)
		if (!(fabs(got.kl[i] - want.kl[i]) <= 1e-4))
			fail_msg("kl of row %zu is %.9g, not %.9g", i, got.kl[i], want.kl[i]);
	case_assert_close("dx", got.dx, want.dx, n, 1e-4 * case_max_abs(want.dx, n));
	same_bytes("kl", again.kl, got.kl, c.rows * sizeof(double));
	same_bytes("dx", again.dx, got.dx, n * sizeof(float));
	same_bytes("kl alone", kl_alone.kl, got.kl, c.rows * sizeof(double));
	same_bytes("dx alone", dx_alone.dx, got.dx, n * sizeof(float));
	free_kl(&want);
	free_kl(&got);
	free_kl(&again);
	free_kl(&kl_alone);
	free_kl(&dx_alone);
	kl_case_deinit(&c);
}

static void test_kl_near_ref(void **state)
{
	static const struct kl_case shapes[] = {
		{ .rows = 1, .hidden = 1, .vocab = 1, .tile = 1 },
		{ .rows = 3, .hidden = 7, .vocab = 40, .tile = 9 },
		{ .rows = 255, .hidden = 16, .vocab = 511, .tile = 511 },
		{ .rows = 256, .hidden = 33, .vocab = 513, .tile = 512 },
		{ .rows = 257, .hidden = 48, .vocab = 1700, .tile = 1100 },
	};
	struct backend *ref = case_open("ref", 1);

	(void)state;
	for (int level = 0; level < tested_levels(); level++) {
		struct backend *one = tested_open(level, 1);
		struct backend *many = tested_open(level, 3);

		for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
			kl_near_ref(shapes[i], ref, one, many);
		case_close(one);
		case_close(many);
	}
	case_close(ref);
}

/* A model that equals its reference is at distance zero, and stays where it is. */
static void test_kl_of_equals(void **state)
{
	struct backend *fast = case_open(tested_backend(), 2);
	struct kl_case c = { .rows = 20, .hidden = 24, .vocab = 700, .tile = 300 };
	struct kl_result r;

	(void)state;
	kl_case_init(&c);
	memcpy(c.x_ref, c.x, c.rows * c.hidden * sizeof(float));
	memcpy(c.w_ref, c.w, c.vocab * c.hidden * sizeof(float));
	r = run_kl(&c, fast, true, true);
	for (size_t i = 0; i < c.rows; i++)
		assert_true(r.kl[i] == 0);
	assert_true(case_max_abs(r.dx, c.rows * c.hidden) == 0);
	free_kl(&r);
	kl_case_deinit(&c);
	case_close(fast);
}

static void test_kl_errors(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		const struct backend_ops *ops = be->ops;
		const float x[2] = { 3e38f, 1 }, x_ref[2] = { 1, 1 }, w[4] = { 9, 1, 2, 3 };
		double max = 10, sum = 2, kl = 0;
		const struct head_state s = { .max = &max, .sum = &sum };
		float dx[2] = { 0, 0 };
		struct err err = ERR_INIT;

		assert_int_equal(ops->head_kl_tile(be, x, x_ref, 1, 2, w, w, 2, &s, &s, &kl, dx, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_int_equal(ops->head_kl_tile(be, x_ref, x_ref, 1, 0, w, w, 2, &s, &s, &kl, dx, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(ops->head_kl_tile(be, x_ref, x_ref, 1, 2, w, w, 2, &s, &s, NULL, NULL,
						   &err), 0);
		case_close(be);
		be = case_open(tested_name(b), 2);
		mem_fail_after(1);
		if (ops->head_kl_tile(be, x_ref, x_ref, 1, 2, w, w, 2, &s, &s, NULL, dx, &err) != 0)
			assert_int_equal(err.code, ERR_NOMEM);
		else
			assert_true(tested_may_not_allocate(be));
		mem_fail_after(0);
		case_close(be);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kl_near_ref),
		cmocka_unit_test(test_kl_of_equals),
		cmocka_unit_test(test_kl_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
