/* grid_values, grid_gradients and adam_step: the tested backend held to ref, and what backend.h promises of them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/packed.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"

static void same_bytes(const char *what, const void *a, const void *b, size_t bytes)
{
	if (memcmp(a, b, bytes) != 0)
		fail_msg("%s: bytes differ", what);
}

/* --- the grid ------------------------------------------------------------------------------- */

struct grid_case {
	struct grid grid;
	size_t rows, cols, groups;
	float *latents, *scales, *zeros, *dw;
};

/* Latents that lie between, on and beside every boundary of rounding and clamping. */
static void grid_case_init(struct grid_case *g, int bits, size_t group, size_t rows, size_t cols)
{
	static const float near[] = { 0, -0.0f, 0.5f, -0.5f, 1.5f, 2.5f, 0.49999997f, -0.50000006f, 3e9f,
				      -3e9f };
	const float top = (float)((1 << bits) - 1);

	*g = (struct grid_case){ .grid = { .bits = bits, .group = group }, .rows = rows, .cols = cols,
				 .groups = cols / group };
	g->latents = case_random(rows * cols, top, rows + cols);
	g->scales = case_random(rows * g->groups, 0.4f, 5);
	g->zeros = case_random(rows * g->groups, 3, 6);
	g->dw = case_random(rows * cols, 1, 7);
	for (size_t i = 0; i < rows * cols; i += 3) {
		g->latents[i] = near[i / 3 % 10];
		if (i / 30 % 2)
			g->latents[i] = top - g->latents[i];
	}
	for (size_t i = 0; i < rows * g->groups; i++)
		g->scales[i] += 0.5f;
	g->zeros[0] = 0;
}

static void grid_case_deinit(struct grid_case *g)
{
	free(g->latents);
	free(g->scales);
	free(g->zeros);
	free(g->dw);
}

static float *values_of(const struct grid_case *g, struct backend *be)
{
	float *w = case_poisoned(g->rows * g->cols);
	struct err err = ERR_INIT;

	if (be->ops->grid_values(be, &g->grid, g->latents, g->rows, g->cols, g->scales, g->zeros, w,
				 &err) != 0)
		fail_msg("grid_values: %s", err.text);
	return w;
}

static void gradients_of(const struct grid_case *g, struct backend *be, const float *dw, float *dscales,
			 float *dzeros, float *dlatents)
{
	struct err err = ERR_INIT;

	if (be->ops->grid_gradients(be, &g->grid, g->latents, g->rows, g->cols, g->scales, g->zeros, dw,
				    dscales, dzeros, dlatents, &err) != 0)
		fail_msg("grid_gradients: %s", err.text);
}

/* What a stored module of the same codes is read back as. */
static float *stored_values_of(const struct grid_case *g)
{
	float *w = case_poisoned(g->rows * g->cols);
	uint8_t *codes = case_copy(w, g->cols);

	for (size_t r = 0; r < g->rows; r++) {
		for (size_t j = 0; j < g->cols; j++)
			codes[j] = (uint8_t)fmin(fmax(nearbyint((double)g->latents[r * g->cols + j]), 0),
						 (1 << g->grid.bits) - 1);
		packed_dequantize_row(codes, g->scales + r * g->groups, g->zeros + r * g->groups, g->cols,
				      g->grid.group, w + r * g->cols);
	}
	free(codes);
	return w;
}

/* The code of a latent is the nearest one where s = 1 and z = 0, ties included. */
static void check_codes(const struct grid_case *g, struct backend *be)
{
	const struct grid whole = { .bits = g->grid.bits, .group = g->cols };
	const size_t n = g->rows * g->cols;
	float *ones = calloc(g->rows, sizeof(*ones)), *zeros = calloc(g->rows, sizeof(*zeros));
	uint8_t *codes = malloc(n);
	struct err err = ERR_INIT;

	assert_true(ones && zeros && codes);
	for (size_t r = 0; r < g->rows; r++)
		ones[r] = 1;
	if (be->ops->round_nearest(be, &whole, g->latents, g->rows, g->cols, ones, zeros, codes, &err) != 0)
		fail_msg("round_nearest: %s", err.text);
	for (size_t i = 0; i < n; i++) {
		const double want = fmin(fmax(nearbyint((double)g->latents[i]), 0), (1 << g->grid.bits) - 1);

		if (codes[i] != want)
			fail_msg("the code of %.9g is %d, not %g", (double)g->latents[i], codes[i], want);
	}
	free(ones);
	free(zeros);
	free(codes);
}

