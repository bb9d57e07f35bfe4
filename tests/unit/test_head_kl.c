/* Loss and gradient at the head, on the sample model's: held or streamed, in company or alone, against plain sums. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "formats/embedding.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/model/head_kl.h"

enum { SEQUENCES = 3, SEQ_LEN = 5 };

static struct source *source;
static struct checkpoint ck;
static float *y, *target;
static size_t rows, cells;

static int open_model(void **state)
{
	struct err err = ERR_INIT;
	char dir[512];

	(void)state;
	snprintf(dir, sizeof(dir), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	source = source_dir_open(dir, &err);
	if (!source || checkpoint_open(&ck, source, NULL, &err) != 0)
		return -1;
	rows = SEQUENCES * SEQ_LEN;
	cells = rows * ck.config.hidden;
	y = case_random(cells, 2, 1);
	target = case_random(cells, 0.5f, 2);
	for (size_t i = 0; i < cells; i++)
		target[i] += y[i];
	return 0;
}

static int close_model(void **state)
{
	(void)state;
	mem_free(y);
	mem_free(target);
	checkpoint_close(&ck);
	source->close(source);
	return 0;
}

static size_t tile_rows;        /* of the vocabulary; 0: all of this small one */
static int bits = 16;           /* of the model's output embedding */

struct outcome { struct head_loss loss; float *dy; };

static struct outcome loss_of(const char *backend, size_t held, size_t first, size_t n, const float *reference)
{
	struct outcome out = { .dy = case_poisoned(n * SEQ_LEN * ck.config.hidden) };
	struct backend *be = case_open(backend, 2);
	struct err err = ERR_INIT;
	struct head_kl h;

	if (head_kl_init(&h, be, &ck, bits, n, SEQ_LEN, held, &err) != 0)
		fail_msg("%s", err.text);
	assert_true(h.held == (held > 0));
	h.tile_rows = tile_rows ? tile_rows : h.tile_rows;
	if (head_kl_loss(&h, y + first * SEQ_LEN * ck.config.hidden, reference + first * SEQ_LEN * ck.config.hidden, n, 0.5,
			 &out.loss, out.dy, &err) != 0)
		fail_msg("%s", err.text);
	head_kl_deinit(&h);
	case_close(be);
	return out;
}

/* The same from the definition, in double. */
static struct head_loss plain_loss(void)
{
	const size_t hidden = ck.config.hidden, vocab = ck.config.vocab;
	float *table = mem_alloc(vocab * hidden, sizeof(float)), *norm = mem_alloc(hidden, sizeof(float));
	float *stored = mem_alloc(vocab * hidden, sizeof(float));
	double *logits = mem_alloc(2 * vocab, sizeof(double)), *x = mem_alloc(2 * hidden, sizeof(double));
	struct head_loss loss = { 0 };
	struct err err = ERR_INIT;

	assert_int_equal(checkpoint_read_f32(&ck, MODEL_EMBED_NAME, 0, vocab, table, &err), 0);
	assert_int_equal(checkpoint_read_f32(&ck, MODEL_FINAL_NORM_NAME, 0, hidden, norm, &err), 0);
	memcpy(stored, table, vocab * hidden * sizeof(float));
	assert_int_equal(embedding_round(bits, MODEL_EMBED_NAME, 0, stored, vocab, hidden, &err), 0);
	for (size_t r = 0; r < rows; r++) {
		double sum[2] = { 0, 0 };

		for (int side = 0; side < 2; side++) {
			const float *from = (side ? target : y) + r * hidden, *head = side ? table : stored;
			double squares = 0;

			for (size_t k = 0; k < hidden; k++)
				squares += (double)from[k] * from[k];
			for (size_t k = 0; k < hidden; k++)
				x[(size_t)side * hidden + k] = from[k] * norm[k] /
					sqrt(squares / (double)hidden + ck.config.rms_eps);
			for (size_t v = 0; v < vocab; v++) {
				double logit = 0;

				for (size_t k = 0; k < hidden; k++)
					logit += x[(size_t)side * hidden + k] * head[v * hidden + k];
				logits[(size_t)side * vocab + v] = logit;
				sum[side] += exp(logit);
			}
		}
		for (size_t v = 0; v < vocab; v++) {
			const double log_p = logits[v] - log(sum[0]), log_ref = logits[vocab + v] - log(sum[1]);

			loss.kl += exp(log_ref) * (log_ref - log_p);
		}
		for (size_t k = 0; k < hidden; k++)
			loss.hidden += (x[k] - x[hidden + k]) * (x[k] - x[hidden + k]) / (double)hidden;
	}
	mem_free(table);
	mem_free(stored);
	mem_free(norm);
	mem_free(logits);
	mem_free(x);
	return loss;
}

