/* Quantizing one module: damping, order, guards, and LDLQ against a textbook GPTQ. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/quant_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/quant/quantize.h"

static struct quant_options options_of(int bits, size_t group, bool ldlq)
{
	return (struct quant_options){ .grid = { .bits = bits, .group = group }, .method = FIT_NEUQI,
				       .ldlq = ldlq };
}

static void site_init(struct quant_site *site, struct backend *be, const double *h, size_t cols)
{
	struct err err = ERR_INIT;

	if (site_of(site, be, h, cols, 0.01, true, &err) != 0)
		fail_msg("%s", err.text);
}

static void test_site(void **state)
{
	const double h[9] = { 1, 0.1, 0, 0.1, 4, 0, 0, 0, 4 };
	struct backend *be = open_backend("ref", 1);
	struct quant_site site;

	(void)state;
	site_init(&site, be, h, 3);
	assert_true(fabs(site.damp - 0.03) < 1e-15);
	assert_int_equal(site.damp_retries, 0);
	assert_int_equal(site.perm[0], 1); /* ties by index */
	assert_int_equal(site.perm[1], 2);
	assert_int_equal(site.perm[2], 0);
	assert_true(fabs(site.diag[0] - 1.03) < 1e-15 && fabs(site.diag[2] - 4.03) < 1e-15);
	assert_true(fabs(site.u[2] - 0.1 / 1.03) < 1e-7);
	assert_true(fabs(site.pivots[0] - (4.03 - 0.01 / 1.03)) < 1e-7);
	quant_site_deinit(&site);
	assert_null(site.u);
	be->ops->close(be);
}

/* Eigenvalues 3.5 and -1.5: positive definite only with a damping above 1.5. */
static void test_damping_is_raised_until_the_factor_exists(void **state)
{
	const double h[4] = { 1, 2.5, 2.5, 1 }, worse[4] = { 1, 1e9, 1e9, 1 };

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 1);
		struct err err = ERR_INIT;
		struct quant_site site;

		site_init(&site, be, h, 2);
		assert_int_equal(site.damp_retries, 3);
		assert_true(fabs(site.damp - 10) < 1e-9);
		assert_true(fabs(site.diag[0] - 11) < 1e-9);
		quant_site_deinit(&site);
		assert_int_equal(site_of(&site, be, worse, 2, 0.01, true, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_non_null(strstr(err.text, "1000"));
		assert_null(site.u);
		assert_int_equal(site_of(&site, be, worse, 2, 0.01, false, &err), 0);
		quant_site_deinit(&site);
		be->ops->close(be);
	}
}

static void refuse_site(struct backend *be, const double *h, size_t cols, double damp,
			enum err_code code, const char *words)
{
	struct err err = ERR_INIT;
	struct quant_site site;

	assert_int_equal(site_of(&site, be, h, cols, damp, true, &err), -1);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, words))
		fail_msg("'%s' lacks '%s'", err.text, words);
}

static void test_unusable_sites_are_refused(void **state)
{
	const double zero[4] = { 0 }, negative[4] = { 1, 0, 0, -1 }, nan[4] = { NAN, 0, 0, 1 };
	const double gap[4] = { 1, 0, 0, 0 }, good[4] = { 1, 0, 0, 1 };
	struct backend *be = open_backend("ref", 1);

	(void)state;
	refuse_site(be, zero, 2, 0.01, ERR_NUMERIC, "H is zero");
	refuse_site(be, negative, 2, 0.01, ERR_NUMERIC, "column 1");
	refuse_site(be, nan, 2, 0.01, ERR_NUMERIC, "column 0");
	refuse_site(be, good, 0, 0.01, ERR_INVALID, "columns");
	refuse_site(be, good, 2, -1, ERR_INVALID, "damping");
	refuse_site(be, good, 2, NAN, ERR_INVALID, "damping");
	refuse_site(be, gap, 2, 0, ERR_NUMERIC, "added");
	be->ops->close(be);
}

static void quantize(struct quant_result *out, struct backend *be, const struct quant_site *site,
		     const struct quant_options *options, const struct quant_case *q)
{
	const struct quant_weights w = { q->w, q->w, q->rows };
	struct err err = ERR_INIT;

	if (quant_module(out, be, site, options, &w, &err) != 0)
		fail_msg("%s", err.text);
}

