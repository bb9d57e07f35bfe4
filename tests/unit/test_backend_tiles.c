/* gram_add, gram_mean and head_tile: the tested backend held to ref, and what backend.h promises of them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"

/* --- gram_add ---------------------------------------------------------------------------------- */

/* A symmetric start, so that "+=" is seen. */
static double *start_h(size_t cols)
{
	double *h = calloc(cols * cols, sizeof(*h));

	assert_non_null(h);
	for (size_t i = 0; i < cols; i++)
		for (size_t j = 0; j < cols; j++)
			h[i * cols + j] = i == j ? 2 : 1.0 / (double)(1 + i + j);
	return h;
}

static void gram_close(const double *got, const double *want, size_t rows, size_t cols)
{
	for (size_t i = 0; i < cols; i++)
		for (size_t j = 0; j < cols; j++) {
			const double bound = 1e-5 * sqrt(want[i * cols + i] * want[j * cols + j]);

			if (!(fabs(got[i * cols + j] - want[i * cols + j]) <= bound) ||
			    got[i * cols + j] != got[j * cols + i])
				fail_msg("%zu rows, (%zu,%zu) of %zu: %.12g, not %.12g; mirror %.12g", rows,
					 i, j, cols, got[i * cols + j], want[i * cols + j], got[j * cols + i]);
		}
}

static void gram_case(struct backend *ref, struct backend *fast, struct backend *other, size_t rows,
		      size_t cols)
{
	float *x = case_random(rows * cols, 2, rows * 31 + cols);
	double *want = start_h(cols), *got = start_h(cols), *again = start_h(cols);

	assert_int_equal(ref->ops->gram_add(ref, x, rows, cols, want, NULL), 0);
	assert_int_equal(fast->ops->gram_add(fast, x, rows, cols, got, NULL), 0);
	assert_int_equal(other->ops->gram_add(other, x, rows, cols, again, NULL), 0);
	gram_close(got, want, rows, cols);
	assert_memory_equal(got, again, cols * cols * sizeof(*got));
	free(x);
	free(want);
	free(got);
	free(again);
}

static void test_gram(void **state)
{
	static const size_t shapes[][2] = {
		{ 0, 3 }, { 1, 1 }, { 1, 2 }, { 5, 64 }, { 1023, 33 }, { 1024, 191 }, { 1025, 192 },
		{ 2100, 193 },
		{ 77, 385 }, { 40, 511 }, { 40, 512 }, { 40, 513 }, { 30, 769 },
	};
	struct backend *ref = case_open("ref", 1), *one = case_open(tested_backend(), 1);

	(void)state;
	for (int threads = 2; threads <= 7; threads += threads == 3 ? 4 : 1) {
		struct backend *many = case_open(tested_backend(), threads);

		for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
			gram_case(ref, one, many, shapes[i][0], shapes[i][1]);
		case_close(many);
	}
	case_close(ref);
	case_close(one);
}

