/* Gradients of the block: the double core of `ref` held to central differences, for every kind of
 * parameter; block_backward of `ref` held to that core; and what backend.h promises of both operations. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/train_case.h"

/* Norm of the difference by norm of the gradient, of each tensor. */
static const double gradient_bound = 1e-5;

#define SHAPE(hidden, heads, kv, dim, inter) { hidden, heads, kv, dim, inter, 1e-5f }

static const struct train_case cases[] = {
	{ .block = { .name = "grouped queries", .shape = SHAPE(12, 4, 2, 4, 20), .n_seq = 2, .seq_len = 7 } },
	{ .block = { .name = "grouped queries, biases", .shape = SHAPE(12, 4, 2, 4, 20), .n_seq = 1,
		     .seq_len = 6, .biases = true } },
	{ .block = { .name = "one head each, norms", .shape = SHAPE(16, 4, 4, 4, 10), .n_seq = 1,
		     .seq_len = 5, .head_norms = true } },
	{ .block = { .name = "wide heads, all", .shape = SHAPE(10, 4, 2, 6, 14), .n_seq = 3, .seq_len = 9,
		     .biases = true, .head_norms = true }, .llama3_rope = true },
	{ .block = { .name = "one key-value head", .shape = SHAPE(9, 3, 1, 2, 11), .n_seq = 2, .seq_len = 3,
		     .biases = true }, .llama3_rope = true },
	{ .block = { .name = "llama3 rope", .shape = SHAPE(12, 2, 1, 8, 16), .n_seq = 1, .seq_len = 41 },
	  .llama3_rope = true },
	{ .block = { .name = "one token", .shape = SHAPE(12, 4, 2, 4, 20), .n_seq = 3, .seq_len = 1,
		     .biases = true, .head_norms = true } },
	{ .block = { .name = "smallest", .shape = SHAPE(1, 1, 1, 2, 1), .n_seq = 2, .seq_len = 2,
		     .biases = true, .head_norms = true } },
};

enum { CASES = sizeof(cases) / sizeof(cases[0]) };

/* A case in double: block, activations of all its sequences, gradients. */
struct core {
	const struct train_case *c;
	struct ref_block b;
	struct ref_acts s;
	size_t n;               /* of x and y */
	double *dy, *dx, *grads[REF_PARAMS];
};

static double *zeros(size_t n)
{
	double *x = calloc(n, sizeof(*x));

	assert_non_null(x);
	return x;
}

static void core_init(struct core *k, const struct train_case *c)
{
	const struct forward_case *f = &c->block;

	*k = (struct core){ .c = c, .n = train_case_len(c) };
	assert_int_equal(ref_block_init(&k->b, &f->shape, &f->w, &f->rope, f->seq_len, NULL), 0);
	assert_int_equal(ref_acts_init(&k->s, &f->shape, f->n_seq, f->seq_len, true, NULL), 0);
	k->dy = zeros(k->n);
	k->dx = zeros(k->n);
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		if (train_case_has(c, i))
			k->grads[i] = zeros(ref_param_size(&f->shape, i));
	for (size_t i = 0; i < k->n; i++)
		k->s.x[i] = f->x[i];
}

static void core_deinit(struct core *k)
{
	ref_block_deinit(&k->b);
	ref_acts_deinit(&k->s);
	free(k->dy);
	free(k->dx);
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		free(k->grads[i]);
}

/* The loss of train_case.h, in double throughout; its gradient in k->dy. */
static double core_loss(struct core *k)
{
	double total = 0;

	assert_int_equal(ref_block_run(&k->b, &k->s, true, NULL, NULL, NULL, NULL), 0);
	for (size_t i = 0; i < k->n; i++) {
		const double y = k->s.y[i], a = k->c->a[i], b = k->c->b[i];

		total += a * y + b * y * y / 2;
		k->dy[i] = a + b * y;
	}
	return total;
}

