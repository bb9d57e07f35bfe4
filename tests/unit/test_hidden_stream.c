/* Hidden states through a backend piece by piece while others are read and written: the same bytes, every failure
 * told, every thread ended. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/hidden_stream.h"

enum { SHARDS_MAX = 4 };

struct stream_case {
	const char *name;
	size_t shard[SHARDS_MAX];       /* sequences of each, 0: no more */
	size_t seq_len, width, piece, length, cut[2], chunk;
};

static struct backend *backend;

/* --- shards ------------------------------------------------------------------------------------------ */

static struct task_input inputs[SHARDS_MAX];
static char names[SHARDS_MAX][32];
static struct task_env env;
static float *rows;                     /* of all shards */
static size_t floats;

/* Writes the shards of the case; what is in them is in `rows`. */
static void make_shards(const struct stream_case *c, const char *prefix)
{
	const size_t sequence = c->seq_len * c->width;
	struct err err = ERR_INIT;
	size_t total = 0, at = 0;

	free(rows);
	env = (struct task_env){ .inputs = inputs };
	while (env.input_count < SHARDS_MAX && c->shard[env.input_count] > 0)
		total += c->shard[env.input_count++];
	floats = total * sequence;
	rows = case_random(floats, 1, floats + c->piece);
	for (size_t i = 0; i < env.input_count; i++) {
		struct tensor_file f;

		snprintf(names[i], sizeof(names[i]), "%s-%zu", prefix, i);
		inputs[i] = (struct task_input){ .name = names[i], .path = names[i] };
		if (hidden_file_create(&f, names[i], c->shard[i], c->seq_len, c->width, &err) != 0 ||
		    hidden_file_write(&f, 0, c->shard[i], rows + at * sequence, &err) != 0)
			fail_msg("%s", err.text);
		tensor_file_close(&f);
		at += c->shard[i];
	}
}

static struct hidden_stream_config config_of(const struct stream_case *c, struct hidden_shards *in, const char *out)
{
	return (struct hidden_stream_config){
		.backend = backend, .in = in, .piece = c->piece, .cut = { c->cut[0], c->cut[1] }, .chunk = c->chunk,
		.length = c->length ? c->length : hidden_shards_total(in), .out_path = out,
	};
}

/* --- one run --------------------------------------------------------------------------------------------- */

/* What a run gave. */
struct told {
	size_t pieces, sequences;
};

/* Every piece: y = x, after a look at x and the backend having had something to do. */
static int pass_on(const struct stream_case *c, const struct hidden_piece *p, struct err *err)
{
	const size_t sequence = c->seq_len * c->width, bytes = p->count * sequence * sizeof(float);
	float *seen = malloc(bytes + 1);
	int rc;

	assert_non_null(seen);
	rc = backend->ops->memory_copy(backend, seen, p->x, bytes, err);
	if (rc == 0)
		assert_memory_equal(seen, rows + p->first * sequence, bytes);
	if (rc == 0 && p->y)
		rc = backend->ops->memory_copy(backend, p->y, p->x, bytes, err);
	free(seen);
	return rc;
}

static int go_through(const struct stream_case *c, struct hidden_stream *s, size_t stop_after, struct told *told,
		      struct err *err)
{
	while (hidden_stream_more(s) && told->pieces < stop_after) {
		struct hidden_piece p;

		if (hidden_stream_next(s, &p, err) != 0)
			return -1;
		assert_int_equal(p.first, told->sequences);
		assert_in_range(p.count, 1, c->piece);
		assert_int_equal(p.y != NULL, s->config.out_path != NULL);
		if (pass_on(c, &p, err) != 0)
			return -1;
		told->pieces++;
		told->sequences += p.count;
	}
	if (hidden_stream_more(s) || !s->config.out_path)
		return 0;
	return hidden_stream_finish(s, err);
}

/* out: NULL for none. -1 with err set. */
static int run(const struct stream_case *c, const char *out, size_t stop_after, struct told *told, struct err *err)
{
	struct hidden_stream_config config;
	struct hidden_shards shards;
	struct hidden_stream s;
	int rc;

	*told = (struct told){ 0 };
	if (hidden_shards_open(&shards, &env, err) != 0)
		return -1;
	config = config_of(c, &shards, out);
	rc = hidden_stream_open(&s, &config, err);
	if (rc == 0) {
		rc = go_through(c, &s, stop_after, told, err);
		hidden_stream_close(&s);
	}
	hidden_shards_close(&shards);
	return rc;
}

