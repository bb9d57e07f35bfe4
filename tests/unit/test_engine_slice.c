/* One job from registration to its files, by verbs alone; its result files; and that they do not depend on who did
 * what when. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "tests/lib/engine_case.h"

static struct json *parse_file(struct engine_case *c, const char *job, const char *path)
{
	struct err err = ERR_INIT;
	size_t len;
	char *text = play_file(c, job, path, &len);
	struct json *value = json_parse(text, len, &err);

	if (!value)
		fail_msg("%s: %s", path, err.text);
	mem_free(text);
	return value;
}

static void a_whole_job(void **state)
{
	struct engine_case c = { .data_dir = "slice" };
	char job[64], worker[64];
	struct json *body;

	(void)state;
	play_open(&c);
	play_submit(&c, job, play_small_recipe);
	assert_string_equal(play_job_state(&c, job), "RUNNING");
	play_worker(&c, worker, "one");
	assert_int_equal(play_drain(&c, worker), 2 + 2 + 1 + 3 + 4 + 2 + 2);
	body = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	assert_string_equal(json_get_string(body, "state", ""), "DONE");
	assert_true(json_get_number(body, "progress", 0) == 1);
	assert_int_equal(json_get_int(json_get(body, "tasks"), "DONE", 0), 16);
	assert_int_equal(json_size(json_get(body, "layers")), 4);
	assert_int_equal(json_size(json_get(json_at(json_get(body, "layers"), 2), "modules")), 7);
	assert_string_equal(json_get_string(json_at(json_get(body, "perplexity"), 0), "text", ""), "evaluation.txt");
	assert_true(json_get_number(json_at(json_get(body, "perplexity"), 0), "quantized", 0) > 20);
	assert_int_equal(json_size(json_get(body, "warnings")), 1);
	assert_int_equal(json_type(json_get(body, "failure")), JSON_NULL);
	json_free(body);
	play_close(&c);
}

static void files_of_a_job(void **state)
{
	static const char *const wanted[] = {
		"dense/README.md", "dense/config.json", "dense/generation_config.json",
		"dense/model-00001-of-00004.safetensors", "dense/model-00002-of-00004.safetensors",
		"dense/model-00003-of-00004.safetensors", "dense/model-00004-of-00004.safetensors",
		"dense/model.safetensors.index.json", "dense/tokenizer.json", "dense/tokenizer_config.json",
		"packed/README.md", "packed/config.json", "packed/generation_config.json",
		"packed/model.safetensors", "packed/tokenizer.json", "packed/tokenizer_config.json", "report.json",
	};
	struct engine_case c = { .data_dir = "files" };
	char job[64], worker[64], *text;
	struct json *body, *index;
	const struct json *f;
	size_t i = 0, len;

	(void)state;
	play_open(&c);
	play_submit(&c, job, "{'bits':2,'group_size':64,'samples':8,'seq_len':64,'max_shard_size':1000000}");
	play_worker(&c, worker, "one");
	play_drain(&c, worker);
	body = play_call(&c, VERB_JOB_FILES, job, 200, NULL);
	for (f = json_first(json_get(body, "items")); f; f = json_next(f), i++)
		assert_string_equal(json_get_string(f, "path", ""), wanted[i]);
	assert_int_equal(i, sizeof(wanted) / sizeof(wanted[0]));
	json_free(body);
	index = parse_file(&c, job, "dense/model.safetensors.index.json");
	assert_string_equal(json_get_string(json_get(index, "weight_map"), "model.embed_tokens.weight", ""),
			    "model-00001-of-00004.safetensors");
	assert_int_equal(json_get_int(json_get(index, "metadata"), "total_size", 0), 3542400);
	assert_int_equal(json_size(json_get(index, "weight_map")), 38);
	json_free(index);
	text = play_file(&c, job, "dense/config.json", &len);
	assert_non_null(strstr(text, "\"rope_theta\": 10000.0")); /* numbers keep their text */
	assert_non_null(strstr(text, "\"dtype\": \"bfloat16\""));
	assert_null(strstr(text, "quantization_config"));
	mem_free(text);
	text = play_file(&c, job, "packed/config.json", &len);
	assert_non_null(strstr(text, "\"quant_method\":\"quarry\""));
	mem_free(text);
	play_refused(&c, VERB_JOB_FILES, "j_none", ERR_NOT_FOUND, NULL);
	body = play_call(&c, VERB_JOB_REPORT, job, 200, NULL);
	assert_int_equal(json_get_int(body, "version", 0), 1);
	assert_int_equal(json_size(json_get(body, "modules")), 28);
	assert_int_equal(json_size(json_get(body, "fallbacks")), 1);
	assert_string_equal(json_get_string(json_get(body, "recipe"), "calibration", ""), "calibration.jsonl");
	json_free(body);
	play_close(&c);
}

