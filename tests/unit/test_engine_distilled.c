/* A job with distillation in the engine: many outputs of one task, how long they live, and how long it all takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "tests/lib/engine_case.h"

static struct engine_case c;

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
}

static int64_t blob_count(void)
{
	struct json *body = play_call(&c, VERB_STATS, "", 200, NULL);
	int64_t count = json_get_int(json_get(body, "blobs"), "count", -1);

	json_free(body);
	return count;
}

static bool output_stored(const char *sha256)
{
	return blobs_has(c.blobs, sha256, NULL);
}

/* --- outputs ------------------------------------------------------------------ */

/* The digests of the inputs whose names start so; how many. */
static int inputs_of(const struct play_lease *l, const char *prefix, char sha256[8][80])
{
	int count = 0;

	for (const struct json *i = json_first(json_get(l->json, "inputs")); i; i = json_next(i))
		if (count < 8 && strncmp(json_get_string(i, "name", ""), prefix, strlen(prefix)) == 0)
			snprintf(sha256[count++], 80, "%s", json_get_string(i, "sha256", ""));
	return count;
}

static void expect_stored(int count, char sha256[8][80], bool stored)
{
	for (int i = 0; i < count; i++)
		assert_int_equal(output_stored(sha256[i]), stored);
}

static void distilled_layers_take_the_place_of_quantized_ones(void **state)
{
	char job[64], worker[64], before[8][80], targets[8][80], after[8][80];
	int evaluated = 0;
	struct play_lease l;

	(void)state;
	start("distilled");
	play_submit(&c, job, play_distilled_recipe);
	play_worker(&c, worker, "one");
	while (play_lease(&c, worker, &l)) {
		bool distills = strcmp(l.kind, "distill") == 0;

		if (distills) {
			assert_int_equal(inputs_of(&l, "layer-", before), 4);
			assert_int_equal(inputs_of(&l, "target-", targets), 1);
			expect_stored(4, before, true);
			expect_stored(1, targets, true);
		}
		if (inputs_of(&l, "reference", after) == 1) { /* the original's hidden states wait for this task alone */
			play_complete(&c, &l, 200);
			expect_stored(1, after, false);
			evaluated++;
		} else {
			play_complete(&c, &l, 200);
		}
		if (distills) {
			expect_stored(4, before, false);
			expect_stored(1, targets, false);
		} else if (inputs_of(&l, "layer-", after) == 4) {
			for (int i = 0; i < 4; i++)
				assert_string_not_equal(after[i], before[i]);
		}
		play_lease_drop(&l);
	}
	assert_int_equal(evaluated, 1);
	assert_string_equal(play_job_state(&c, job), "DONE");
	expect_stored(4, after, false); /* the last assemble read them */
	assert_int_equal(blob_count(), 2 + 2 + 2 + 1 + 2 + 3);
	play_close(&c);
}