/* The file holds the sequences of the run and nothing else. */
static void check_file(const struct stream_case *c, const char *path, const struct told *told)
{
	const size_t n = told->sequences * c->seq_len * c->width;
	float *back = case_poisoned(n);
	struct tensor_file f;
	struct err err = ERR_INIT;
	uint64_t bytes;

	if (hidden_file_open(&f, path, &err) != 0)
		fail_msg("%s", err.text);
	assert_int_equal(f.sequences, told->sequences);
	assert_int_equal(f.seq_len, c->seq_len);
	assert_int_equal(f.width, c->width);
	assert_int_equal(file_size(path, &bytes, &err), 0);
	assert_int_equal(bytes, f.data_start + n * sizeof(*back));
	assert_int_equal(hidden_file_read(&f, 0, f.sequences, back, &err), 0);
	if (n > 0)
		assert_memory_equal(back, rows, n * sizeof(*back));
	free(back);
	tensor_file_close(&f);
}

/* --- the right bytes ------------------------------------------------------------------------------------- */

static const struct stream_case cases[] = {
	{ .name = "one piece", .shard = { 3 }, .seq_len = 5, .width = 7, .piece = 3, .chunk = 64 },
	{ .name = "one sequence", .shard = { 1 }, .seq_len = 1, .width = 1, .piece = 9, .chunk = 1 },
	{ .name = "two pieces", .shard = { 4 }, .seq_len = 16, .width = 8, .piece = 2, .chunk = 1000 },
	{ .name = "an odd last one", .shard = { 7 }, .seq_len = 16, .width = 8, .piece = 3, .chunk = 100 },
	{ .name = "many pieces", .shard = { 40 }, .seq_len = 3, .width = 11, .piece = 1, .chunk = 17 },
	{ .name = "three shards", .shard = { 5, 1, 8 }, .seq_len = 9, .width = 10, .piece = 4, .chunk = 333 },
	{ .name = "cut short", .shard = { 5, 6 }, .seq_len = 9, .width = 10, .piece = 4, .length = 7, .chunk = 4096 },
	{ .name = "borders", .shard = { 12, 3 }, .seq_len = 4, .width = 4, .piece = 5, .cut = { 7, 2 }, .chunk = 50 },
	{ .name = "borders behind the end", .shard = { 6 }, .seq_len = 4, .width = 4, .piece = 4, .cut = { 6, 100 } },
	{ .name = "chunks of their own size", .shard = { 3, 2 }, .seq_len = 512, .width = 3000, .piece = 3 },
};

static const size_t pieces[] = { 1, 1, 2, 3, 40, 5, 3, 4, 2, 2 };

static void test_bytes(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct stream_case *c = &cases[i];
		struct told told, again;
		struct err err = ERR_INIT;

		make_shards(c, "hidden");
		if (run(c, "out", SIZE_MAX, &told, &err) != 0)
			fail_msg("%s: %s", c->name, err.text);
		check_file(c, "out", &told);
		if (told.pieces != pieces[i])
			fail_msg("%s: %zu pieces, not %zu", c->name, told.pieces, pieces[i]);
		assert_int_equal(told.sequences, c->length ? c->length : floats / c->seq_len / c->width);
		if (run(c, NULL, SIZE_MAX, &again, &err) != 0)
			fail_msg("%s: %s", c->name, err.text);
		assert_int_equal(again.pieces, told.pieces);
		assert_int_equal(again.sequences, told.sequences);
	}
}

/* An input without sequences gives an output without. */
static void test_nothing(void **state)
{
	struct task_input in = { .name = "hidden", .path = "empty" };
	struct task_env alone = { .inputs = &in, .input_count = 1 };
	const struct stream_case c = { .seq_len = 8, .width = 4, .piece = 4 };
	struct hidden_stream_config config;
	struct hidden_shards shards;
	struct hidden_stream s;
	struct tensor_file f;
	struct told told = { 0 };
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(hidden_file_create(&f, "empty", 0, 8, 4, &err), 0);
	tensor_file_close(&f);
	if (hidden_shards_open_only(&shards, &alone, "hidden", &err) != 0)
		fail_msg("%s", err.text);
	config = config_of(&c, &shards, "out");
	assert_int_equal(hidden_stream_open(&s, &config, &err), 0);
	assert_false(hidden_stream_more(&s));
	assert_int_equal(hidden_stream_finish(&s, &err), 0);
	hidden_stream_close(&s);
	hidden_shards_close(&shards);
	check_file(&c, "out", &told);
	in.name = "other";
	assert_int_equal(hidden_shards_open_only(&shards, &alone, "hidden", &err), -1);
	assert_string_equal(err.text, "the task lacks input 'hidden'");
}

