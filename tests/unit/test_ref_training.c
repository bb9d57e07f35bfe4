/* Training operations of the reference backend besides the block: RMSNorm's gradient, the trainable grid
 * and Adam, each held to differences or to a second way to compute it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/packed.h"
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

static void *zeros(size_t n, size_t size)
{
	void *x = calloc(n, size);

	assert_non_null(x);
	return x;
}

static void expect_code(int rc, struct err *err, enum err_code code, const char *part)
{
	assert_int_equal(rc, -1);
	if (err->code != code || !strstr(err->text, part))
		fail_msg("code %s and \"%s\", not %s and \"%s\"", err_name(err->code), err->text,
			 err_name(code), part);
	err_clear(err);
}

/* --- rms_norm_backward ------------------------------------------------------------------------- */

/* sum of dy y of RMSNorm in double, y as its definition says. */
static double norm_loss(const double *x, const float *weight, double eps, size_t rows, size_t cols,
			const float *dy)
{
	double total = 0;

	for (size_t r = 0; r < rows; r++) {
		double square = 0;

		for (size_t i = 0; i < cols; i++)
			square += x[r * cols + i] * x[r * cols + i] / (double)cols;
		for (size_t i = 0; i < cols; i++)
			total += dy[r * cols + i] * weight[i] * x[r * cols + i] / sqrt(square + eps);
	}
	return total;
}

/* Distance of dx from central differences; in place gives the same bytes. */
static double norm_case(size_t rows, size_t cols)
{
	const size_t n = rows * cols;
	const double step = 1e-5;
	float *x = case_random(n, 2, n), *weight = case_random(cols, 2, cols);
	float *dy = case_random(n, 1, n + 5), *dx = case_poisoned(n);
	double *wide = zeros(n, sizeof(*wide)), *numeric = zeros(n, sizeof(*numeric)), distance;

	for (size_t i = 0; i < n; i++)
		wide[i] = x[i];
	for (size_t i = 0; i < n; i++) {
		wide[i] = x[i] + step;
		numeric[i] = norm_loss(wide, weight, 1e-3f, rows, cols, dy);
		wide[i] = x[i] - step;
		numeric[i] = (numeric[i] - norm_loss(wide, weight, 1e-3f, rows, cols, dy)) / (2 * step);
		wide[i] = x[i];
	}
	assert_int_equal(ref->ops->rms_norm_backward(ref, x, weight, 1e-3f, rows, cols, dy, dx, NULL), 0);
	distance = train_distance_float(dx, numeric, n);
	assert_int_equal(ref->ops->rms_norm_backward(ref, x, weight, 1e-3f, rows, cols, dy, dy, NULL), 0);
	assert_memory_equal(dy, dx, n * sizeof(*dx));
	free(x);
	free(weight);
	free(dy);
	free(dx);
	free(wide);
	free(numeric);
	return distance;
}

static void test_rms_norm_backward(void **state)
{
	static const size_t rows[] = { 1, 2, 7 }, cols[] = { 1, 2, 33, 64 };
	double worst = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		for (size_t j = 0; j < sizeof(cols) / sizeof(cols[0]); j++) {
			const double distance = norm_case(rows[i], cols[j]);

			if (!(distance <= 1e-6))
				fail_msg("%zu rows of %zu: dx is off by %.3g of its norm", rows[i], cols[j],
					 distance);
			worst = fmax(worst, distance);
		}
	}
	print_message("# rms_norm_backward against central differences: %.1e\n", worst);
}

