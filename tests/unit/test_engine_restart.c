/* The coordinator goes away at the worst moments: between any two writes, by SIGKILL, with the disk full. */
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/engine_internal.h"
#include "tests/lib/engine_case.h"

static struct engine_case c;

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
}

static void restart(void)
{
	play_close(&c);
	play_open(&c);
}

static void a_restart_after_every_write_loses_nothing(void **state)
{
	char job[64], worker[64];
	struct play_lease l;
	int done = 0;

	(void)state;
	start("every-write");
	play_submit(&c, job, play_small_recipe);
	restart();
	play_worker(&c, worker, "one");
	restart();
	while (play_lease(&c, worker, &l)) {
		restart();
		assert_int_equal(l.epoch, 1); /* nothing was given out twice */
		play_heartbeat(&c, &l, 0.5, 200);
		restart();
		play_complete(&c, &l, 200);
		restart();
		play_complete(&c, &l, 200); /* the worker did not hear the answer */
		play_lease_drop(&l);
		done++;
	}
	assert_int_equal(done, 16);
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_close(&c);
}

/* --- SIGKILL ------------------------------------------------------------------ */

/* In a child: works on the job, and after each acknowledged complete writes one byte to the pipe. */
static void work_until_killed(const char *dir, const char *job, int fd)
{
	struct play_lease l;
	char worker[64];

	start(dir);
	c.random = (uint64_t)getpid() * 1000;
	play_worker(&c, worker, "child");
	while (play_lease(&c, worker, &l)) {
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
		if (write(fd, "x", 1) != 1)
			_exit(3);
	}
	(void)job;
	play_close(&c);
	_exit(0);
}

/* Lets the child get `acknowledged` tasks done, then kills it. true when it had finished before. */
static bool run_and_kill(const char *dir, const char *job, int acknowledged)
{
	int fds[2], status, heard = 0;
	char byte;
	pid_t child;

	assert_int_equal(pipe(fds), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(fds[0]);
		work_until_killed(dir, job, fds[1]);
	}
	close(fds[1]);
	while (heard < acknowledged && read(fds[0], &byte, 1) == 1)
		heard++;
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	close(fds[0]);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int64_t count_state(const char *job, const char *task_state)
{
	struct json *body = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	int64_t count = json_get_int(json_get(body, "tasks"), task_state, -1);

	json_free(body);
	return count;
}

static void sigkill_loses_nothing_that_was_acknowledged(void **state)
{
	char job[64], worker[64];
	int64_t done = 0;

	(void)state;
	start("killed");
	play_submit(&c, job, play_small_recipe);
	play_close(&c);
	for (int round = 0; round < 5; round++) {
		int64_t now_done;

		run_and_kill("killed", job, 2);
		start("killed");
		now_done = count_state(job, "DONE");
		assert_true(now_done >= done + 2); /* what was acknowledged is there */
		done = now_done;
		c.now_ms += 120000; /* what the child held lapses */
		engine_tick(c.engine);
		play_close(&c);
	}
	start("killed");
	c.now_ms += 120000;
	c.random = 1u << 30;
	engine_tick(c.engine);
	play_worker(&c, worker, "parent");
	assert_int_equal(play_drain(&c, worker), 16 - done); /* nothing that is done is done again */
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_close(&c);
}

/* --- a full disk -------------------------------------------------------------- */

static void a_full_disk_acknowledges_nothing_and_passes(void **state)
{
	char job[64], worker[64], why[256];
	struct err err = ERR_INIT;
	struct play_lease l;
	int refused = 0;

	(void)state;
	start("full");
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, worker, "one");
	assert_true(play_lease(&c, worker, &l));
	assert_true(engine_ready(c.engine, why, sizeof(why)));
	assert_int_equal(store_limit_pages(c.engine->writer, 1, &err), 0); /* not a page more than there is */
	for (int i = 0; i < 200 && !refused; i++) {
		struct engine_request r = { .verb = VERB_JOB_SUBMIT };
		struct engine_reply reply;

		r.body = json_new_object();
		json_set_string(r.body, "model", play_model(&c));
		json_set(r.body, "recipe", json_new_object());
		engine_call(c.engine, &r, &reply);
		refused = reply.err.code == ERR_NOSPC;
		if (refused)
			assert_non_null(strstr(reply.err.text, "full"));
		engine_reply_deinit(&reply);
		engine_request_deinit(&r);
	}
	assert_true(refused);
	assert_false(engine_ready(c.engine, why, sizeof(why)));
	assert_int_equal(count_state(job, "LEASED"), 1); /* reading goes on, and nothing changed */
	assert_int_equal(store_limit_pages(c.engine->writer, 0, &err), 0);
	engine_tick(c.engine);
	assert_true(engine_ready(c.engine, why, sizeof(why)));
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_drain(&c, worker);
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_close(&c);
}

/* --- memory ------------------------------------------------------------------- */