/* Sequences of no tokens, or of no width: a file from elsewhere may claim them, and nobody divides by them. */
static void test_sequences_of_nothing(void **state)
{
	static const struct { size_t seq_len, width; const char *said; } rows[] = {
		{ 0, 4, "nothing holds sequences of (0, 4); both must be at least 1" },
		{ 8, 0, "nothing holds sequences of (8, 0); both must be at least 1" },
	};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct tensor_file f;
		struct err err = ERR_INIT;

		assert_int_equal(hidden_file_create(&f, "nothing", 2, rows[i].seq_len, rows[i].width, &err), 0);
		tensor_file_close(&f);
		assert_int_equal(hidden_file_open(&f, "nothing", &err), -1);
		assert_int_equal(err.code, ERR_CORRUPT);
		assert_string_equal(err.text, rows[i].said);
		assert_int_equal(f.fd, -1);
	}
}

/* Parts by bytes, and none beyond the end. */
static void test_parts(void **state)
{
	static const struct { size_t first; uint64_t from; size_t len; } wrong[] = {
		{ 0, 0, 61 }, { 0, 61, 0 }, { 0, 60, 1 }, { 2, 0, 21 }, { 2, 21, 0 }, { 3, 0, 1 }, { 4, 0, 0 },
		{ SIZE_MAX, 0, 1 }, { 0, UINT64_MAX, 2 }, { 0, 1, SIZE_MAX },
	};
	float values[15], back[15] = { 0 };
	struct tensor_file f;
	struct err err = ERR_INIT;

	(void)state;
	for (int i = 0; i < 15; i++)
		values[i] = (float)i;
	assert_int_equal(hidden_file_create(&f, "parts", 3, 1, 5, &err), 0);
	assert_int_equal(hidden_file_write_part(&f, 1, 0, 40, values + 5, &err), 0);
	assert_int_equal(hidden_file_write_part(&f, 0, 7, 13, (const char *)values + 7, &err), 0);
	assert_int_equal(hidden_file_write_part(&f, 0, 0, 7, values, &err), 0);
	assert_int_equal(hidden_file_write_part(&f, 3, 0, 0, values, &err), 0);
	assert_int_equal(hidden_file_read_part(&f, 1, 3, 37, (char *)back + 23, &err), 0);
	assert_int_equal(hidden_file_read_part(&f, 0, 0, 23, back, &err), 0);
	assert_memory_equal(back, values, sizeof(back));
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(hidden_file_read_part(&f, wrong[i].first, wrong[i].from, wrong[i].len, back, &err), -1);
		assert_int_equal(err.code, ERR_CORRUPT);
		assert_non_null(strstr(err.text, "parts holds 3 sequences"));
		err_clear(&err);
		assert_int_equal(hidden_file_write_part(&f, wrong[i].first, wrong[i].from, wrong[i].len, back, &err), -1);
		assert_int_equal(err.code, ERR_CORRUPT);
	}
	tensor_file_close(&f);
}

/* --- failures ---------------------------------------------------------------------------------------------- */

static const struct stream_case long_one = { .name = "long", .shard = { 9, 9 }, .seq_len = 16, .width = 16, .piece = 2,
					     .chunk = 500 };

static void test_abandoned(void **state)
{
	struct told told;
	struct err err = ERR_INIT;

	(void)state;
	make_shards(&long_one, "hidden");
	for (size_t after = 0; after < 10; after++) {
		assert_int_equal(run(&long_one, after % 2 ? "out" : NULL, after, &told, &err), 0);
		assert_int_equal(told.pieces, after);
	}
}

static void test_truncated(void **state)
{
	const struct stream_case c = { .shard = { 9 }, .seq_len = 16, .width = 16, .piece = 2, .chunk = 500 };
	struct hidden_stream_config config;
	struct hidden_shards shards;
	struct hidden_stream s;
	struct told told = { 0 };
	struct err err = ERR_INIT;

	(void)state;
	make_shards(&c, "hidden");
	assert_int_equal(hidden_shards_open(&shards, &env, &err), 0);
	assert_int_equal(truncate("hidden-0", 16 * 16 * 4 * 5), 0);
	config = config_of(&c, &shards, "out");
	assert_int_equal(hidden_stream_open(&s, &config, &err), 0);
	assert_int_equal(go_through(&c, &s, SIZE_MAX, &told, &err), -1);
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_non_null(strstr(err.text, "hidden-0 ends at byte 5120"));
	hidden_stream_close(&s);
	hidden_shards_close(&shards);
	assert_int_equal(told.pieces, 2);
}

