/* block_backward and rms_norm_backward: the tested backend held to ref, and what backend.h promises of both. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/tested_backend.h"
#include "tests/lib/train_case.h"

#define SHAPE(hidden, heads, kv, dim, inter) { hidden, heads, kv, dim, inter, 1e-5f }

static const struct train_case cases[] = {
	{ .block = { .name = "smallest", .shape = SHAPE(1, 1, 1, 2, 1), .n_seq = 1, .seq_len = 1 } },
	{ .block = { .name = "one token", .shape = SHAPE(33, 3, 1, 8, 70), .n_seq = 3, .seq_len = 1,
		     .biases = true, .head_norms = true } },
	{ .block = { .name = "two tokens", .shape = SHAPE(20, 2, 1, 6, 19), .n_seq = 2, .seq_len = 2 } },
	{ .block = { .name = "group ratio 3", .shape = SHAPE(96, 6, 2, 16, 257), .n_seq = 2,
		     .seq_len = 63 } },
	{ .block = { .name = "query tile - 1", .shape = SHAPE(48, 4, 2, 12, 96), .n_seq = 2, .seq_len = 127 },
	  .llama3_rope = true },
	{ .block = { .name = "query tile", .shape = SHAPE(48, 4, 4, 12, 96), .n_seq = 1, .seq_len = 128 } },
	{ .block = { .name = "query tile + 1", .shape = SHAPE(48, 4, 1, 12, 96), .n_seq = 2, .seq_len = 129,
		     .head_norms = true } },
	{ .block = { .name = "key tile - 1", .shape = SHAPE(37, 2, 1, 10, 255), .n_seq = 1, .seq_len = 255,
		     .biases = true } },
	{ .block = { .name = "key tile + 1", .shape = SHAPE(40, 5, 5, 8, 257), .n_seq = 2, .seq_len = 257,
		     .biases = true, .head_norms = true } },
	{ .block = { .name = "more heads than items", .shape = SHAPE(24, 14, 7, 4, 30), .n_seq = 1,
		     .seq_len = 300 } },
	{ .block = { .name = "many parts", .shape = SHAPE(16, 1, 1, 8, 20), .n_seq = 1, .seq_len = 700 } },
	{ .block = { .name = "column tiles + 1", .shape = SHAPE(513, 9, 3, 64, 515), .n_seq = 1,
		     .seq_len = 20, .biases = true } },
	{ .block = { .name = "wide heads", .shape = SHAPE(64, 6, 3, 128, 100), .n_seq = 3, .seq_len = 17,
		     .biases = true, .head_norms = true } },
	{ .block = { .name = "many short sequences", .shape = SHAPE(32, 4, 2, 8, 64), .n_seq = 20,
		     .seq_len = 7 } },
};

enum { CASES = sizeof(cases) / sizeof(cases[0]), FULL = 8 };

static const double bound = 2e-4;
static const struct block_grads none;

static void same_bytes(const char *what, const void *a, const void *b, size_t bytes)
{
	if (memcmp(a, b, bytes) != 0)
		fail_msg("%s: bytes differ", what);
}

static int backward(struct backend *be, const struct forward_case *f, block_loss loss, void *loss_ctx,
		    float *dx, const struct block_grads *grads, struct err *err)
{
	return be->ops->block_backward(be, &f->shape, &f->w, &f->rope, f->x, f->n_seq, f->seq_len, loss,
				       loss_ctx, dx, grads, err);
}

/* --- block_backward ------------------------------------------------------------------------- */

static void test_block_near_ref(void **state)
{
	struct backend *ref = case_open("ref", 1);

	(void)state;
	for (int i = 0; i < CASES; i++) {
		struct train_case c = cases[i];
		struct train_result want;

		train_case_init(&c);
		want = train_case_run(&c, ref);
		for (int level = 0; level < tested_levels(); level++) {
			struct backend *fast = tested_open(level, 2);
			struct train_result got = train_case_run(&c, fast);

			train_assert_close(&c, &got, &want, bound);
			case_assert_close(c.block.name, got.loss.y, want.loss.y, train_case_len(&c),
					  1e-4 * case_max_abs(want.loss.y, train_case_len(&c)));
			train_result_deinit(&got);
			case_close(fast);
		}
		train_result_deinit(&want);
		train_case_deinit(&c);
	}
	case_close(ref);
}