static void test_ldlq_beats_nearest_on_correlated_inputs(void **state)
{
	struct backend *be = open_backend(tested_backend(), 2);
	struct rng r = { 7 };

	(void)state;
	for (int bits = 1; bits <= 8; bits++) {
		const struct quant_options ldlq = options_of(bits, 48, true);
		const struct quant_options nearest = options_of(bits, 48, false);
		struct quant_result a, b;
		struct quant_site site;
		struct quant_case q;

		quant_case_init(&q, &r, W_NORMAL, 40, 96, ldlq.grid);
		site_init(&site, be, q.h, q.cols);
		quantize(&a, be, &site, &ldlq, &q);
		quantize(&b, be, &site, &nearest, &q);
		assert_true(a.init_objective == b.init_objective && a.energy == b.energy);
		assert_true(b.loss == b.loss_nearest && a.loss_nearest == b.loss_nearest);
		if (!(a.loss < 0.9 * b.loss) || !(b.loss < a.energy))
			fail_msg("%d bits: LDLQ %g, nearest %g, energy %g", bits, a.loss, b.loss, a.energy);
		quant_result_deinit(&a);
		quant_result_deinit(&b);
		quant_site_deinit(&site);
		quant_case_deinit(&q);
	}
	be->ops->close(be);
}

/* The loss reported is that of what is returned, and trying scales beats the fitted ones alone. */
static void test_reported_loss(void **state)
{
	struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 1);
	const struct quant_options options = options_of(2, 64, true);
	struct quant_result result;
	struct err err = ERR_INIT;
	struct rng r = { 11 };
	struct quant_site site;
	struct quant_case q;
	double loss, energy, fitted;

	(void)state;
	quant_case_init(&q, &r, W_NORMAL, 64, 128, options.grid);
	site_init(&site, fast, q.h, q.cols);
	quantize(&result, fast, &site, &options, &q);
	assert_int_equal(ref->ops->proxy_loss(ref, &q.grid, q.w, q.rows, q.cols, q.h, site.damp, result.codes,
					      result.scales, result.zeros, &loss, &energy, &err), 0);
	assert_true(fabs(loss - result.loss) < 1e-4 * loss);
	assert_true(fabs(energy - result.energy) < 1e-4 * energy);

	assert_int_equal(fast->ops->fit_groups(fast, FIT_NEUQI, &q.grid, q.w, q.rows, q.cols, site.diag,
					       q.scales, q.zeros, q.objective, &err), 0);
	assert_int_equal(fast->ops->round_ldlq(fast, &q.grid, q.w, q.rows, q.cols, site.perm, site.u, NULL,
					       q.scales, q.zeros, q.codes, NULL, &err), 0);
	assert_int_equal(ref->ops->proxy_loss(ref, &q.grid, q.w, q.rows, q.cols, q.h, site.damp, q.codes,
					      q.scales, q.zeros, &fitted, NULL, &err), 0);
	if (!(result.loss < 0.99 * fitted))
		fail_msg("with scales tried %g, without %g", result.loss, fitted);
	quant_result_deinit(&result);
	quant_site_deinit(&site);
	quant_case_deinit(&q);
	ref->ops->close(ref);
	fast->ops->close(fast);
}

/* --- GPTQ as usually written: inverse H, its upper Cholesky factor, column by column ----------- */

static void invert(double *a, size_t n)
{
	double *inv = calloc(n * n, sizeof(*inv));

	for (size_t i = 0; i < n; i++)
		inv[i * n + i] = 1;
	for (size_t p = 0; p < n; p++) {
		const double d = a[p * n + p];

		for (size_t j = 0; j < n; j++) {
			a[p * n + j] /= d;
			inv[p * n + j] /= d;
		}
		for (size_t i = 0; i < n; i++) {
			const double f = i == p ? 0 : a[i * n + p];

			for (size_t j = 0; j < n; j++) {
				a[i * n + j] -= f * a[p * n + j];
				inv[i * n + j] -= f * inv[p * n + j];
			}
		}
	}
	memcpy(a, inv, n * n * sizeof(*a));
	free(inv);
}

/* a = C^T C, C upper triangular, in place. */
static void upper_cholesky(double *a, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		for (size_t k = 0; k < i; k++)
			for (size_t j = i; j < n; j++)
				a[i * n + j] -= a[k * n + i] * a[k * n + j];
		for (size_t j = n; j-- > i;)
			a[i * n + j] /= sqrt(a[i * n + i]);
	}
}