static void check_gradients(const struct grid_case *g, const float got[2], const float want[2], size_t group)
{
	const float *x = g->latents + group * g->grid.group, *dw = g->dw + group * g->grid.group;
	double along = 0, plain = 0;

	for (size_t i = 0; i < g->grid.group; i++) {
		const double q = fmin(fmax(nearbyint((double)x[i]), 0), (1 << g->grid.bits) - 1);

		along += fabs(dw[i] * (q - g->zeros[group]));
		plain += fabs((double)g->scales[group] * dw[i]);
	}
	case_assert_close("dscales", got, want, 1, 1e-5 * along);
	case_assert_close("dzeros", got + 1, want + 1, 1, 1e-5 * plain);
}

static void grid_against_ref(const struct grid_case *g, struct backend *ref, struct backend *fast)
{
	const size_t n = g->rows * g->cols, groups = g->rows * g->groups;
	float *want = values_of(g, ref), *got = values_of(g, fast), *stored = stored_values_of(g);
	float *ds[2], *dz[2], *dl[2];
	struct backend *be[2] = { ref, fast };

	for (size_t i = 0; i < n; i++)
		assert_true(got[i] == want[i]);
	same_bytes("grid_values and stored weights", got, stored, n * sizeof(*got));
	check_codes(g, ref);
	check_codes(g, fast);
	for (int i = 0; i < 2; i++) {
		ds[i] = case_poisoned(groups), dz[i] = case_poisoned(groups), dl[i] = case_poisoned(n);
		gradients_of(g, be[i], g->dw, ds[i], dz[i], dl[i]);
	}
	for (size_t i = 0; i < groups; i++)
		check_gradients(g, (float[]){ ds[1][i], dz[1][i] }, (float[]){ ds[0][i], dz[0][i] }, i);
	for (size_t i = 0; i < n; i++)
		case_assert_close("dlatents", dl[1] + i, dl[0] + i, 1, 1e-5 * fabs((double)dl[0][i]));
	for (int i = 0; i < 2; i++) {
		free(ds[i]);
		free(dz[i]);
		free(dl[i]);
	}
	free(want);
	free(got);
	free(stored);
}

static void test_grid_near_ref(void **state)
{
	static const size_t shapes[][3] = { { 1, 1, 1 }, { 1, 3, 6 }, { 8, 5, 24 }, { 16, 3, 64 },
					    { 17, 4, 51 }, { 64, 300, 256 }, { 300, 70, 300 },
					    { 128, 1, 16384 } };
	struct backend *ref = case_open("ref", 1);

	(void)state;
	for (int level = 0; level < tested_levels(); level++) {
		struct backend *fast = tested_open(level, 2);

		for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
			for (int bits = 1; bits <= 8; bits++) {
				struct grid_case g;

				grid_case_init(&g, bits, shapes[i][0], shapes[i][1], shapes[i][2]);
				grid_against_ref(&g, ref, fast);
				grid_case_deinit(&g);
			}
		}
		case_close(fast);
	}
	case_close(ref);
}

/* Alone, in place, with other numbers of threads: the same bytes. */
static void test_grid_forms_agree(void **state)
{
	struct backend *one = case_open(tested_backend(), 1), *many = case_open(tested_backend(), 3);
	struct grid_case g;
	float *w[2], *ds[2], *dz[2], *dl[2];

	(void)state;
	grid_case_init(&g, 3, 48, 517, 96);
	for (int i = 0; i < 2; i++) {
		struct backend *be = i ? many : one;

		w[i] = values_of(&g, be);
		ds[i] = case_poisoned(517 * 2), dz[i] = case_poisoned(517 * 2);
		dl[i] = case_copy(g.dw, 517 * 96 * sizeof(float));
		if (i == 0) {
			gradients_of(&g, be, dl[i], ds[i], dz[i], dl[i]);
			continue;
		}
		gradients_of(&g, be, g.dw, ds[i], NULL, NULL);
		gradients_of(&g, be, g.dw, NULL, dz[i], NULL);
		gradients_of(&g, be, g.dw, NULL, NULL, dl[i]);
	}
	same_bytes("grid_values", w[0], w[1], 517 * 96 * sizeof(float));
	same_bytes("dscales", ds[0], ds[1], 517 * 2 * sizeof(float));
	same_bytes("dzeros", dz[0], dz[1], 517 * 2 * sizeof(float));
	same_bytes("dlatents", dl[0], dl[1], 517 * 96 * sizeof(float));
	for (int i = 0; i < 2; i++) {
		free(w[i]);
		free(ds[i]);
		free(dz[i]);
		free(dl[i]);
	}
	grid_case_deinit(&g);
	case_close(one);
	case_close(many);
}