static void core_back(struct core *k)
{
	assert_int_equal(ref_block_back(&k->b, &k->s, k->dy, k->dx, k->grads, NULL), 0);
}

/* The loss with x[0] moved by `step`. */
static double moved(struct core *k, double *x, double step)
{
	const double middle = *x;
	double loss;

	*x = middle + step;
	loss = core_loss(k);
	*x = middle;
	return loss;
}

/* Distance of `gradient` from central differences (of fourth order: f(x +- h), f(x +- 2h)) along each of
 * the n values of x, which k's loss reads. */
static double difference(struct core *k, double *x, const double *gradient, size_t n)
{
	const double step = 2e-4;
	double *numeric = zeros(n), distance;

	for (size_t i = 0; i < n; i++)
		numeric[i] = (8 * (moved(k, x + i, step) - moved(k, x + i, -step)) -
			      (moved(k, x + i, 2 * step) - moved(k, x + i, -2 * step))) / (12 * step);
	distance = train_distance(gradient, numeric, n);
	free(numeric);
	return distance;
}

static void expect_below(const char *name, const char *what, double distance, double bound, double *worst)
{
	if (!(distance <= bound))
		fail_msg("%s: the gradient of %s is off by %.3g of its norm; the bound is %g", name, what,
			 distance, bound);
	*worst = fmax(*worst, distance);
}

static void print_worst(const char *what, const double worst[REF_PARAMS + 1])
{
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		print_message("# %s: %s: %.1e\n", what, ref_param_name(i), worst[i]);
	print_message("# %s: x: %.1e\n", what, worst[REF_PARAMS]);
}

static void test_central_differences(void **state)
{
	double worst[REF_PARAMS + 1] = { 0 };

	(void)state;
	for (int i = 0; i < CASES; i++) {
		struct train_case c = cases[i];
		struct core k;

		train_case_init(&c);
		core_init(&k, &c);
		core_loss(&k);
		core_back(&k);
		for (enum ref_param p = 0; p < REF_PARAMS; p++) {
			if (!k.b.p[p])
				continue;
			expect_below(c.block.name, ref_param_name(p),
				     difference(&k, k.b.p[p], k.grads[p], ref_param_size(&k.b.shape, p)),
				     gradient_bound, &worst[p]);
		}
		expect_below(c.block.name, "x", difference(&k, k.s.x, k.dx, k.n), gradient_bound,
			     &worst[REF_PARAMS]);
		core_deinit(&k);
		train_case_deinit(&c);
	}
	print_worst("against central differences", worst);
}

/* A wrong gradient is found: one element of each kind changed by a thousandth of the tensor's norm. */
static void test_differences_find_errors(void **state)
{
	struct train_case c = cases[3];
	struct core k;

	(void)state;
	train_case_init(&c);
	core_init(&k, &c);
	core_loss(&k);
	core_back(&k);
	for (enum ref_param p = 0; p < REF_PARAMS; p++) {
		const size_t n = ref_param_size(&k.b.shape, p);
		double *bad = case_copy(k.grads[p], n * sizeof(*bad)), norm = 0;

		for (size_t i = 0; i < n; i++)
			norm += bad[i] * bad[i];
		assert_true(norm > 0);
		bad[n / 2] += 1e-3 * sqrt(norm);
		assert_true(difference(&k, k.b.p[p], bad, n) > 10 * gradient_bound);
		free(bad);
	}
	core_deinit(&k);
	train_case_deinit(&c);
}

