/* What a training reads, kept on the backend or in files: the same floats, and a failure of either is an error. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/sealed_backend.h"
#include "worker/layer_sequences.h"

enum { SEQ_LEN = 5, WIDTH = 7, FLOATS = SEQ_LEN * WIDTH, PER_SHARD = 4, SHARDS = 2, USED = 6, BESIDE = 1000 };

static float *inputs, *outputs; /* (SHARDS * PER_SHARD, SEQ_LEN, WIDTH) */
static const char *const path[SHARDS] = { "shard-0", "shard-1" };

static int make_shards(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	inputs = case_random(SHARDS * PER_SHARD * FLOATS, 1, 1);
	outputs = case_random(SHARDS * PER_SHARD * FLOATS, 1, 2);
	for (size_t s = 0; s < SHARDS; s++) {
		struct tensor_file f;

		if (hidden_file_create(&f, path[s], PER_SHARD, SEQ_LEN, WIDTH, &err) != 0 ||
		    hidden_file_write(&f, 0, PER_SHARD, inputs + s * PER_SHARD * FLOATS, &err) != 0)
			return -1;
		tensor_file_close(&f);
	}
	return 0;
}

static int free_shards(void **state)
{
	(void)state;
	free(inputs);
	free(outputs);
	return 0;
}

/* --- a backend that refuses ---------------------------------------------------------------------------- */

static struct { const struct backend_ops *real; size_t takes, refuse_take, copies, refuse_copy; enum err_code code; } stub;

static void *take(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	if (++stub.takes != stub.refuse_take)
		return stub.real->memory_take(be, bytes, what, err);
	err_set(err, stub.code, "%s: refused", what);
	return NULL;
}

static int copy(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	if (++stub.copies != stub.refuse_copy)
		return stub.real->memory_copy(be, to, from, bytes, err);
	return err_set(err, ERR_UNAVAILABLE, "a copy was refused");
}

/* --- one run --------------------------------------------------------------------------------------------- */

struct run {
	struct backend *be;
	struct backend_ops ops;
	struct task_input in[SHARDS];
	struct task_env env;
	struct hidden_shards shards;
	struct scratch_file file;
	struct layer_sequences q;
	float *room;
};

static void run_open(struct run *r, struct backend *be)
{
	struct err err = ERR_INIT;

	*r = (struct run){ .be = be, .ops = *be->ops, .in = { { .name = "hidden-0", .path = path[0] },
							       { .name = "hidden-1", .path = path[1] } } };
	memset(&stub, 0, sizeof(stub));
	stub.real = be->ops;
	r->ops.memory_take = take;
	r->ops.memory_copy = copy;
	be->ops = &r->ops;
	r->env = (struct task_env){ .backend = be, .inputs = r->in, .input_count = SHARDS };
	r->room = stub.real->memory_take(be, FLOATS * sizeof(float), "a test", &err);
	assert_non_null(r->room);
	if (hidden_shards_open(&r->shards, &r->env, &err) != 0 || scratch_file_open(&r->file, ".", &err) != 0)
		fail_msg("%s", err.text);
}

/* Everything is given back: closing a sealed backend checks it. */
static void run_close(struct run *r)
{
	layer_sequences_deinit(&r->q);
	scratch_file_close(&r->file);
	hidden_shards_close(&r->shards);
	stub.real->memory_give(r->be, r->room);
	case_close(r->be);
}

static int run_init(struct run *r, struct err *err)
{
	return layer_sequences_init(&r->q, r->be, &r->shards, &r->file, USED, BESIDE, err);
}

/* As a statistics pass would: pieces of several sequences, not across shards, in memory of the backend. */
static int put_all(struct run *r, struct err *err)
{
	static const struct { size_t first, count; } piece[] = { { 0, 3 }, { 3, 1 }, { 4, 2 } };
	const size_t bytes = 3 * FLOATS * sizeof(float);
	float *x = stub.real->memory_take(r->be, bytes, "a test", err);
	float *y = stub.real->memory_take(r->be, bytes, "a test", err);
	int rc = 0;

	assert_true(x && y);
	for (size_t i = 0; rc == 0 && i < 3; i++) {
		const size_t n = piece[i].count * FLOATS * sizeof(float), at = piece[i].first * FLOATS;

		assert_int_equal(stub.real->memory_copy(r->be, x, inputs + at, n, err), 0);
		assert_int_equal(stub.real->memory_copy(r->be, y, outputs + at, n, err), 0);
		rc = layer_sequences_put(&r->q, piece[i].first, piece[i].count, x, y, err);
	}
	stub.real->memory_give(r->be, x);
	stub.real->memory_give(r->be, y);
	return rc;
}

static int check(struct run *r, const float *got, const float *want)
{
	float back[FLOATS];

	if (!got)
		return -1;
	assert_int_equal(stub.real->memory_copy(r->be, back, got, sizeof(back), NULL), 0);
	assert_memory_equal(back, want, sizeof(back));
	return 0;
}

/* In no order, and again. */
static int read_all(struct run *r, struct err *err)
{
	static const size_t order[] = { 5, 0, 3, 3, 1, 4, 2, 0 };

	for (size_t k = 0; k < sizeof(order) / sizeof(order[0]); k++) {
		const size_t i = order[k];

		if (check(r, layer_sequences_input(&r->q, i, r->room, err), inputs + i * FLOATS) != 0 ||
		    check(r, layer_sequences_output(&r->q, i, r->room, err), outputs + i * FLOATS) != 0)
			return -1;
	}
	return 0;
}

static void must(int rc, const struct err *err)
{
	if (rc != 0)
		fail_msg("%s", err->text);
}

static void must_run(struct run *r)
{
	struct err err = ERR_INIT;

	must(run_init(r, &err), &err);
	must(put_all(r, &err), &err);
	must(read_all(r, &err), &err);
}