static void test_grid_errors(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		const struct backend_ops *ops = be->ops;
		const struct grid fine = { .bits = 2, .group = 2 }, uneven = { .bits = 2, .group = 3 };
		const float x[4] = { 0, 3, 1, 2 }, s[2] = { 1, 3e38f }, z[2] = { 0, -9 };
		const float dw[4] = { 1, 1, 3e38f, 3e38f };
		float w[4], g[2];
		struct err err = ERR_INIT;

		assert_int_equal(ops->grid_values(be, &fine, x, 2, 2, s, z, w, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_int_equal(ops->grid_values(be, &uneven, x, 2, 2, s, z, w, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(ops->grid_gradients(be, &uneven, x, 2, 2, s, z, dw, g, g, w, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		for (int i = 0; i < 3; i++) {
			err = (struct err)ERR_INIT;
			assert_int_equal(ops->grid_gradients(be, &fine, x, 2, 2, s, z, dw, i == 0 ? g : NULL,
							     i == 1 ? g : NULL, i == 2 ? w : NULL, &err), -1);
			assert_int_equal(err.code, ERR_NUMERIC);
		}
		assert_int_equal(ops->grid_values(be, &fine, x, 0, 2, s, z, w, &err), 0);
		case_close(be);
	}
}

/* --- Adam ------------------------------------------------------------------------------------ */

static void check_step(const struct adam *adam, const float *got, const float *want, size_t n)
{
	for (size_t i = 0; i < n; i++)
		case_assert_close("p", got + i, want + i, 1,
				  1e-5 * adam->rate + 1e-6 * fabs((double)want[i]));
}

/* Each step starts from what ref has, so that what is compared is one step. */
static void adam_case(struct backend *ref, struct backend *fast, struct backend *other, size_t n)
{
	struct adam adam = { .rate = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .epsilon = 1e-8f };
	float *p = case_random(n, 1, n), *m = case_random(n, 0, 1), *v = case_random(n, 0, 1);

	for (adam.step = 1; adam.step <= 1000; adam.step = adam.step < 4 ? adam.step + 1 : adam.step * 10) {
		float *g = case_random(n, adam.step == 3 ? 1e-12f : 0.1f, n + (uint64_t)adam.step);
		float *p2 = case_copy(p, n * sizeof(*p)), *m2 = case_copy(m, n * sizeof(*m));
		float *v2 = case_copy(v, n * sizeof(*v)), *p3 = case_copy(p, n * sizeof(*p));
		float *m3 = case_copy(m, n * sizeof(*m)), *v3 = case_copy(v, n * sizeof(*v));

		if (n > 0)
			g[0] = 0;
		assert_int_equal(ref->ops->adam_step(ref, &adam, n, p, g, m, v, NULL), 0);
		assert_int_equal(fast->ops->adam_step(fast, &adam, n, p2, g, m2, v2, NULL), 0);
		assert_int_equal(other->ops->adam_step(other, &adam, n, p3, g, m3, v3, NULL), 0);
		check_step(&adam, p2, p, n);
		case_assert_close("m", m2, m, n, 1e-6 * case_max_abs(m, n));
		case_assert_close("v", v2, v, n, 1e-6 * case_max_abs(v, n));
		same_bytes("p", p2, p3, n * sizeof(*p));
		same_bytes("m", m2, m3, n * sizeof(*p));
		same_bytes("v", v2, v3, n * sizeof(*p));
		free(g);
		free(p2), free(m2), free(v2);
		free(p3), free(m3), free(v3);
	}
	free(p);
	free(m);
	free(v);
}

static void test_adam_near_ref(void **state)
{
	static const size_t lengths[] = { 0, 1, 15, 17, 1000, 16383, 16384, 16385, 50001 };
	struct backend *ref = case_open("ref", 1);

	(void)state;
	for (int level = 0; level < tested_levels(); level++) {
		struct backend *one = tested_open(level, 1);
		struct backend *many = tested_open(level, 3);

		for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
			adam_case(ref, one, many, lengths[i]);
		case_close(one);
		case_close(many);
	}
	case_close(ref);
}

static void test_adam_errors(void **state)
{
	const struct adam good = { .rate = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .epsilon = 1e-8f,
				   .step = 1 };
	struct adam zeroth = good;

	(void)state;
	zeroth.step = 0;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = case_open(tested_name(b), 2);
		float p[3] = { 1, 2, 3 }, g[3] = { 0, NAN, 0 }, m[3] = { 0 }, v[3] = { 0 };
		struct err err = ERR_INIT;

		assert_int_equal(be->ops->adam_step(be, &good, 3, p, g, m, v, &err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		assert_int_equal(be->ops->adam_step(be, &zeroth, 3, p, g, m, v, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		case_close(be);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_grid_near_ref),
		cmocka_unit_test(test_grid_forms_agree),
		cmocka_unit_test(test_grid_errors),
		cmocka_unit_test(test_adam_near_ref),
		cmocka_unit_test(test_adam_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
