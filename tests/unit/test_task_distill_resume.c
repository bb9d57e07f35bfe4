/* An interrupted `distill` task: killed, cancelled, taken over by another worker, out of disk or memory. Whatever
 * happened to it, it ends with the bytes of an undisturbed run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "tests/lib/distill_case.h"

enum { SEQUENCES = 12, SEQ_LEN = 16, PATH_BYTES = 600, FILE_MOST = 1 << 28 };

static struct distill_case tiny;

/* 9 steps: each is committed. */
static const char brief[] = "{\"sequences\":3,\"epochs\":3,\"batch\":1,\"seed\":5,\"rates\":{\"code\":0.002,\"scale\":0.001}}";
enum { BRIEF_STEPS = 9 };
/* 60 steps, committed every 10 % and after each epoch of 12. */
static const char lengthy[] = "{\"sequences\":12,\"epochs\":5,\"batch\":1,\"seed\":5,\"checkpoint_percent\":10}";

static int make_inputs(void **state)
{
	static char model[512];
	const struct distill_case_options options = {
		.model_dir = model, .dir = "inputs", .sequences = SEQUENCES, .seq_len = SEQ_LEN, .per_shard = 5,
	};
	const struct distill_run_options undisturbed = { .spec = brief, .out = "undisturbed" };

	(void)state;
	snprintf(model, sizeof(model), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	distill_case_make(&tiny, &options);
	json_free(distill_case_must_run(&tiny, &undisturbed));
	return 0;
}

static int free_inputs(void **state)
{
	(void)state;
	distill_case_free(&tiny);
	return 0;
}

/* Runs to the end with a scratch folder; the step it went on after. */
static int64_t finish_in(const char *scratch, const char *checkpoint)
{
	const struct distill_run_options run = { .spec = brief, .out = "finished", .scratch = scratch,
						 .checkpoint = checkpoint };
	struct json *result = distill_case_must_run(&tiny, &run);
	int64_t resumed_at = json_get_int(result, "resumed_at", -1);

	json_free(result);
	distill_case_assert_same(&tiny, "undisturbed", "finished");
	return resumed_at;
}

/* --- killed -------------------------------------------------------------------------------------------- */

static void test_killed(void **state)
{
	static const struct { const char *at; int nth; int64_t done; } kills[] = {
		{ "embedding", 1, 0 }, { "preparing", 3, 0 }, { "probe 1 of 4", 2, 0 }, { "step 1 of 9", 1, 0 },
		{ "step 1 of 9", 7, 0 }, { "step 2 of 9", 3, 1 }, { "step 3 of 9", 8, 2 }, { "probe 2 of 4", 2, 2 },
		{ "step 4 of 9", 1, 3 }, { "step 6 of 9", 5, 5 }, { "step 9 of 9", 7, 8 }, { "probe 4 of 4", 4, 8 },
	};
	const struct distill_run_options run = { .spec = brief, .out = "killed", .scratch = "scratch-killed" };
	struct err err = ERR_INIT;

	(void)state;
	for (size_t i = 0; i < sizeof(kills) / sizeof(kills[0]); i++) {
		int64_t resumed_at;

		assert_int_equal(dir_remove("scratch-killed", &err), 0);
		distill_case_kill(&tiny, &run, kills[i].at, kills[i].nth);
		resumed_at = finish_in("scratch-killed", NULL);
		if (resumed_at != kills[i].done)
			fail_msg("killed at \"%s\" for the %d. time: resumed after step %lld", kills[i].at, kills[i].nth,
				 (long long)resumed_at);
	}
}

/* Again and again in one life. */
static void test_killed_often(void **state)
{
	static const char *const kills[] = { "step 1 of 9", "step 3 of 9", "probe 2 of 4", "step 5 of 9", "probe 4 of 4" };
	const struct distill_run_options run = { .spec = brief, .out = "killed", .scratch = "scratch-often" };

	(void)state;
	for (size_t i = 0; i < sizeof(kills) / sizeof(kills[0]); i++)
		distill_case_kill(&tiny, &run, kills[i], 2);
	assert_true(finish_in("scratch-often", NULL) >= BRIEF_STEPS - 1);
}

/* Of many steps no more than the spec allows is done twice. */
static void test_little_is_lost(void **state)
{
	struct distill_run_options run = { .spec = lengthy, .out = "lengthy", .scratch = "scratch-lengthy" };
	struct json *result;

	(void)state;
	distill_case_kill(&tiny, &run, "step 23 of 60", 7);
	result = distill_case_must_run(&tiny, &run);
	assert_int_equal(json_get_int(result, "resumed_at", -1), 18);
	assert_int_equal(json_size(json_get(result, "curve")), 60);
	json_free(result);
	run.scratch = NULL;
	run.out = "lengthy-undisturbed";
	json_free(distill_case_must_run(&tiny, &run));
	distill_case_assert_same(&tiny, "lengthy", "lengthy-undisturbed");
}

/* Everything was done but the result did not get out. */
static void test_finished_once_more(void **state)
{
	(void)state;
	finish_in("scratch-twice", NULL);
	assert_int_equal(finish_in("scratch-twice", NULL), BRIEF_STEPS);
}

/* --- cancelled, taken over ------------------------------------------------------------------------------- */

struct stopping {
	const char *at;
	const char *keep;       /* where the checkpoint is kept, or NULL: none is wanted */
	bool stopped, early;    /* early: also while the task runs */
	int left;
};

static bool stop_at(void *ctx, double fraction, const char *what)
{
	struct stopping *s = ctx;

	assert_true(fraction >= 0 && fraction <= 1);
	s->stopped |= strstr(what, s->at) != NULL;
	return !s->stopped;
}

static int keep_checkpoint(void *ctx, const char *path)
{
	struct stopping *s = ctx;

	if (!path)
		return s->keep && (s->stopped || s->early);
	assert_int_equal(rename(path, s->keep), 0);
	s->left++;
	return 0;
}

static struct stopping run_until(const char *at, const char *scratch, const char *keep, const char *checkpoint)
{
	struct stopping s = { .at = at, .keep = keep };
	const struct distill_run_options run = { .spec = brief, .out = "cancelled", .scratch = scratch,
						 .progress = stop_at, .leave = keep_checkpoint, .ctx = &s,
						 .checkpoint = checkpoint };
	struct err err = ERR_INIT;

	assert_null(distill_case_run(&tiny, &run, &err));
	assert_int_equal(err.code, ERR_CANCELLED);
	return s;
}

static void test_cancelled(void **state)
{
	(void)state;
	assert_int_equal(run_until("step 4 of 9", "scratch-cancelled", NULL, NULL).left, 0);
	assert_int_equal(finish_in("scratch-cancelled", NULL), 3);
}

static void test_taken_over(void **state)
{
	(void)state;
	assert_int_equal(run_until("step 4 of 9", "scratch-given", "given", NULL).left, 1);
	assert_int_equal(finish_in("scratch-fresh", "given"), 3);
	assert_false(file_exists("scratch-given/checkpoint.safetensors"));
	/* on to a third */
	assert_int_equal(run_until("step 7 of 9", "scratch-second", "given-2", "given").left, 1);
	assert_int_equal(finish_in("scratch-third", "given-2"), 6);
}

/* Stopped before anything was worth keeping. */
static void test_nothing_to_leave(void **state)
{
	(void)state;
	assert_int_equal(run_until("preparing", "scratch-early", "early", NULL).left, 0);
	assert_int_equal(finish_in("scratch-early", NULL), 0);
}

/* A checkpoint after every commit, each good to begin with. */
static void test_checkpoints_on_the_way(void **state)
{
	struct stopping s = { .at = "never", .keep = "latest", .early = true };
	const struct distill_run_options run = { .spec = brief, .out = "leaving", .scratch = "scratch-leaving",
						 .progress = stop_at, .leave = keep_checkpoint, .ctx = &s };

	(void)state;
	json_free(distill_case_must_run(&tiny, &run));
	distill_case_assert_same(&tiny, "undisturbed", "leaving");
	assert_int_equal(s.left, BRIEF_STEPS);
	assert_int_equal(finish_in("scratch-latest", "latest"), BRIEF_STEPS);
}

static int want_but_refuse(void *ctx, const char *path)
{
	int *refused = ctx;

	if (path)
		++*refused;
	return path ? -1 : 1;
}

static void test_refused_checkpoints_go(void **state)
{
	int refused = 0;
	const struct distill_run_options run = { .spec = brief, .out = "refusing", .scratch = "scratch-refusing",
						 .leave = want_but_refuse, .ctx = &refused };

	(void)state;
	json_free(distill_case_must_run(&tiny, &run));
	assert_int_equal(refused, BRIEF_STEPS);
	assert_false(file_exists("scratch-refusing/checkpoint.safetensors"));
}

static void test_what_is_further_counts(void **state)
{
	(void)state;
	run_until("step 3 of 9", "scratch-old", "old", NULL);
	run_until("step 6 of 9", "scratch-new", "new", NULL);
	assert_int_equal(finish_in("scratch-new", "old"), 5);
	run_until("step 3 of 9", "scratch-old-2", NULL, NULL);
	assert_int_equal(finish_in("scratch-old-2", "new"), 5);
}

/* --- what does not count ------------------------------------------------------------------------------------ */

/* Changes a file: a byte flipped, or all of it replaced. */
static void damage(const char *path, const char *how)
{
	struct err err = ERR_INIT;
	size_t len;
	char *bytes = file_read_all(path, FILE_MOST, &len, &err);

	if (!bytes)
		fail_msg("%s", err.text);
	if (strcmp(how, "flip") == 0)
		bytes[len / 2] = (char)(bytes[len / 2] ^ 4);
	else
		memset(bytes, '{', len = 3);
	assert_int_equal(file_write_atomic(path, bytes, len, &err), 0);
	mem_free(bytes);
}

/* test_distill_state.c has every other kind of damage. */
static void test_damaged_scratch(void **state)
{
	char path[PATH_BYTES];

	(void)state;
	run_until("step 8 of 9", "scratch-damaged", NULL, NULL);
	for (int generation = 0; generation < 2; generation++) {
		snprintf(path, sizeof(path), "scratch-damaged/state-%d/layer-2", generation);
		damage(path, "flip");
	}
	assert_int_equal(finish_in("scratch-damaged", NULL), 0);
}

static void test_damaged_checkpoint(void **state)
{
	static const char *const hows[] = { "flip", "noise" };
	struct err err = ERR_INIT;

	(void)state;
	for (size_t h = 0; h < 2; h++) {
		assert_int_equal(dir_remove("scratch-packing", &err), 0);
		run_until("step 4 of 9", "scratch-packing", "packed", NULL);
		damage("packed", hows[h]);
		assert_int_equal(dir_remove("scratch-unpacking", &err), 0);
		assert_int_equal(finish_in("scratch-unpacking", "packed"), 0);
	}
}

static void test_another_spec_or_input(void **state)
{
	const struct distill_run_options other = {
		.spec = "{\"sequences\":3,\"epochs\":3,\"batch\":1,\"seed\":6,\"rates\":{\"code\":0.002,\"scale\":0.001}}",
		.out = "other", .scratch = "scratch-other" };
	struct distill_case changed = tiny;
	const struct distill_run_options same = { .spec = brief, .out = "other", .scratch = "scratch-changed" };
	struct json *result;

	(void)state;
	run_until("step 8 of 9", "scratch-other", NULL, NULL);
	result = distill_case_must_run(&tiny, &other);
	assert_int_equal(json_get_int(result, "resumed_at", -1), 0);
	json_free(result);
	assert_false(distill_case_same(&tiny, "undisturbed", "other"));
	run_until("step 8 of 9", "scratch-changed", NULL, NULL);
	changed.inputs[0].sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
	result = distill_case_must_run(&changed, &same);
	assert_int_equal(json_get_int(result, "resumed_at", -1), 0);
	json_free(result);
}

/* ref does not go on with what cpu began. */
static void test_another_backend(void **state)
{
	const struct distill_run_options ref = { .backend = "ref", .spec = brief, .out = "ref", .scratch = "scratch-ref",
						 .checkpoint = "packed-cpu" };
	struct json *result;

	(void)state;
	run_until("step 2 of 9", "scratch-ref", "packed-cpu", NULL);
	result = distill_case_must_run(&tiny, &ref);
	assert_int_equal(json_get_int(result, "resumed_at", -1), 0);
	json_free(result);
}

/* --- faults ----------------------------------------------------------------------------------------------------- */

struct fault {
	struct stopping stopping;
	void (*arm)(uint64_t nth);
	uint64_t nth;
};

static void arm_now(void *ctx)
{
	const struct fault *f = ctx;

	f->arm(f->nth);
}

/* One failing call, then a run without: the bytes are right in any case. */
static void assert_survives(const char *what, struct fault *f)
{
	const struct distill_run_options run = { .spec = brief, .out = "faulty", .scratch = "scratch-faulty",
						 .progress = stop_at, .leave = keep_checkpoint, .ready = arm_now,
						 .ctx = f };
	struct err err = ERR_INIT;
	struct json *result = distill_case_run(&tiny, &run, &err);

	f->arm(0);
	if (result)
		distill_case_assert_same(&tiny, "undisturbed", "faulty");
	else if (err.code != ERR_NOMEM && err.code != ERR_IO && err.code != ERR_NOSPC && err.code != ERR_CORRUPT)
		fail_msg("%s %llu: %s: %s", what, (unsigned long long)f->nth, err_name(err.code), err.text);
	json_free(result);
}

static void arm_memory(uint64_t nth) { mem_fail_after(nth); }
static void arm_open(uint64_t nth) { file_fail_after(FILE_OPEN, nth); }
static void arm_read(uint64_t nth) { file_fail_after(FILE_READ, nth); }
static void arm_write(uint64_t nth) { file_fail_after(FILE_WRITE, nth); }
static void arm_fsync(uint64_t nth) { file_fail_after(FILE_FSYNC, nth); }
static void arm_rename(uint64_t nth) { file_fail_after(FILE_RENAME, nth); }

static void test_faults(void **state)
{
	static const struct { const char *what; void (*arm)(uint64_t nth); uint64_t first, step, last; } faults[] = {
		{ "memory", arm_memory, 1, 239, 1500 }, { "open", arm_open, 1, 67, 350 }, { "read", arm_read, 1, 181, 900 },
		{ "write", arm_write, 1, 41, 160 }, { "fsync", arm_fsync, 1, 9, 26 }, { "rename", arm_rename, 1, 5, 13 },
	};
	struct fault f = { .stopping = { .at = "never", .keep = "faulty-checkpoint", .early = true } };
	struct err err = ERR_INIT;

	(void)state;
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		for (uint64_t nth = faults[i].first; nth <= faults[i].last; nth += faults[i].step) {
			assert_int_equal(dir_remove("scratch-faulty", &err), 0);
			f.arm = faults[i].arm;
			f.nth = nth;
			assert_survives(faults[i].what, &f);
			finish_in("scratch-faulty", NULL);
		}
}

/* The same while a checkpoint is unpacked beside an older state. */
static void test_faults_while_unpacking(void **state)
{
	struct err err = ERR_INIT;
	struct json *result;
	static const uint64_t first[] = { 1, 14 };

	(void)state;
	run_until("step 6 of 9", "scratch-giver", "given-late", NULL);
	for (size_t i = 0; i < sizeof(first) / sizeof(first[0]); i++) {
		struct fault f = { .arm = arm_write, .nth = first[i] };
		const struct distill_run_options run = { .spec = brief, .out = "unpacked", .scratch = "scratch-taker",
							 .checkpoint = "given-late", .ready = arm_now, .ctx = &f };

		assert_int_equal(dir_remove("scratch-taker", &err), 0);
		run_until("step 2 of 9", "scratch-taker", NULL, NULL);
		result = distill_case_run(&tiny, &run, &err);
		arm_write(0);
		if (!result)
			assert_int_equal(err.code, ERR_NOSPC);
		json_free(result);
		assert_true(finish_in("scratch-taker", NULL) >= 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_killed_often),
		cmocka_unit_test(test_little_is_lost),
		cmocka_unit_test(test_finished_once_more),
		cmocka_unit_test(test_cancelled),
		cmocka_unit_test(test_taken_over),
		cmocka_unit_test(test_nothing_to_leave),
		cmocka_unit_test(test_checkpoints_on_the_way),
		cmocka_unit_test(test_refused_checkpoints_go),
		cmocka_unit_test(test_what_is_further_counts),
		cmocka_unit_test(test_damaged_scratch),
		cmocka_unit_test(test_damaged_checkpoint),
		cmocka_unit_test(test_another_spec_or_input),
		cmocka_unit_test(test_another_backend),
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_faults_while_unpacking),
	};

	return cmocka_run_group_tests(tests, make_inputs, free_inputs);
}
