/* Training a random block back to the original: it gets better, never worse, stops when told to, and gives
 * the same bytes for any number of threads. */
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
#include "worker/quant/distill_block.h"
#include "worker/quant/order.h"

/* A block, its sequences and what a run saw. */
struct lesson {
	struct tuned_case c;
	float *targets;         /* (sequences, seq_len, hidden) */
	bool holds;             /* hands out x and y, in memory of the backend, instead of filling the room it is given */
	float *x, *y;
	struct distill_settings settings;
	struct distill_result result;
	size_t calls;           /* of progress */
	size_t stop_at;         /* progress call that ends the run; 0: none */
	size_t fail_target;     /* target call that fails; 0: none */
	size_t targets_read;
	double last_fraction;
	float grain;            /* norms and biases are stored as multiples of it; 0: as they are */
};

static size_t sequence_of(const struct lesson *l)
{
	return l->c.block.seq_len * l->c.block.shape.hidden;
}

static const float *give_input(void *ctx, size_t i, float *room, struct err *err)
{
	const struct lesson *l = ctx;
	const size_t n = sequence_of(l);

	(void)err;
	assert_true(i < l->settings.sequences);
	if (l->holds)
		return l->x + i * n;
	case_hand(l->c.be, room, l->c.block.x + i * n, n);
	return room;
}

static const float *give_target(void *ctx, size_t i, float *room, struct err *err)
{
	struct lesson *l = ctx;
	const size_t n = sequence_of(l);

	if (++l->targets_read == l->fail_target) {
		err_set(err, ERR_IO, "target %zu is gone", i);
		return NULL;
	}
	if (l->holds)
		return l->y + i * n;
	case_hand(l->c.be, room, l->targets + i * n, n);
	return room;
}

static int watch(void *ctx, const struct distill_progress *p, struct err *err)
{
	struct lesson *l = ctx;

	assert_true(p->fraction >= l->last_fraction && p->fraction <= 1);
	assert_true(p->epoch < p->epochs && p->epochs == l->settings.epochs);
	l->last_fraction = p->fraction;
	return ++l->calls == l->stop_at ? err_set(err, ERR_CANCELLED, "enough") : 0;
}

static void to_grain(const struct lesson *l, float *values, size_t n)
{
	for (size_t i = 0; l->grain > 0 && i < n; i++)
		values[i] = l->grain * nearbyintf(values[i] / l->grain);
}

static void store_bias(void *ctx, int module, float *values, size_t n)
{
	const struct lesson *l = ctx;

	assert_int_equal(n, l->c.plan.module[module].rows);
	to_grain(l, values, n);
}

static void store_norm(void *ctx, int norm, float *values, size_t n)
{
	const struct lesson *l = ctx;

	assert_int_equal(n, l->c.plan.norm[norm]);
	to_grain(l, values, n);
}

static void lesson_open(struct lesson *l, struct tuned_case c, struct backend *be)
{
	struct forward_result r;

	*l = (struct lesson){ .c = c, .settings = {
		.sequences = c.block.n_seq, .epochs = 2, .batch = 4, .seed = 1,
		.rates = { .code = 0.01f, .scale = 0.01f, .zero = 1e-3f, .norm = 1e-3f } } };
	tuned_case_init(&l->c, be);
	r = forward_case_run(&l->c.block, be, true, false);
	l->targets = case_copy(r.y, r.y_len * sizeof(float));
	forward_result_deinit(&r);
}

/* From now on it hands out what it holds. */
static void lesson_hold(struct lesson *l)
{
	const size_t n = l->c.block.n_seq * sequence_of(l);
	struct err err = ERR_INIT;

	l->holds = true;
	l->x = l->c.be->ops->memory_take(l->c.be, n * sizeof(float), "a test", &err);
	l->y = l->c.be->ops->memory_take(l->c.be, n * sizeof(float), "a test", &err);
	assert_true(l->x && l->y);
	case_hand(l->c.be, l->x, l->c.block.x, n);
	case_hand(l->c.be, l->y, l->targets, n);
}