static void check_loss(void)
{
	const struct head_loss want = plain_loss();

	for (int i = 0; i < TESTED_BOTH; i++) {
		struct outcome got = loss_of(tested_name(i), HEAD_KL_HELD_BYTES, 0, SEQUENCES, target);

		print_message("# %s, %d bits: KL %.6f (%.6f), hidden %.6f (%.6f)\n", tested_name(i), bits, got.loss.kl,
			      want.kl, got.loss.hidden, want.hidden);
		assert_true(want.kl > 0.1 && fabs(got.loss.kl - want.kl) < 1e-4 * (double)rows);
		assert_true(want.hidden > 0.01 && fabs(got.loss.hidden / want.hidden - 1) < 1e-5);
		mem_free(got.dy);
	}
}

static void test_loss(void **state)
{
	(void)state;
	check_loss();
	bits = 4; /* and a model whose head is stored in fewer bits than the reference's */
	check_loss();
	bits = 16;
}

static void test_held_or_streamed(void **state)
{
	(void)state;
	for (bits = 8; bits <= 16; bits += 8) {
		struct outcome held = loss_of(tested_backend(), HEAD_KL_HELD_BYTES, 0, SEQUENCES, target);
		struct outcome streamed = loss_of(tested_backend(), 0, 0, SEQUENCES, target);

		assert_memory_equal(&held.loss, &streamed.loss, sizeof(held.loss));
		assert_memory_equal(held.dy, streamed.dy, cells * sizeof(float));
		mem_free(held.dy);
		mem_free(streamed.dy);
	}
	bits = 16;
}

/* dy is the slope of the loss also where the two heads differ: along dy itself, by central differences. */
static void test_gradient_of_two_heads(void **state)
{
	const double step = 1e-3;
	struct outcome at, ahead, behind;
	double slope, length = 0;

	(void)state;
	bits = 4;
	at = loss_of("ref", HEAD_KL_HELD_BYTES, 0, SEQUENCES, target);
	for (size_t i = 0; i < cells; i++)
		length += (double)at.dy[i] * at.dy[i];
	length = sqrt(length);
	for (size_t i = 0; i < cells; i++)
		y[i] += (float)(step * at.dy[i] / length);
	ahead = loss_of("ref", HEAD_KL_HELD_BYTES, 0, SEQUENCES, target);
	for (size_t i = 0; i < cells; i++)
		y[i] -= (float)(2 * step * at.dy[i] / length);
	behind = loss_of("ref", HEAD_KL_HELD_BYTES, 0, SEQUENCES, target);
	for (size_t i = 0; i < cells; i++)
		y[i] += (float)(step * at.dy[i] / length);
	bits = 16;
	slope = (ahead.loss.kl + 0.5 * ahead.loss.hidden - behind.loss.kl - 0.5 * behind.loss.hidden) /
		(2 * step * (double)rows);
	print_message("# slope %.7f, gradient %.7f\n", slope, length);
	assert_true(length > 0 && fabs(slope / length - 1) < 1e-2);
	mem_free(at.dy);
	mem_free(ahead.dy);
	mem_free(behind.dy);
}