/* The float32 operation goes through the core sequence by sequence; here all at once, from the same dy. */
static void test_operation_near_core(void **state)
{
	struct backend *ref = case_open("ref", 1);
	double worst[REF_PARAMS + 1] = { 0 };

	(void)state;
	for (int i = 0; i < CASES; i++) {
		struct train_case c = cases[i];
		struct train_result got;
		struct core k;

		train_case_init(&c);
		core_init(&k, &c);
		got = train_case_run(&c, ref);
		core_loss(&k);
		assert_true(train_distance_float(got.loss.y, k.s.y, k.n) <= 1e-6);
		for (size_t j = 0; j < k.n; j++)
			k.dy[j] = got.loss.dy[j];
		core_back(&k);
		for (enum ref_param p = 0; p < REF_PARAMS; p++)
			if (k.grads[p])
				expect_below(c.block.name, ref_param_name(p),
					     train_distance_float(ref_param_grad(&got.grads, p), k.grads[p],
								  ref_param_size(&k.b.shape, p)),
					     1e-6, &worst[p]);
		expect_below(c.block.name, "x", train_distance_float(got.dx, k.dx, k.n), 1e-6,
			     &worst[REF_PARAMS]);
		train_result_deinit(&got);
		core_deinit(&k);
		train_case_deinit(&c);
	}
	print_worst("float32 operation against the core", worst);
	case_close(ref);
}

static void assert_same(const char *what, const float *got, const float *want, size_t n)
{
	if (memcmp(got, want, n * sizeof(*got)) != 0)
		fail_msg("%s: bytes differ", what);
}

static void test_loss_reads_the_output(void **state)
{
	struct backend *ref = case_open("ref", 1);
	struct train_case c = cases[3];
	struct forward_result forward;
	struct train_result r;

	(void)state;
	train_case_init(&c);
	forward = forward_case_run(&c.block, ref, true, false);
	r = train_case_run(&c, ref);
	assert_same("y", r.loss.y, forward.y, forward.y_len);
	train_result_deinit(&r);
	forward_result_deinit(&forward);
	train_case_deinit(&c);
	case_close(ref);
}

static struct train_case sequence_of(const struct train_case *c, size_t i)
{
	const size_t n = c->block.seq_len * c->block.shape.hidden;
	struct train_case one = *c;

	one.block.n_seq = 1;
	one.block.x += i * n;
	one.a += i * n;
	one.b += i * n;
	return one;
}

static void test_sum_over_sequences(void **state)
{
	struct backend *ref = case_open("ref", 1);
	struct train_case c = cases[3];
	const size_t n = c.block.seq_len * c.block.shape.hidden;
	struct train_result all;
	double *sums[REF_PARAMS] = { 0 };

	(void)state;
	train_case_init(&c);
	all = train_case_run(&c, ref);
	for (enum ref_param p = 0; p < REF_PARAMS; p++)
		sums[p] = zeros(ref_param_size(&c.block.shape, p));
	for (size_t i = 0; i < c.block.n_seq; i++) {
		const struct train_case one = sequence_of(&c, i);
		struct train_result r = train_case_run(&one, ref);

		assert_memory_equal(r.dx, all.dx + i * n, n * sizeof(float));
		for (enum ref_param p = 0; p < REF_PARAMS; p++)
			for (size_t j = 0; j < ref_param_size(&c.block.shape, p); j++)
				sums[p][j] += ref_param_grad(&r.grads, p)[j];
		train_result_deinit(&r);
	}
	for (enum ref_param p = 0; p < REF_PARAMS; p++) {
		const size_t size = ref_param_size(&c.block.shape, p);
		double worst = 0;

		expect_below("sum over sequences", ref_param_name(p),
			     train_distance_float(ref_param_grad(&all.grads, p), sums[p], size), 1e-6,
			     &worst);
		free(sums[p]);
	}
	train_result_deinit(&all);
	train_case_deinit(&c);
	case_close(ref);
}

static int call(const struct train_case *c, struct backend *be, struct train_loss *loss, float *dx,
		const struct block_grads *grads, struct err *err)
{
	const struct forward_case *f = &c->block;

	loss->be = be;
	return be->ops->block_backward(be, &f->shape, &f->w, &f->rope, f->x, f->n_seq, f->seq_len,
				       train_loss_call, loss, dx, grads, err);
}