static void test_gram_errors(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		double h[4] = { 0 };
		float x[4] = { 1, 2, 3, 4 };
		struct err err = ERR_INIT;

		assert_int_equal(be->ops->gram_add(be, x, 1, 0, h, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		h[3] = INFINITY;
		assert_int_equal(be->ops->gram_add(be, x, 2, 2, h, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		case_close(be);
	}
}

/* --- gram_mean --------------------------------------------------------------------------------- */

static void mean_case(struct backend *ref, struct backend *fast, size_t cols, uint64_t rows)
{
	const size_t n = cols * cols;
	float *x = case_random(n, 50, cols);
	double *want = start_h(cols), *got = start_h(cols), *start = start_h(cols);
	double *want_diagonal = start_h(cols), *diagonal = start_h(cols);

	for (size_t i = 0; i < n; i++)
		want[i] = got[i] = start[i] = x[i] / 3.0;
	assert_int_equal(ref->ops->gram_mean(ref, want, cols, rows, want_diagonal, NULL), 0);
	assert_int_equal(fast->ops->gram_mean(fast, got, cols, rows, diagonal, NULL), 0);
	for (size_t i = 0; i < n; i++)
		assert_true(want[i] == start[i] / (double)rows);
	for (size_t i = 0; i < cols; i++)
		assert_true(want_diagonal[i] == want[i * cols + i]);
	assert_memory_equal(got, want, n * sizeof(*got));
	assert_memory_equal(diagonal, want_diagonal, cols * sizeof(*diagonal));
	free(x);
	free(want);
	free(got);
	free(start);
	free(want_diagonal);
	free(diagonal);
}

static void test_gram_mean(void **state)
{
	static const size_t cols[] = { 1, 2, 63, 64, 65, 130, 513 };
	static const uint64_t rows[] = { 1, 3, 262144, (uint64_t)1 << 53 };
	struct backend *ref = case_open("ref", 1), *fast = case_open(tested_backend(), 3);

	(void)state;
	for (size_t i = 0; i < sizeof(cols) / sizeof(cols[0]); i++)
		for (size_t k = 0; k < sizeof(rows) / sizeof(rows[0]); k++)
			mean_case(ref, fast, cols[i], rows[k]);
	case_close(ref);
	case_close(fast);
}

static void test_gram_mean_errors(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		double h[4] = { 1, 0, 0, INFINITY }, diagonal[2];
		struct err err = ERR_INIT;

		assert_int_equal(be->ops->gram_mean(be, h, 0, 1, diagonal, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(be->ops->gram_mean(be, h, 2, 0, diagonal, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(be->ops->gram_mean(be, h, 2, 2, diagonal, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		case_close(be);
	}
}

/* --- head_tile --------------------------------------------------------------------------------- */

struct head {
	size_t rows;
	struct head_state state;
	double *nll;
};

static struct head head_new(size_t rows)
{
	struct head h = { .rows = rows };

	h.state = (struct head_state){ .max = calloc(rows, 8), .sum = calloc(rows, 8),
				       .target = calloc(rows, 8), .top_logit = calloc(rows, 8),
				       .top_id = calloc(rows, 4) };
	h.nll = calloc(rows, 8);
	for (size_t r = 0; r < rows; r++) {
		h.state.max[r] = h.state.top_logit[r] = -INFINITY;
		h.state.target[r] = NAN;
		h.state.top_id[r] = -7;
	}
	return h;
}

static void head_free(struct head *h)
{
	free(h->state.max);
	free(h->state.sum);
	free(h->state.target);
	free(h->state.top_logit);
	free(h->state.top_id);
	free(h->nll);
}

/* The whole vocabulary through one backend in tiles of the given lengths, the last repeated. */
static struct head head_run(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w,
			    size_t vocab, const size_t *tiles, size_t tile_count, const int32_t *targets)
{
	struct head h = head_new(rows);
	struct err err = ERR_INIT;
	size_t at = 0;

	for (size_t i = 0; at < vocab; i += i + 1 < tile_count) {
		const size_t n = tiles[i] < vocab - at ? tiles[i] : vocab - at;

		if (be->ops->head_tile(be, x, rows, hidden, w + at * hidden, n, (int32_t)at, targets,
				       &h.state, &err) != 0)
			fail_msg("%s: %s", be->ops->name, err.text);
		at += n;
	}
	for (size_t r = 0; r < rows; r++)
		h.nll[r] = h.state.max[r] + log(h.state.sum[r]) - h.state.target[r];
	return h;
}

static void heads_agree(const struct head *got, const struct head *want)
{
	for (size_t r = 0; r < want->rows; r++) {
		if (!(fabs(got->nll[r] - want->nll[r]) <= 1e-4))
			fail_msg("row %zu: nll %.9g, not %.9g", r, got->nll[r], want->nll[r]);
		if (fabs(got->state.top_logit[r] - want->state.top_logit[r]) > 1e-4)
			fail_msg("row %zu: top logit %.9g, not %.9g", r, got->state.top_logit[r],
				 want->state.top_logit[r]);
		assert_int_equal(got->state.top_id[r], want->state.top_id[r]);
	}
}

static void head_case(size_t rows, size_t hidden, size_t vocab, float scale)
{
	static const size_t tiles[] = { 1, 511, 512, 513, 700 };
	struct backend *ref = case_open("ref", 1), *one = case_open(tested_backend(), 1), *many = case_open(tested_backend(), 3);
	float *x = case_random(rows * hidden, scale, rows), *w = case_random(vocab * hidden, 1, vocab);
	int32_t *targets = case_random_ids(rows, (int32_t)vocab, 5);
	struct head want = head_run(ref, x, rows, hidden, w, vocab, &vocab, 1, targets);
	struct head got = head_run(one, x, rows, hidden, w, vocab, tiles, 5, targets);
	struct head again = head_run(many, x, rows, hidden, w, vocab, tiles, 5, targets);

	heads_agree(&got, &want);
	assert_memory_equal(got.nll, again.nll, rows * sizeof(double));
	assert_memory_equal(got.state.top_id, again.state.top_id, rows * sizeof(int32_t));
	head_free(&want);
	head_free(&got);
	head_free(&again);
	free(x);
	free(w);
	free(targets);
	case_close(ref);
	case_close(one);
	case_close(many);
}

static void test_head(void **state)
{
	(void)state;
	head_case(1, 1, 1, 1);
	head_case(1, 8, 3, 1);
	head_case(127, 33, 1500, 2);
	head_case(128, 16, 2400, 4);
	head_case(129, 64, 1800, 0.1f);
	head_case(300, 20, 600, 20);
}

/* Equal logits: the smaller id wins, within a tile and across tiles; the last tile may hold the best. */
static void test_head_ties(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		const float x[1] = { 1 }, w[6] = { 0.5f, 2, 2, 1, 2, 2 }, rising[3] = { 1, 2, 3 };
		const int32_t target[1] = { 4 };
		const size_t tiles[2] = { 3, 3 }, single = 1;
		struct head h = head_run(be, x, 1, 1, w, 6, tiles, 2, target);
		const double sum = exp(0.5) + 4 * exp(2) + exp(1);

		assert_int_equal(h.state.top_id[0], 1);
		assert_true(h.state.target[0] == 2);
		assert_true(fabs(h.nll[0] - (log(sum) - 2)) < 1e-5);
		head_free(&h);
		h = head_run(be, x, 1, 1, rising, 3, &single, 1, target);
		assert_int_equal(h.state.top_id[0], 2);
		head_free(&h);
		case_close(be);
	}
}

static void test_head_errors(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		const float x[2] = { 3e38f, 3e38f }, w[2] = { 3, 3 };
		const int32_t target = 0;
		struct head h = head_new(1);
		struct err err = ERR_INIT;

		assert_int_equal(be->ops->head_tile(be, x, 1, 0, w, 1, 0, &target, &h.state, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(be->ops->head_tile(be, x, 1, 2, w, 1, 0, &target, &h.state, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		head_free(&h);
		case_close(be);
	}
}

/* The n-th allocation of an operation fails: an error, and nothing else changes. */
static void test_out_of_memory(void **state)
{
	struct backend *cpu = case_open("cpu", 2);
	const float x[1] = { 1 }, w[1] = { 1 };
	const int32_t target = 0;
	double h[1] = { 5 };
	struct head head = head_new(1);
	struct err err = ERR_INIT;

	(void)state;
	mem_fail_after(1);
	assert_int_equal(cpu->ops->gram_add(cpu, x, 1, 1, h, &err), -1);
	assert_int_equal(err.code, ERR_NOMEM);
	assert_true(h[0] == 5);
	mem_fail_after(1);
	assert_int_equal(cpu->ops->head_tile(cpu, x, 1, 1, w, 1, 0, &target, &head.state, &err), -1);
	assert_int_equal(err.code, ERR_NOMEM);
	assert_int_equal(head.state.top_id[0], -7);
	mem_fail_after(0);
	head_free(&head);
	case_close(cpu);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gram),
		cmocka_unit_test(test_gram_errors),
		cmocka_unit_test(test_gram_mean),
		cmocka_unit_test(test_gram_mean_errors),
		cmocka_unit_test(test_head),
		cmocka_unit_test(test_head_ties),
		cmocka_unit_test(test_head_errors),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