static void gptq(const struct quant_case *q, const struct quant_site *site, uint8_t *codes)
{
	const size_t n = q->cols;
	double *c = malloc(n * n * sizeof(*c)), *w = malloc(n * sizeof(*w));

	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < n; j++)
			c[i * n + j] = q->h[(size_t)site->perm[i] * n + (size_t)site->perm[j]] +
				(i == j ? site->damp : 0);
	invert(c, n);
	upper_cholesky(c, n);
	for (size_t r = 0; r < q->rows; r++) {
		for (size_t i = 0; i < n; i++)
			w[i] = q->w[r * n + (size_t)site->perm[i]];
		for (size_t i = 0; i < n; i++) {
			const size_t at = (size_t)site->perm[i], g = r * q->groups + at / q->grid.group;
			const double s = q->scales[g], z = q->zeros[g];
			const double code = fmin(fmax(nearbyint(w[i] / s + z), 0), (1 << q->grid.bits) - 1);
			const double error = (w[i] - s * (code - z)) / c[i * n + i];

			codes[r * n + at] = (uint8_t)code;
			for (size_t j = i + 1; j < n; j++)
				w[j] -= error * c[i * n + j];
		}
	}
	free(c);
	free(w);
}

static void test_ldlq_is_gptq(void **state)
{
	struct rng r = { 13 };

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 2);
		struct err err = ERR_INIT;
		struct quant_site site;
		size_t different = 0;
		struct quant_case q;
		uint8_t *codes;

		quant_case_init(&q, &r, W_NORMAL, 30, 160, (struct grid){ .bits = 3, .group = 32 });
		codes = malloc(q.rows * q.cols);
		site_init(&site, be, q.h, q.cols);
		assert_int_equal(be->ops->fit_groups(be, FIT_MINMAX, &q.grid, q.w, q.rows, q.cols, site.diag,
						     q.scales, q.zeros, q.objective, &err), 0);
		assert_int_equal(be->ops->round_ldlq(be, &q.grid, q.w, q.rows, q.cols, site.perm, site.u, NULL,
						     q.scales, q.zeros, q.codes, NULL, &err), 0);
		gptq(&q, &site, codes);
		/* A tie that falls the other way changes the rest of its row. */
		for (size_t row = 0; row < q.rows; row++)
			different += memcmp(codes + row * q.cols, q.codes + row * q.cols, q.cols) != 0;
		if (different > 1)
			fail_msg("%s: %zu of %zu rows differ from GPTQ", tested_name(n), different, q.rows);
		free(codes);
		quant_site_deinit(&site);
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

static void refuse_options(struct backend *be, const struct quant_site *site,
			   struct quant_options options, const char *words)
{
	const float values[6] = { 1, 2, 3, 4, 5, 6 };
	const struct quant_weights w = { values, values, 1 };
	struct err err = ERR_INIT;
	struct quant_result out;

	assert_int_equal(quant_module(&out, be, site, &options, &w, &err), -1);
	if (!strstr(err.text, words))
		fail_msg("'%s' lacks '%s'", err.text, words);
	assert_null(out.codes);
}

static void test_unusable_options_are_refused(void **state)
{
	struct quant_options negative = options_of(2, 3, false);
	double h[36] = { 0 };
	struct backend *be = open_backend("ref", 1);
	struct err err = ERR_INIT;
	struct quant_site site;

	(void)state;
	for (size_t i = 0; i < 6; i++)
		h[i * 7] = 1;
	assert_int_equal(site_of(&site, be, h, 6, 0.01, false, &err), 0);
	refuse_options(be, &site, options_of(0, 3, false), "bits");
	refuse_options(be, &site, options_of(9, 3, false), "bits");
	refuse_options(be, &site, options_of(2, 4, false), "4 does not divide 6");
	refuse_options(be, &site, options_of(2, 0, false), "divide");
	refuse_options(be, &site, options_of(2, 3, true), "factor");
	negative.refine = -1;
	refuse_options(be, &site, negative, "refine is -1");
	quant_site_deinit(&site);
	be->ops->close(be);
}

/* --- refinement --------------------------------------------------------------------------------- */

