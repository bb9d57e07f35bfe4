/* Every backend's quantization operations against ref, and ref against first principles. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/quant_case.h"
#include "tests/lib/tested_backend.h"

struct shape { size_t rows, cols, group; };

static const struct shape shapes[] = {
	{ 1, 1, 1 }, { 3, 7, 7 }, { 2, 12, 4 }, { 3, 64, 64 }, { 5, 96, 32 }, { 2, 300, 100 },
	{ 2, 520, 520 }, { 25, 64, 16 },
};
enum { SHAPES = sizeof(shapes) / sizeof(*shapes) };

enum zero_kind { ZERO_REAL, ZERO_INT, ZERO_SYMMETRIC, ZERO_KINDS };

static struct grid grid_of(int bits, size_t group, enum zero_kind kind)
{
	return (struct grid){ .bits = bits, .group = group, .integer_zero = kind == ZERO_INT,
			      .symmetric = kind == ZERO_SYMMETRIC };
}

static void fit(struct backend *be, enum fit_method method, struct quant_case *q)
{
	struct err err = ERR_INIT;

	if (be->ops->fit_groups(be, method, &q->grid, q->w, q->rows, q->cols, q->diag, q->scales,
				q->zeros, q->objective, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
}

static void check_grid_values(const struct quant_case *q, const char *what)
{
	const float top = (float)((1 << q->grid.bits) - 1);

	for (size_t i = 0; i < q->rows * q->groups; i++) {
		const float s = q->scales[i], z = q->zeros[i];
		const double is = q->objective[i];
		const double want = objective_of(q->w + i * q->grid.group,
						 q->diag + i % q->groups * q->grid.group,
						 q->grid.group, q->grid.bits, s, z);

		if (!(s > 0) || !isfinite(s) || !isfinite(z))
			fail_msg("%s: group %zu has s %g z %g", what, i, s, z);
		if (q->grid.symmetric && z != (float)(1 << (q->grid.bits - 1)))
			fail_msg("%s: group %zu has z %g", what, i, z);
		if (q->grid.integer_zero && (z != nearbyintf(z) || z < 0 || z > top))
			fail_msg("%s: group %zu has z %g", what, i, z);
		if (fabs(is - want) > 1e-9 * want)
			fail_msg("%s: group %zu objective %.12g, by definition %.12g", what, i, is, want);
	}
}

/* Sums over all shapes of one kind of weights. */
struct totals { double ref, fast, minmax, energy; };

static void add_shape(struct totals *t, struct backend *ref, struct backend *fast, struct rng *r,
		      enum weight_kind kind, struct shape shape, struct grid grid)
{
	char what[128];
	struct quant_case q;

	grid.group = shape.group;
	snprintf(what, sizeof(what), "%s weights, %zux%zu by %zu, %d bits%s%s", weight_kind_name(kind),
		 shape.rows, shape.cols, shape.group, grid.bits, grid.integer_zero ? " integer" : "",
		 grid.symmetric ? " symmetric" : "");
	quant_case_init(&q, r, kind, shape.rows, shape.cols, grid);
	fit(ref, FIT_MINMAX, &q);
	check_grid_values(&q, what);
	t->minmax += sum_of(q.objective, q.rows * q.groups);
	for (size_t i = 0; i < q.rows * q.cols; i++)
		t->energy += q.diag[i % q.cols] * q.w[i] * q.w[i];
	quant_case_poison(&q);
	fit(ref, FIT_NEUQI, &q);
	check_grid_values(&q, what);
	t->ref += sum_of(q.objective, q.rows * q.groups);
	quant_case_poison(&q);
	fit(fast, FIT_NEUQI, &q);
	check_grid_values(&q, what);
	t->fast += sum_of(q.objective, q.rows * q.groups);
	quant_case_deinit(&q);
}