/* One backend for all cases: nothing that an operation left behind is seen by the next one. */
static void test_threads_and_order_do_not_matter(void **state)
{
	static const int threads[] = { 2, 3, 7 };
	struct backend *many[3];

	(void)state;
	for (int t = 0; t < 3; t++)
		many[t] = case_open(tested_backend(), threads[t]);
	for (int i = CASES - 1; i >= 0; i--) {
		struct train_case c = cases[i];
		struct backend *one = case_open(tested_backend(), 1);
		struct train_result want;

		train_case_init(&c);
		want = train_case_run(&c, one);
		for (int t = 0; t < 3; t++) {
			struct train_result got = train_case_run(&c, many[t]);

			train_assert_same_bytes(&c, &got, &want);
			same_bytes("y", got.loss.y, want.loss.y, train_case_len(&c) * sizeof(float));
			train_result_deinit(&got);
		}
		train_result_deinit(&want);
		train_case_deinit(&c);
		case_close(one);
	}
	for (int t = 0; t < 3; t++)
		case_close(many[t]);
}

/* Only what `wanted` picks, and dx or not: the same bytes as with everything. */
static void run_some(const struct train_case *c, struct backend *be, const struct train_result *all,
		     uint32_t wanted, bool with_dx)
{
	const struct forward_case *f = &c->block;
	const size_t n = train_case_len(c);
	struct train_result some = { .dx = case_poisoned(n), .loss = { .c = c, .be = be } };
	struct block_grads picked = { 0 };
	struct err err = ERR_INIT;

	train_grads_init(&some.grads, c);
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		if (wanted >> i & 1)
			*train_grad_member(&picked, i) = ref_param_grad(&some.grads, i);
	if (backward(be, f, train_loss_call, &some.loss, with_dx ? some.dx : NULL, &picked, &err) != 0)
		fail_msg("%s: %s", f->name, err.text);
	for (enum ref_param i = 0; i < REF_PARAMS; i++) {
		const float *g = ref_param_grad(&some.grads, i);
		const size_t size = g ? ref_param_size(&f->shape, i) : 0;

		if (g && wanted >> i & 1)
			same_bytes(ref_param_name(i), g, ref_param_grad(&all->grads, i), size * sizeof(*g));
		else
			for (size_t j = 0; j < size; j++)
				assert_true(isnan(g[j]));
	}
	if (with_dx)
		same_bytes("dx", some.dx, all->dx, n * sizeof(float));
	train_result_deinit(&some);
}

static void test_some_gradients(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct train_case c = cases[12];
		struct train_result all;

		train_case_init(&c);
		all = train_case_run(&c, be);
		run_some(&c, be, &all, 0, true);
		run_some(&c, be, &all, 0, false);
		for (enum ref_param i = 0; i < REF_PARAMS; i++)
			run_some(&c, be, &all, 1u << i, false);
		run_some(&c, be, &all, 0x2aaaa, true);
		run_some(&c, be, &all, 0x15555, false);
		train_result_deinit(&all);
		train_case_deinit(&c);
		case_close(be);
	}
}

/* The gradient of a bias or norm that the block lacks. */
static void test_absent_parameters(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct train_case c = cases[2];
		const struct forward_case *f = &c.block;
		struct train_loss loss = { .c = &c, .be = be };
		float unused = 0;

		train_case_init(&c);
		for (enum ref_param i = REF_Q_BIAS; i < REF_PARAMS; i++) {
			struct block_grads grads = { 0 };
			struct err err = ERR_INIT;

			*train_grad_member(&grads, i) = &unused;
			assert_int_equal(backward(be, f, train_loss_call, &loss, NULL, &grads, &err), -1);
			assert_int_equal(err.code, ERR_INVALID);
			if (!strstr(err.text, ref_param_name(i)))
				fail_msg("\"%s\" does not name %s", err.text, ref_param_name(i));
		}
		train_case_deinit(&c);
		case_close(be);
	}
}

/* A call over several sequences is the sum of calls over each. */
static void test_sequences_add_up(void **state)
{
	struct backend *fast = case_open(tested_backend(), 2);
	struct train_case c = cases[FULL];
	const size_t n = c.block.seq_len * c.block.shape.hidden;
	const size_t size = ref_param_size(&c.block.shape, REF_GATE);
	struct train_result all;
	double *sum;

	(void)state;
	train_case_init(&c);
	all = train_case_run(&c, fast);
	sum = calloc(size, sizeof(*sum));
	assert_non_null(sum);
	for (size_t i = 0; i < c.block.n_seq; i++) {
		struct train_case one = c;
		struct train_result r;

		one.block.n_seq = 1;
		one.block.x += i * n, one.a += i * n, one.b += i * n;
		r = train_case_run(&one, fast);
		same_bytes("dx of a sequence", r.dx, all.dx + i * n, n * sizeof(float));
		for (size_t j = 0; j < size; j++)
			sum[j] += r.grads.gate[j];
		train_result_deinit(&r);
	}
	assert_true(train_distance_float(all.grads.gate, sum, size) < 1e-6);
	free(sum);
	train_result_deinit(&all);
	train_case_deinit(&c);
	case_close(fast);
}

