/* Refinement: what a round promises of every backend, the tested backend held to ref, and the choice for one group. */
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
#include "worker/backend/group_step.h"

enum zero_kind { ZERO_REAL, ZERO_INT, ZERO_SYMMETRIC, ZERO_KINDS };

struct shape { size_t rows, cols, group; };

static const struct shape shapes[] = {
	{ 1, 1, 1 }, { 3, 8, 1 }, { 3, 8, 8 }, { 17, 33, 3 }, { 17, 33, 33 }, { 64, 64, 16 }, { 70, 130, 13 },
	{ 3, 192, 192 }, { 1, 130, 65 },
};
enum { SHAPES = sizeof(shapes) / sizeof(*shapes) };

/* What a round changes, beside the case it belongs to. */
struct state { uint8_t *codes; float *scales, *zeros; double *loss; size_t rows, cells, sides; };

static struct state state_new(const struct quant_case *q)
{
	struct state s = { .rows = q->rows, .cells = q->rows * q->cols, .sides = q->rows * q->groups };

	s.codes = malloc(s.cells);
	s.scales = malloc(s.sides * sizeof(*s.scales));
	s.zeros = malloc(s.sides * sizeof(*s.zeros));
	s.loss = malloc(s.rows * sizeof(*s.loss));
	assert_true(s.codes && s.scales && s.zeros && s.loss);
	memcpy(s.codes, q->codes, s.cells);
	memcpy(s.scales, q->scales, s.sides * sizeof(*s.scales));
	memcpy(s.zeros, q->zeros, s.sides * sizeof(*s.zeros));
	memset(s.loss, 0xff, s.rows * sizeof(*s.loss));
	return s;
}

static void state_free(struct state *s)
{
	free(s->codes);
	free(s->scales);
	free(s->zeros);
	free(s->loss);
}

static bool state_equal(const struct state *a, const struct state *b)
{
	return memcmp(a->codes, b->codes, a->cells) == 0 &&
	       memcmp(a->scales, b->scales, a->sides * sizeof(*a->scales)) == 0 &&
	       memcmp(a->zeros, b->zeros, a->sides * sizeof(*a->zeros)) == 0;
}

static int refine(struct backend *be, const struct quant_case *q, struct state *s, struct err *err)
{
	memset(s->loss, 0xff, s->rows * sizeof(*s->loss));
	return be->ops->refine(be, &q->grid, q->w, q->rows, q->cols, q->h, q->damp, q->perm, s->codes,
			       s->scales, s->zeros, s->loss, err);
}