static void lesson_close(struct lesson *l)
{
	l->c.be->ops->memory_give(l->c.be, l->x);
	l->c.be->ops->memory_give(l->c.be, l->y);
	free(l->targets);
	tuned_case_deinit(&l->c);
}

static int learn(struct lesson *l, struct err *err)
{
	const struct distill_data data = {
		.seq_len = l->c.block.seq_len, .rope = &l->c.block.rope, .input = give_input,
		.target = give_target, .progress = watch, .stored_bias = store_bias, .stored_norm = store_norm,
		.ctx = l,
	};

	return distill_block(&l->c.t, &l->settings, &data, &l->result, err);
}

static void must_learn(struct lesson *l)
{
	struct err err = ERR_INIT;

	if (learn(l, &err) != 0)
		fail_msg("%s", err.text);
}

static struct tuned_case full_case(int bits)
{
	struct tuned_case c = tuned_case_small(bits, 16);

	c.block.biases = c.block.head_norms = true;
	return c;
}

/* Relative loss of the block as it is now over the first sequences, computed without distill_block(). */
static double loss_now(struct lesson *l)
{
	const struct forward_case *f = &l->c.block;
	const size_t n = (l->settings.sequences < 8 ? l->settings.sequences : 8) * f->seq_len * f->shape.hidden;
	struct forward_case now = *f;
	struct forward_result r;
	struct err err = ERR_INIT;
	double loss = 0, change = 0;

	assert_int_equal(tuned_weights(&l->c.t, &now.w, &err), 0);
	r = forward_case_run(&now, l->c.be, true, false);
	for (size_t i = 0; i < n; i++) {
		loss += ((double)r.y[i] - l->targets[i]) * ((double)r.y[i] - l->targets[i]);
		change += ((double)l->targets[i] - f->x[i]) * ((double)l->targets[i] - f->x[i]);
	}
	forward_result_deinit(&r);
	return loss / change;
}

/* --- it learns ----------------------------------------------------------------------------------- */

static void check_learning(const char *backend, int bits, bool fixed_codes)
{
	struct backend *be = case_open(backend, 2);
	struct tuned_case c = full_case(bits);
	struct lesson l;
	double before;

	c.fixed_codes = fixed_codes;
	lesson_open(&l, c, be);
	before = loss_now(&l);
	must_learn(&l);
	print_message("# %s, %d bits: %.5f to %.5f\n", backend, bits, l.result.before, l.result.after);
	assert_true(fabs(l.result.before / before - 1) < 1e-5);
	assert_true(fabs(l.result.after / loss_now(&l) - 1) < 1e-5);
	assert_true(l.result.after < 0.97 * l.result.before);
	assert_true(l.result.kept);
	assert_int_equal(l.result.steps, 6);
	assert_int_equal(l.result.points, 6);
	for (size_t i = 0; i < 6; i++) {
		assert_int_equal(l.result.curve[i].step, i + 1);
		assert_true(l.result.curve[i].loss > 0 && l.result.curve[i].loss < 1.5 * before);
	}
	assert_true(l.last_fraction == 1);
	lesson_close(&l);
	case_close(be);
}

static void test_learns(void **state)
{
	(void)state;
	check_learning("ref", 2, false);
	check_learning(tested_backend(), 2, false);
	check_learning(tested_backend(), 3, true);
}

/* More steps than points of the curve: means over intervals, the last at the end. */
static void test_curve(void **state)
{
	struct backend *be = case_open(tested_backend(), 1);
	struct lesson l;

	(void)state;
	lesson_open(&l, full_case(2), be);
	l.settings.epochs = 13;
	l.settings.batch = 1;
	l.settings.sequences = 11;
	must_learn(&l);
	assert_int_equal(l.result.steps, 143);
	assert_int_equal(l.result.points, 48);
	assert_int_equal(l.result.curve[0].step, 3);
	assert_int_equal(l.result.curve[46].step, 141);
	assert_int_equal(l.result.curve[47].step, 143);
	lesson_close(&l);
	case_close(be);
}

