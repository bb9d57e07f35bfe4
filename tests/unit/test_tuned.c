/* The trainable state of a block: sizes, what is stored of it, one step written out, and that nothing but the
 * state is remembered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "tests/lib/tested_backend.h"
#include "tests/lib/tuned_case.h"

static const struct tuned_rates rates = { .code = 0.01f, .scale = 0.02f, .zero = 1e-3f, .norm = 2e-3f };

static struct tuned_case make(int bits, size_t group, bool everything, struct backend *be)
{
	struct tuned_case c = tuned_case_small(bits, group);

	c.block.biases = c.block.head_norms = everything;
	tuned_case_init(&c, be);
	return c;
}

/* A loss with gradients everywhere: dy = y - x / 2 of the same element. */
static int pull_to_half(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	const struct tuned_case *c = ctx;
	const float *x = c->block.x + sequence * rows * cols;
	float *here = case_fetch(c->be, y, rows * cols);

	for (size_t i = 0; i < rows * cols; i++)
		here[i] = (here[i] - x[i] / 2) * 1e-3f;
	case_hand(c->be, dy, here, rows * cols);
	free(here);
	return 0;
}

static void backward(struct tuned_case *c)
{
	struct block_weights w;
	struct block_grads g;
	struct err err = ERR_INIT;

	tuned_grads(&c->t, &g);
	if (tuned_weights(&c->t, &w, &err) != 0 ||
	    c->be->ops->block_backward(c->be, &c->plan.shape, &w, &c->block.rope, c->block.x, 2, c->block.seq_len,
				       pull_to_half, c, NULL, &g, &err) != 0)
		fail_msg("%s", err.text);
}

static void step(struct tuned_case *c, int64_t number)
{
	struct err err = ERR_INIT;

	backward(c);
	if (tuned_step(&c->t, &rates, 0.5f, number, &err) != 0)
		fail_msg("%s", err.text);
}

/* --- sizes -------------------------------------------------------------------------------------- */

static void test_sizes(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct tuned_case c = tuned_case_small(3, 16);
	const size_t cells = 2 * 48 * 48 + 2 * 16 * 48 + 2 * 80 * 48 + 48 * 80, dense = 2 * 48;
	size_t rest = 2 * cells / 16 + dense, begin, end;

	(void)state;
	tuned_case_init(&c, be);
	assert_int_equal(c.sizes.cells, cells);
	assert_int_equal(c.sizes.stored, 2 * cells / 16);
	assert_int_equal(c.sizes.grads, rest);
	assert_int_equal(c.t.cells.n, cells);
	assert_int_equal(c.t.rest.n, rest);
	assert_int_equal(c.sizes.small, 3 * rest + 2 * cells / 16);
	assert_int_equal(c.sizes.state, c.sizes.small + 3 * cells);
	tuned_moments(&c.plan, &begin, &end);
	assert_int_equal(begin, cells + rest);
	assert_int_equal(end, 3 * (cells + rest));
	tuned_case_deinit(&c);

	c = tuned_case_small(3, 16);
	c.fixed_codes = c.grid.integer_zero = true;
	c.skip = 1 << 6;
	tuned_case_init(&c, be);
	rest = (cells - 48 * 80) / 16 + dense;
	assert_int_equal(c.sizes.cells, cells - 48 * 80);
	assert_int_equal(c.sizes.grads, rest);
	assert_int_equal(c.t.rest.n, rest);
	assert_int_equal(c.sizes.small, 3 * rest + 3 * (cells - 48 * 80) / 16);
	assert_int_equal(c.sizes.state, c.sizes.small + c.sizes.cells);
	tuned_case_deinit(&c);
	case_close(be);
}