static void compare_fits(enum weight_kind kind, int bits, enum zero_kind zero)
{
	struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 2);
	struct rng r = { (uint64_t)(kind * 100 + bits) };
	struct totals t = { 0 };

	for (size_t i = 0; i < SHAPES; i++)
		add_shape(&t, ref, fast, &r, kind, shapes[i], grid_of(bits, 1, zero));
	/* Exact fits differ by the rounding of s and z. */
	if (!(t.fast <= 1.0005 * t.ref + 1e-12 * t.energy))
		fail_msg("%s weights, %d bits, zero-point %d: %s %.9g, ref %.9g, ratio %.6f",
			 weight_kind_name(kind), bits, zero, tested_backend(), t.fast, t.ref, t.fast / t.ref);
	if (!(t.ref <= t.minmax))
		fail_msg("ref %.9g, min-max %.9g", t.ref, t.minmax);
	ref->ops->close(ref);
	fast->ops->close(fast);
}

static void test_fit_reaches_ref(void **state)
{
	(void)state;
	for (int bits = 1; bits <= 8; bits++)
		for (int zero = 0; zero < ZERO_KINDS; zero++)
			compare_fits(W_NORMAL, bits, (enum zero_kind)zero);
}

static void test_fit_odd_weights(void **state)
{
	static const int bits[] = { 1, 2, 4 };

	(void)state;
	for (int kind = W_HEAVY; kind < W_KINDS; kind++)
		for (size_t b = 0; b < sizeof(bits) / sizeof(*bits); b++)
			for (int zero = 0; zero < ZERO_KINDS; zero++)
				compare_fits((enum weight_kind)kind, bits[b], (enum zero_kind)zero);
}

static void test_fit_constant_group_is_exact(void **state)
{
	static const float values[] = { 0, 1.5f, -0.3f, 3e-37f, -1e37f };

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 1);

		for (size_t v = 0; v < sizeof(values) / sizeof(*values); v++) {
			float w[4] = { values[v], values[v], values[v], values[v] }, s, z;
			const double h[4] = { 1, 2, 3, 4 };
			double objective = -1;
			struct grid grid = grid_of(2, 4, ZERO_REAL);
			struct err err = ERR_INIT;

			assert_int_equal(be->ops->fit_groups(be, FIT_NEUQI, &grid, w, 1, 4, h, &s, &z,
							     &objective, &err), 0);
			if (objective > 1e-12 * h[3] * values[v] * values[v])
				fail_msg("%s: value %g: s %g z %g leaves %g", tested_name(n), values[v], s, z,
					 objective);
		}
		be->ops->close(be);
	}
}

/* No (s, z) of a dense grid is better than ref's by more than 0.1 %. */
static double best_on_grid(const float *w, const double *h, size_t n, int bits)
{
	double low = w[0], high = w[0], best = INFINITY;

	for (size_t i = 1; i < n; i++) {
		low = fmin(low, w[i]);
		high = fmax(high, w[i]);
	}
	for (int i = 1; i <= 400; i++) {
		const double s = (high - low) * i / 400;

		for (double a = low - s; a < high + s; a += s / 32)
			best = fmin(best, objective_of(w, h, n, bits, (float)s, (float)(-a / s)));
	}
	return best;
}

static void test_fit_ref_against_brute_force(void **state)
{
	struct backend *ref = open_backend("ref", 1);
	struct rng r = { 5 };
	const struct shape tiny[] = { { 6, 5, 5 }, { 6, 8, 8 }, { 4, 12, 12 }, { 3, 20, 20 } };

	(void)state;
	for (size_t t = 0; t < sizeof(tiny) / sizeof(*tiny); t++) {
		for (int bits = 1; bits <= 3; bits++) {
			struct quant_case q;

			quant_case_init(&q, &r, W_NORMAL, tiny[t].rows, tiny[t].cols,
					grid_of(bits, tiny[t].group, ZERO_REAL));
			fit(ref, FIT_NEUQI, &q);
			for (size_t i = 0; i < q.rows; i++) {
				const double best = best_on_grid(q.w + i * q.cols, q.diag, q.cols, bits);

				if (best < q.objective[i] / 1.001)
					fail_msg("%zu weights, %d bits, row %zu: ref %.9g, brute force %.9g",
						 q.cols, bits, i, q.objective[i], best);
			}
			quant_case_deinit(&q);
		}
	}
	ref->ops->close(ref);
}