/* Every way to round: what is reported is true, and each round asked for lowers the loss. */
static void check_refined(struct backend *be, const struct quant_site *site, const struct quant_case *q,
			  struct quant_options options)
{
	struct backend *ref = open_backend("ref", 1);
	struct quant_result rounded, refined;
	double last = INFINITY, loss;
	struct err err = ERR_INIT;

	options.refine = 0;
	quantize(&rounded, be, site, &options, q);
	assert_true(rounded.loss == rounded.loss_rounded && rounded.refine_rounds == 0);
	for (options.refine = 1; options.refine <= 2; options.refine++) {
		quantize(&refined, be, site, &options, q);
		assert_int_equal(refined.refine_rounds, options.refine);
		assert_true(refined.loss_rounded == rounded.loss && refined.energy == rounded.energy);
		assert_true(refined.loss_nearest == rounded.loss_nearest);
		if (!(refined.loss < 0.995 * rounded.loss && refined.loss <= last))
			fail_msg("%d rounds: %g, rounded %g, a round before %g", options.refine, refined.loss,
				 rounded.loss, last);
		assert_int_equal(ref->ops->proxy_loss(ref, &options.grid, q->w, q->rows, q->cols, q->h,
						      site->damp, refined.codes, refined.scales, refined.zeros,
						      &loss, NULL, &err), 0);
		if (fabs(loss - refined.loss) > 1e-4 * loss)
			fail_msg("%d rounds: said %g, is %g", options.refine, refined.loss, loss);
		last = refined.loss;
		quant_result_deinit(&refined);
	}
	quant_result_deinit(&rounded);
	ref->ops->close(ref);
}