/* Each failure of its kind comes out, until there is none; then the file is right. How often it failed. */
static size_t fail_each(enum file_op op, enum err_code code)
{
	size_t failures = 0;

	for (uint64_t n = 1;; n++) {
		struct told told;
		struct err err = ERR_INIT;
		int rc;

		file_fail_after(op, n);
		rc = run(&long_one, "out", SIZE_MAX, &told, &err);
		file_fail_after(op, 0);
		if (rc == 0) {
			check_file(&long_one, "out", &told);
			return failures;
		}
		assert_int_equal(err.code, code);
		if (!strstr(err.text, "hidden-") && !strstr(err.text, "out"))
			fail_msg("\"%s\" names no file", err.text);
		failures++;
	}
}

static void test_failing_files(void **state)
{
	(void)state;
	make_shards(&long_one, "hidden");
	assert_in_range(fail_each(FILE_READ, ERR_IO), 40, 80);
	assert_in_range(fail_each(FILE_WRITE, ERR_NOSPC), 40, 60);
	assert_in_range(fail_each(FILE_OPEN, ERR_IO), 4, 12);
}

/* A file that may not grow: the threads are told by the call, not by a signal. */
static void test_file_too_large(void **state)
{
	struct rlimit before, limit;
	struct told told;
	struct err err = ERR_INIT;
	int rc;

	(void)state;
	make_shards(&long_one, "hidden");
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	limit = before;
	limit.rlim_cur = 6000;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	rc = run(&long_one, "out", SIZE_MAX, &told, &err);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(rc, -1);
	assert_int_equal(err.code, ERR_IO);
	assert_non_null(strstr(err.text, "cannot write out: File too large"));
}

static void test_failing_memory(void **state)
{
	size_t failures = 0;

	(void)state;
	make_shards(&long_one, "hidden");
	for (uint64_t n = 1;; n++) {
		struct told told;
		struct err err = ERR_INIT;
		int rc;

		mem_fail_after(n);
		rc = run(&long_one, "out", SIZE_MAX, &told, &err);
		mem_fail_after(0);
		if (rc == 0) {
			check_file(&long_one, "out", &told);
			break;
		}
		failures++;
		assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_in_range(failures, 15, 200);
}

/* No room for the stacks of the threads. */
static void test_no_threads(void **state)
{
	pthread_attr_t before, large;
	struct told told;
	struct err err = ERR_INIT;
	int rc;

	(void)state;
	make_shards(&long_one, "hidden");
	assert_int_equal(pthread_getattr_default_np(&before), 0);
	assert_int_equal(pthread_attr_init(&large), 0);
	assert_int_equal(pthread_attr_setstacksize(&large, (size_t)1 << 48), 0);
	assert_int_equal(pthread_setattr_default_np(&large), 0);
	rc = run(&long_one, "out", SIZE_MAX, &told, &err);
	assert_int_equal(pthread_setattr_default_np(&before), 0);
	assert_int_equal(rc, -1);
	assert_int_equal(err.code, ERR_UNAVAILABLE);
	assert_non_null(strstr(err.text, "cannot start a thread to read hidden states"));
	pthread_attr_destroy(&before);
	pthread_attr_destroy(&large);
	assert_int_equal(run(&long_one, "out", SIZE_MAX, &told, &err), 0);
	check_file(&long_one, "out", &told);
}

static int open_backend(void **state)
{
	(void)state;
	backend = case_open(tested_backend(), 2);
	return 0;
}

static int close_backend(void **state)
{
	(void)state;
	free(rows);
	case_close(backend);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_sequences_of_nothing),
		cmocka_unit_test(test_parts),
		cmocka_unit_test(test_abandoned),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_failing_files),
		cmocka_unit_test(test_file_too_large),
		cmocka_unit_test(test_failing_memory),
		cmocka_unit_test(test_no_threads),
	};

	return cmocka_run_group_tests_name("hidden stream", tests, open_backend, close_backend);
}