static void every_output_is_handed_in(void **state)
{
	static const char part[] = "'outputs':[{'name':'layer-0','sha256':'%s','bytes':4}]";
	char job[64], worker[64], hex[DIGEST_HEX], outputs[256];
	struct play_lease l;

	(void)state;
	start("every-output");
	play_submit(&c, job, play_distilled_recipe);
	play_worker(&c, worker, "one");
	while (play_lease(&c, worker, &l) && strcmp(l.kind, "distill") != 0) {
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	assert_int_equal(blobs_put(c.blobs, "some", 4, hex, NULL), 0);
	json_free(play_call(&c, VERB_BLOB_ADD, hex, 201, "{'sha256':'%s','bytes':4}", hex));
	snprintf(outputs, sizeof(outputs), part, hex);
	assert_non_null(strstr(play_refused(&c, VERB_COMPLETE, l.task, ERR_INVALID,
					    "{'worker':'%s','epoch':%d,%s,'result':{},'stats':{}}", l.worker,
					    (int)l.epoch, outputs), "this distill task hands in 4 outputs, not 1"));
	assert_non_null(strstr(play_refused(&c, VERB_COMPLETE, l.task, ERR_INVALID,
					    "{'worker':'%s','epoch':%d,'outputs':[{'name':'layer-0','sha256':'%s','bytes':4},{},{},{}],"
					    "'result':{},'stats':{}}", l.worker, (int)l.epoch, hex), "\"layer-1\""));
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- times -------------------------------------------------------------------- */

/* The dry run's member "estimate"; the caller's. */
static struct json *estimate_of(const char *recipe)
{
	struct json *plan, *estimate;

	play_dry_run = true;
	plan = play_call(&c, VERB_JOB_SUBMIT, "", 200, "{'model':'%s','recipe':%s}", play_model(&c), recipe);
	play_dry_run = false;
	estimate = json_copy(json_get(plan, "estimate"));
	json_free(plan);
	return estimate;
}

static void a_dry_run_knows_what_the_workers_did(void **state)
{
	static const char recipe[] = "{'bits':2,'samples':128,'seq_len':512,'eval':'none'}";
	char job[64], worker[64], *text;
	struct json *e, *report;
	struct play_lease l;
	double seconds = 0;
	size_t len;

	(void)state;
	start("estimate");
	e = estimate_of(recipe);
	assert_int_equal(json_get_int(e, "workers", 0), 1); /* nobody is there: this machine is assumed */
	assert_false(json_get_bool(e, "measured", true));
	json_free(e);
	play_worker(&c, worker, "one");
	play_submit(&c, job, recipe);
	while (play_lease(&c, worker, &l)) {
		c.now_ms += 3000;
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
		seconds += 3;
	}
	e = estimate_of(recipe);
	assert_int_equal(json_get_int(e, "threads", 0), 1);
	assert_true(json_get_bool(e, "measured", false));
	/* The same again takes as long, but for tasks too small to tell of speed. */
	assert_true(json_get_number(e, "seconds", 0) > seconds / 2 && json_get_number(e, "seconds", 0) < seconds * 1.1);
	json_free(e);
	text = play_file(&c, job, "report.json", &len);
	report = json_parse(text, len, NULL);
	assert_true(json_get_number(json_get(report, "run"), "seconds", 0) == seconds);
	assert_true(json_get_number(json_get(report, "run"), "predicted_seconds", 0) > 0);
	json_free(report);
	mem_free(text);
	c.now_ms += 3600 * 1000; /* the worker is gone, and with it what it did */
	e = estimate_of(recipe);
	assert_false(json_get_bool(e, "measured", true));
	json_free(e);
	play_close(&c);
}

static void a_dry_run_knows_devices(void **state)
{
	static const char recipe[] = "{'bits':2,'samples':128,'seq_len':512,'eval':'none','effort':'fast'}";
	static const char one[] = "{'name':'%s','backend':'%s','identity':'i','threads':4,'device':%s}";
	static const char device[] = "{'number':0,'name':'GPU','driver':'','clock_mhz':0,'memory_bytes':1}";
	struct json *e;
	double alone, with;

	(void)state;
	start("devices");
	json_free(play_call(&c, VERB_WORKER_ADD, "", 201, one, "plain", "cpu", "null"));
	e = estimate_of(recipe);
	assert_int_equal(json_get_int(e, "devices", -1), 0);
	alone = json_get_number(e, "seconds", 0);
	json_free(e);
	json_free(play_call(&c, VERB_WORKER_ADD, "", 201, one, "gpu", "cuda", device));
	e = estimate_of(recipe);
	assert_int_equal(json_get_int(e, "workers", 0), 2);
	assert_int_equal(json_get_int(e, "threads", 0), 8);
	assert_int_equal(json_get_int(e, "devices", -1), 1);
	assert_false(json_get_bool(e, "measured", true));
	with = json_get_number(e, "seconds", 0);
	if (!(with > 0 && 3 * with < alone)) /* a second worker of the same kind would at most halve it */
		fail_msg("%g s with a device, %g s without", with, alone);
	json_free(e);
	play_close(&c);
}

/* While only files were read, the time left is that of a forecast: how long they took says nothing of the products. */
static void the_time_left_begins_as_forecast(void **state)
{
	static const char recipe[] = "{'bits':2,'samples':128,'seq_len':512,'eval':'none','effort':'fast'}";
	char worker[64], job[64];
	struct play_lease l;
	struct json *e, *view;
	double forecast, left;

	(void)state;
	start("left");
	play_worker(&c, worker, "one");
	e = estimate_of(recipe);
	forecast = json_get_number(e, "seconds", 0);
	json_free(e);
	play_submit(&c, job, recipe);
	view = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	assert_true(json_get_number(view, "eta_seconds", -1) == -1); /* nothing is done */
	json_free(view);
	while (play_lease(&c, worker, &l) && strcmp(l.kind, "capture") != 0) {
		c.now_ms += 1000; /* far longer than it should */
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	assert_string_equal(l.kind, "capture");
	play_lease_drop(&l);
	view = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	left = json_get_number(view, "eta_seconds", -1);
	if (!(left > forecast / 2 && left < 1.5 * forecast))
		fail_msg("%g s left, where the forecast was %g s", left, forecast);
	json_free(view);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(distilled_layers_take_the_place_of_quantized_ones),
		cmocka_unit_test(every_output_is_handed_in),
		cmocka_unit_test(a_dry_run_knows_what_the_workers_did),
		cmocka_unit_test(a_dry_run_knows_devices),
		cmocka_unit_test(the_time_left_begins_as_forecast),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