static void test_rms_norm_backward_refuses(void **state)
{
	const float x[2] = { 1, 2 }, huge[2] = { 3e38f, 3e38f }, dy[2] = { 0, 9 };
	struct err err = ERR_INIT;
	float dx[2] = { 5, 6 };

	(void)state;
	assert_int_equal(ref->ops->rms_norm_backward(ref, x, huge, 0, 0, 2, dy, dx, &err), 0);
	assert_true(dx[0] == 5 && dx[1] == 6);
	expect_code(ref->ops->rms_norm_backward(ref, x, huge, 0, 1, 2, dy, dx, &err), &err, ERR_NUMERIC,
		    "rms_norm_backward");
	expect_code(ref->ops->rms_norm_backward(ref, x, x, 0, 1, 0, dy, dx, &err), &err, ERR_INVALID,
		    "rms_norm_backward");
	mem_fail_after(1);
	expect_code(ref->ops->rms_norm_backward(ref, x, x, 0, 1, 2, dy, dx, &err), &err, ERR_NOMEM, "");
	mem_fail_after(0);
}

/* --- the grid ---------------------------------------------------------------------------------- */

struct grid_case {
	struct grid grid;
	size_t rows, cols, groups;              /* groups of all rows */
	float *latents, *scales, *zeros, *dw;   /* latents from below the grid to above it */
};

static void grid_case_init(struct grid_case *g, int bits, size_t group)
{
	const size_t n = g->rows * g->cols;
	const float top = (float)((1 << bits) - 1);

	g->grid = (struct grid){ .bits = bits, .group = group };
	g->groups = n / group;
	g->latents = case_random(n, top / 2 + 1.5f, n + (size_t)bits);
	g->scales = case_random(g->groups, 0.4f, 21);
	g->zeros = case_random(g->groups, top, 22);
	g->dw = case_random(n, 1, 23);
	for (size_t i = 0; i < n; i++)
		g->latents[i] += top / 2;
	for (size_t i = 0; i < g->groups; i++)
		g->scales[i] += 0.5f;
}

static void grid_case_deinit(struct grid_case *g)
{
	free(g->latents);
	free(g->scales);
	free(g->zeros);
	free(g->dw);
}

/* Ties go to the even code, whatever is outside goes to the nearest end. */
static uint8_t code_of(float latent, int bits)
{
	const double top = (1 << bits) - 1, below = floor(latent);
	double q = latent - below < 0.5 ? below : below + 1;

	if (latent - below == 0.5 && fmod(below, 2) == 0)
		q = below;
	return (uint8_t)(q < 0 ? 0 : q > top ? top : q);
}

static void values(const struct grid_case *g, float *w)
{
	struct err err = ERR_INIT;

	if (ref->ops->grid_values(ref, &g->grid, g->latents, g->rows, g->cols, g->scales, g->zeros, w,
				  &err) != 0)
		fail_msg("%s", err.text);
}

static void test_grid_values(void **state)
{
	static const size_t groups[] = { 1, 5, 30 };

	(void)state;
	for (int bits = 1; bits <= 8; bits++) {
		for (int i = 0; i < 3; i++) {
			struct grid_case g = { .rows = 7, .cols = 30 };
			float *w = case_poisoned(7 * 30), want[30];
			uint8_t codes[30];

			grid_case_init(&g, bits, groups[i]);
			for (size_t c = 0; c < 16; c++) /* -1.5, -1, ... 6 */
				g.latents[c] = (float)c / 2 - 1.5f;
			values(&g, w);
			for (size_t r = 0; r < 7; r++) {
				const size_t at = r * g.groups / 7;

				for (size_t c = 0; c < 30; c++)
					codes[c] = code_of(g.latents[r * 30 + c], bits);
				packed_dequantize_row(codes, g.scales + at, g.zeros + at, 30, groups[i],
						      want);
				assert_memory_equal(w + r * 30, want, sizeof(want));
			}
			grid_case_deinit(&g);
			free(w);
		}
	}
}

/* sum of dw w, through grid_values. */
static double grid_loss(const struct grid_case *g)
{
	const size_t n = g->rows * g->cols;
	float *w = case_poisoned(n);
	double total = 0;

	values(g, w);
	for (size_t i = 0; i < n; i++)
		total += (double)g->dw[i] * w[i];
	free(w);
	return total;
}

