/* The engine with its threads: many callers at once, writes committed in groups. Meant for SAN=thread too. */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/digest.h"
#include "common/file.h"
#include "server/blobs.h"
#include "server/engine_internal.h"

enum { WORKERS = 8, TEXTS = 8, CHUNKS = 40 };

struct server {
	struct blobs *blobs;
	struct engine *engine;
	char root[4096];
	atomic_int wakes;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int changes;            /* under lock */
};

static void heard(void *ctx, char kind, const char *id)
{
	struct server *s = ctx;

	(void)kind;
	(void)id;
	s->wakes++;
	pthread_mutex_lock(&s->lock);
	s->changes++;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void server_open(struct server *s, const char *dir)
{
	const char *roots[2] = { s->root, NULL };
	struct engine_config config = { .data_dir = dir, .model_roots = roots, .clock = &clock_system,
					.lease_ms = 60000, .accept_ms = 60000, .max_attempts = 3, .background = true };
	struct err err = ERR_INIT;

	snprintf(s->root, sizeof(s->root), "%s/examples", getenv("QUARRY_ROOT"));
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	assert_int_equal(dir_make(dir, &err), 0);
	s->blobs = blobs_open(dir, &err);
	config.blobs = s->blobs;
	s->engine = engine_open(&config, NULL, NULL, &err);
	if (!s->engine)
		fail_msg("%s", err.text);
	engine_on_change(s->engine, heard, s);
}

static void server_close(struct server *s)
{
	engine_close(s->engine);
	blobs_close(s->blobs);
}

/* Status, or minus the error's HTTP status; *out (may be NULL) gets the body. Thread-safe: no asserts. */
static int ask(struct server *s, enum verb verb, const char *id, struct json **out, const char *fmt, ...)
{
	struct engine_request r = { .verb = verb, .role = ROLE_ADMIN };
	struct engine_reply reply;
	struct err err = ERR_INIT;
	char *text = NULL;
	va_list args;
	int status;

	snprintf(r.subject, sizeof(r.subject), "tester");
	snprintf(r.id, sizeof(r.id), "%s", id);
	if (fmt) {
		va_start(args, fmt);
		if (vasprintf(&text, fmt, args) < 0)
			abort();
		va_end(args);
		for (char *p = text; *p; p++)
			*p = *p == '\'' ? '"' : *p;
		r.body = json_parse(text, strlen(text), &err);
		free(text);
	}
	engine_call(s->engine, &r, &reply);
	status = reply.err.code == ERR_NONE ? reply.status : -err_http_status(reply.err.code);
	if (out) {
		*out = reply.body;
		reply.body = NULL;
	}
	engine_reply_deinit(&reply);
	engine_request_deinit(&r);
	return status;
}

/* A text of TEXTS datasets, so that the evaluate job has TEXTS x CHUNKS tasks without outputs. */
static void submit_many(struct server *s, char job[64])
{
	struct err err = ERR_INIT;
	char sha256[DIGEST_HEX], path[4200];
	struct json *body;
	struct buf evals;
	char *text = mem_alloc(4 * 16 * 16 * CHUNKS, 1);

	memset(text, 'x', 4 * 16 * 16 * CHUNKS);
	buf_init(&evals, 1 << 12);
	assert_int_equal(blobs_put(s->blobs, text, 4 * 16 * 16 * CHUNKS, sha256, &err), 0);
	mem_free(text);
	assert_int_equal(ask(s, VERB_BLOB_ADD, sha256, NULL, "{'sha256':'%s'}", sha256), 201);
	for (int i = 0; i < TEXTS; i++) {
		assert_int_equal(ask(s, VERB_DATASET_ADD, "", &body, "{'name':'t%d.txt','sha256':'%s'}", i, sha256), 201);
		buf_printf(&evals, "%s'%s'", i ? "," : "", json_get_string(body, "dataset", ""));
		json_free(body);
	}
	snprintf(path, sizeof(path), "%s/fable-tiny", s->root);
	assert_int_equal(ask(s, VERB_MODEL_ADD, "", &body, "{'path':'%s'}", path), 201);
	assert_int_equal(ask(s, VERB_JOB_SUBMIT, "", NULL, "{'model':'%s','recipe':{'kind':'evaluate','seq_len':4096}}",
			     json_get_string(body, "model", "")), -422);
	snprintf(path, sizeof(path), "{'model':'%s','recipe':{'kind':'evaluate','seq_len':16,'eval_windows':0,'eval':[%s]}}",
		 json_get_string(body, "model", ""), buf_text(&evals));
	json_free(body);
	assert_int_equal(ask(s, VERB_JOB_SUBMIT, "", &body, "%s", path), 201);
	snprintf(job, 64, "%s", json_get_string(body, "job", ""));
	json_free(body);
	buf_deinit(&evals);
}

/* Tokenize tasks have outputs; the rest of the job has none. */
static void tokenize_all(struct server *s)
{
	struct json *lease, *body;
	struct err err = ERR_INIT;
	char sha256[DIGEST_HEX], worker[64];

	assert_int_equal(ask(s, VERB_WORKER_ADD, "", &body, "{'name':'tokenizer'}"), 201);
	snprintf(worker, sizeof(worker), "%s", json_get_string(body, "worker", ""));
	json_free(body);
	assert_int_equal(blobs_put(s->blobs, "tokens", 6, sha256, &err), 0);
	assert_int_equal(ask(s, VERB_BLOB_ADD, sha256, NULL, "{'sha256':'%s'}", sha256), 201);
	for (int i = 0; i < TEXTS; i++) {
		assert_int_equal(ask(s, VERB_LEASE, "", &lease, "{'worker':'%s'}", worker), 200);
		assert_string_equal(json_get_string(lease, "kind", ""), "tokenize");
		assert_int_equal(ask(s, VERB_COMPLETE, json_get_string(lease, "task", ""), NULL,
				     "{'worker':'%s','epoch':1,'outputs':[{'name':'tokens','sha256':'%s','bytes':6}],"
				     "'result':{'sequences':1,'tokens':16}}", worker, sha256), 200);
		json_free(lease);
	}
}

struct player { struct server *server; int number, done, failures; pthread_t thread; };

static void *play(void *arg)
{
	struct player *p = arg;
	struct json *body = NULL, *lease;
	char worker[64];
	int status;

	if (ask(p->server, VERB_WORKER_ADD, "", &body, "{'name':'player-%d'}", p->number) != 201)
		p->failures++;
	snprintf(worker, sizeof(worker), "%s", json_get_string(body, "worker", ""));
	json_free(body);
	while ((status = ask(p->server, VERB_LEASE, "", &lease, "{'worker':'%s','have':[]}", worker)) == 200) {
		const char *task = json_get_string(lease, "task", "");

		if (p->done % 8 == 0 &&
		    ask(p->server, VERB_HEARTBEAT, task, NULL, "{'worker':'%s','epoch':1,'progress':0.5}", worker) != 200)
			p->failures++;
		if (ask(p->server, VERB_COMPLETE, task, NULL, "{'worker':'%s','epoch':1,'outputs':[],'result':{'nll':%d,"
			"'predictions':15,'windows':1,'first_window':0},'stats':{}}", worker, 30 + p->done % 3) != 200)
			p->failures++;
		json_free(lease);
		p->done++;
	}
	p->failures += status != 204;
	return NULL;
}

/* Reads while others write. */
static void *watch(void *arg)
{
	struct player *p = arg;
	struct json *body;

	for (;;) {
		const char *job;
		bool over;

		if (ask(p->server, VERB_JOB_LIST, "", &body, NULL) != 200)
			p->failures++;
		job = json_get_string(json_at(json_get(body, "items"), 0), "id", "");
		over = strcmp(json_get_string(json_at(json_get(body, "items"), 0), "state", ""), "RUNNING") != 0;
		if (ask(p->server, VERB_JOB_GET, job, NULL, NULL) != 200 || ask(p->server, VERB_STATS, "", NULL, NULL) != 200)
			p->failures++;
		json_free(body);
		if (over)
			return NULL;
		p->done++;
	}
}

static bool job_is(struct server *s, const char *job, const char *wanted)
{
	struct json *body = NULL;
	bool is;

	assert_int_equal(ask(s, VERB_JOB_GET, job, &body, NULL), 200);
	is = strcmp(json_get_string(body, "state", ""), wanted) == 0;
	json_free(body);
	return is;
}

/* Waits for changes, not for time. */
static void wait_until(struct server *s, const char *job, const char *wanted)
{
	int seen = -1;

	while (!job_is(s, job, wanted)) {
		pthread_mutex_lock(&s->lock);
		while (s->changes == seen)
			pthread_cond_wait(&s->changed, &s->lock);
		seen = s->changes;
		pthread_mutex_unlock(&s->lock);
	}
}

static void many_workers_at_once(void **state)
{
	struct server s = { 0 };
	struct player players[WORKERS + 2];
	struct timespec from, to;
	char job[64], why[128];
	uint64_t writes, commits;
	double seconds;
	int done = 0;

	(void)state;
	server_open(&s, "threads");
	submit_many(&s, job);
	tokenize_all(&s);
	writes = s.engine->writes;
	commits = s.engine->commits;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < WORKERS + 2; i++) {
		players[i] = (struct player){ .server = &s, .number = i };
		assert_int_equal(pthread_create(&players[i].thread, NULL, i < WORKERS ? play : watch, &players[i]), 0);
	}
	for (int i = 0; i < WORKERS + 2; i++) {
		pthread_join(players[i].thread, NULL);
		assert_int_equal(players[i].failures, 0);
		done += i < WORKERS ? players[i].done : 0;
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	seconds = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
	assert_int_equal(done, TEXTS * CHUNKS); /* each task went to exactly one worker */
	wait_until(&s, job, "DONE");
	writes = s.engine->writes - writes;
	commits = s.engine->commits - commits;
	assert_true(commits < writes); /* they were committed in groups */
	assert_true(s.wakes > 0);
	assert_true(engine_ready(s.engine, why, sizeof(why)));
	print_message("# %d workers: %.0f claim and complete pairs a second, %.1f writes a commit\n", WORKERS,
		      done / seconds, (double)writes / (double)commits);
	server_close(&s);
}

/* --- asynchronous calls ------------------------------------------------------- */

struct posted { struct server *server; atomic_int *left; pthread_mutex_t *lock; pthread_cond_t *all; int status; };

static void posted_done(struct engine_call *call)
{
	struct posted *p = call->ctx;

	p->status = call->reply.err.code == ERR_NONE ? call->reply.status : -err_http_status(call->reply.err.code);
	engine_reply_deinit(&call->reply);
	engine_request_deinit(&call->request);
	pthread_mutex_lock(p->lock);
	if (--*p->left == 0)
		pthread_cond_signal(p->all);
	pthread_mutex_unlock(p->lock);
}

/* A thousand registrations, every other one wrong: the wrong ones spoil nothing. */
static void posted_writes_fail_one_by_one(void **state)
{
	enum { CALLS = 1000 };
	struct server s = { 0 };
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t all = PTHREAD_COND_INITIALIZER;
	atomic_int left = CALLS + 1;
	struct engine_call *calls = mem_alloc(CALLS + 1, sizeof(*calls));
	struct posted *posted = mem_alloc(CALLS + 1, sizeof(*posted));
	struct err err = ERR_INIT;
	struct json *body = NULL;
	char path[4200];

	(void)state;
	server_open(&s, "posted");
	snprintf(path, sizeof(path), "%s/fable-tiny", s.root);
	for (int i = 0; i <= CALLS; i++) {
		char name[32];

		posted[i] = (struct posted){ &s, &left, &lock, &all, 0 };
		calls[i] = (struct engine_call){ .done = posted_done, .ctx = &posted[i] };
		calls[i].request.verb = i == CALLS ? VERB_MODEL_ADD : VERB_WORKER_ADD;
		calls[i].request.body = json_new_object();
		snprintf(name, sizeof(name), "%s%d", i % 2 ? "worker-" : "", i);
		json_set_string(calls[i].request.body, i == CALLS ? "path" : i % 2 ? "name" : "nonsense",
				i == CALLS ? path : name);
		assert_int_equal(engine_post(s.engine, &calls[i], &err), 0);
	}
	pthread_mutex_lock(&lock);
	while (left > 0)
		pthread_cond_wait(&all, &lock);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < CALLS; i++)
		assert_int_equal(posted[i].status, i % 2 ? 201 : -400);
	assert_int_equal(posted[CALLS].status, 201);
	assert_int_equal(ask(&s, VERB_STATS, "", &body, NULL), 200);
	assert_int_equal(json_get_int(json_get(body, "workers"), "idle", -1), CALLS / 2);
	json_free(body);
	server_close(&s);
	mem_free(calls);
	mem_free(posted);
}

static void metrics_are_prometheus_text(void **state)
{
	struct server s = { 0 };
	struct err err = ERR_INIT;
	struct buf out;

	(void)state;
	server_open(&s, "metrics");
	buf_init(&out, 1 << 16);
	assert_int_equal(engine_metrics(s.engine, &out, &err), 0);
	assert_non_null(strstr(buf_text(&out), "# TYPE quarry_jobs gauge\nquarry_jobs{state=\"PLANNING\"} 0\n"));
	assert_non_null(strstr(buf_text(&out), "quarry_workers{state=\"lost\"} 0\n"));
	assert_non_null(strstr(buf_text(&out), "# TYPE quarry_write_requests_total counter\n"));
	buf_deinit(&out);
	server_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many_workers_at_once),
		cmocka_unit_test(posted_writes_fail_one_by_one),
		cmocka_unit_test(metrics_are_prometheus_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
