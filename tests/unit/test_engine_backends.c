/* What the coordinator knows of backends: the devices of its workers, who held a task before, what the
 * report says of it, and what a lost device costs a task. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/engine_case.h"

static struct engine_case c;
static char job[64], one[64], two[64];

static void add_worker(char out[64], const char *name, const char *backend, const char *identity)
{
	struct json *body = play_call(&c, VERB_WORKER_ADD, "", 201, "{'name':'%s','backend':'%s','identity':'%s','threads':1}",
				      name, backend, identity);

	snprintf(out, 64, "%s", json_get_string(body, "worker", ""));
	json_free(body);
}

static void start(const char *dir, const char *recipe)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
	play_submit(&c, job, recipe);
	add_worker(one, "one", "cuda", "cuda 13.0 H200");
	add_worker(two, "two", "cpu", "cpu openblas");
}

/* Completes as a worker of that backend would; resumed_at: of a distill task; more: further members of stats. */
static void complete_with(const struct play_lease *l, const char *backend, const char *identity, int resumed_at,
			  const char *more)
{
	static char work[1 << 16];
	char *at;

	play_make_outputs(&c, l, work, sizeof(work));
	at = strstr(work, "\"resumed_at\":0");
	if (at)
		at[strlen("\"resumed_at\":")] = (char)('0' + resumed_at);
	json_free(play_call(&c, VERB_COMPLETE, l->task, 200,
			    "{'worker':'%s','epoch':%" PRId64 ",%s,'stats':{'wall_ms':5,'backend':'%s','identity':'%s'%s}}",
			    l->worker, l->epoch, work, backend, identity, more));
}

static void complete_as(const struct play_lease *l, const char *backend, const char *identity, int resumed_at)
{
	complete_with(l, backend, identity, resumed_at, "");
}

/* Lets `worker` do tasks until it has one of this kind in hand. */
static void until(const char *worker, const char *backend, const char *identity, const char *kind, struct play_lease *l)
{
	for (int i = 0; i < 1000; i++) {
		assert_true(play_lease(&c, worker, l));
		play_heartbeat(&c, l, 0.1, 200);
		if (strcmp(l->kind, kind) == 0)
			return;
		complete_as(l, backend, identity, 0);
		play_lease_drop(l);
	}
	fail_msg("no %s task", kind);
}

static void finish_with(const char *worker, const char *backend, const char *identity)
{
	struct play_lease l;

	while (play_lease(&c, worker, &l)) {
		play_heartbeat(&c, &l, 0.1, 200);
		complete_as(&l, backend, identity, 0);
		play_lease_drop(&l);
	}
	engine_tick(c.engine);
	assert_string_equal(play_job_state(&c, job), "DONE");
}

static struct json *report_run(struct json **report)
{
	*report = play_call(&c, VERB_JOB_REPORT, job, 200, NULL);
	return json_get(*report, "run");
}

static void fail_task(const struct play_lease *l, const char *name, const char *detail)
{
	json_free(play_call(&c, VERB_FAIL, l->task, 200, "{'worker':'%s','epoch':%" PRId64 ",'error':{'name':'%s','detail':'%s'}}",
			    l->worker, l->epoch, name, detail));
}

static void lose_device(const struct play_lease *l)
{
	json_free(play_call(&c, VERB_RELEASE, l->task, 200,
			    "{'worker':'%s','epoch':%" PRId64 ",'reason':'the device was lost',"
			    "'error':{'name':'unavailable','detail':'capture: CUDA: unspecified launch failure'},'log':'12 s: layer 3'}",
			    l->worker, l->epoch));
}

/* --- devices ------------------------------------------------------------------ */