/* The probe sees biases and norms as they will be stored, and so they are left. */
static void test_stored_values(void **state)
{
	struct backend *be = case_open(tested_backend(), 1);
	struct lesson l;
	size_t moved = 0;

	(void)state;
	lesson_open(&l, full_case(2), be);
	l.grain = 1.0f / 512;
	l.settings.epochs = 4;
	l.settings.rates.norm = 0.01f;
	must_learn(&l);
	assert_true(l.result.kept);
	assert_true(fabs(l.result.after / loss_now(&l) - 1) < 1e-5);
	for (size_t i = 0; i < 48; i++) {
		const float v = l.c.t.norm[0][i], b = l.c.t.module[6].bias[i];

		assert_true(v == l.grain * nearbyintf(v / l.grain));
		assert_true(b == l.grain * nearbyintf(b / l.grain));
		moved += fabsf(v - l.c.block.w.attn_norm[i]) > l.grain;
	}
	assert_true(moved > 0);
	lesson_close(&l);
	case_close(be);
}

/* --- it never harms --------------------------------------------------------------------------------- */

/* They come first in the state. */
static size_t trained_floats(const struct lesson *l)
{
	return l->c.t.cells.n + l->c.t.rest.n;
}

static void check_start_is_left(struct lesson *l, const float *start)
{
	assert_false(l->result.kept);
	assert_true(l->result.after == l->result.before);
	assert_memory_equal(l->c.state, start, trained_floats(l) * sizeof(float));
	for (int i = 0; i < TUNED_MODULES; i++)
		assert_memory_equal(l->c.t.module[i].scales, l->c.module[i].scales,
				    l->c.module[i].groups * sizeof(float));
}

/* Rates so large that the loss rises, and so large that numbers overflow. */
static void test_never_worse(void **state)
{
	const struct tuned_rates wild[] = {
		{ .code = 3, .scale = 0.5f, .zero = 3, .norm = 2 },
		{ .scale = 1e38f, .zero = 1e38f, .norm = 1e38f },
	};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct backend *be = case_open(i ? "ref" : tested_backend(), 1);
		struct lesson l;
		float *start;

		lesson_open(&l, full_case(2), be);
		start = case_copy(l.c.state, trained_floats(&l) * sizeof(float));
		l.settings.rates = wild[i];
		must_learn(&l);
		check_start_is_left(&l, start);
		assert_int_equal(l.result.steps < 6, i == 1);
		free(start);
		lesson_close(&l);
		case_close(be);
	}
}

/* The original itself: nothing to learn. */
static void test_nothing_to_learn(void **state)
{
	struct backend *be = case_open(tested_backend(), 1);
	struct tuned_case c = full_case(2);
	struct lesson l;
	float *start;

	(void)state;
	c.skip = 0x7f;
	lesson_open(&l, c, be);
	start = case_copy(l.c.state, trained_floats(&l) * sizeof(float));
	must_learn(&l);
	assert_true(l.result.before < 1e-12);
	check_start_is_left(&l, start);
	free(start);
	lesson_close(&l);
	case_close(be);
}

/* --- the same again --------------------------------------------------------------------------------- */

/* How to learn it once more. */
struct again { int threads; uint64_t seed; size_t batch; bool holds; };

static float *learned(struct again how, size_t *floats)
{
	struct backend *be = case_open(tested_backend(), how.threads);
	struct lesson l;
	float *state;

	lesson_open(&l, full_case(2), be);
	l.settings.seed = how.seed;
	l.settings.batch = how.batch;
	if (how.holds)
		lesson_hold(&l);
	must_learn(&l);
	*floats = l.c.sizes.state;
	state = case_copy(l.c.state, l.c.sizes.state * sizeof(float));
	lesson_close(&l);
	case_close(be);
	return state;
}

static void test_same_bytes(void **state)
{
	size_t n;
	float *one = learned((struct again){ 1, 1, 4, false }, &n), *other = learned((struct again){ 1, 2, 4, false }, &n);

	(void)state;
	for (int threads = 1; threads <= 3; threads++) {
		float *again = learned((struct again){ threads, 1, 4, false }, &n);

		assert_memory_equal(one, again, n * sizeof(float));
		free(again);
	}
	assert_true(memcmp(one, other, n * sizeof(float)) != 0);
	free(one);
	free(other);
}