static void round_of(struct backend *be, const struct quant_case *q, struct state *s)
{
	struct err err = ERR_INIT;

	if (refine(be, q, s, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
}

/* e (H + damp I) e^T of one row, from the definition. */
static double row_loss(const struct quant_case *q, const struct state *s, size_t row)
{
	double *e = malloc(q->cols * sizeof(*e)), sum = 0;

	for (size_t c = 0; c < q->cols; c++) {
		const size_t g = row * q->groups + c / q->grid.group;

		e[c] = q->w[row * q->cols + c] -
		       (double)s->scales[g] * (s->codes[row * q->cols + c] - (double)s->zeros[g]);
	}
	for (size_t i = 0; i < q->cols; i++)
		for (size_t j = 0; j < q->cols; j++)
			sum += e[i] * e[j] * (q->h[i * q->cols + j] + (i == j ? q->damp : 0));
	free(e);
	return sum;
}

static double row_energy(const struct quant_case *q, size_t row)
{
	double sum = 0;

	for (size_t c = 0; c < q->cols; c++)
		sum += q->diag[c] * q->w[row * q->cols + c] * q->w[row * q->cols + c];
	return sum;
}

/* A case rounded by cpu: nearest codes of min-max scales, or LDLQ. */
static void start(struct quant_case *q, struct rng *r, enum weight_kind kind, struct shape shape, int bits,
		  enum zero_kind zero, bool ldlq)
{
	const struct grid grid = { .bits = bits, .group = shape.group, .integer_zero = zero == ZERO_INT,
				   .symmetric = zero == ZERO_SYMMETRIC };
	struct backend *cpu = open_backend("cpu", 1);
	struct err err = ERR_INIT;
	int rc;

	quant_case_init(q, r, kind, shape.rows, shape.cols, grid);
	rc = cpu->ops->fit_groups(cpu, FIT_MINMAX, &q->grid, q->w, q->rows, q->cols, q->diag, q->scales,
				  q->zeros, q->objective, &err);
	if (rc == 0 && ldlq)
		rc = cpu->ops->factor(cpu, q->h, q->perm, q->cols, q->damp, q->u, NULL, &err);
	if (rc == 0 && ldlq)
		rc = cpu->ops->round_ldlq(cpu, &q->grid, q->w, q->rows, q->cols, q->perm, q->u, NULL,
					  q->scales, q->zeros, q->codes, NULL, &err);
	else if (rc == 0)
		rc = cpu->ops->round_nearest(cpu, &q->grid, q->w, q->rows, q->cols, q->scales, q->zeros,
					     q->codes, &err);
	if (rc != 0)
		fail_msg("%s", err.text);
	cpu->ops->close(cpu);
}

static void check_grid(const struct quant_case *q, const struct state *s, const char *what)
{
	const float top = (float)((1 << q->grid.bits) - 1);

	for (size_t i = 0; i < s->sides; i++) {
		const float z = s->zeros[i];

		if (!(s->scales[i] > 0) || !isfinite(s->scales[i]) || !isfinite(z))
			fail_msg("%s: group %zu has s %g z %g", what, i, s->scales[i], z);
		if (q->grid.symmetric && z != (float)(1 << (q->grid.bits - 1)))
			fail_msg("%s: group %zu has z %g", what, i, z);
		if (q->grid.integer_zero && !q->grid.symmetric && (z != nearbyintf(z) || z < 0 || z > top))
			fail_msg("%s: group %zu has z %g", what, i, z);
	}
	for (size_t i = 0; i < s->cells; i++)
		if (s->codes[i] > top)
			fail_msg("%s: code %u at %zu", what, s->codes[i], i);
}

/* One round: no row loses more, and what is said of each row is so. Below `floor` of a row's energy only
 * the rounding of float32 is left. */
struct losses { double total, relative; /* to each row's energy */ };

static struct losses check_round(struct backend *be, const struct quant_case *q, struct state *s,
				 const char *what)
{
	double *before = malloc(q->rows * sizeof(*before));
	struct losses sum = { 0 };
	const double floor = 1e-11;

	for (size_t r = 0; r < q->rows; r++)
		before[r] = row_loss(q, s, r);
	round_of(be, q, s);
	check_grid(q, s, what);
	for (size_t r = 0; r < q->rows; r++) {
		const double after = row_loss(q, s, r), noise = floor * row_energy(q, r);

		if (!(after <= before[r] * (1 + 1e-6) + noise))
			fail_msg("%s: %s: row %zu loses %.12g, %.12g before", what, be->ops->name, r, after,
				 before[r]);
		if (!(fabs(s->loss[r] - after) <= 1e-4 * after + noise))
			fail_msg("%s: %s: row %zu loses %.9g, said to be %.9g", what, be->ops->name, r, after,
				 s->loss[r]);
		sum.total += after;
		sum.relative += after > noise ? after / row_energy(q, r) : 0;
	}
	free(before);
	return sum;
}

/* Two rounds of both backends from the same start; all rows of all shapes count alike, since a tie that falls
 * the other way can change a row by some per cent, and one such row is `bar` of them all. */
static void compare(enum weight_kind kind, int bits, enum zero_kind zero, double bar)
{
	struct backend *both[TESTED_BOTH] = { open_backend("ref", 1), open_backend(tested_backend(), 2) };
	struct rng r = { (uint64_t)(kind * 1000 + bits * 10 + (int)zero) };
	double sum[TESTED_BOTH] = { 0 };
	char what[128];

	for (size_t i = 0; i < SHAPES; i++) {
		struct quant_case q;

		snprintf(what, sizeof(what), "%s weights, %zux%zu by %zu, %d bits, zero kind %d",
			 weight_kind_name(kind), shapes[i].rows, shapes[i].cols, shapes[i].group, bits, (int)zero);
		start(&q, &r, kind, shapes[i], bits, zero, i % 2 == 0);
		for (int b = 0; b < TESTED_BOTH; b++) {
			struct state s = state_new(&q);

			check_round(both[b], &q, &s, what);
			sum[b] += check_round(both[b], &q, &s, what).relative;
			state_free(&s);
		}
		quant_case_deinit(&q);
	}
	if (!(sum[1] <= bar * sum[0]))
		fail_msg("%s: %s %.9g, ref %.9g, ratio %.6f", what, tested_backend(), sum[1], sum[0], sum[1] / sum[0]);
	for (int b = 0; b < TESTED_BOTH; b++)
		both[b]->ops->close(both[b]);
}

static void test_reaches_ref(void **state)
{
	(void)state;
	for (int bits = 1; bits <= 8; bits++)
		for (int zero = 0; zero < ZERO_KINDS; zero++)
			compare(W_NORMAL, bits, (enum zero_kind)zero, 1.002);
}

/* Few rows carry the loss here: those whose group has an outlier, or hardly any spread. */
static void test_odd_weights(void **state)
{
	(void)state;
	for (int kind = W_HEAVY; kind < W_KINDS; kind++)
		for (int bits = 1; bits <= 4; bits += 1 + (bits == 2))
			for (int zero = 0; zero < ZERO_KINDS; zero++)
				compare((enum weight_kind)kind, bits, (enum zero_kind)zero, 1.01);
}

/* Many tiles, and rows that do not fill the last one. */
static void test_tiles(void **state)
{
	static const struct shape many[] = { { 1100, 24, 8 }, { 129, 65, 5 } };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct backend *ref = open_backend("ref", 1), *fast = open_backend(tested_backend(), 3);
		struct rng r = { 61 };
		struct quant_case q;
		struct state a, b;
		double want, got;

		start(&q, &r, W_NORMAL, many[i], 2, ZERO_REAL, true);
		a = state_new(&q);
		b = state_new(&q);
		want = check_round(ref, &q, &a, "many rows").total;
		got = check_round(fast, &q, &b, "many rows").total;
		if (!(got <= 1.002 * want))
			fail_msg("%zu rows: %s %.9g, ref %.9g", many[i].rows, tested_backend(), got, want);
		state_free(&a);
		state_free(&b);
		quant_case_deinit(&q);
		ref->ops->close(ref);
		fast->ops->close(fast);
	}
}

/* What the search is for: pairs find what single codes cannot. */
static void test_rounds_win(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = open_backend(tested_name(b), 2);
		struct rng r = { 67 };
		struct quant_case q;
		struct state s;
		double first = 0, one, two;

		start(&q, &r, W_NORMAL, (struct shape){ 40, 128, 64 }, 2, ZERO_REAL, true);
		s = state_new(&q);
		for (size_t row = 0; row < q.rows; row++)
			first += row_loss(&q, &s, row);
		one = check_round(be, &q, &s, "first round").total;
		two = check_round(be, &q, &s, "second round").total;
		if (!(one < 0.97 * first && two < 0.999 * one))
			fail_msg("%s: %.6g, then %.6g, then %.6g", tested_name(b), first, one, two);
		state_free(&s);
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

/* --- tiny cases against all assignments of codes ------------------------------------------------ */

enum { TINY = 3, TINY_CASES = 200 };

/* Correlations up to 0.3: then a pair that wins has one code with |t| above refine_nearly. */
static void tiny_case(struct quant_case *q, struct rng *r, int bits)
{
	start(q, r, W_NORMAL, (struct shape){ 1, TINY, TINY }, bits, ZERO_REAL, false);
	for (size_t i = 0; i < TINY; i++)
		q->h[i * TINY + i] = 0.5 + rng_uniform(r);
	for (size_t i = 0; i < TINY; i++)
		for (size_t j = 0; j < i; j++)
			q->h[i * TINY + j] = q->h[j * TINY + i] =
				0.3 * (2 * rng_uniform(r) - 1) * sqrt(q->h[i * TINY + i] * q->h[j * TINY + j]);
	q->damp = 0;
	for (size_t i = 0; i < TINY; i++)
		q->diag[i] = q->h[i * TINY + i];
}

/* The least loss that any (s, z) gives these codes. */
static double line_loss(const struct quant_case *q, const uint8_t *codes)
{
	double qq = 0, q1 = 0, oo = 0, wq = 0, w1 = 0, ww = 0, det, s, t;

	for (size_t i = 0; i < TINY; i++)
		for (size_t j = 0; j < TINY; j++) {
			const double h = q->h[i * TINY + j];

			qq += h * codes[i] * codes[j];
			q1 += h * codes[i];
			oo += h;
			wq += h * q->w[i] * codes[j];
			w1 += h * q->w[i];
			ww += h * q->w[i] * q->w[j];
		}
	det = qq * oo - q1 * q1;
	if (det < 1e-9 * qq * oo || (s = (wq * oo - w1 * q1) / det) <= 0)
		return ww - w1 * w1 / oo; /* one level */
	t = (w1 * qq - wq * q1) / det;
	return ww - s * wq - t * w1;
}

/* No change of at most two codes by 1 wins more than the backend may leave. */
static void check_neighbours(const struct quant_case *q, const struct state *s, const char *name)
{
	const double own = row_loss(q, s, 0), step = s->scales[0] * (double)s->scales[0];
	const int top = (1 << q->grid.bits) - 1;
	struct state other = state_new(q);

	memcpy(other.scales, s->scales, sizeof(*s->scales));
	memcpy(other.zeros, s->zeros, sizeof(*s->zeros));
	for (int all = 0; all < 27; all++) {
		const int d[TINY] = { all % 3 - 1, all / 3 % 3 - 1, all / 9 - 1 };
		bool legal = abs(d[0]) + abs(d[1]) + abs(d[2]) <= 2;

		for (int i = 0; i < TINY && legal; i++) {
			legal = s->codes[i] + d[i] >= 0 && s->codes[i] + d[i] <= top;
			other.codes[i] = (uint8_t)(s->codes[i] + d[i]);
		}
		if (legal && !(row_loss(q, &other, 0) >= own - 1.5 * refine_least_move * step * 1.5))
			fail_msg("%s: %d%d%d stays at %.9g; %d%d%d has %.9g", name, s->codes[0], s->codes[1],
				 s->codes[2], own, other.codes[0], other.codes[1], other.codes[2],
				 row_loss(q, &other, 0));
	}
	state_free(&other);
}

/* Refines until nothing changes; returns the loss. */
static double settle(struct backend *be, const struct quant_case *q)
{
	struct state s = state_new(q);
	bool moving = true;
	double loss;

	for (int round = 0; moving; round++) {
		struct state before = state_new(q);

		memcpy(before.codes, s.codes, s.cells);
		memcpy(before.scales, s.scales, sizeof(*s.scales));
		memcpy(before.zeros, s.zeros, sizeof(*s.zeros));
		check_round(be, q, &s, "tiny");
		moving = !state_equal(&before, &s);
		state_free(&before);
		assert_true(round < 50);
	}
	loss = row_loss(q, &s, 0);
	check_neighbours(q, &s, be->ops->name);
	if (!(loss <= 1.0001 * line_loss(q, s.codes) + 1e-11 * row_energy(q, 0)))
		fail_msg("%s: codes %d%d%d lose %.9g, with the best line %.9g", be->ops->name, s.codes[0],
			 s.codes[1], s.codes[2], loss, line_loss(q, s.codes));
	state_free(&s);
	return loss;
}

static double best_of_all(const struct quant_case *q, int bits)
{
	const int levels = 1 << bits;
	double best = INFINITY;

	for (int all = 0; all < levels * levels * levels; all++) {
		const uint8_t codes[TINY] = { (uint8_t)(all % levels), (uint8_t)(all / levels % levels),
					      (uint8_t)(all / levels / levels) };

		best = fmin(best, line_loss(q, codes));
	}
	return best;
}

/* One bit: a local optimum every time, and mostly the best of all assignments. */
static void test_tiny_against_brute_force(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = open_backend(tested_name(b), 1);
		struct rng r = { 71 };
		int best = 0;

		for (int i = 0; i < TINY_CASES; i++) {
			struct quant_case q;
			double loss, least;

			tiny_case(&q, &r, 1);
			loss = settle(be, &q);
			least = best_of_all(&q, 1);
			if (loss < least * (1 - 1e-6) - 1e-11 * row_energy(&q, 0))
				fail_msg("%s: %.9g is below what there is, %.9g", tested_name(b), loss, least);
			best += loss <= 1.0001 * least + 1e-11 * row_energy(&q, 0);
			quant_case_deinit(&q);
		}
		if (best < TINY_CASES * 8 / 10)
			fail_msg("%s: the best of all in %d of %d cases", tested_name(b), best, TINY_CASES);
		be->ops->close(be);
	}
}

/* --- the choice for one group ------------------------------------------------------------------- */

enum { STEP_COLS = 6 };

struct group_case { double a[STEP_COLS][STEP_COLS], e[STEP_COLS]; int q[STEP_COLS]; float s, z; };

static struct group_sums group_case(struct group_case *c, struct rng *r, int levels, double z)
{
	struct group_sums m = { 0 };
	double x[8][STEP_COLS];

	for (int k = 0; k < 8; k++)
		for (int i = 0; i < STEP_COLS; i++)
			x[k][i] = rng_normal(r);
	c->s = (float)(0.1 + rng_uniform(r));
	c->z = (float)z;
	for (int i = 0; i < STEP_COLS; i++) {
		c->q[i] = (int)(rng_uniform(r) * levels);
		c->e[i] = 0.3 * c->s * rng_normal(r);
		for (int j = 0; j < STEP_COLS; j++) {
			c->a[i][j] = 0;
			for (int k = 0; k < 8; k++)
				c->a[i][j] += x[k][i] * x[k][j];
		}
	}
	for (int i = 0; i < STEP_COLS; i++)
		for (int j = 0; j < STEP_COLS; j++) {
			m.qq += c->a[i][j] * c->q[i] * c->q[j];
			m.q1 += c->a[i][j] * c->q[i];
			m.oo += c->a[i][j];
			m.rq += c->a[i][j] * c->e[i] * c->q[j];
			m.r1 += c->a[i][j] * c->e[i];
		}
	return m;
}

static double case_loss(const struct group_case *c, double s, double z)
{
	double e[STEP_COLS], sum = 0;

	for (int i = 0; i < STEP_COLS; i++)
		e[i] = c->e[i] + c->s * (c->q[i] - (double)c->z) - s * (c->q[i] - z);
	for (int i = 0; i < STEP_COLS; i++)
		for (int j = 0; j < STEP_COLS; j++)
			sum += c->a[i][j] * e[i] * e[j];
	return sum;
}

/* The best of many s for one z. */
static double best_scale(const struct group_case *c, double z)
{
	double best = INFINITY;

	for (double s = 0.002; s < 6; s *= 1.002)
		best = fmin(best, case_loss(c, s, z));
	return best;
}

static void check_step(const struct group_case *c, const struct group_sums *m, const struct grid *grid,
		       double best)
{
	const double before = case_loss(c, c->s, c->z);
	float s = c->s, z = c->z;
	const double gain = group_step(grid, m, 0, &s, &z), after = case_loss(c, s, z);

	if (fabs(before - gain - after) > 1e-6 * before)
		fail_msg("%.9g before, %.9g after, said to win %.9g", before, after, gain);
	if (!(after <= before && after <= best * 1.00001))
		fail_msg("%.9g before, %.9g after, the best is %.9g", before, after, best);
	if (grid->symmetric)
		assert_true(z == c->z);
	s = c->s;
	z = c->z;
	assert_true(group_step(grid, m, before, &s, &z) == 0 && s == c->s && z == c->z);
}

static void test_group_step(void **state)
{
	struct rng r = { 73 };

	(void)state;
	for (int i = 0; i < 60; i++) {
		const struct grid real = { .bits = 2 }, integer = { .bits = 2, .integer_zero = true };
		const struct grid symmetric = { .bits = 2, .symmetric = true };
		struct group_case c;
		const struct group_sums m = group_case(&c, &r, 4, i % 4);
		double best = best_scale(&c, 0);

		check_step(&c, &m, &symmetric, best_scale(&c, c.z));
		for (int z = 1; z < 4; z++)
			best = fmin(best, best_scale(&c, z));
		check_step(&c, &m, &integer, best);
		for (double z = -6; z < 9; z += 0.05)
			best = fmin(best, best_scale(&c, z));
		check_step(&c, &m, &real, best);
	}
}

/* One code everywhere: s stays, the level moves to the mean. All zero: nothing to choose. */
static void test_group_step_without_a_line(void **state)
{
	const struct grid real = { .bits = 2 }, integer = { .bits = 2, .integer_zero = true };
	const struct group_sums constant = { 16, 8, 4, 2, 1 }, nothing = { 0 };
	float s = 0.5f, z = 1;

	(void)state;
	assert_true(fabs(group_step(&real, &constant, 0, &s, &z) - 0.25) < 1e-12);
	assert_true(s == 0.5f && z == 0.5f); /* t from -0.5 by r1 / oo = 0.25 */
	s = 0.5f;
	z = 1;
	assert_true(fabs(group_step(&integer, &constant, 0, &s, &z) - 0.25) < 1e-12);
	assert_true(s == 0.75f && z == 1);   /* s (2 - 1) from 0.5 to 0.75 */
	assert_true(group_step(&real, &nothing, 0, &s, &z) == 0);
	assert_true(group_step(&integer, &nothing, 0, &s, &z) == 0);
	assert_true(s == 0.75f && z == 1);
}

/* --- bits and failures -------------------------------------------------------------------------- */

static struct state refined(const struct quant_case *q, int threads)
{
	struct backend *be = open_backend(tested_backend(), threads);
	struct state s = state_new(q);

	round_of(be, q, &s);
	round_of(be, q, &s);
	be->ops->close(be);
	return s;
}

static void test_threads_do_not_change_bits(void **state)
{
	static const int threads[] = { 2, 3, 7 };
	struct rng r = { 79 };

	(void)state;
	for (size_t group = 35; group <= 210; group += 175) {
		struct quant_case q;
		struct state one;

		start(&q, &r, W_HEAVY, (struct shape){ 150, 210, group }, 3, ZERO_REAL, true);
		one = refined(&q, 1);
		for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
			struct state many = refined(&q, threads[i]);

			assert_true(state_equal(&one, &many));
			assert_memory_equal(one.loss, many.loss, q.rows * sizeof(double));
			state_free(&many);
		}
		state_free(&one);
		quant_case_deinit(&q);
	}
}