static void a_device_is_shown(void **state)
{
	struct json *body;
	const struct json *device;
	char gpu[64];

	(void)state;
	start("device", play_small_recipe);
	body = play_call(&c, VERB_WORKER_ADD, "", 201,
			 "{'name':'gpu','backend':'cuda','identity':'i','device':{'memory_bytes':150754820096,'number':3,'name':"
			 "'NVIDIA H200','driver':'CUDA 13.0','clock_mhz':1980,'more':'is left out'}}");
	snprintf(gpu, sizeof(gpu), "%s", json_get_string(body, "worker", ""));
	json_free(body);
	body = play_call(&c, VERB_WORKER_GET, gpu, 200, NULL);
	device = json_get(body, "device");
	assert_int_equal(json_get_int(device, "number", -1), 3);
	assert_string_equal(json_get_string(device, "name", ""), "NVIDIA H200");
	assert_string_equal(json_get_string(device, "driver", ""), "CUDA 13.0");
	assert_int_equal(json_get_int(device, "clock_mhz", -1), 1980);
	assert_int_equal(json_get_int(device, "memory_bytes", -1), 150754820096);
	assert_int_equal(json_size(device), 5);
	json_free(body);
	body = play_call(&c, VERB_WORKER_LIST, "", 200, NULL);
	assert_int_equal(json_get_int(json_get(json_at(json_get(body, "items"), 0), "device"), "number", -1), 3);
	assert_int_equal(json_type(json_get(json_at(json_get(body, "items"), 1), "device")), JSON_NULL);
	json_free(body);
	/* Registered again without one: it has none. */
	json_free(play_call(&c, VERB_WORKER_ADD, "", 201, "{'name':'gpu','backend':'cpu','device':null}"));
	body = play_call(&c, VERB_WORKER_GET, gpu, 200, NULL);
	assert_int_equal(json_type(json_get(body, "device")), JSON_NULL);
	json_free(body);
	play_close(&c);
}

static void a_device_that_is_none_is_refused(void **state)
{
	static const char *const bad[] = {
		"7", "[]", "'GPU'", "{}", "{'number':-1,'clock_mhz':1,'memory_bytes':1}",
		"{'number':0,'clock_mhz':'fast','memory_bytes':1}", "{'number':0,'clock_mhz':1,'memory_bytes':1e30}",
		"{'number':0,'clock_mhz':1,'memory_bytes':1,'name':'"
		"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'}",
	};

	(void)state;
	start("no-device", play_small_recipe);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_non_null(strstr(play_refused(&c, VERB_WORKER_ADD, "", ERR_INVALID,
						    "{'name':'gpu','backend':'cuda','device':%s}", bad[i]), "\"device\""));
	play_close(&c);
}

/* --- lost devices ------------------------------------------------------------- */

static void a_lost_device_does_not_count_at_first(void **state)
{
	struct play_lease l;
	struct json *body;
	const struct json *attempts;
	int leases = 0;

	(void)state;
	start("lost", play_small_recipe);
	for (; strcmp(play_job_state(&c, job), "RUNNING") == 0 && leases < 20; leases++) {
		assert_true(play_lease(&c, leases % 2 ? two : one, &l));
		assert_int_equal(l.epoch, leases + 1); /* the same task */
		play_heartbeat(&c, &l, 0.1, 200);
		lose_device(&l);
		if (leases < 2) { /* it may go to the worker that had it */
			body = play_call(&c, VERB_JOB_TASKS, job, 200, NULL);
			assert_int_equal(json_get_int(json_at(json_get(body, "items"), 0), "attempts", -1), 0);
			json_free(body);
		}
		play_lease_drop(&l);
	}
	/* Two for nothing, then three that count: a task that breaks every device ends its job. */
	assert_int_equal(leases, 5);
	assert_string_equal(play_job_state(&c, job), "FAILED");
	body = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	attempts = json_get(json_get(body, "failure"), "attempts");
	assert_int_equal(json_size(attempts), 3);
	assert_string_equal(json_get_string(json_at(attempts, 0), "error", ""), "unavailable");
	assert_string_equal(json_get_string(json_at(attempts, 0), "backend", ""), "cuda");
	assert_string_equal(json_get_string(json_at(attempts, 0), "identity", ""), "cuda 13.0 H200");
	assert_string_equal(json_get_string(json_at(attempts, 1), "backend", ""), "cpu");
	assert_non_null(strstr(json_get_string(json_at(attempts, 0), "log", ""), "layer 3"));
	json_free(body);
	/* Retried, it begins anew: none of that is held against it. */
	json_free(play_call(&c, VERB_JOB_RETRY, job, 200, NULL));
	for (int i = 0; i < 2; i++) {
		assert_true(play_lease(&c, one, &l));
		play_heartbeat(&c, &l, 0.1, 200);
		lose_device(&l);
		play_lease_drop(&l);
	}
	assert_string_equal(play_job_state(&c, job), "RUNNING");
	finish_with(two, "cpu", "cpu openblas");
	play_close(&c);
}

