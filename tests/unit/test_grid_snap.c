/* Scales and zero-points as formats store them: the rounding itself, and that nothing that comes later undoes it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/half.h"
#include "tests/lib/quant_case.h"
#include "tests/lib/tested_backend.h"
#include "tests/lib/tuned_case.h"
#include "worker/backend/grid_snap.h"
#include "worker/backend/group_step.h"
#include "worker/quant/quantize.h"

static bool is_half(float x)
{
	return f16_to_f32(f32_to_f16(x)) == x;
}

/* What a file of this grid can hold. */
static void check_stored(const struct grid *grid, float s, float z)
{
	const unsigned parts = grid->integer_zero ? 1 : grid->zero_parts;

	if (!(s > 0 && is_half(s)))
		fail_msg("%d bits: scale %a is no half", grid->bits, (double)s);
	if (grid->symmetric) {
		assert_true(z == (float)(1 << (grid->bits - 1)));
	} else if (parts > 0) {
		if (z * (float)parts != rintf(z * (float)parts) || z < 0 || z * (float)parts > (float)(parts << grid->bits) - 1)
			fail_msg("%d bits: z = %a is none of the %u-ths", grid->bits, (double)z, parts);
		if (!is_half(s / (float)parts))
			fail_msg("%d bits: scale %a / %u is no half", grid->bits, (double)s, parts);
	} else {
		const float o = s * z;

		if (fabsf(o - f16_to_f32(f32_to_f16(o))) > 0x1p-22f * fabsf(o))
			fail_msg("%d bits: %a * %a is no half", grid->bits, (double)s, (double)z);
	}
}

static const struct grid kinds[] = {
	{ .half = true }, { .half = true, .integer_zero = true }, { .half = true, .symmetric = true },
	{ .half = true, .zero_parts = 4 }, { .half = true, .zero_parts = 2 }, { .half = true, .zero_parts = 16 },
};
enum { KINDS = sizeof(kinds) / sizeof(*kinds) };

static void test_snap(void **state)
{
	struct rng r = { 5 };

	(void)state;
	for (int i = 0; i < 20000; i++) {
		struct grid grid = kinds[i % KINDS];
		float s = (float)exp(-18 + 22 * rng_uniform(&r)), z = (float)(10 * rng_normal(&r)), s1, z1;

		grid.bits = 1 + (i / KINDS) % 8;
		if (grid.symmetric)
			z = (float)(1 << (grid.bits - 1));
		s1 = s;
		z1 = z;
		grid_snap(&grid, &s1, &z1);
		check_stored(&grid, s1, z1);
		if (s > 0x1p-9f && fabsf(s1 - s) > 0x1p-11f * s)
			fail_msg("%a became %a", (double)s, (double)s1);
		if (s > 0x1p-9f && !grid_binds_zero(&grid) &&
		    fabsf(s1 * z1 - s1 * z) > 0x1p-11f * fabsf(s1 * z) + 0x1p-24f)
			fail_msg("z %a became %a", (double)z, (double)z1);
		s = s1;
		z = z1;
		grid_snap(&grid, &s, &z);
		assert_true(s == s1 && z == z1); /* once is enough */
	}
}

static void test_what_no_half_holds_stays(void **state)
{
	const struct grid any = { .bits = 2, .half = true }, exact = { .bits = 2 };
	const struct grid integer = { .bits = 2, .half = true, .integer_zero = true };
	float s = 70000, z = 1.25f;

	(void)state;
	grid_snap(&any, &s, &z);
	assert_true(s == 70000 && z == 1.25f);
	s = 60000;
	z = -3;
	grid_snap(&any, &s, &z);
	assert_true(s == 60000 && z == -3);
	s = 0x1p-40f;
	z = 0;
	grid_snap(&any, &s, &z);
	assert_true(s == 0x1p-24f && z == 0);
	s = 0x1p-40f;
	grid_snap(&integer, &s, &z);
	assert_true(s == 0x1p-22f && z == 0); /* the least that survives a container of 4 bits */
	s = 0.1f;
	z = 0.3f;
	grid_snap(&exact, &s, &z);
	assert_true(s == 0.1f && z == 0.3f);
}

/* --- the choice for one group ------------------------------------------------------------------- */