/* Everything but "run" and what the report's digest decides. */
static char *fingerprint(struct engine_case *c, const char *job)
{
	struct json *list = play_call(c, VERB_JOB_FILES, job, 200, NULL), *report;
	struct buf out;
	char *text;

	buf_init(&out, 1 << 20);
	for (const struct json *f = json_first(json_get(list, "items")); f; f = json_next(f))
		if (strcmp(json_get_string(f, "path", ""), "report.json") != 0)
			buf_printf(&out, "%s %s\n", json_get_string(f, "path", ""), json_get_string(f, "sha256", ""));
	report = parse_file(c, job, "report.json");
	assert_non_null(json_get(report, "run"));
	json_remove(report, "run");
	text = json_print(report, false);
	buf_puts(&out, text);
	mem_free(text);
	json_free(report);
	json_free(list);
	text = buf_take(&out);
	assert_non_null(text);
	return text;
}

/* Three workers in turn, two of them failing now and then, time passing. */
static void drain_crooked(struct engine_case *c)
{
	char workers[3][64];
	struct play_lease l;
	int turn = 0, idle = 0;

	for (int i = 0; i < 3; i++) {
		char name[16];

		snprintf(name, sizeof(name), "w%d", i);
		play_worker(c, workers[i], name);
	}
	while (idle < 6) {
		bool got = play_lease(c, workers[turn % 3], &l);

		turn++;
		idle = got ? 0 : idle + 1;
		c->now_ms += 1234;
		if (!got)
			continue;
		play_heartbeat(c, &l, 0.1, 200);
		if (turn % 7 == 0)
			json_free(play_call(c, VERB_FAIL, l.task, 200,
					    "{'worker':'%s','epoch':%d,'error':{'name':'io','detail':'planned'},'log':'x'}",
					    l.worker, (int)l.epoch));
		else
			play_complete(c, &l, 200);
		play_lease_drop(&l);
	}
}

static void bytes_do_not_depend_on_the_fleet(void **state)
{
	static const char recipe[] = "{'bits':3,'samples':16,'seq_len':512,'eval_windows':40,"
				     "'override':[{'match':'layers.0.*down','skip':true}]}";
	struct engine_case a = { .data_dir = "fleet-a" }, b = { .data_dir = "fleet-b", .now_ms = 777777, .random = 99 };
	char job_a[64], job_b[64], worker[64], *first, *second;

	(void)state;
	play_open(&a);
	play_submit(&a, job_a, recipe);
	play_worker(&a, worker, "only");
	play_drain(&a, worker);
	first = fingerprint(&a, job_a);
	play_open(&b);
	play_submit(&b, job_b, recipe);
	drain_crooked(&b);
	assert_string_equal(play_job_state(&b, job_b), "DONE");
	second = fingerprint(&b, job_b);
	assert_string_equal(first, second);
	mem_free(first);
	mem_free(second);
	play_close(&a);
	play_close(&b);
}

static void an_evaluate_job(void **state)
{
	struct engine_case c = { .data_dir = "evaluate" };
	char job[64], worker[64];
	struct json *body;

	(void)state;
	play_open(&c);
	play_submit(&c, job, "{'kind':'evaluate','seq_len':128}");
	play_worker(&c, worker, "one");
	assert_int_equal(play_drain(&c, worker), 2);
	assert_string_equal(play_job_state(&c, job), "DONE");
	body = play_call(&c, VERB_JOB_FILES, job, 200, NULL);
	assert_int_equal(json_size(json_get(body, "items")), 1);
	json_free(body);
	body = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	assert_int_equal(json_type(json_get(json_at(json_get(body, "perplexity"), 0), "quantized")), JSON_NULL);
	assert_int_equal(json_type(json_get(json_at(json_get(body, "perplexity"), 0), "original")), JSON_NUMBER);
	json_free(body);
	play_close(&c);
}