static void test_minmax_equals_ref(void **state)
{
	struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 2);
	struct rng r = { 17 };

	(void)state;
	for (int zero = 0; zero < ZERO_KINDS; zero++) {
		struct quant_case a, b;

		quant_case_init(&a, &r, W_NORMAL, 9, 96, grid_of(3, 32, (enum zero_kind)zero));
		b = a;
		b.scales = malloc(27 * sizeof(float));
		b.zeros = malloc(27 * sizeof(float));
		fit(ref, FIT_MINMAX, &a);
		fit(fast, FIT_MINMAX, &b);
		assert_memory_equal(a.scales, b.scales, 27 * sizeof(float));
		assert_memory_equal(a.zeros, b.zeros, 27 * sizeof(float));
		free(b.scales);
		free(b.zeros);
		quant_case_deinit(&a);
	}
	ref->ops->close(ref);
	fast->ops->close(fast);
}

static void nearest(struct backend *be, const struct quant_case *q, uint8_t *codes)
{
	struct err err = ERR_INIT;

	memset(codes, 0xee, q->rows * q->cols);
	if (be->ops->round_nearest(be, &q->grid, q->w, q->rows, q->cols, q->scales, q->zeros, codes,
				   &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
}

static void test_round_nearest(void **state)
{
	struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 3);
	struct rng r = { 23 };

	(void)state;
	for (int bits = 1; bits <= 8; bits++) {
		struct quant_case q;
		uint8_t *other;

		quant_case_init(&q, &r, W_NORMAL, 37, 108, grid_of(bits, 36, ZERO_REAL));
		other = malloc(q.rows * q.cols);
		fit(fast, FIT_NEUQI, &q);
		nearest(ref, &q, q.codes);
		nearest(fast, &q, other);
		for (size_t i = 0; i < q.rows * q.cols; i++) {
			const size_t g = i / q.grid.group;
			const double x = q.w[i] / (double)q.scales[g] + q.zeros[g];

			if (q.codes[i] != other[i] && fabs(x - floor(x) - 0.5) > 1e-5)
				fail_msg("%d bits: x %.9f is %u in ref, %u in %s", bits, x, q.codes[i],
					 other[i], tested_backend());
			if (q.codes[i] != (uint8_t)fmin(fmax(nearbyint(x), 0), (1 << bits) - 1))
				fail_msg("%d bits: x %.9f is %u in ref", bits, x, q.codes[i]);
		}
		free(other);
		quant_case_deinit(&q);
	}
	ref->ops->close(ref);
	fast->ops->close(fast);
}

static void test_round_nearest_ties_go_to_even(void **state)
{
	const float w[6] = { 0.5f, 1.5f, 2.5f, -0.5f, 3.5f, 99 }, s = 1, z = 0;
	const uint8_t want[6] = { 0, 2, 2, 0, 3, 3 };
	struct grid grid = grid_of(2, 6, ZERO_REAL);

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 1);
		uint8_t codes[6] = { 9, 9, 9, 9, 9, 9 };
		struct err err = ERR_INIT;
		const float bad = NAN;

		assert_int_equal(be->ops->round_nearest(be, &grid, w, 1, 6, &s, &z, codes, &err), 0);
		assert_memory_equal(codes, want, 6);
		assert_int_equal(be->ops->round_nearest(be, &grid, w, 1, 6, &s, &bad, codes, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		be->ops->close(be);
	}
}

/* D that belongs to U as it is written. */
static void find_pivots(const struct quant_case *q, const float *u, double *d)
{
	const size_t n = q->cols;

	for (size_t j = n; j-- > 0;) {
		d[j] = q->h[(size_t)q->perm[j] * n + (size_t)q->perm[j]] + q->damp;
		for (size_t k = j + 1; k < n; k++)
			d[j] -= (double)u[j * n + k] * u[j * n + k] * d[k];
	}
}

static void check_pivots(const struct backend *be, const struct quant_case *q, const float *u, const double *pivots)
{
	double *want = malloc(q->cols * sizeof(*want));

	find_pivots(q, u, want);
	for (size_t j = 0; j < q->cols; j++)
		if (!(pivots[j] >= 0) || !(fabs(pivots[j] - want[j]) <= 1e-9 * q->diag[q->perm[j]]))
			fail_msg("%s: pivot %zu of %zu is %.12g, not %.12g", be->ops->name, j, q->cols, pivots[j], want[j]);
	free(want);
}

/* With pivots and without: the same factor. */
static void factor(struct backend *be, const struct quant_case *q, float *u)
{
	const size_t bytes = q->cols * q->cols * sizeof(*u);
	double *pivots = malloc(q->cols * sizeof(*pivots));
	float *alone = malloc(bytes);
	struct err err = ERR_INIT;

	memset(u, 0xff, bytes);
	memset(alone, 0xff, bytes);
	memset(pivots, 0xff, q->cols * sizeof(*pivots));
	if (be->ops->factor(be, q->h, q->perm, q->cols, q->damp, u, pivots, &err) != 0 ||
	    be->ops->factor(be, q->h, q->perm, q->cols, q->damp, alone, NULL, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
	assert_memory_equal(u, alone, bytes);
	check_pivots(be, q, u, pivots);
	free(pivots);
	free(alone);
}

/* max |U D U^T - H| for the D that the diagonal asks for. */
static double reconstruction_error(const struct quant_case *q, const float *u)
{
	const size_t n = q->cols;
	double *d = malloc(n * sizeof(*d)), worst = 0;

	find_pivots(q, u, d);
	for (size_t i = 0; i < n; i++) {
		for (size_t j = i + 1; j < n; j++) {
			double sum = u[i * n + j] * d[j];

			for (size_t k = j + 1; k < n; k++)
				sum += (double)u[i * n + k] * u[j * n + k] * d[k];
			sum -= q->h[(size_t)q->perm[i] * n + (size_t)q->perm[j]];
			worst = fmax(worst, fabs(sum));
		}
	}
	free(d);
	return worst;
}

static void test_factor(void **state)
{
	static const size_t sizes[] = { 1, 2, 5, 64, 191, 192, 193, 400 };
	struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 2);
	struct rng r = { 29 };

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		const size_t n = sizes[i];
		double largest = 0, top = 0;
		struct quant_case q;
		float *u;

		quant_case_init(&q, &r, W_NORMAL, 1, n, grid_of(2, n, ZERO_REAL));
		u = malloc(n * n * sizeof(*u));
		factor(ref, &q, q.u);
		factor(fast, &q, u);
		for (size_t k = 0; k < n * n; k++) {
			largest = fmax(largest, fabsf(q.u[k]));
			top = fmax(top, fabs(q.h[k]));
		}
		for (size_t k = 0; k < n * n; k++) {
			if (k / n >= k % n)
				assert_true(u[k] == 0 && q.u[k] == 0);
			if (fabsf(u[k] - q.u[k]) > 1e-3 * largest)
				fail_msg("n %zu, entry %zu: ref %g, %s %g", n, k, q.u[k], tested_backend(), u[k]);
		}
		if (reconstruction_error(&q, q.u) > 1e-5 * top)
			fail_msg("n %zu: U D U^T is off by %g of %g", n, reconstruction_error(&q, q.u), top);
		free(u);
		quant_case_deinit(&q);
	}
	ref->ops->close(ref);
	fast->ops->close(fast);
}

static void test_factor_refuses_indefinite(void **state)
{
	const double h[9] = { 1, 2, 0, 2, 1, 0, 0, 0, 1 }, nan[9] = { 1, 0, 0, 0, NAN, 0, 0, 0, 1 };
	const int32_t perm[3] = { 0, 1, 2 };

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 1);
		struct err err = ERR_INIT;
		double pivots[3];
		float u[9];

		assert_int_equal(be->ops->factor(be, h, perm, 3, 0.01, u, pivots, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		err_clear(&err);
		assert_int_equal(be->ops->factor(be, nan, perm, 3, 0.01, u, NULL, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_int_equal(be->ops->factor(be, h, perm, 3, 2, u, pivots, &err), 0);
		assert_true(fabs(pivots[2] - 3) < 1e-6 && fabs(pivots[1] - 3) < 1e-6 && fabs(pivots[0] - 5.0 / 3) < 1e-6);
		be->ops->close(be);
	}
}

static double ldlq_loss(struct backend *be, struct backend *judge, struct quant_case *q,
			const double *pivots, double *row_loss)
{
	struct err err = ERR_INIT;
	double loss, energy = -1;

	memset(q->codes, 0xff, q->rows * q->cols);
	if (be->ops->round_ldlq(be, &q->grid, q->w, q->rows, q->cols, q->perm, q->u, pivots, q->scales,
				q->zeros, q->codes, row_loss, &err) != 0 ||
	    judge->ops->proxy_loss(judge, &q->grid, q->w, q->rows, q->cols, q->h, q->damp, q->codes,
				   q->scales, q->zeros, &loss, &energy, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
	for (size_t i = 0; i < q->rows * q->cols; i++)
		assert_true(q->codes[i] < 1 << q->grid.bits);
	assert_true(energy >= 0);
	return loss;
}

static void test_ldlq(void **state)
{
	static const struct shape cases[] = {
		{ 1, 1, 1 }, { 2, 5, 5 }, { 63, 128, 32 }, { 65, 129, 43 }, { 200, 300, 100 }, { 3, 513, 27 },
		{ 1100, 40, 8 },
	};
	struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 2);
	struct rng r = { 31 };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		for (int bits = 2; bits <= 8; bits += 3) {
			double *pivots = malloc(cases[i].cols * sizeof(*pivots));
			double *rows = malloc(cases[i].rows * sizeof(*rows)), total;
			struct quant_case q;
			double a, b;

			quant_case_init(&q, &r, W_NORMAL, cases[i].rows, cases[i].cols,
					grid_of(bits, cases[i].group, ZERO_REAL));
			fit(fast, FIT_MINMAX, &q);
			factor(fast, &q, q.u);
			find_pivots(&q, q.u, pivots);
			a = ldlq_loss(ref, ref, &q, pivots, rows);
			total = sum_of(rows, q.rows);
			if (fabs(total - a) > 1e-4 * a)
				fail_msg("ref: rows lose %.9g, the module %.9g", total, a);
			b = ldlq_loss(fast, ref, &q, pivots, rows);
			total = sum_of(rows, q.rows);
			if (fabs(total - b) > 1e-4 * b)
				fail_msg("%s: rows lose %.9g, the module %.9g", tested_backend(), total, b);
			if (!(b <= 1.002 * a))
				fail_msg("%zux%zu, %d bits: ref %.9g, %s %.9g", q.rows, q.cols, bits, a,
					 tested_backend(), b);
			free(pivots);
			free(rows);
			quant_case_deinit(&q);
		}
	}
	ref->ops->close(ref);
	fast->ops->close(fast);
}

static void test_ldlq_reports_non_finite(void **state)
{

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 1);
		struct err err = ERR_INIT;
		struct rng r = { 3 };
		struct quant_case q;

		quant_case_init(&q, &r, W_NORMAL, 3, 6, grid_of(2, 6, ZERO_REAL));
		fit(be, FIT_MINMAX, &q);
		factor(be, &q, q.u);
		q.u[1] = NAN;
		assert_int_equal(be->ops->round_ldlq(be, &q.grid, q.w, 3, 6, q.perm, q.u, NULL, q.scales,
						     q.zeros, q.codes, NULL, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

static void test_proxy_loss(void **state)
{
	static const struct shape cases[] = { { 1, 1, 1 }, { 5, 255, 51 }, { 3, 257, 257 }, { 1500, 30, 6 } };
	struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 2);
	struct rng r = { 37 };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct backend *const both[2] = { ref, fast };
		double loss[2], energy[2], alone;
		struct err err = ERR_INIT;
		struct quant_case q;

		quant_case_init(&q, &r, W_NORMAL, cases[i].rows, cases[i].cols,
				grid_of(2, cases[i].group, ZERO_REAL));
		fit(fast, FIT_NEUQI, &q);
		nearest(fast, &q, q.codes);
		for (int k = 0; k < 2; k++) {
			assert_int_equal(both[k]->ops->proxy_loss(both[k], &q.grid, q.w, q.rows, q.cols, q.h,
								  q.damp, q.codes, q.scales, q.zeros,
								  &loss[k], &energy[k], &err), 0);
			assert_int_equal(both[k]->ops->proxy_loss(both[k], &q.grid, q.w, q.rows, q.cols, q.h,
								  q.damp, q.codes, q.scales, q.zeros,
								  &alone, NULL, &err), 0);
			assert_true(alone == loss[k]);
		}
		if (fabs(loss[0] - loss[1]) > 1e-4 * loss[0] ||
		    fabs(energy[0] - energy[1]) > 1e-4 * energy[0])
			fail_msg("%zux%zu: loss %.9g %.9g, energy %.9g %.9g", q.rows, q.cols, loss[0],
				 loss[1], energy[0], energy[1]);
		q.w[0] = INFINITY;
		assert_int_equal(fast->ops->proxy_loss(fast, &q.grid, q.w, q.rows, q.cols, q.h, q.damp, q.codes,
						      q.scales, q.zeros, &alone, NULL, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		quant_case_deinit(&q);
	}
	ref->ops->close(ref);
	fast->ops->close(fast);
}

/* All outputs of one pass over every operation, as bytes. */
struct outcome {
	struct quant_case q;
	uint8_t *nearest;
	double loss, energy;
};

static void run_everything(struct outcome *o, int threads)
{
	struct backend *be = open_backend(tested_backend(), threads);
	struct err err = ERR_INIT;
	struct rng r = { 41 };

	quant_case_init(&o->q, &r, W_HEAVY, 150, 420, grid_of(3, 140, ZERO_REAL));
	o->nearest = malloc(o->q.rows * o->q.cols);
	fit(be, FIT_NEUQI, &o->q);
	nearest(be, &o->q, o->nearest);
	factor(be, &o->q, o->q.u);
	ldlq_loss(be, be, &o->q, NULL, NULL);
	assert_int_equal(be->ops->proxy_loss(be, &o->q.grid, o->q.w, o->q.rows, o->q.cols, o->q.h, o->q.damp,
					     o->q.codes, o->q.scales, o->q.zeros, &o->loss, &o->energy,
					     &err), 0);
	be->ops->close(be);
}

static void free_outcome(struct outcome *o)
{
	quant_case_deinit(&o->q);
	free(o->nearest);
}

static void compare_outcomes(const struct outcome *a, const struct outcome *b, bool blas)
{
	const size_t cells = a->q.rows * a->q.cols, groups = a->q.rows * a->q.groups;

	assert_memory_equal(a->q.scales, b->q.scales, groups * sizeof(float));
	assert_memory_equal(a->q.zeros, b->q.zeros, groups * sizeof(float));
	assert_memory_equal(a->q.objective, b->q.objective, groups * sizeof(double));
	assert_memory_equal(a->nearest, b->nearest, cells);
	if (!blas)
		return;
	assert_memory_equal(a->q.u, b->q.u, a->q.cols * a->q.cols * sizeof(float));
	assert_memory_equal(a->q.codes, b->q.codes, cells);
	assert_true(a->loss == b->loss && a->energy == b->energy);
}

static void test_threads_do_not_change_bits(void **state)
{
	static const int threads[] = { 2, 3, 7 };
	struct outcome one, many;

	(void)state;
	run_everything(&one, 1);
	for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
		run_everything(&many, threads[i]);
		compare_outcomes(&one, &many, true);
		free_outcome(&many);
	}
	free_outcome(&one);
}

/* Fits and nearest codes have the same bits at every instruction-set level; the rest stays in its bound. */
static void test_levels(void **state)
{
	struct outcome best, lower;

	(void)state;
	run_everything(&best, 2);
	for (int level = 0; level < tested_levels(); level++) {
		assert_int_equal(setenv("QUARRY_CPU_LEVEL", tested_level_name(level), 1), 0);
		run_everything(&lower, 2);
		compare_outcomes(&best, &lower, false);
		if (fabs(lower.loss - best.loss) > 0.002 * best.loss)
			fail_msg("level %d: loss %.9g, at the best level %.9g", level, lower.loss, best.loss);
		free_outcome(&lower);
	}
	unsetenv("QUARRY_CPU_LEVEL");
	free_outcome(&best);
}

static int every_operation(struct backend *be, struct quant_case *q, struct err *err)
{
	double loss, energy;

	if (be->ops->fit_groups(be, FIT_NEUQI, &q->grid, q->w, q->rows, q->cols, q->diag, q->scales, q->zeros,
				q->objective, err) != 0 ||
	    be->ops->factor(be, q->h, q->perm, q->cols, q->damp, q->u, NULL, err) != 0 ||
	    be->ops->round_ldlq(be, &q->grid, q->w, q->rows, q->cols, q->perm, q->u, NULL, q->scales,
				q->zeros, q->codes, NULL, err) != 0)
		return -1;
	return be->ops->proxy_loss(be, &q->grid, q->w, q->rows, q->cols, q->h, q->damp, q->codes, q->scales,
				   q->zeros, &loss, &energy, err);
}

static void test_every_allocation_fails_cleanly(void **state)
{

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 2);
		struct rng r = { 43 };
		struct quant_case q;
		uint64_t nth = 1;

		quant_case_init(&q, &r, W_NORMAL, 2, 8, grid_of(2, 8, ZERO_REAL));
		for (;; nth++) {
			struct err err = ERR_INIT;
			int rc;

			mem_fail_after(nth);
			rc = every_operation(be, &q, &err);
			mem_fail_after(0);
			if (rc == 0)
				break;
			assert_int_equal(err.code, ERR_NOMEM);
		}
		assert_true(nth > 5 || tested_may_not_allocate(be));
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

static void test_non_finite_weights_are_reported(void **state)
{

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 1);
		const float w[4] = { 1, INFINITY, 2, 3 };
		const double h[4] = { 1, 1, 1, 1 };
		struct grid grid = grid_of(2, 4, ZERO_REAL);
		struct err err = ERR_INIT;
		double objective;
		float s, z;

		assert_int_equal(be->ops->fit_groups(be, FIT_NEUQI, &grid, w, 1, 4, h, &s, &z, &objective,
						     &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		be->ops->close(be);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fit_reaches_ref),
		cmocka_unit_test(test_fit_odd_weights),
		cmocka_unit_test(test_fit_constant_group_is_exact),
		cmocka_unit_test(test_fit_ref_against_brute_force),
		cmocka_unit_test(test_minmax_equals_ref),
		cmocka_unit_test(test_round_nearest),
		cmocka_unit_test(test_round_nearest_ties_go_to_even),
		cmocka_unit_test(test_factor),
		cmocka_unit_test(test_factor_refuses_indefinite),
		cmocka_unit_test(test_ldlq),
		cmocka_unit_test(test_ldlq_reports_non_finite),
		cmocka_unit_test(test_proxy_loss),
		cmocka_unit_test(test_threads_do_not_change_bits),
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_every_allocation_fails_cleanly),
		cmocka_unit_test(test_non_finite_weights_are_reported),
	};

	return cmocka_run_group_tests_name("backend quantization", tests, NULL, NULL);
}