/* The step is as good as the best of all stored pairs near it. */
static void test_group_step_stays_on_the_grid(void **state)
{
	struct rng r = { 6 };

	(void)state;
	for (int i = 0; i < 300; i++) {
		struct grid grid = kinds[i % KINDS], free_grid;
		struct group_sums m = { .rq = rng_normal(&r), .r1 = rng_normal(&r) };
		const double a = 1 + rng_uniform(&r), b = rng_normal(&r), c = 1 + rng_uniform(&r);
		float s = (float)(0.5 + rng_uniform(&r)), z = 1.5f, s1, z1, s2, z2;
		double gain, bound;

		m.qq = 4 * (a * a + b * b);
		m.q1 = 2 * (a * b + b * c);
		m.oo = b * b + c * c;
		grid.bits = 2;
		grid_snap(&grid, &s, &z);
		if (grid.symmetric)
			z = 2;
		free_grid = (struct grid){ .bits = 2, .integer_zero = grid.integer_zero, .symmetric = grid.symmetric };
		s1 = s2 = s;
		z1 = z2 = z;
		gain = group_step(&grid, &m, 0, &s1, &z1);
		bound = group_step(&free_grid, &m, 0, &s2, &z2);
		if (gain > 0)
			check_stored(&grid, s1, z1);
		/* Halves cost next to nothing; steps of z cost something, and steps of 1/16 less. */
		if (gain > bound * (1 + 1e-6) && grid.zero_parts == 0)
			fail_msg("wins %g, exact numbers %g", gain, bound);
		if (grid.zero_parts == 0 && gain < bound - 1e-3 * fabs(bound) - 1e-4)
			fail_msg("wins %g of %g", gain, bound);
	}
}

/* --- a whole module ------------------------------------------------------------------------------ */

static void check_module(struct backend *be, const struct quant_site *site, const struct quant_case *q,
			 struct grid grid, enum fit_method method, bool ldlq, double *loss)
{
	const struct quant_options options = { .grid = grid, .method = method, .ldlq = ldlq, .refine = 2 };
	const struct quant_weights w = { q->w, q->w, q->rows };
	struct quant_result out;
	struct err err = ERR_INIT;