/* Tiles that do not divide the vocabulary. */
static void test_many_tiles(void **state)
{
	struct outcome whole = loss_of(tested_backend(), HEAD_KL_HELD_BYTES, 0, SEQUENCES, target), held, streamed;

	(void)state;
	tile_rows = 300;
	held = loss_of(tested_backend(), HEAD_KL_HELD_BYTES, 0, SEQUENCES, target);
	streamed = loss_of(tested_backend(), 0, 0, SEQUENCES, target);
	tile_rows = 0;
	assert_memory_equal(&held.loss, &streamed.loss, sizeof(held.loss));
	assert_memory_equal(held.dy, streamed.dy, cells * sizeof(float));
	assert_true(fabs(held.loss.kl - whole.loss.kl) < 1e-4);
	case_assert_close("dy", held.dy, whole.dy, cells, 1e-5 * case_max_abs(whole.dy, cells));
	mem_free(whole.dy);
	mem_free(held.dy);
	mem_free(streamed.dy);
}

/* The mean over three sequences weighs each a third. */
static void test_alone_or_together(void **state)
{
	const size_t one = SEQ_LEN * ck.config.hidden;
	struct outcome all = loss_of(tested_backend(), HEAD_KL_HELD_BYTES, 0, SEQUENCES, target);
	double kl = 0;

	(void)state;
	for (size_t s = 0; s < SEQUENCES; s++) {
		struct outcome alone = loss_of(tested_backend(), HEAD_KL_HELD_BYTES, s, 1, target);

		kl += alone.loss.kl;
		for (size_t i = 0; i < one; i++)
			alone.dy[i] /= SEQUENCES;
		case_assert_close("dy", all.dy + s * one, alone.dy, one, 1e-6 * case_max_abs(all.dy, cells));
		mem_free(alone.dy);
	}
	assert_true(fabs(kl - all.loss.kl) < 1e-9);
	mem_free(all.dy);
}

static void test_nothing_to_learn(void **state)
{
	struct outcome same = loss_of(tested_backend(), HEAD_KL_HELD_BYTES, 0, SEQUENCES, y);

	(void)state;
	assert_true(same.loss.kl == 0 && same.loss.hidden == 0);
	for (size_t i = 0; i < cells; i++)
		assert_true(same.dy[i] == 0);
	mem_free(same.dy);
}

static void test_not_finite(void **state)
{
	struct backend *be = case_open(tested_backend(), 1);
	struct err err = ERR_INIT;
	struct head_loss loss;
	struct head_kl h;
	float kept = y[7];

	(void)state;
	assert_int_equal(head_kl_init(&h, be, &ck, 16, SEQUENCES, SEQ_LEN, HEAD_KL_HELD_BYTES, &err), 0);
	y[7] = NAN;
	assert_int_equal(head_kl_loss(&h, y, target, SEQUENCES, 1, &loss, NULL, &err), -1);
	assert_int_equal(err.code, ERR_NUMERIC);
	y[7] = kept;
	head_kl_deinit(&h);
	case_close(be);
}

static void test_without_memory(void **state)
{
	struct backend *be = case_open(tested_backend(), 1);
	struct err err = ERR_INIT;
	struct head_kl h;
	uint64_t nth = 1;

	(void)state;
	for (;; nth++) {
		int rc;

		mem_fail_after(nth);
		rc = head_kl_init(&h, be, &ck, nth % 3 ? 16 : 8, SEQUENCES, SEQ_LEN, nth % 2 ? HEAD_KL_HELD_BYTES : 0, &err);
		mem_fail_after(0);
		if (rc == 0)
			break;
		assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_true(nth > 6);
	head_kl_deinit(&h);
	case_close(be);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loss),
		cmocka_unit_test(test_held_or_streamed),
		cmocka_unit_test(test_gradient_of_two_heads),
		cmocka_unit_test(test_many_tiles),
		cmocka_unit_test(test_alone_or_together),
		cmocka_unit_test(test_nothing_to_learn),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_without_memory),
	};

	return cmocka_run_group_tests(tests, open_model, close_model);
}