static void out_of_memory_goes_to_another_worker(void **state)
{
	struct play_lease l, other;

	(void)state;
	start("memory", play_small_recipe);
	until(one, "cuda", "cuda 13.0 H200", "embed", &l);
	fail_task(&l, "out-of-memory", "embed: CUDA: out of memory");
	while (play_lease(&c, one, &other)) { /* everything else that is ready, and not this one */
		assert_string_not_equal(other.task, l.task);
		play_heartbeat(&c, &other, 0.1, 200);
		complete_as(&other, "cuda", "cuda 13.0 H200", 0);
		play_lease_drop(&other);
	}
	assert_true(play_lease(&c, two, &other));
	assert_string_equal(other.task, l.task);
	play_lease_drop(&other);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- the report --------------------------------------------------------------- */

static const struct json *kind_backends(const struct json *run, const char *kind)
{
	return json_get(json_get(json_get(run, "kinds"), kind), "backends");
}

static void the_report_names_the_backends(void **state)
{
	struct json *report;
	const struct json *run, *list;

	(void)state;
	start("named", play_small_recipe);
	finish_with(one, "cuda", "cuda 13.0 H200");
	run = report_run(&report);
	list = kind_backends(run, "quantize");
	assert_int_equal(json_size(list), 1);
	assert_string_equal(json_get_string(json_at(list, 0), "backend", ""), "cuda");
	assert_string_equal(json_get_string(json_at(list, 0), "identity", ""), "cuda 13.0 H200");
	assert_int_equal(json_get_int(json_at(list, 0), "tasks", 0), 4);
	assert_int_equal(json_size(json_get(run, "warnings")), 0);
	json_free(report);
	play_close(&c);
}

static void a_retry_on_another_backend_is_a_warning(void **state)
{
	static const char *const wanted[] = { "quantize of layer 0 was tried on cuda (cuda 13.0 H200) by one, which ended with "
					      "out-of-memory, and done on cpu (cpu openblas) by two",
					      "quantize of layer 1 was tried on cuda (cuda 13.0 H200) by one, which ended with "
					      "released, and done on cpu (cpu openblas) by two" };
	struct json *report;
	const struct json *run, *list;
	struct play_lease l, other;

	(void)state;
	start("retried", play_small_recipe);
	until(one, "cuda", "cuda 13.0 H200", "quantize", &l);
	fail_task(&l, "out-of-memory", "LDLQ: CUDA: out of memory");
	play_lease_drop(&l);
	until(one, "cuda", "cuda 13.0 H200", "quantize", &l); /* another one; given back, accepted before */
	assert_true(play_lease(&c, one, &other));             /* and one that is given back before it was accepted */
	json_free(play_call(&c, VERB_RELEASE, l.task, 200, "{'worker':'%s','epoch':1,'reason':'drain'}", one));
	json_free(play_call(&c, VERB_RELEASE, other.task, 200, "{'worker':'%s','epoch':1,'reason':'drain'}", one));
	play_lease_drop(&l);
	play_lease_drop(&other);
	finish_with(two, "cpu", "cpu openblas");
	run = report_run(&report);
	list = json_get(run, "warnings");
	assert_int_equal(json_size(list), 2);
	for (size_t i = 0; i < 2; i++)
		assert_string_equal(json_string(json_at(list, i), ""), wanted[i]);
	assert_int_equal(json_size(kind_backends(run, "quantize")), 1);
	assert_string_equal(json_get_string(json_at(kind_backends(run, "capture"), 0), "backend", ""), "cuda");
	json_free(report);
	play_close(&c);
}

/* Where a worker's old lease ends after it has registered with something else, it is the old backend that
 * is recorded. */
static void what_held_the_lease_is_what_is_recorded(void **state)
{
	struct json *report;
	struct play_lease l;

	(void)state;
	start("old", play_small_recipe);
	until(one, "cuda", "cuda 13.0 H200", "quantize", &l);
	add_worker(one, "one", "cpu", "cpu other");
	fail_task(&l, "io", "the worker was interrupted");
	play_lease_drop(&l);
	finish_with(two, "cpu", "cpu openblas");
	assert_int_equal(json_size(json_get(report_run(&report), "warnings")), 1);
	assert_non_null(strstr(json_string(json_at(json_get(json_get(report, "run"), "warnings"), 0), ""),
			       "tried on cuda (cuda 13.0 H200) by one"));
	json_free(report);
	play_close(&c);
}

static void a_resumed_task_on_another_device_is_a_warning(void **state)
{
	static const int resumed[] = { 6, 0 };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct json *report;
		const struct json *list;
		struct play_lease l;
		char three[64];

		start(i ? "afresh" : "resumed", play_distilled_recipe);
		add_worker(three, "three", "cuda", "cuda 13.0 A100");
		until(one, "cuda", "cuda 13.0 H200", "distill", &l);
		json_free(play_call(&c, VERB_RELEASE, l.task, 200, "{'worker':'%s','epoch':1,'reason':'drain'}", one));
		play_lease_drop(&l);
		assert_true(play_lease(&c, three, &l));
		assert_string_equal(l.kind, "distill");
		complete_as(&l, "cuda", "cuda 13.0 A100", resumed[i]);
		play_lease_drop(&l);
		finish_with(three, "cuda", "cuda 13.0 A100");
		list = json_get(report_run(&report), "warnings");
		assert_int_equal(json_size(list), resumed[i] > 0);
		if (resumed[i] > 0)
			assert_string_equal(json_string(json_at(list, 0), ""),
					    "distill was begun on cuda (cuda 13.0 H200) by one and went on after step 6 on another: "
					    "cuda 13.0 A100, by three");
		json_free(report);
		play_close(&c);
	}
}