static void test_levels(void **state)
{
	struct rng r = { 83 };
	struct quant_case q;
	struct state best;

	(void)state;
	start(&q, &r, W_NORMAL, (struct shape){ 70, 150, 50 }, 2, ZERO_REAL, true);
	best = refined(&q, 2);
	for (int level = 0; level < tested_levels(); level++) {
		struct state s;
		double want = sum_of(best.loss, q.rows), got;

		assert_int_equal(setenv("QUARRY_CPU_LEVEL", tested_level_name(level), 1), 0);
		s = refined(&q, 2);
		got = sum_of(s.loss, q.rows);
		if (fabs(got - want) > 0.002 * want)
			fail_msg("level %d: loss %.9g, at the best level %.9g", level, got, want);
		state_free(&s);
	}
	unsetenv("QUARRY_CPU_LEVEL");
	state_free(&best);
	quant_case_deinit(&q);
}

/* H or a row times a power of two: the same codes, far beyond what float32 sums hold. */
static void test_sizes_do_not_change_codes(void **state)
{
	struct rng r = { 89 };
	struct quant_case q;
	struct state plain;

	(void)state;
	start(&q, &r, W_NORMAL, (struct shape){ 9, 60, 20 }, 2, ZERO_REAL, true);
	plain = refined(&q, 1);
	for (int power = -110; power <= 110; power += 220) {
		struct state other;

		for (size_t i = 0; i < q.cols * q.cols; i++)
			q.h[i] = ldexp(q.h[i], 2 * power);
		q.damp = ldexp(q.damp, 2 * power);
		for (size_t i = 0; i < q.rows * q.cols; i++)
			q.w[i] = ldexpf(q.w[i], power);
		for (size_t i = 0; i < q.rows * q.groups; i++)
			q.scales[i] = ldexpf(q.scales[i], power);
		other = refined(&q, 1);
		assert_memory_equal(plain.codes, other.codes, plain.cells);
		assert_memory_equal(plain.zeros, other.zeros, plain.sides * sizeof(float));
		for (size_t i = 0; i < q.rows; i++)
			assert_true(other.loss[i] == ldexp(plain.loss[i], 4 * power));
		state_free(&other);
		for (size_t i = 0; i < q.cols * q.cols; i++)
			q.h[i] = ldexp(q.h[i], -2 * power);
		q.damp = ldexp(q.damp, -2 * power);
		for (size_t i = 0; i < q.rows * q.cols; i++)
			q.w[i] = ldexpf(q.w[i], -power);
		for (size_t i = 0; i < q.rows * q.groups; i++)
			q.scales[i] = ldexpf(q.scales[i], -power);
	}
	state_free(&plain);
	quant_case_deinit(&q);
}