static void test_sizes_cover(void **state)
{
	struct tuned_sizes a = { 1, 20, 3, 40, 5 }, b = { 10, 2, 30, 4, 50 };

	(void)state;
	tuned_sizes_cover(&a, &b);
	assert_memory_equal(&a, (&(struct tuned_sizes){ 10, 20, 30, 40, 50 }), sizeof(a));
	b = a;
	tuned_sizes_cover(&a, &b);
	assert_memory_equal(&a, &b, sizeof(a));
}

static void test_refused(void **state)
{
	struct tuned_plan plan = { .norm = { 8, 8 } };
	struct tuned_sizes sizes;
	struct err err = ERR_INIT;

	(void)state;
	plan.module[0] = (struct tuned_module){ .quantized = true, .rows = SIZE_MAX / 2, .cols = 16,
						.grid = { .bits = 2, .group = 16 } };
	assert_int_equal(tuned_measure(&plan, &sizes, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	plan.module[0].rows = SIZE_MAX / 16 / 60; /* fits once, sixteen times as much in bytes does not */
	assert_int_equal(tuned_measure(&plan, &sizes, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	plan.module[0].rows = 4;
	plan.norm[0] = SIZE_MAX - 10;
	assert_int_equal(tuned_measure(&plan, &sizes, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	plan.norm[0] = 8;
	assert_int_equal(tuned_measure(&plan, &sizes, &err), 0);
	plan.module[0].grid.group = 12;
	assert_int_equal(tuned_measure(&plan, &sizes, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	plan.module[0].grid = (struct grid){ .bits = 9, .group = 16 };
	assert_int_equal(tuned_measure(&plan, &sizes, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
}

/* Everything that is allocated fails once. */
static void test_out_of_memory(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct tuned_case c = make(2, 16, true, be);
	uint8_t codes[48 * 48];
	float scales[144], zeros[144];
	uint64_t nth = 1;

	(void)state;
	for (;; nth++) {
		struct tuned_scratch scratch;
		struct tuned_cells cells = { 0 };
		struct tuned_copy copy = { 0 };
		struct err err = ERR_INIT;
		int rc;

		mem_fail_after(nth);
		rc = tuned_scratch_init(&scratch, be, &c.sizes, &err);
		if (rc == 0)
			rc = tuned_cells_init(&cells, be, &c.plan, &err);
		if (rc == 0)
			rc = tuned_copy_init(&copy, &c.t, &err);
		if (rc == 0)
			rc = tuned_set_module(&c.t, 0, c.module[0].codes, c.module[0].scales, c.module[0].zeros,
					      c.module[0].w, &err);
		if (rc == 0)
			rc = tuned_result(&c.t, 0, codes, scales, zeros, &err);
		mem_fail_after(0);
		tuned_scratch_deinit(&scratch);
		tuned_cells_deinit(&cells, be);
		tuned_copy_deinit(&copy, be);
		if (rc == 0)
			break;
		assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_int_equal(nth, 4 + 3 + 2 + 1 + 1 + 1);
	tuned_case_deinit(&c);
	case_close(be);
}

static void check_result(const struct tuned_case *c, int i)
{
	const struct tuned_module *m = &c->plan.module[i];
	const size_t cells = m->rows * m->cols, groups = c->module[i].groups;
	uint8_t *codes = malloc(cells);
	float *scales = case_poisoned(groups), *zeros = case_poisoned(groups);

	assert_non_null(codes);
	assert_int_equal(tuned_result(&c->t, i, codes, scales, zeros, NULL), 0);
	assert_memory_equal(codes, c->module[i].codes, cells);
	assert_memory_equal(scales, c->module[i].scales, groups * sizeof(float));
	assert_memory_equal(zeros, c->module[i].zeros, groups * sizeof(float));
	free(codes);
	free(scales);
	free(zeros);
}

/* What goes in comes out, at every number of bits; latents lean half of the way to the weight. */
static void test_round_trip(void **state)
{
	struct backend *be = case_open("ref", 1);

	(void)state;
	for (int bits = 1; bits <= 8; bits++)
		for (int fixed = 0; fixed < 2; fixed++) {
			struct tuned_case c = tuned_case_small(bits, bits % 2 ? 16 : 0);

			c.fixed_codes = fixed;
			tuned_case_init(&c, be);
			for (int i = 0; i < TUNED_MODULES; i++)
				check_result(&c, i);
			for (size_t j = 0; j < 48; j++) {
				const struct tuned_module *m = &c.plan.module[0];
				const size_t g = j / m->grid.group;
				const double q = c.module[0].codes[j];
				const double exact = (double)c.module[0].w[j] / c.module[0].scales[g] +
						     c.module[0].zeros[g];
				const double lean = fmin(fmax((exact - q) / 2, -0.49), 0.49);

				assert_true(fabs(c.t.module[0].latents[j] - (fixed ? q : q + lean)) < 1e-4);
			}
			tuned_case_deinit(&c);
		}
	case_close(be);
}

/* A latent far from its weight stays within reach of its code. */
static void test_reach(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct tuned_case c = make(2, 16, false, be);
	float *far = case_random(48 * 48, 1e6f, 3);

	(void)state;
	assert_int_equal(tuned_set_module(&c.t, 0, c.module[0].codes, c.module[0].scales, c.module[0].zeros, far, NULL),
			 0);
	for (size_t i = 0; i < 48 * 48; i++)
		assert_true(fabs(c.t.module[0].latents[i] - c.module[0].codes[i]) <= 0.4901);
	check_result(&c, 0);
	free(far);
	tuned_case_deinit(&c);
	case_close(be);
}

/* --- one step ----------------------------------------------------------------------------------------- */

/* Adam as its paper has it, for one parameter. */
static double adam(double p, double g, double *m, double *v, double rate, int64_t n)
{
	*m = 0.9 * *m + 0.1 * g;
	*v = 0.95 * *v + 0.05 * g * g;
	return p - rate * (*m / (1 - pow(0.9, (double)n))) / (sqrt(*v / (1 - pow(0.95, (double)n))) + 1e-12);
}

/* The state of one group as doubles, moved by the formulas of the header. */
struct literal { double u, f, z, s0, m[3], v[3]; };

static void literal_step(struct literal *l, size_t count, const struct tuned_module *m, const float *dw, int64_t n)
{
	const double top = (1 << m->grid.bits) - 1, s = l[0].s0 * l[0].f;
	double ds = 0, sum = 0;

	for (size_t i = 0; i < count; i++) {
		ds += dw[i] * (fmin(fmax(nearbyint(l[i].u), 0), top) - l[0].z);
		sum += dw[i];
	}
	for (size_t i = 0; i < count; i++) {
		const bool inside = l[i].u > -0.5 && l[i].u < top + 0.5;

		l[i].u = adam(l[i].u, inside ? s * dw[i] : 0, &l[i].m[0], &l[i].v[0], 0.5 * (double)rates.code, n);
	}
	if (!m->grid.integer_zero && !m->grid.symmetric)
		l[0].z = adam(l[0].z, -s * sum, &l[0].m[2], &l[0].v[2], 0.5 * (double)rates.zero, n);
	l[0].f = adam(l[0].f, ds * l[0].s0, &l[0].m[1], &l[0].v[1], 0.5 * (double)rates.scale, n);
}

static void check_steps(struct tuned_case *c, int i)
{
	const struct tuned_module *m = &c->plan.module[i];
	const size_t group = m->grid.group, at = 3 * group;
	struct literal l[64] = { { 0 } };
	struct block_grads g;
	double bias = 0, bm = 0, bv = 0, norm = c->t.norm[1][5], nm = 0, nv = 0;

	if (c->t.module[i].bias)
		bias = c->t.module[i].bias[2];
	for (size_t j = 0; j < group; j++)
		l[j].u = c->t.module[i].latents[at + j];
	l[0].f = 1;
	l[0].z = c->module[i].zeros[3];
	l[0].s0 = c->module[i].scales[3];
	for (int64_t n = 1; n <= 3; n++) {
		const float *dw[TUNED_MODULES], *db[TUNED_MODULES];

		backward(c);
		tuned_grads(&c->t, &g);
		memcpy(dw, (const float *[]){ g.q, g.k, g.v, g.o, g.gate, g.up, g.down }, sizeof(dw));
		memcpy(db, (const float *[]){ g.q_bias, g.k_bias, g.v_bias, g.o_bias, g.gate_bias, g.up_bias,
					      g.down_bias }, sizeof(db));
		literal_step(l, group, m, dw[i] + at, n);
		if (c->t.module[i].bias)
			bias = adam(bias, db[i][2], &bm, &bv, 0.5 * (double)rates.norm, n);
		norm = adam(norm, g.mlp_norm[5], &nm, &nv, 0.5 * (double)rates.norm, n);
		struct err err = ERR_INIT;

		assert_int_equal(tuned_step(&c->t, &rates, 0.5f, n, &err), 0);
		for (size_t j = 0; j < group; j++)
			assert_true(fabs(c->t.module[i].latents[at + j] - l[j].u) < 1e-5);
		assert_true(fabs(c->t.module[i].factors[3] - l[0].f) < 1e-6);
		assert_true(fabs(c->t.module[i].zeros[3] - l[0].z) < 1e-6);
		assert_true(fabs(c->t.module[i].scales[3] - l[0].s0 * l[0].f) < 1e-6);
		if (c->t.module[i].bias)
			assert_true(fabs(c->t.module[i].bias[2] - bias) < 1e-6);
		assert_true(fabs(c->t.norm[1][5] - norm) < 1e-6);
	}
	assert_true(fabs(l[0].f - 1) > 1e-3);
}

static void test_literal_steps(void **state)
{
	struct backend *be = case_open("ref", 1);

	(void)state;
	for (int i = 0; i < TUNED_MODULES; i++) {
		struct tuned_case c = make(2, 16, i % 2, be);

		check_steps(&c, i);
		tuned_case_deinit(&c);
	}
	case_close(be);
}

/* What is not trained keeps its bytes. */
static void test_untouched(void **state)
{
	struct backend *be = case_open("ref", 1);

	(void)state;
	for (int which = 0; which < 3; which++) {
		struct tuned_case c = tuned_case_small(2, 16);
		float *zeros, *latents;
		size_t groups;

		c.grid.integer_zero = which == 0;
		c.grid.symmetric = which == 1;
		c.fixed_codes = which == 2;
		tuned_case_init(&c, be);
		groups = c.module[4].groups;
		zeros = case_copy(c.t.module[4].zeros, groups * sizeof(float));
		latents = case_copy(c.t.module[4].latents, 80 * 48 * sizeof(float));
		for (int64_t n = 1; n <= 3; n++)
			step(&c, n);
		assert_int_equal(memcmp(zeros, c.t.module[4].zeros, groups * sizeof(float)) == 0, which < 2);
		assert_int_equal(memcmp(latents, c.t.module[4].latents, 80 * 48 * sizeof(float)) == 0, which == 2);
		assert_true(c.t.module[4].scales[0] != c.module[4].scales[0]);
		free(zeros);
		free(latents);
		tuned_case_deinit(&c);
	}
	case_close(be);
}

/* Skipped modules hand out the caller's weights and ask for no gradient; their biases are trained. */
static void test_skipped(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct tuned_case c = tuned_case_small(2, 16);
	struct block_weights w;
	struct block_grads g;
	struct err err = ERR_INIT;
	float bias;

	(void)state;
	c.skip = 1 << 1 | 1 << 5;
	c.block.biases = true;
	tuned_case_init(&c, be);
	bias = c.t.module[1].bias[0];
	for (int64_t n = 1; n <= 2; n++)
		step(&c, n);
	assert_int_equal(tuned_weights(&c.t, &w, &err), 0);
	tuned_grads(&c.t, &g);
	assert_ptr_equal(w.k, c.block.w.k);
	assert_ptr_equal(w.up, c.block.w.up);
	assert_null(g.k);
	assert_null(g.up);
	assert_ptr_equal(w.q, c.scratch.values);
	assert_ptr_equal(g.q, c.scratch.weight_grads);
	assert_non_null(g.k_bias);
	assert_true(c.t.module[1].bias[0] != bias);
	tuned_case_deinit(&c);
	case_close(be);
}

/* A copy of the state goes on as the original does, wherever it lies. */
static void test_state_is_everything(void **state)
{
	struct backend *be = case_open(tested_backend(), 2);
	struct tuned_case c = make(2, 16, true, be);
	struct tuned_scratch scratch, old = c.scratch;
	struct err err = ERR_INIT;
	float *copy, *moved;

	(void)state;
	for (int64_t n = 1; n <= 2; n++)
		step(&c, n);
	copy = case_copy(c.state, c.sizes.state * sizeof(float));
	for (int64_t n = 3; n <= 4; n++)
		step(&c, n);
	moved = case_poisoned(c.sizes.state + 1);
	memcpy(moved + 1, copy, c.sizes.state * sizeof(float));
	assert_int_equal(tuned_scratch_init(&scratch, be, &c.sizes, &err), 0);
	tuned_open(&c.t, &c.plan, be, moved + 1, &scratch);
	for (int64_t n = 3; n <= 4; n++)
		step(&c, n);
	assert_memory_equal(moved + 1, c.state, c.sizes.state * sizeof(float));
	tuned_scratch_deinit(&scratch);
	c.scratch = old;
	free(copy);
	free(moved);
	tuned_case_deinit(&c);
	case_close(be);
}

static void same_floats(struct backend *be, const char *what, const float *got, const float *want, size_t n)
{
	float *copy = case_poisoned(n);

	assert_int_equal(be->ops->memory_copy(be, copy, got, n * sizeof(*copy), NULL), 0);
	if (memcmp(copy, want, n * sizeof(*copy)) != 0)
		fail_msg("%s differ", what);
	free(copy);
}

/* In two parts the state goes on as it does in one, and gives the same. */
static void check_apart(struct backend *be, bool fixed_codes)
{
	struct tuned_case whole = tuned_case_small(2, 16), apart = whole;
	struct tuned_cells cells;
	struct err err = ERR_INIT;
	float *small;

	whole.fixed_codes = apart.fixed_codes = fixed_codes;
	whole.block.biases = apart.block.biases = true;
	tuned_case_init(&whole, be);
	tuned_case_init(&apart, be);
	small = case_poisoned(apart.sizes.small);
	assert_int_equal(tuned_cells_init(&cells, be, &apart.plan, &err), 0);
	tuned_open_apart(&apart.t, &apart.plan, be, &cells, small, &apart.scratch);
	tuned_case_fill(&apart);
	for (int64_t n = 1; n <= 3; n++) {
		step(&whole, n);
		step(&apart, n);
	}
	same_floats(be, "latents", cells.latents, whole.t.cells.latents, cells.n);
	if (!fixed_codes) {
		same_floats(be, "first moments", cells.moments1, whole.t.cells.moments1, cells.n);
		same_floats(be, "second moments", cells.moments2, whole.t.cells.moments2, cells.n);
	}
	same_floats(be, "parameters", apart.t.rest.params, whole.t.rest.params, whole.t.rest.n);
	same_floats(be, "their first moments", apart.t.rest.moments1, whole.t.rest.moments1, whole.t.rest.n);
	same_floats(be, "their second moments", apart.t.rest.moments2, whole.t.rest.moments2, whole.t.rest.n);
	for (int i = 0; i < TUNED_MODULES; i++)
		same_floats(be, "scales", apart.t.module[i].scales, whole.t.module[i].scales, whole.module[i].groups);
	tuned_cells_deinit(&cells, be);
	free(small);
	tuned_case_deinit(&whole);
	tuned_case_deinit(&apart);
}

static void test_apart(void **state)
{
	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		struct backend *be = case_open(tested_name(i), 2);

		check_apart(be, false);
		check_apart(be, true);
		case_close(be);
	}
}

/* Parameters kept earlier come back, and the scales with them. */
static void test_kept(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct tuned_case c = make(2, 16, true, be);
	struct tuned_copy kept;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(tuned_copy_init(&kept, &c.t, &err), 0);
	assert_int_equal(tuned_keep(&c.t, &kept, &err), 0);
	for (int64_t n = 1; n <= 2; n++)
		step(&c, n);
	assert_true(c.t.module[3].scales[1] != c.module[3].scales[1]);
	assert_int_equal(tuned_return(&c.t, &kept, &err), 0);
	for (int i = 0; i < TUNED_MODULES; i++)
		check_result(&c, i);
	assert_memory_equal(c.t.norm[0], c.block.w.attn_norm, 48 * sizeof(float));
	tuned_copy_deinit(&kept, be);
	tuned_case_deinit(&c);
	case_close(be);
}

/* However large the step, a scale stays positive. */
static void test_scale_stays_positive(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct tuned_case c = make(2, 16, false, be);
	const struct tuned_rates wild = { .scale = 50 };
	struct err err = ERR_INIT;
	size_t low = 0;

	(void)state;
	backward(&c);
	assert_int_equal(tuned_step(&c.t, &wild, 1, 1, &err), 0);
	for (size_t g = 0; g < c.module[4].groups; g++) {
		assert_true(c.t.module[4].factors[g] >= 0.01f && c.t.module[4].scales[g] > 0);
		low += c.t.module[4].factors[g] == 0.01f;
	}
	assert_true(low > 0 && low < c.module[4].groups);
	tuned_case_deinit(&c);
	case_close(be);
}

/* Gradients that left the range of float32 are told, not stored. */
static void test_not_finite(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct tuned_case c = make(2, 16, false, be);
	struct err err = ERR_INIT;

	(void)state;
	backward(&c);
	c.scratch.weight_grads[7] = INFINITY;
	assert_int_equal(tuned_step(&c.t, &rates, 1, 1, &err), -1);
	assert_int_equal(err.code, ERR_NUMERIC);
	c.t.module[2].scales[0] = INFINITY;
	assert_int_equal(tuned_weights(&c.t, &(struct block_weights){ 0 }, &err), -1);
	assert_int_equal(err.code, ERR_NUMERIC);
	tuned_case_deinit(&c);
	case_close(be);
}

static void test_schedule(void **state)
{
	float before = 0;

	(void)state;
	for (int64_t step = 1; step <= 4; step++)
		assert_true(fabs(tuned_schedule(step, 32) - (double)step / 4) < 1e-6);
	before = tuned_schedule(4, 32);
	for (int64_t step = 5; step <= 32; step++) {
		const float now = tuned_schedule(step, 32);

		assert_true(now < before && now > 0);
		before = now;
	}
	assert_true(before < 0.01f);
	assert_true(fabsf(tuned_schedule(18, 31) - 0.5f) < 1e-6f); /* the middle between 4 and 32 */
	assert_true(tuned_schedule(1, 1) == 1);
	assert_true(tuned_schedule(2, 2) > 0.4f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_sizes_cover),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_reach),
		cmocka_unit_test(test_literal_steps),
		cmocka_unit_test(test_untouched),
		cmocka_unit_test(test_skipped),
		cmocka_unit_test(test_state_is_everything),
		cmocka_unit_test(test_apart),
		cmocka_unit_test(test_kept),
		cmocka_unit_test(test_scale_stays_positive),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_schedule),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