	if (quant_module(&out, be, site, &options, &w, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < q->rows * (q->cols / grid.group); i++)
		check_stored(&grid, out.scales[i], out.zeros[i]);
	assert_true(out.loss <= out.loss_rounded && out.loss_rounded <= out.loss_nearest);
	if (grid.zero_parts == 0 && fabs(out.loss_nearest / out.loss_exact - 1) > 0.02)
		fail_msg("halves change the loss from %g to %g", out.loss_exact, out.loss_nearest);
	*loss = out.loss;
	quant_result_deinit(&out);
}

static void test_modules(void **state)
{
	static const char *const names[] = { "ref", "cpu" };

	(void)state;
	for (int n = 0; n < 2; n++) {
		struct backend *be = open_backend(names[n], 2);
		struct rng r = { 29 };
		struct quant_site site;
		struct quant_case q;
		struct err err = ERR_INIT;

		quant_case_init(&q, &r, W_NORMAL, 12, 96, (struct grid){ .bits = 2, .group = 32 });
		if (site_of(&site, be, q.h, q.cols, 0.01, true, &err) != 0)
			fail_msg("%s", err.text);
		for (int k = 0; k < KINDS; k++) {
			for (int bits = 2; bits <= 4; bits += 2) {
				struct grid grid = kinds[k], exact;
				double stored, free_loss;

				grid.bits = bits;
				grid.group = 32;
				exact = (struct grid){ .bits = bits, .group = 32, .integer_zero = grid.integer_zero,
						       .symmetric = grid.symmetric };
				check_module(be, &site, &q, grid, FIT_NEUQI, k % 2 == 0, &stored);
				exact.half = true;
				check_module(be, &site, &q, exact, FIT_NEUQI, k % 2 == 0, &free_loss);
				if (grid.zero_parts > 0 && stored > 1.6 * free_loss)
					fail_msg("%s, %d bits: z in %u-ths loses %g, free z %g", names[n], bits, grid.zero_parts,
						 stored, free_loss);
			}
		}
		quant_site_deinit(&site);
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

/* Scales so small that halves of them are subnormal: their steps do not shrink with them. */
static void test_small_scales_are_stored(void **state)
{
	(void)state;
	for (int n = 0; n < 2; n++) {
		struct backend *be = open_backend(tested_name(n), 2);
		struct rng r = { 31 };
		struct quant_site site;
		struct quant_case q;
		struct err err = ERR_INIT;

		quant_case_init(&q, &r, W_NORMAL, 24, 96, (struct grid){ .bits = 4, .group = 32 });
		for (size_t i = 0; i < q.rows * q.cols; i++)
			q.w[i] *= 1e-5f;
		if (site_of(&site, be, q.h, q.cols, 0.01, true, &err) != 0)
			fail_msg("%s", err.text);
		for (int k = 0; k < KINDS; k++) {
			struct quant_options options = { .grid = kinds[k], .method = FIT_NEUQI, .ldlq = true, .refine = 3 };
			const struct quant_weights w = { q.w, q.w, q.rows };
			struct quant_result out;

			options.grid.bits = 4;
			options.grid.group = 32;
			if (quant_module(&out, be, &site, &options, &w, &err) != 0)
				fail_msg("%s", err.text);
			for (size_t i = 0; i < q.rows * (q.cols / 32); i++)
				check_stored(&options.grid, out.scales[i], out.zeros[i]);
			quant_result_deinit(&out);
		}
		quant_site_deinit(&site);
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

/* --- training ------------------------------------------------------------------------------------ */

static int pull_to_half(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	const struct tuned_case *c = ctx;
	float *here = case_fetch(c->be, y, rows * cols);

	(void)sequence;
	for (size_t i = 0; i < rows * cols; i++)
		here[i] -= 0.5f;
	case_hand(c->be, dy, here, rows * cols);
	free(here);
	return 0;
}

/* The weights that training computes with are those of what would be stored. */
static void test_training_computes_with_what_is_stored(void **state)
{
	const struct tuned_rates rates = { .code = 0.01f, .scale = 0.01f, .zero = 0.01f, .norm = 0.001f };
	struct backend *be = open_backend("cpu", 1);

	(void)state;
	for (int k = 0; k < KINDS; k++) {
		struct tuned_case c = tuned_case_small(2, 16);
		struct block_weights w;
		struct block_grads g;
		struct err err = ERR_INIT;

		c.grid = kinds[k];
		c.grid.bits = 2;
		c.grid.group = 16;
		tuned_case_init(&c, be);
		for (int step = 1; step <= 3; step++) {
			tuned_grads(&c.t, &g);
			if (tuned_weights(&c.t, &w, &err) != 0 ||
			    be->ops->block_backward(be, &c.plan.shape, &w, &c.block.rope, c.block.x, 1, c.block.seq_len,
						    pull_to_half, &c, NULL, &g, &err) != 0 ||
			    tuned_step(&c.t, &rates, 1, step, &err) != 0)
				fail_msg("%s", err.text);
		}
		assert_int_equal(tuned_weights(&c.t, &w, &err), 0);
		for (int m = 0; m < TUNED_MODULES; m++) {
			const struct tuned_module *tm = &c.plan.module[m];
			const float *const of[] = { w.q, w.k, w.v, w.o, w.gate, w.up, w.down };
			const size_t groups = c.module[m].groups;
			float *s = malloc(groups * sizeof(*s)), *z = malloc(groups * sizeof(*z));
			uint8_t *codes = malloc(tm->rows * tm->cols);

			assert_true(s && z && codes);
			assert_int_equal(tuned_result(&c.t, m, codes, s, z, &err), 0);
			for (size_t i = 0; i < groups; i++)
				check_stored(&tm->grid, s[i], z[i]);
			for (size_t i = 0; i < tm->rows * tm->cols; i++)
				assert_true(of[m][i] == s[i / tm->grid.group] * ((float)codes[i] - z[i / tm->grid.group]));
			free(s);
			free(z);
			free(codes);
		}
		tuned_case_deinit(&c);
	}
	be->ops->close(be);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_snap),
		cmocka_unit_test(test_what_no_half_holds_stays),
		cmocka_unit_test(test_group_step_stays_on_the_grid),
		cmocka_unit_test(test_modules),
		cmocka_unit_test(test_small_scales_are_stored),
		cmocka_unit_test(test_training_computes_with_what_is_stored),
	};

	return cmocka_run_group_tests_name("grid snap", tests, NULL, NULL);
}