static void expect_numeric(struct backend *be, const struct quant_case *q, const char *what)
{
	struct state s = state_new(q);
	struct err err = ERR_INIT;

	if (refine(be, q, &s, &err) != -1 || err.code != ERR_NUMERIC)
		fail_msg("%s: %s: %s", be->ops->name, what, err.text);
	state_free(&s);
}

static void test_non_finite_is_reported(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = open_backend(tested_name(b), 2);
		struct rng r = { 97 };
		struct quant_case q;
		struct state s;
		float keep;

		start(&q, &r, W_NORMAL, (struct shape){ 5, 12, 4 }, 2, ZERO_REAL, false);
		keep = q.w[7];
		q.w[7] = INFINITY;
		expect_numeric(be, &q, "an infinite weight");
		q.w[7] = keep;
		keep = q.scales[4];
		q.scales[4] = NAN;
		expect_numeric(be, &q, "a scale that is no number");
		q.scales[4] = 0;
		expect_numeric(be, &q, "a scale of zero");
		q.scales[4] = keep;
		keep = q.zeros[14];
		q.zeros[14] = -INFINITY;
		expect_numeric(be, &q, "an infinite zero-point");
		q.zeros[14] = keep;
		s = state_new(&q);
		round_of(be, &q, &s);
		state_free(&s);
		q.h[5] = NAN;
		expect_numeric(be, &q, "H that is no number");
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

static void test_no_rows(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = open_backend(tested_name(b), 1);
		const struct grid grid = { .bits = 2, .group = 1 };
		const double h = 1;
		const int32_t perm = 0;
		struct err err = ERR_INIT;

		assert_int_equal(be->ops->refine(be, &grid, NULL, 0, 1, &h, 0, &perm, NULL, NULL, NULL, NULL,
						 &err), 0);
		be->ops->close(be);
	}
}

