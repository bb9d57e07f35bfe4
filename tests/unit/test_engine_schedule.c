/* Which task a worker gets: rank, waiting captures, cached inputs, tenants, age; and how fast. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/digest.h"
#include "tests/lib/engine_case.h"

static struct engine_case c;

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
}

static void note_order(struct buf *out, const struct play_lease *l)
{
	const struct json *spec = json_get(l->json, "spec");

	buf_printf(out, "%s", l->kind);
	if (json_get(spec, "layer"))
		buf_printf(out, "%d", (int)json_get_int(spec, "layer", -1));
	buf_puts(out, " ");
}

/* The order in which one worker gets everything. */
static char *whole_order(const char *dir, const char *recipe)
{
	char job[64], worker[64];
	struct play_lease l;
	struct buf out;
	char *text;

	start(dir);
	play_submit(&c, job, recipe);
	play_worker(&c, worker, "one");
	buf_init(&out, 1 << 16);
	while (play_lease(&c, worker, &l)) {
		note_order(&out, &l);
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	play_close(&c);
	text = buf_take(&out);
	assert_non_null(text);
	return text;
}

static void one_worker_gets_the_documented_order(void **state)
{
	char *order = whole_order("order", play_small_recipe);

	(void)state;
	assert_string_equal(order, "tokenize tokenize verify verify embed quantize0 capture0 quantize1 capture1 quantize2 "
				   "capture2 quantize3 evaluate evaluate assemble assemble ");
	mem_free(order);
	order = whole_order("order-distilled", play_distilled_recipe);
	assert_string_equal(order, "tokenize tokenize verify verify embed quantize0 capture0 quantize1 capture1 quantize2 "
				   "capture2 quantize3 capture3 distill evaluate evaluate assemble assemble ");
	mem_free(order);
}

static void the_sequential_order_alternates(void **state)
{
	char *order = whole_order("sequential", "{'bits':2,'samples':8,'seq_len':64,'propagate':'quantized','eval':'none',"
						"'effort':'fast'}");

	(void)state;
	assert_string_equal(order, "tokenize verify verify embed quantize0 capture0 quantize1 capture1 quantize2 capture2 "
				   "quantize3 assemble assemble ");
	mem_free(order);
	/* The original's own chain leads to the targets. */
	order = whole_order("sequential-distilled", "{'bits':2,'samples':8,'seq_len':64,'propagate':'quantized','eval':'none'}");
	assert_string_equal(order, "tokenize verify verify embed capture0 capture1 capture2 capture3 quantize0 capture0 "
				   "quantize1 capture1 quantize2 capture2 quantize3 distill assemble assemble ");
	mem_free(order);
}

static void expect(const char *worker, const char *kind, int layer, struct play_lease *l)
{
	assert_true(play_lease(&c, worker, l));
	assert_string_equal(l->kind, kind);
	assert_int_equal(json_get_int(json_get(l->json, "spec"), "layer", -1), layer);
}

/* Hidden states of a layer are kept while its quantize waits: captures must not run away. */
static void a_capture_waits_for_ready_quantizes(void **state)
{
	char job[64], worker[64];
	struct play_lease l, held;

	(void)state;
	start("waits");
	play_make_model(&c, "six-layers", 6);
	play_submit(&c, job, "{'bits':2,'group_size':8,'samples':8,'seq_len':64,'eval':'none'}");
	play_worker(&c, worker, "one");
	for (int i = 0; i < 3; i++) { /* tokenize, verify, embed */
		assert_true(play_lease(&c, worker, &l));
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	c.wakes = 0;
	expect(worker, "quantize", 0, &held); /* ready: capture(0) waits for it */
	assert_true(c.wakes > 0);
	expect(worker, "capture", 0, &l);     /* it is taken: the capture may go */
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	expect(worker, "quantize", 1, &l);
	play_lease_drop(&l);
	expect(worker, "capture", 1, &l);
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	expect(worker, "quantize", 2, &l);
	play_lease_drop(&l);
	play_lease_drop(&held);
	play_close(&c);
}

static void lease_with(const char *worker, const char *have, struct play_lease *out)
{
	memset(out, 0, sizeof(*out));
	out->json = play_call(&c, VERB_LEASE, "", 200, "{'worker':'%s','have':['%s']}", worker, have);
	snprintf(out->task, sizeof(out->task), "%s", json_get_string(out->json, "task", ""));
	snprintf(out->kind, sizeof(out->kind), "%s", json_get_string(out->json, "kind", ""));
	snprintf(out->worker, sizeof(out->worker), "%s", worker);
	out->epoch = json_get_int(out->json, "epoch", -1);
}

static void a_worker_gets_what_it_has_the_inputs_of(void **state)
{
	char job[64], worker[64], sha256[80] = "";
	struct play_lease l;
	int64_t shard;

	(void)state;
	start("affinity");
	play_submit(&c, job, "{'bits':2,'samples':64,'seq_len':64,'eval':'none'}"); /* four shards */
	play_worker(&c, worker, "one");
	for (int i = 0; i < 3 + 4 + 1; i++) { /* the last is quantize(0) */
		assert_true(play_lease(&c, worker, &l));
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	/* capture(0, 0..3) are ready; ask for the one whose hidden states we hold: shard 2. */
	for (int i = 0; i < 4 && !sha256[0]; i++) {
		assert_true(play_lease(&c, worker, &l));
		if (json_get_int(json_get(l.json, "spec"), "shard", -1) == 2)
			snprintf(sha256, sizeof(sha256), "%s",
				 json_get_string(json_at(json_get(l.json, "inputs"), 0), "sha256", ""));
		play_lease_drop(&l);
	}
	assert_true(sha256[0] != '\0');
	c.now_ms += 11000; /* none was accepted: all four are ready again */
	engine_tick(c.engine);
	lease_with(worker, sha256, &l);
	assert_string_equal(l.kind, "capture");
	shard = json_get_int(json_get(l.json, "spec"), "shard", -1);
	assert_int_equal(shard, 2);
	play_lease_drop(&l);
	lease_with(worker, sha256, &l); /* nobody reads it now: the oldest */
	assert_int_equal(json_get_int(json_get(l.json, "spec"), "shard", -1), 0);
	play_lease_drop(&l);
	play_close(&c);
}

static void tenants_share(void **state)
{
	char first[64], second[64], worker[64];
	struct play_lease l;
	int of_first = 0;

	(void)state;
	start("tenants");
	play_worker(&c, worker, "one");
	play_subject = "tenant-a";
	play_submit(&c, first, "{'bits':2,'samples':128,'seq_len':64,'eval':'none'}");
	play_subject = "tenant-b";
	play_submit(&c, second, "{'bits':3,'samples':128,'seq_len':64,'eval':'none'}");
	play_subject = NULL;
	for (int i = 0; i < 2 + 4; i++) { /* both tokenize and verify tasks, so that 2 x 8 embeds are ready */
		assert_true(play_lease(&c, worker, &l));
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	for (int i = 0; i < 6; i++) {
		assert_true(play_lease(&c, worker, &l));
		assert_string_equal(l.kind, "embed");
		of_first += strcmp(json_get_string(l.json, "job", ""), first) == 0;
		play_lease_drop(&l);
	}
	assert_int_equal(of_first, 3);
	play_close(&c);
}

static void a_lease_says_what_the_protocol_says(void **state)
{
	static const char *const keys[] = { "task", "epoch", "job", "kind", "lease_seconds", "accept_seconds", "spec",
					    "inputs", "model" };
	char job[64], worker[64];
	const struct json *model, *input, *file;
	struct play_lease l;
	int shards = 0;

	(void)state;
	start("lease-shape");
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, worker, "one");
	assert_true(play_lease(&c, worker, &l));
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		assert_non_null(json_get(l.json, keys[i]));
	input = json_first(json_get(l.json, "inputs"));
	assert_string_equal(json_get_string(input, "name", ""), "text");
	assert_true(digest_is_hex(json_get_string(input, "sha256", "")));
	assert_int_equal(json_get_int(input, "bytes", 0), 1131770);
	model = json_get(l.json, "model");
	assert_non_null(strstr(json_get_string(model, "path", ""), "fable-tiny"));
	for (file = json_first(json_get(model, "files")); file; file = json_next(file)) {
		assert_true(digest_is_hex(json_get_string(file, "header_sha256", "")));
		shards += json_type(json_get(file, "sha256")) == JSON_NULL;
	}
	assert_int_equal(shards, 2);
	play_lease_drop(&l);
	play_close(&c);
}

static double elapsed(const struct timespec *from, const struct timespec *to)
{
	return (double)(to->tv_sec - from->tv_sec) + (double)(to->tv_nsec - from->tv_nsec) / 1e9;
}

/* A job of 100,000 tasks; prints the speed, asserts only that the work gets done. */
static void many_tasks_are_leased_and_done(void **state)
{
	enum { PAIRS = 200 };
	char job[64], worker[64];
	struct timespec from, to;
	struct play_lease l;
	double seconds;

	(void)state;
	start("many");
	play_make_model(&c, "many-layers", 100);
	clock_gettime(CLOCK_MONOTONIC, &from);
	play_submit(&c, job, "{'bits':2,'group_size':8,'samples':16000,'seq_len':16,'eval':'none'}");
	play_worker(&c, worker, "one");
	clock_gettime(CLOCK_MONOTONIC, &to);
	print_message("# planned and stored 100,000 tasks in %.1f s\n", elapsed(&from, &to));
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < PAIRS; i++) {
		assert_true(play_lease(&c, worker, &l));
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	seconds = elapsed(&from, &to);
	print_message("# %d lease and complete pairs one by one, each durable: %.0f a second\n", PAIRS, PAIRS / seconds);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_worker_gets_the_documented_order),
		cmocka_unit_test(the_sequential_order_alternates),
		cmocka_unit_test(a_capture_waits_for_ready_quantizes),
		cmocka_unit_test(a_worker_gets_what_it_has_the_inputs_of),
		cmocka_unit_test(tenants_share),
		cmocka_unit_test(a_lease_says_what_the_protocol_says),
		cmocka_unit_test(many_tasks_are_leased_and_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