/* Each gradient alone, dx alone, nothing: the same bytes as all together, and nothing else is touched. */
static void test_unwanted_gradients(void **state)
{
	struct backend *ref = case_open("ref", 1);
	struct train_case c = cases[3];
	struct block_grads none = { 0 };
	struct train_loss loss = { .c = &c };
	struct train_result all;
	float *dx;

	(void)state;
	train_case_init(&c);
	all = train_case_run(&c, ref);
	for (enum ref_param p = 0; p < REF_PARAMS; p++) {
		const size_t n = ref_param_size(&c.block.shape, p);
		struct block_grads one = { 0 };
		float *out = *train_grad_member(&one, p) = case_poisoned(n);

		loss = (struct train_loss){ .c = &c };
		assert_int_equal(call(&c, ref, &loss, NULL, &one, NULL), 0);
		assert_same(ref_param_name(p), out, ref_param_grad(&all.grads, p), n);
		free(out);
	}
	dx = case_poisoned(train_case_len(&c));
	loss = (struct train_loss){ .c = &c };
	assert_int_equal(call(&c, ref, &loss, dx, &none, NULL), 0);
	assert_same("dx", dx, all.dx, train_case_len(&c));
	loss = (struct train_loss){ .c = &c };
	assert_int_equal(call(&c, ref, &loss, NULL, &none, NULL), 0);
	assert_int_equal(loss.calls, c.block.n_seq);
	assert_true(loss.total == all.loss.total);
	free(dx);
	train_result_deinit(&all);
	train_case_deinit(&c);
	case_close(ref);
}

static void test_loss_stops(void **state)
{
	struct backend *ref = case_open("ref", 1);
	struct train_case c = cases[3];
	struct block_grads grads;

	(void)state;
	train_case_init(&c);
	train_grads_init(&grads, &c);
	for (size_t nth = 1; nth <= c.block.n_seq; nth++) {
		struct train_loss loss = { .c = &c, .stop_at = nth };
		struct err err = ERR_INIT;

		assert_int_equal(call(&c, ref, &loss, NULL, &grads, &err), -1);
		assert_int_equal(loss.calls, nth);
		assert_int_equal(err.code, ERR_NONE);
		assert_string_equal(err.text, "");
	}
	train_grads_deinit(&grads);
	train_case_deinit(&c);
	case_close(ref);
}

static void expect_numeric(const struct train_case *c, struct backend *be, float *dx,
			   const struct block_grads *grads)
{
	struct train_loss loss = { .c = c };
	struct err err = ERR_INIT;

	assert_int_equal(call(c, be, &loss, dx, grads, &err), -1);
	if (err.code != ERR_NUMERIC)
		fail_msg("code %s, text %s", err_name(err.code), err.text);
}

static void fill(float *x, size_t n, float value)
{
	for (size_t i = 0; i < n; i++)
		x[i] = value;
}

/* dy so large that dx, or the sum of a gradient over rows, overflows float32; then an output that does. */
static void test_not_finite(void **state)
{
	struct backend *ref = case_open("ref", 1);
	struct train_case c = cases[1];
	const size_t hidden = c.block.shape.hidden;
	struct block_grads grads = { 0 };
	float *dx, bias[12];

	(void)state;
	train_case_init(&c);
	dx = case_poisoned(train_case_len(&c));
	fill(c.b, train_case_len(&c), 0);
	fill(c.a, train_case_len(&c), 3e38f);
	expect_numeric(&c, ref, dx, &grads);
	grads.down_bias = bias;
	expect_numeric(&c, ref, NULL, &grads);
	fill(c.a, train_case_len(&c), NAN);
	expect_numeric(&c, ref, NULL, &grads);
	fill(c.a, train_case_len(&c), 1);
	fill(c.block.x, train_case_len(&c), 1);
	fill((float *)(uintptr_t)c.block.w.v, ref_param_size(&c.block.shape, REF_V), 3e38f);
	expect_numeric(&c, ref, dx, &grads);
	assert_true(hidden == sizeof(bias) / sizeof(bias[0]));
	free(dx);
	train_case_deinit(&c);
	case_close(ref);
}