static struct backend *sealed(void)
{
	return sealed_open(case_open("cpu", 1));
}

/* --- where they are ------------------------------------------------------------------------------------------ */

static void test_on_the_backend(void **state)
{
	struct err err = ERR_INIT;
	struct run r;
	char byte;

	(void)state;
	run_open(&r, sealed());
	must_run(&r);
	assert_true(r.q.x && r.q.y && !r.q.passing);
	assert_int_equal(stub.copies, 6);
	/* The file is as empty as it was. */
	assert_int_equal(scratch_file_read(&r.file, 0, &byte, 1, &err), -1);
	run_close(&r);
}

/* Neither fits, or they do and leave too little. */
static void test_no_room(void **state)
{
	(void)state;
	for (size_t nth = 1; nth <= 2; nth++) {
		struct run r;
		size_t before;

		run_open(&r, sealed());
		before = sealed_bytes(r.be);
		stub.refuse_take = nth;
		stub.code = ERR_NOMEM;
		must_run(&r);
		assert_int_equal(stub.takes, nth);
		assert_true(!r.q.x && !r.q.y && r.q.passing);
		assert_int_equal(sealed_bytes(r.be), before);
		run_close(&r);
	}
}

/* Without memory of its own the room is what is read into. */
static void test_ordinary_memory(void **state)
{
	struct run r;

	(void)state;
	run_open(&r, case_open("cpu", 1));
	must_run(&r);
	assert_true(!r.q.x && !r.q.y && !r.q.passing);
	assert_int_equal(stub.takes, 0);
	assert_int_equal(stub.copies, 0);
	run_close(&r);
}

/* --- failures ------------------------------------------------------------------------------------------------- */

/* A backend that is lost is no reason to go on with files. */
static void test_lost_backend(void **state)
{
	(void)state;
	for (size_t nth = 1; nth <= 2; nth++) {
		struct err err = ERR_INIT;
		struct run r;

		run_open(&r, sealed());
		stub.refuse_take = nth;
		stub.code = ERR_UNAVAILABLE;
		assert_int_equal(run_init(&r, &err), -1);
		assert_int_equal(err.code, ERR_UNAVAILABLE);
		run_close(&r);
	}
}

static void test_out_of_ordinary_memory(void **state)
{
	struct err err = ERR_INIT;
	struct run r;

	(void)state;
	run_open(&r, sealed());
	stub.refuse_take = 1;
	stub.code = ERR_NOMEM;
	mem_fail_after(1);
	assert_int_equal(run_init(&r, &err), -1);
	mem_fail_after(0);
	assert_int_equal(err.code, ERR_NOMEM);
	run_close(&r);
}

static void test_too_large(void **state)
{
	struct err err = ERR_INIT;
	struct run r;
	size_t width;

	(void)state;
	run_open(&r, sealed());
	/* More than there can be goes to the file. */
	must(layer_sequences_init(&r.q, r.be, &r.shards, &r.file, SIZE_MAX / FLOATS, BESIDE, &err), &err);
	assert_true(!r.q.x && r.q.passing);
	assert_int_equal(stub.takes, 0);
	layer_sequences_deinit(&r.q);
	width = r.shards.width;
	r.shards.width = SIZE_MAX / 2;
	assert_int_equal(run_init(&r, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	r.shards.width = width;
	run_close(&r);
}

static int run_all(struct run *r, struct err *err)
{
	return run_init(r, err) == 0 && put_all(r, err) == 0 && read_all(r, err) == 0 ? 0 : -1;
}

/* Each copy fails once. */
static void test_copies_fail(void **state)
{
	(void)state;
	for (int files = 0; files < 2; files++) {
		size_t failures = 0;
		int rc = -1;

		for (size_t nth = 1; rc != 0; nth++) {
			struct err err = ERR_INIT;
			struct run r;

			run_open(&r, sealed());
			stub.refuse_take = files ? 1 : 0;
			stub.code = ERR_NOMEM;
			stub.refuse_copy = nth;
			rc = run_all(&r, &err);
			if (rc != 0)
				assert_int_equal(err.code, ERR_UNAVAILABLE);
			failures += rc != 0;
			run_close(&r);
		}
		assert_int_equal(failures, files ? USED + 16 : 6);
	}
}

/* Each read and write of a file fails once. */
static void test_files_fail(void **state)
{
	static const enum file_op ops[] = { FILE_READ, FILE_WRITE };

	(void)state;
	for (int own = 0; own < 2; own++)
		for (int k = 0; k < 2; k++) {
			size_t failures = 0;
			int rc = -1;

			for (uint64_t nth = 1; rc != 0; nth++) {
				struct err err = ERR_INIT;
				struct run r;

				run_open(&r, own ? sealed() : case_open("cpu", 1));
				stub.refuse_take = 1;
				stub.code = ERR_NOMEM;
				file_fail_after(ops[k], nth);
				rc = run_all(&r, &err);
				file_fail_after(ops[k], 0);
				if (rc != 0)
					assert_true(err.code == ERR_IO || err.code == ERR_NOSPC);
				failures += rc != 0;
				run_close(&r);
			}
			assert_true(failures >= (ops[k] == FILE_READ ? 16 : own ? USED : 3));
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_on_the_backend),
		cmocka_unit_test(test_no_room),
		cmocka_unit_test(test_ordinary_memory),
		cmocka_unit_test(test_lost_backend),
		cmocka_unit_test(test_out_of_ordinary_memory),
		cmocka_unit_test(test_too_large),
		cmocka_unit_test(test_copies_fail),
		cmocka_unit_test(test_files_fail),
	};

	return cmocka_run_group_tests(tests, make_shards, free_shards);
}