static void test_loss_stops(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct train_case c = cases[12];
		const struct forward_case *f = &c.block;

		train_case_init(&c);
		for (size_t stop = 1; stop <= f->n_seq; stop++) {
			struct train_loss loss = { .c = &c, .be = be, .stop_at = stop };
			struct block_grads grads;
			struct err err = ERR_INIT;

			train_grads_init(&grads, &c);
			assert_int_equal(backward(be, f, train_loss_call, &loss, NULL, &grads, &err), -1);
			assert_int_equal(err.code, ERR_NONE);
			assert_int_equal(loss.calls, stop);
			train_grads_deinit(&grads);
		}
		train_case_deinit(&c);
		case_close(be);
	}
}

struct given_loss { struct backend *be; float value; };

static int give_gradient(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	const struct given_loss *given = ctx;
	float *here = case_poisoned(rows * cols);

	(void)sequence;
	(void)y;
	for (size_t i = 0; i < rows * cols; i++)
		here[i] = given->value;
	case_hand(given->be, dy, here, rows * cols);
	free(here);
	return 0;
}

static void expect_numeric(struct backend *be, const struct train_case *c, float dy, float *dx,
			   const struct block_grads *grads)
{
	const struct forward_case *f = &c->block;
	struct given_loss loss = { be, dy };
	struct err err = ERR_INIT;

	assert_int_equal(backward(be, f, give_gradient, &loss, dx, grads, &err), -1);
	if (err.code != ERR_NUMERIC)
		fail_msg("%s: code %s, text \"%s\"", be->ops->name, err_name(err.code), err.text);
}

static void expect_numeric_with(struct backend *be, struct train_case *c, const float *weight, size_t n,
				float *dx)
{
	float *target = (float *)(uintptr_t)weight, *old = case_copy(weight, n * sizeof(*old));

	for (size_t i = 0; i < n; i++)
		target[i] = 3e38f;
	expect_numeric(be, c, 1, dx, &none);
	memcpy(target, old, n * sizeof(*old));
	free(old);
}

static void test_not_finite_is_an_error(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		struct train_case c = cases[3];
		const struct block_weights *w = &c.block.w;
		struct block_grads grads = { 0 }, down = { 0 };
		float *dx;

		train_case_init(&c);
		for (size_t i = 0; i < train_case_len(&c); i++)
			c.block.x[i] = 2.0f + fabsf(c.block.x[i]);
		dx = case_poisoned(train_case_len(&c));
		train_grads_init(&grads, &c);
		expect_numeric(be, &c, NAN, dx, &none);
		expect_numeric(be, &c, 3e38f, dx, &none);
		down.down = grads.down;
		expect_numeric(be, &c, 3e38f, NULL, &down);
		expect_numeric_with(be, &c, w->v, c.block.shape.hidden, dx);
		expect_numeric_with(be, &c, w->o, 6 * 16, dx);
		expect_numeric_with(be, &c, w->up, c.block.shape.hidden, dx);
		expect_numeric_with(be, &c, w->down, c.block.shape.intermediate, dx);
		train_grads_deinit(&grads);
		free(dx);
		train_case_deinit(&c);
		case_close(be);
	}
}