static void expect_invalid(struct backend *be, struct block_shape shape, size_t n_seq, size_t seq_len,
			   const char *part)
{
	const struct block_weights w = { 0 };
	const struct rope_table rope = { 0 };
	const struct block_grads grads = { 0 };
	struct err err = ERR_INIT;
	float x = 0;

	assert_int_equal(be->ops->block_backward(be, &shape, &w, &rope, &x, n_seq, seq_len, train_loss_call,
						 NULL, NULL, &grads, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	if (!strstr(err.text, part))
		fail_msg("\"%s\" lacks \"%s\"", err.text, part);
}

static void test_bad_shapes(void **state)
{
	struct backend *ref = case_open("ref", 1);

	(void)state;
	expect_invalid(ref, (struct block_shape)SHAPE(8, 4, 3, 4, 8), 1, 1, "multiple of 3");
	expect_invalid(ref, (struct block_shape)SHAPE(8, 4, 2, 3, 8), 1, 1, "head_dim 3 is odd");
	expect_invalid(ref, (struct block_shape)SHAPE(0, 4, 2, 4, 8), 1, 1, "hidden 0");
	expect_invalid(ref, (struct block_shape)SHAPE(8, 4, 2, 4, 1 << 25), 1, 1, "intermediate");
	expect_invalid(ref, (struct block_shape)SHAPE(8, 4, 2, 4, 8), 0, 1, "0 sequences");
	expect_invalid(ref, (struct block_shape)SHAPE(8, 4, 2, 4, 8), 1, 0, "0 tokens");
	case_close(ref);
}

static void test_gradient_of_nothing(void **state)
{
	struct backend *ref = case_open("ref", 1);
	struct train_case c = cases[0];
	float out[20];

	(void)state;
	train_case_init(&c);
	for (enum ref_param p = REF_Q_BIAS; p < REF_PARAMS; p++) {
		struct train_loss loss = { .c = &c };
		struct block_grads one = { 0 };
		struct err err = ERR_INIT;

		*train_grad_member(&one, p) = out;
		assert_int_equal(call(&c, ref, &loss, NULL, &one, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		if (!strstr(err.text, ref_param_name(p)))
			fail_msg("\"%s\" lacks \"%s\"", err.text, ref_param_name(p));
		assert_int_equal(loss.calls, 0);
	}
	train_case_deinit(&c);
	case_close(ref);
}

static void test_out_of_memory(void **state)
{
	struct backend *ref = case_open("ref", 1);
	struct train_case c = cases[3];
	struct block_grads grads;
	float *dx;
	int rc = -1, failures = 0;

	(void)state;
	train_case_init(&c);
	train_grads_init(&grads, &c);
	dx = case_poisoned(train_case_len(&c));
	for (uint64_t nth = 1; rc != 0; nth++) {
		struct train_loss loss = { .c = &c };
		struct err err = ERR_INIT;

		mem_fail_after(nth);
		rc = call(&c, ref, &loss, dx, &grads, &err);
		mem_fail_after(0);
		if (rc != 0)
			assert_int_equal(err.code, ERR_NOMEM);
		failures += rc != 0;
	}
	assert_true(failures >= REF_PARAMS);
	train_grads_deinit(&grads);
	free(dx);
	train_case_deinit(&c);
	case_close(ref);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_central_differences),
		cmocka_unit_test(test_differences_find_errors),
		cmocka_unit_test(test_operation_near_core),
		cmocka_unit_test(test_loss_reads_the_output),
		cmocka_unit_test(test_sum_over_sequences),
		cmocka_unit_test(test_unwanted_gradients),
		cmocka_unit_test(test_loss_stops),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_bad_shapes),
		cmocka_unit_test(test_gradient_of_nothing),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