static void test_every_allocation_fails_cleanly(void **state)
{
	(void)state;
	for (int b = 0; b < TESTED_BOTH; b++) {
		struct backend *be = open_backend(tested_name(b), 2);
		struct rng r = { 101 };
		struct quant_case q;
		uint64_t nth = 1;

		start(&q, &r, W_NORMAL, (struct shape){ 3, 8, 4 }, 2, ZERO_REAL, false);
		for (;; nth++) {
			struct state s = state_new(&q), untouched = state_new(&q);
			struct err err = ERR_INIT;
			int rc;

			mem_fail_after(nth);
			rc = refine(be, &q, &s, &err);
			mem_fail_after(0);
			if (rc != 0)
				assert_true(err.code == ERR_NOMEM && state_equal(&s, &untouched));
			state_free(&s);
			state_free(&untouched);
			if (rc == 0)
				break;
		}
		assert_true(nth > 4 || tested_may_not_allocate(be));
		quant_case_deinit(&q);
		be->ops->close(be);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reaches_ref),
		cmocka_unit_test(test_odd_weights),
		cmocka_unit_test(test_tiles),
		cmocka_unit_test(test_rounds_win),
		cmocka_unit_test(test_tiny_against_brute_force),
		cmocka_unit_test(test_group_step),
		cmocka_unit_test(test_group_step_without_a_line),
		cmocka_unit_test(test_threads_do_not_change_bits),
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_sizes_do_not_change_codes),
		cmocka_unit_test(test_non_finite_is_reported),
		cmocka_unit_test(test_no_rows),
		cmocka_unit_test(test_every_allocation_fails_cleanly),
	};

	return cmocka_run_group_tests_name("backend refinement", tests, NULL, NULL);
}