static void test_block_bad_shapes(void **state)
{
	static const struct block_shape odd = SHAPE(8, 4, 2, 3, 8), good = SHAPE(8, 4, 2, 4, 8);
	float x = 0;

	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct forward_case f = { .x = &x, .n_seq = 1, .seq_len = 1 };
		struct backend *be = case_open(tested_name(b), 1);
		struct err err = ERR_INIT;

		f.shape = odd;
		assert_int_equal(backward(be, &f, give_gradient, NULL, NULL, &none, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		f.shape = good;
		f.seq_len = 0;
		assert_int_equal(backward(be, &f, give_gradient, NULL, NULL, &none, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		case_close(be);
	}
}

static void test_out_of_memory(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct train_case c = cases[12];
		const struct forward_case *f = &c.block;
		float *dx;
		int rc = -1, failures = 0;

		train_case_init(&c);
		dx = case_poisoned(train_case_len(&c));
		for (uint64_t nth = 1; rc != 0; nth++) {
			struct backend *be = case_open(tested_name(b), 2);
			struct train_loss loss = { .c = &c, .be = be };
			struct block_grads grads;
			struct err err = ERR_INIT;

			train_grads_init(&grads, &c);
			mem_fail_after(nth);
			rc = backward(be, f, train_loss_call, &loss, dx, &grads, &err);
			mem_fail_after(0);
			if (rc != 0)
				assert_int_equal(err.code, ERR_NOMEM);
			failures += rc != 0 || tested_may_not_allocate(be);
			train_grads_deinit(&grads);
			case_close(be);
		}
		assert_true(failures >= 1);
		free(dx);
		train_case_deinit(&c);
	}
}

/* Scratch that was kept is too small for the second call; when it cannot grow, the third one still works. */
static void test_scratch_grows(void **state)
{
	struct backend *cpu = case_open("cpu", 2);
	struct train_case small = cases[2], large = cases[3];
	const struct forward_case *f = &large.block;
	struct train_result r;
	struct train_loss loss = { .c = &large, .be = cpu };
	struct err err = ERR_INIT;

	(void)state;
	train_case_init(&small);
	train_case_init(&large);
	r = train_case_run(&small, cpu);
	train_result_deinit(&r);
	mem_fail_after(1);
	assert_int_equal(backward(cpu, f, train_loss_call, &loss, NULL, &none, &err), -1);
	mem_fail_after(0);
	assert_int_equal(err.code, ERR_NOMEM);
	r = train_case_run(&large, cpu);
	train_result_deinit(&r);
	r = train_case_run(&small, cpu);
	train_result_deinit(&r);
	train_case_deinit(&small);
	train_case_deinit(&large);
	case_close(cpu);
}

/* --- rms_norm_backward ------------------------------------------------------------------------ */

static void norm_case(struct backend *ref, struct backend *fast, size_t rows, size_t cols)
{
	const size_t n = rows * cols;
	float *x = case_random(n, 3, rows + cols), *weight = case_random(cols, 2, cols);
	float *dy = case_random(n, 1, n + 3), *want = case_poisoned(n), *got = case_poisoned(n);

	assert_int_equal(ref->ops->rms_norm_backward(ref, x, weight, 1e-6f, rows, cols, dy, want, NULL), 0);
	assert_int_equal(fast->ops->rms_norm_backward(fast, x, weight, 1e-6f, rows, cols, dy, got, NULL), 0);
	case_assert_close("rms_norm_backward", got, want, n, 1e-4 * case_max_abs(want, n));
	assert_int_equal(fast->ops->rms_norm_backward(fast, x, weight, 1e-6f, rows, cols, dy, dy, NULL), 0);
	same_bytes("rms_norm_backward in place", dy, got, n * sizeof(*dy));
	free(x);
	free(weight);
	free(dy);
	free(want);
	free(got);
}

static void test_rms_norm_backward(void **state)
{
	static const size_t rows[] = { 0, 1, 2, 63, 64, 65, 200 };
	static const size_t cols[] = { 1, 2, 31, 32, 33, 64, 65, 1000 };
	struct backend *ref = case_open("ref", 1);

	(void)state;
	for (int level = 0; level < tested_levels(); level++) {
		struct backend *fast = tested_open(level, 3);

		for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
			for (size_t j = 0; j < sizeof(cols) / sizeof(cols[0]); j++)
				norm_case(ref, fast, rows[i], cols[j]);
		case_close(fast);
	}
	case_close(ref);
}

static void test_rms_norm_backward_errors(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		const float x[3] = { 1e-3f, -2e-3f, 1e-3f }, weight[3] = { 1, 1, 1 }, dy[3] = { 1, 3e38f, 1 };
		float dx[3];
		struct err err = ERR_INIT;

		assert_int_equal(be->ops->rms_norm_backward(be, x, weight, 1e-9f, 1, 3, dy, dx, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_int_equal(be->ops->rms_norm_backward(be, x, weight, 1e-9f, 1, 0, dy, dx, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		case_close(be);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_block_near_ref),
		cmocka_unit_test(test_threads_and_order_do_not_matter),
		cmocka_unit_test(test_some_gradients),
		cmocka_unit_test(test_absent_parameters),
		cmocka_unit_test(test_sequences_add_up),
		cmocka_unit_test(test_loss_stops),
		cmocka_unit_test(test_not_finite_is_an_error),
		cmocka_unit_test(test_block_bad_shapes),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_scratch_grows),
		cmocka_unit_test(test_rms_norm_backward),
		cmocka_unit_test(test_rms_norm_backward_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