/* One request with each allocation failing in turn: an error, nothing stored, and then it works. */
static void torture(enum verb verb, const char *id, const char *body_text, struct json **last)
{
	struct engine_request r = { .verb = verb, .role = ROLE_ADMIN };
	struct engine_reply reply;
	struct err err = ERR_INIT;
	uint64_t n;

	snprintf(r.subject, sizeof(r.subject), "tester");
	snprintf(r.id, sizeof(r.id), "%s", id);
	r.body = body_text ? json_parse(body_text, strlen(body_text), &err) : NULL;
	for (n = 1; n < 1000000; n += n < 60 ? 1 : n / 12) {
		mem_fail_after(n);
		engine_call(c.engine, &r, &reply);
		mem_fail_after(0);
		if (reply.err.code == ERR_NONE)
			break;
		if (reply.err.code != ERR_NOMEM)
			fail_msg("verb %d, allocation %d: %s", verb, (int)n, reply.err.text);
		engine_reply_deinit(&reply);
	}
	engine_request_deinit(&r);
	*last = reply.body;
	reply.body = NULL;
	engine_reply_deinit(&reply);
	assert_true(n > 1);
}

static void every_allocation_may_fail(void **state)
{
	char job[64], worker[64], text[512], *work, path[4300];
	struct play_lease l;
	struct json *body;

	(void)state;
	start("no-memory");
	snprintf(path, sizeof(path), "{\"path\":\"%s/fable-tiny\"}", c.roots[0]);
	torture(VERB_MODEL_ADD, "", path, &body);
	json_free(body);
	snprintf(text, sizeof(text), "{\"model\":\"%s\",\"recipe\":{\"bits\":2,\"samples\":8,\"seq_len\":64,"
		 "\"eval_windows\":2}}", play_model(&c));
	torture(VERB_JOB_SUBMIT, "", text, &body);
	snprintf(job, sizeof(job), "%s", json_get_string(body, "job", ""));
	json_free(body);
	play_worker(&c, worker, "one");
	snprintf(text, sizeof(text), "{\"worker\":\"%s\"}", worker);
	work = mem_alloc(1 << 16, 1);
	for (int i = 0; i < 18; i++) {
		char complete[1 << 14];

		torture(VERB_LEASE, "", text, &body);
		l = (struct play_lease){ .json = body, .epoch = json_get_int(body, "epoch", -1) };
		assert_int_equal(l.epoch, 1); /* failures before handed out nothing */
		snprintf(l.task, sizeof(l.task), "%s", json_get_string(body, "task", ""));
		snprintf(l.kind, sizeof(l.kind), "%s", json_get_string(body, "kind", ""));
		play_make_outputs(&c, &l, work, 1 << 16);
		snprintf(complete, sizeof(complete), "{\"worker\":\"%s\",\"epoch\":1,%s,\"stats\":{}}", worker, work);
		if (i < 17) { /* the last one also finishes the job: below */
			torture(VERB_COMPLETE, l.task, complete, &body);
			json_free(body);
		} else {
			play_idempotency_key = NULL;
			snprintf(l.worker, sizeof(l.worker), "%s", worker);
			play_complete(&c, &l, 200);
		}
		play_lease_drop(&l);
	}
	mem_free(work);
	assert_string_equal(play_job_state(&c, job), "DONE");
	torture(VERB_JOB_GET, job, NULL, &body);
	json_free(body);
	torture(VERB_JOB_TASKS, job, NULL, &body);
	json_free(body);
	torture(VERB_JOB_EVENTS, job, NULL, &body);
	json_free(body);
	torture(VERB_JOB_FILES, job, NULL, &body);
	json_free(body);
	torture(VERB_JOB_REPORT, job, NULL, &body);
	json_free(body);
	torture(VERB_WORKER_LIST, "", NULL, &body);
	json_free(body);
	torture(VERB_STATS, "", NULL, &body);
	json_free(body);
	torture(VERB_JOB_LIST, "", NULL, &body);
	json_free(body);
	torture(VERB_MODEL_LIST, "", NULL, &body);
	json_free(body);
	torture(VERB_DATASET_LIST, "", NULL, &body);
	json_free(body);
	torture(VERB_JOB_DELETE, job, NULL, &body);
	json_free(body);
	play_close(&c);
}

/* Finishing with each allocation failing in turn: the job waits, and then it is done. */
static void finishing_without_memory(void **state)
{
	char job[64], worker[64];
	uint64_t n = 1;

	(void)state;
	start("finish-memory");
	play_submit(&c, job, "{'kind':'evaluate','seq_len':64,'eval_windows':2}");
	play_worker(&c, worker, "one");
	mem_fail_after(0);
	for (int i = 0; i < 2; i++) {
		struct play_lease l;

		assert_true(play_lease(&c, worker, &l));
		if (i == 0) {
			play_complete(&c, &l, 200);
		} else {
			json_free(play_call(&c, VERB_HEARTBEAT, l.task, 200, "{'worker':'%s','epoch':1}", worker));
			pthread_mutex_lock(&c.engine->finish_lock); /* so that completing does not finish */
			play_complete(&c, &l, 200);
			pthread_mutex_unlock(&c.engine->finish_lock);
		}
		play_lease_drop(&l);
	}
	assert_string_equal(play_job_state(&c, job), "ASSEMBLING");
	for (; n < 100000; n += n < 60 ? 1 : n / 12) {
		mem_fail_after(n);
		finish_pending(c.engine);
		mem_fail_after(0);
		if (strcmp(play_job_state(&c, job), "ASSEMBLING") != 0)
			break;
	}
	assert_string_equal(play_job_state(&c, job), "DONE");
	assert_true(n > 10);
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_restart_after_every_write_loses_nothing),
		cmocka_unit_test(sigkill_loses_nothing_that_was_acknowledged),
		cmocka_unit_test(a_full_disk_acknowledges_nothing_and_passes),
		cmocka_unit_test(every_allocation_may_fail),
		cmocka_unit_test(finishing_without_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