/* A disk that fails while the small files are written leaves the job for the next try. */
static void finishing_survives_io_errors(void **state)
{
	struct engine_case c = { .data_dir = "finish-io" };
	char job[64], worker[64];
	struct play_lease l;

	(void)state;
	play_open(&c);
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, worker, "one");
	for (int i = 0; i < 15; i++) {
		assert_true(play_lease(&c, worker, &l));
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	assert_true(play_lease(&c, worker, &l));
	{
		static char work[1 << 16];

		play_make_outputs(&c, &l, work, sizeof(work));
		file_fail_after(FILE_WRITE, 1);
		json_free(play_call(&c, VERB_COMPLETE, l.task, 200, "{'worker':'%s','epoch':1,%s,'stats':{}}", worker, work));
	}
	assert_string_equal(play_job_state(&c, job), "ASSEMBLING");
	for (enum file_op op = FILE_OPEN; op <= FILE_RENAME; op++) {
		if (op == FILE_READ)
			continue; /* an unreadable source file is the next test */
		c.now_ms += 1000; /* the report's "run" is new each time, so that there is something to write */
		file_fail_after(op, 1);
		engine_tick(c.engine);
		assert_string_equal(play_job_state(&c, job), "ASSEMBLING");
	}
	file_fail_after(FILE_OPEN, 0);
	engine_tick(c.engine);
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_lease_drop(&l);
	play_close(&c);
}

static void copy_folder(const char *from, const char *to)
{
	char command[9000];

	snprintf(command, sizeof(command), "mkdir -p '%s' && cp '%s'/* '%s'/", to, from, to);
	assert_int_equal(system(command), 0); /* NOLINT: a test's own paths */
}

static void a_carried_file_that_changed_fails_the_job(void **state)
{
	struct engine_case c = { .data_dir = "changed" };
	char job[64], worker[64], from[4200], here[4096], path[5000];
	struct err err = ERR_INIT;
	struct json *body, *model;

	(void)state;
	assert_non_null(realpath(".", here));
	snprintf(from, sizeof(from), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	copy_folder(from, "changing");
	play_open(&c);
	model = play_call(&c, VERB_MODEL_ADD, "", 201, "{'path':'%s/changing'}", here);
	body = play_call(&c, VERB_JOB_SUBMIT, "", 201, "{'model':'%s','recipe':%s}",
			 json_get_string(model, "model", ""), play_small_recipe);
	snprintf(job, sizeof(job), "%s", json_get_string(body, "job", ""));
	json_free(body);
	snprintf(path, sizeof(path), "%s/changing/tokenizer_config.json", here);
	assert_int_equal(file_write_atomic(path, "{}", 2, &err), 0);
	assert_non_null(strstr(play_refused(&c, VERB_JOB_SUBMIT, "", ERR_REFUSED, "{'model':'%s','recipe':{}}",
					    json_get_string(model, "model", "")), "register the folder again"));
	play_worker(&c, worker, "one");
	play_drain(&c, worker);
	body = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	assert_string_equal(json_get_string(body, "state", ""), "FAILED");
	assert_non_null(strstr(json_get_string(json_get(body, "failure"), "detail", ""), "tokenizer_config.json"));
	json_free(body);
	/* Put back what was there: a retry has nothing to do but finish. */
	copy_folder(from, "changing");
	json_free(play_call(&c, VERB_JOB_RETRY, job, 200, NULL));
	assert_string_equal(play_job_state(&c, job), "DONE");
	json_free(model);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_whole_job),
		cmocka_unit_test(files_of_a_job),
		cmocka_unit_test(bytes_do_not_depend_on_the_fleet),
		cmocka_unit_test(an_evaluate_job),
		cmocka_unit_test(finishing_survives_io_errors),
		cmocka_unit_test(a_carried_file_that_changed_fails_the_job),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