static void test_refinement_lowers_the_loss(void **state)
{

	(void)state;
	for (int n = 0; n < TESTED_BOTH; n++) {
		struct backend *be = open_backend(tested_name(n), 2);
		struct rng r = { 23 };
		struct quant_site site;
		struct quant_case q;

		quant_case_init(&q, &r, W_NORMAL, 20, 96, (struct grid){ .bits = 2, .group = 32 });
		site_init(&site, be, q.h, q.cols);
		for (int way = 0; way < 16; way++) {
			struct quant_options options = options_of(2 + way % 2, way & 2 ? 32 : 96, way & 4);

			options.method = way & 8 ? FIT_NEUQI : FIT_MINMAX;
			options.grid.integer_zero = way % 3 == 1;
			options.grid.symmetric = way % 3 == 2;
			check_refined(be, &site, &q, options);
		}
		quant_site_deinit(&site);
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

/* Weights that are values of the grid: one round finds nothing to win, and nothing changes. */
static void test_refinement_stops_when_nothing_is_won(void **state)
{
	struct backend *be = open_backend(tested_backend(), 1);
	struct quant_options options = options_of(2, 16, false);
	struct quant_result plain, refined;
	struct rng r = { 29 };
	struct quant_site site;
	struct quant_case q;

	(void)state;
	quant_case_init(&q, &r, W_NORMAL, 4, 16, options.grid);
	for (size_t i = 0; i < q.rows * q.cols; i++)
		q.w[i] = 0.25f * (float)(i * 7 % 4);
	site_init(&site, be, q.h, q.cols);
	quantize(&plain, be, &site, &options, &q);
	options.refine = 8;
	quantize(&refined, be, &site, &options, &q);
	assert_int_equal(refined.refine_rounds, 1);
	assert_true(refined.loss <= refined.loss_rounded && refined.loss_rounded == plain.loss);
	assert_memory_equal(plain.codes, refined.codes, q.rows * q.cols);
	quant_result_deinit(&plain);
	quant_result_deinit(&refined);
	quant_site_deinit(&site);
	quant_case_deinit(&q);
	be->ops->close(be);
}

/* A backend whose round wins nothing but says so. */
static int boast(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
		 const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales, float *zeros,
		 double *row_loss, struct err *err)
{
	(void)be, (void)w, (void)h, (void)damp, (void)perm, (void)err;
	for (size_t i = 0; i < rows * cols; i++)
		codes[i] ^= 1;
	for (size_t i = 0; i < rows * cols / grid->group; i++) {
		scales[i] *= 2;
		zeros[i] += 1;
	}
	memset(row_loss, 0, rows * sizeof(*row_loss));
	return 0;
}

static void test_a_worse_result_is_not_kept(void **state)
{
	struct backend *be = open_backend(tested_backend(), 1);
	const struct backend_ops *const own = be->ops;
	struct backend_ops boasting = *own;
	struct quant_options options = options_of(2, 16, true);
	struct quant_result plain, refined;
	struct rng r = { 31 };
	struct quant_site site;
	struct quant_case q;

	(void)state;
	quant_case_init(&q, &r, W_NORMAL, 5, 48, options.grid);
	site_init(&site, be, q.h, q.cols);
	quantize(&plain, be, &site, &options, &q);
	boasting.refine = boast;
	be->ops = &boasting;
	options.refine = 3;
	quantize(&refined, be, &site, &options, &q);
	be->ops = own;
	assert_int_equal(refined.refine_rounds, 2); /* no loss, then no less than none */
	assert_true(refined.loss == plain.loss && refined.loss_rounded == plain.loss);
	assert_memory_equal(plain.codes, refined.codes, q.rows * q.cols);
	assert_memory_equal(plain.scales, refined.scales, q.rows * q.groups * sizeof(float));
	assert_memory_equal(plain.zeros, refined.zeros, q.rows * q.groups * sizeof(float));
	quant_result_deinit(&plain);
	quant_result_deinit(&refined);
	quant_site_deinit(&site);
	quant_case_deinit(&q);
	be->ops->close(be);
}

static void test_infinite_weights_are_reported(void **state)
{
	const double h[4] = { 1, 0.5, 0.5, 1 };
	const float values[2] = { 1, INFINITY };
	const struct quant_weights w = { values, values, 1 };
	const struct quant_options options = options_of(2, 2, true);
	struct backend *be = open_backend(tested_backend(), 1);
	struct err err = ERR_INIT;
	struct quant_result out;
	struct quant_site site;

	(void)state;
	site_init(&site, be, h, 2);
	assert_int_equal(quant_module(&out, be, &site, &options, &w, &err), -1);
	assert_int_equal(err.code, ERR_NUMERIC);
	quant_site_deinit(&site);
	be->ops->close(be);
}

static void fail_every_allocation(unsigned zero_parts)
{
	struct backend *be = open_backend(tested_backend(), 2);
	struct quant_options options = options_of(2, 8, true);
	struct rng r = { 19 };
	struct quant_weights w;
	struct quant_case q;
	uint64_t nth = 1;

	options.refine = 1;
	options.grid.half = true;
	options.grid.zero_parts = zero_parts;
	quant_case_init(&q, &r, W_NORMAL, 3, 16, options.grid);
	w = (struct quant_weights){ q.w, q.w, q.rows };
	for (;; nth++) {
		struct err err = ERR_INIT;
		struct quant_result out = { 0 };
		struct quant_site site;
		int rc;

		mem_fail_after(nth);
		rc = site_of(&site, be, q.h, q.cols, 0.01, true, &err);
		if (rc == 0)
			rc = quant_module(&out, be, &site, &options, &w, &err);
		mem_fail_after(0);
		quant_result_deinit(&out);
		quant_site_deinit(&site);
		if (rc == 0)
			break;
		assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_true(nth > 20);
	quant_case_deinit(&q);
	be->ops->close(be);
}

static void test_every_allocation_fails_cleanly(void **state)
{
	(void)state;
	fail_every_allocation(0);
	fail_every_allocation(4); /* two fits compete */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_site),
		cmocka_unit_test(test_damping_is_raised_until_the_factor_exists),
		cmocka_unit_test(test_unusable_sites_are_refused),
		cmocka_unit_test(test_ldlq_beats_nearest_on_correlated_inputs),
		cmocka_unit_test(test_reported_loss),
		cmocka_unit_test(test_ldlq_is_gptq),
		cmocka_unit_test(test_unusable_options_are_refused),
		cmocka_unit_test(test_refinement_lowers_the_loss),
		cmocka_unit_test(test_refinement_stops_when_nothing_is_won),
		cmocka_unit_test(test_a_worse_result_is_not_kept),
		cmocka_unit_test(test_infinite_weights_are_reported),
		cmocka_unit_test(test_every_allocation_fails_cleanly),
	};

	return cmocka_run_group_tests_name("quantization", tests, NULL, NULL);
}