/* The loss is linear in each scale and zero, so a long step has no error but rounding. */
static double slope(const struct grid_case *g, float *x, float step)
{
	const float middle = *x, end = middle + step, start = middle - step;
	double rise;

	*x = end;
	rise = grid_loss(g);
	*x = start;
	rise -= grid_loss(g);
	*x = middle;
	return rise / ((double)end - start);
}

static void expect_slope(const char *what, const struct grid_case *g, float got, double want, double terms,
			 double *worst)
{
	const double miss = fabs(got - want) / terms;

	if (!(miss <= 1e-5))
		fail_msg("%d bits, groups of %zu: gradient of a %s is %.9g, not %.9g", g->grid.bits,
			 g->grid.group, what, (double)got, want);
	*worst = fmax(*worst, miss);
}

static void gradients_case(int bits, size_t group, double *worst_scale, double *worst_zero)
{
	struct grid_case g = { .rows = 3, .cols = 24 };
	float *dscales, *dzeros;

	grid_case_init(&g, bits, group);
	dscales = case_poisoned(g.groups);
	dzeros = case_poisoned(g.groups);
	assert_int_equal(ref->ops->grid_gradients(ref, &g.grid, g.latents, 3, 24, g.scales, g.zeros, g.dw,
						  dscales, dzeros, NULL, NULL), 0);
	for (size_t i = 0; i < g.groups; i++) {
		double in_scale = 0, in_zero = 0;

		for (size_t c = i * group; c < (i + 1) * group; c++) {
			const double dw = fabs((double)g.dw[c]);

			in_scale += dw * fabs(code_of(g.latents[c], bits) - (double)g.zeros[i]);
			in_zero += dw * g.scales[i];
		}
		expect_slope("scale", &g, dscales[i], slope(&g, g.scales + i, 0.25f), in_scale, worst_scale);
		expect_slope("zero", &g, dzeros[i], slope(&g, g.zeros + i, (float)(1 << bits) / 4), in_zero,
			     worst_zero);
	}
	grid_case_deinit(&g);
	free(dscales);
	free(dzeros);
}

static void test_grid_gradients(void **state)
{
	static const size_t groups[] = { 1, 6, 24 };
	double scale = 0, zero = 0;

	(void)state;
	for (int bits = 1; bits <= 8; bits++)
		for (int i = 0; i < 3; i++)
			gradients_case(bits, groups[i], &scale, &zero);
	print_message("# grid_gradients against differences, by the sum of terms: scales %.1e, zeros "
		      "%.1e\n", scale, zero);
}