/* What a worker says of the pieces of its tasks, and what the report says of that. */
static void smaller_pieces_are_a_warning(void **state)
{
	static const char sentence[] = "%s was done in pieces of %d tokens by one, whose device had no memory for larger ones: its "
				       "bits may differ from those of a run in larger pieces, because products of other shapes "
				       "may sum in another order";
	static const struct { const char *kind, *more; int tokens; } tasks[] = { /* in the order of the plan */
		{ "capture", ",'piece_tokens':64", 64 },   { "quantize", ",'piece_tokens':128", 128 },
		{ "quantize", ",'piece_tokens':0", 0 },    { "quantize", ",'piece_tokens':'some'", 0 },
		{ "evaluate", ",'piece_tokens':256", 256 },
	};
	char wanted[5][512], name[64];
	struct json *report;
	const struct json *list;
	struct play_lease l;
	size_t told = 0;

	(void)state;
	start("pieces", play_small_recipe);
	for (size_t i = 0; i < sizeof(tasks) / sizeof(tasks[0]); i++) {
		long long layer;

		until(one, "cuda", "cuda 13.0 H200", tasks[i].kind, &l);
		layer = (long long)json_get_int(json_get(l.json, "spec"), "layer", -1);
		snprintf(name, sizeof(name), layer < 0 ? "%s" : "%s of layer %lld", tasks[i].kind, layer);
		if (tasks[i].tokens > 0)
			snprintf(wanted[told++], sizeof(wanted[0]), sentence, name, tasks[i].tokens);
		complete_with(&l, "cuda", "cuda 13.0 H200", 0, tasks[i].more);
		play_lease_drop(&l);
	}
	finish_with(one, "cuda", "cuda 13.0 H200");
	list = json_get(report_run(&report), "warnings");
	assert_int_equal(json_size(list), told);
	for (size_t i = 0; i < told; i++)
		assert_string_equal(json_string(json_at(list, i), ""), wanted[i]);
	json_free(report);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_device_is_shown),
		cmocka_unit_test(a_device_that_is_none_is_refused),
		cmocka_unit_test(a_lost_device_does_not_count_at_first),
		cmocka_unit_test(out_of_memory_goes_to_another_worker),
		cmocka_unit_test(the_report_names_the_backends),
		cmocka_unit_test(a_retry_on_another_backend_is_a_warning),
		cmocka_unit_test(what_held_the_lease_is_what_is_recorded),
		cmocka_unit_test(a_resumed_task_on_another_device_is_a_warning),
		cmocka_unit_test(smaller_pieces_are_a_warning),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