/* Sequences that the provider holds are used where they are, alone and in batches. */
static void test_held_sequences(void **state)
{
	(void)state;
	for (size_t batch = 1; batch <= 4; batch += 3) {
		size_t n;
		float *filled = learned((struct again){ 2, 1, batch, false }, &n);
		float *held = learned((struct again){ 2, 1, batch, true }, &n);

		assert_memory_equal(filled, held, n * sizeof(float));
		free(filled);
		free(held);
	}
}

/* Every sequence once an epoch, another order in each and for each seed. */
static void test_order(void **state)
{
	uint32_t a[100], b[100];
	bool seen[100] = { false };
	size_t same = 0;

	(void)state;
	training_order(7, 0, 100, a);
	for (size_t i = 0; i < 100; i++) {
		assert_true(a[i] < 100 && !seen[a[i]]);
		seen[a[i]] = true;
		same += a[i] == i;
	}
	assert_true(same < 10);
	training_order(7, 0, 100, b);
	assert_memory_equal(a, b, sizeof(a));
	training_order(7, 1, 100, b);
	assert_memory_not_equal(a, b, sizeof(a));
	training_order(8, 0, 100, b);
	assert_memory_not_equal(a, b, sizeof(a));
	training_order(7, 0, 1, b);
	assert_int_equal(b[0], 0);
}

/* --- it stops --------------------------------------------------------------------------------------- */

static void test_cancel(void **state)
{
	struct backend *be = case_open(tested_backend(), 1);

	(void)state;
	/* Within the first probe, a step, and the probe after the first epoch. */
	for (size_t i = 0; i < 3; i++) {
		struct err err = ERR_INIT;
		struct lesson l;

		lesson_open(&l, full_case(2), be);
		l.stop_at = (const size_t[]){ 3, 12, 23 }[i];
		assert_int_equal(learn(&l, &err), -1);
		assert_int_equal(err.code, ERR_CANCELLED);
		assert_int_equal(l.calls, l.stop_at);
		lesson_close(&l);
	}
	case_close(be);
}

static void test_source_fails(void **state)
{
	struct backend *be = case_open(tested_backend(), 1);

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct err err = ERR_INIT;
		struct lesson l;

		lesson_open(&l, full_case(2), be);
		l.fail_target = i ? 11 : 2;
		assert_int_equal(learn(&l, &err), -1);
		assert_int_equal(err.code, ERR_IO);
		assert_non_null(strstr(err.text, "is gone"));
		lesson_close(&l);
	}
	case_close(be);
}

static void test_refused(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct lesson l;
	struct err err = ERR_INIT;

	(void)state;
	lesson_open(&l, full_case(2), be);
	l.settings.batch = 0;
	assert_int_equal(learn(&l, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	l.settings.batch = 4;
	l.settings.sequences = 0;
	assert_int_equal(learn(&l, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	l.settings.sequences = UINT32_MAX;
	l.settings.epochs = SIZE_MAX;
	assert_int_equal(learn(&l, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	lesson_close(&l);
	case_close(be);
}

/* Each allocation fails once; the start may be used again. */
static void test_out_of_memory(void **state)
{
	struct backend *be = case_open("ref", 1);
	struct lesson l;
	int failures = 0;

	(void)state;
	lesson_open(&l, full_case(2), be);
	l.settings.epochs = 1;
	l.settings.sequences = 2;
	for (uint64_t n = 1;; n++) {
		struct err err = ERR_INIT;
		int rc;

		tuned_case_fill(&l.c);
		l.last_fraction = 0;
		mem_fail_after(n);
		rc = learn(&l, &err);
		mem_fail_after(0);
		if (rc == 0)
			break;
		assert_int_equal(err.code, ERR_NOMEM);
		failures++;
	}
	assert_true(failures > 6);
	lesson_close(&l);
	case_close(be);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_learns),
		cmocka_unit_test(test_curve),
		cmocka_unit_test(test_stored_values),
		cmocka_unit_test(test_never_worse),
		cmocka_unit_test(test_nothing_to_learn),
		cmocka_unit_test(test_same_bytes),
		cmocka_unit_test(test_held_sequences),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_source_fails),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