/* Latents at and beside both ends of the grid. */
static void test_straight_through(void **state)
{
	(void)state;
	for (int bits = 1; bits <= 8; bits++) {
		const float end = (float)(1 << bits) - 0.5f;
		const float latents[8] = { -0.5f, nextafterf(-0.5f, 0), -3, 0, 0.5f, nextafterf(end, 0), end,
					   end + 2 };
		static const bool passes[8] = { false, true, false, true, true, true, false, false };
		const struct grid grid = { .bits = bits, .group = 4 };
		const float scales[2] = { 0.5f, 3 }, zero[2] = { 1, 0.25f };
		float dw[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, dlatents[8];

		assert_int_equal(ref->ops->grid_gradients(ref, &grid, latents, 1, 8, scales, zero, dw, NULL,
							  NULL, dlatents, NULL), 0);
		for (int i = 0; i < 8; i++)
			if (dlatents[i] != (passes[i] ? scales[i / 4] * dw[i] : 0))
				fail_msg("%d bits: latent %g gets %g", bits, (double)latents[i],
					 (double)dlatents[i]);
	}
}

static void test_grid_gradients_in_place(void **state)
{
	struct grid_case g = { .rows = 3, .cols = 24 };
	float dscales[12], dzeros[12], dlatents[72], again[24], in_place[72];

	(void)state;
	grid_case_init(&g, 3, 6);
	assert_int_equal(ref->ops->grid_gradients(ref, &g.grid, g.latents, 3, 24, g.scales, g.zeros, g.dw,
						  dscales, dzeros, dlatents, NULL), 0);
	memcpy(in_place, g.dw, sizeof(in_place));
	assert_int_equal(ref->ops->grid_gradients(ref, &g.grid, g.latents, 3, 24, g.scales, g.zeros, in_place,
						  again, again + 12, in_place, NULL), 0);
	assert_memory_equal(again, dscales, sizeof(dscales));
	assert_memory_equal(again + 12, dzeros, sizeof(dzeros));
	assert_memory_equal(in_place, dlatents, sizeof(dlatents));
	assert_int_equal(ref->ops->grid_gradients(ref, &g.grid, g.latents, 3, 24, g.scales, g.zeros, g.dw,
						  NULL, NULL, NULL, NULL), 0);
	grid_case_deinit(&g);
}

static void expect_grid(struct grid grid, size_t cols, float scale, float dw, enum err_code code,
			const char *part)
{
	const float latents[4] = { 3, 3, 3, 3 }, scales[4] = { scale, scale, scale, scale };
	const float zero[4] = { 0 }, grads[4] = { dw, dw, dw, dw };
	float out[4], dscales[4], dzeros[4];
	struct err err = ERR_INIT;

	if (code == ERR_INVALID || dw == 0)
		expect_code(ref->ops->grid_values(ref, &grid, latents, 1, cols, scales, zero, out, &err),
			    &err, code, part);
	if (code == ERR_INVALID || dw != 0)
		expect_code(ref->ops->grid_gradients(ref, &grid, latents, 1, cols, scales, zero, grads,
						     dscales, dzeros, out, &err), &err, code, part);
}

static void test_grid_refuses(void **state)
{
	(void)state;
	expect_grid((struct grid){ .bits = 0, .group = 4 }, 4, 1, 1, ERR_INVALID, "0 bits");
	expect_grid((struct grid){ .bits = 9, .group = 4 }, 4, 1, 1, ERR_INVALID, "9 bits");
	expect_grid((struct grid){ .bits = 2, .group = 0 }, 4, 1, 1, ERR_INVALID, "groups of 0");
	expect_grid((struct grid){ .bits = 2, .group = 3 }, 4, 1, 1, ERR_INVALID, "groups of 3");
	expect_grid((struct grid){ .bits = 2, .group = 1 }, 0, 1, 1, ERR_INVALID, "0 columns");
	expect_grid((struct grid){ .bits = 2, .group = 4 }, 4, 3e38f, 0, ERR_NUMERIC, "grid_values");
	expect_grid((struct grid){ .bits = 2, .group = 4 }, 4, 1, 2e38f, ERR_NUMERIC, "grid_gradients");
	expect_grid((struct grid){ .bits = 2, .group = 1 }, 4, 1e20f, 1e20f, ERR_NUMERIC, "grid_gradients");
}

/* --- adam_step --------------------------------------------------------------------------------- */

/* Without history a step is one rate long, against the gradient. */
static void test_adam_first_step(void **state)
{
	const struct adam adam = { 0.125f, 0.9f, 0.999f, 0, 1 };
	const float g[4] = { 1e-3f, -5, 1e6f, -1e-15f };
	float p[4] = { 1, 2, 3, 4 }, m[4] = { 0 }, v[4] = { 0 };
	const float want[4] = { 0.875f, 2.125f, 2.875f, 4.125f };

	(void)state;
	assert_int_equal(ref->ops->adam_step(ref, &adam, 4, p, g, m, v, NULL), 0);
	case_assert_close("p", p, want, 4, 1e-6);
}

static void test_adam(void **state)
{
	enum { N = 50 };
	const double rate = 0.01f, beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f;
	float *p = case_random(N, 1, 31), m[N] = { 0 }, v[N] = { 0 };
	double want[N], mean[N] = { 0 }, square[N] = { 0 }, worst = 0;

	(void)state;
	for (int i = 0; i < N; i++)
		want[i] = p[i];
	for (int t = 1; t <= 5; t++) {
		const struct adam adam = { 0.01f, 0.9f, 0.95f, 1e-8f, t };
		float *g = case_random(N, t == 3 ? 1e-6f : 1, 40 + (uint64_t)t);

		g[0] = 0;
		assert_int_equal(ref->ops->adam_step(ref, &adam, N, p, g, m, v, NULL), 0);
		for (int i = 0; i < N; i++) {
			mean[i] = beta1 * mean[i] + (1 - beta1) * g[i];
			square[i] = beta2 * square[i] + (1 - beta2) * g[i] * g[i];
			want[i] -= rate * (mean[i] / (1 - pow(beta1, t))) /
				   (sqrt(square[i] / (1 - pow(beta2, t))) + epsilon);
			worst = fmax(worst, fabs(p[i] - want[i]));
			if (!(fabs(p[i] - want[i]) <= 1e-6 * rate + t * 6e-8 * (fabs(want[i]) + rate)))
				fail_msg("step %d, parameter %d: %.9g, not %.9g", t, i, (double)p[i],
					 want[i]);
		}
		free(g);
	}
	print_message("# adam_step, 5 steps: %.1e\n", worst);
	free(p);
}

static void expect_adam(struct adam adam, float p, float g, enum err_code code)
{
	struct err err = ERR_INIT;
	float m = 0, v = 0;

	expect_code(ref->ops->adam_step(ref, &adam, 1, &p, &g, &m, &v, &err), &err, code,
		    code == ERR_INVALID ? "Adam step" : "adam_step");
}

static void test_adam_refuses(void **state)
{
	(void)state;
	expect_adam((struct adam){ 0.1f, 0.9f, 0.9f, 0, 0 }, 1, 1, ERR_INVALID);
	expect_adam((struct adam){ 0.1f, 1, 0.9f, 0, 1 }, 1, 1, ERR_INVALID);
	expect_adam((struct adam){ 0.1f, 0.9f, -0.1f, 0, 1 }, 1, 1, ERR_INVALID);
	expect_adam((struct adam){ 0.1f, 0.9f, NAN, 0, 1 }, 1, 1, ERR_INVALID);
	expect_adam((struct adam){ INFINITY, 0.9f, 0.9f, 0, 1 }, 1, 1, ERR_INVALID);
	expect_adam((struct adam){ -1, 0.9f, 0.9f, 0, 1 }, 1, 1, ERR_INVALID);
	expect_adam((struct adam){ 1, 0.9f, 0.9f, -1, 1 }, 1, 1, ERR_INVALID);
	expect_adam((struct adam){ 3e38f, 0.9f, 0.9f, 0, 1 }, 3e38f, -1, ERR_NUMERIC);
	expect_adam((struct adam){ 0.1f, 0.9f, 0.9f, 0, 1 }, 1, 0, ERR_NUMERIC);        /* 0 / 0 */
	expect_adam((struct adam){ 0.1f, 0.9f, 0.9f, 1e-8f, 1 }, 1, 1e30f, ERR_NUMERIC); /* v overflows */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rms_norm_backward),
		cmocka_unit_test(test_rms_norm_backward_refuses),
		cmocka_unit_test(test_grid_values),
		cmocka_unit_test(test_grid_gradients),
		cmocka_unit_test(test_straight_through),
		cmocka_unit_test(test_grid_gradients_in_place),
		cmocka_unit_test(test_grid_refuses),
		cmocka_unit_test(test_adam_first_step),
		cmocka_unit_test(test_adam),
		cmocka_unit_test(test_adam_refuses),
	};

	return cmocka_run_group_tests(tests, open_ref, close_ref);
}
