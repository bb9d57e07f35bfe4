#include "worker/compute.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "common/log.h"
#include "common/utf8.h"
#include "worker/layer_keep.h"
#include "worker/task_scratch.h"

enum { CHECKPOINT_SPACING = 10, AGAIN_MOST = 4, TRIED_MAX = 128 };

struct compute {
	struct compute_config config;
	struct loop *loop;
	struct backend *backend;
	struct backend_device device;
	struct model_source *models;
	struct layer_keep keep;         /* of the compute thread */
	pthread_t thread;
	pthread_mutex_t lock;           /* guards what follows */
	pthread_cond_t changed;
	struct compute_job *job;        /* submitted or running */
	bool opened, ending;            /* opened: the thread has tried to; backend tells with what success */
	struct err failure;             /* why there is no backend */
};

/* --- progress ------------------------------------------------------------------------------------------ */

static int64_t now_ms(const struct compute *c)
{
	return c->config.clock->mono_ms(c->config.clock->ctx);
}

static bool must_stop(void *ctx)
{
	return atomic_load(&((struct compute_job *)ctx)->stop);
}

/* A new note: shown in heartbeats, and kept for the log of a failure. */
static void take_note(struct compute_job *job, const char *what)
{
	size_t len = utf8_cut(what, strlen(what), COMPUTE_NOTE_MAX - 1);
	int64_t at = now_ms(job->compute) - job->started_ms;

	if (strlen(job->note) == len && memcmp(job->note, what, len) == 0)
		return;
	pthread_mutex_lock(&job->lock);
	memcpy(job->note, what, len);
	job->note[len] = '\0';
	pthread_mutex_unlock(&job->lock);
	snprintf(job->log[job->log_count++ % COMPUTE_LOG_LINES], sizeof(job->log[0]), "%lld.%03lld s: %s",
		 (long long)(at / 1000), (long long)(at % 1000), job->note);
}

static bool report_progress(void *ctx, double fraction, const char *what)
{
	struct compute_job *job = ctx;

	if (fraction >= 0 && fraction <= 1)
		atomic_store(&job->progress_ppm, (int)(fraction * 1e6));
	take_note(job, what ? what : "");
	return !must_stop(job);
}

double compute_progress(struct compute_job *job, char *note)
{
	pthread_mutex_lock(&job->lock);
	memcpy(note, job->note, COMPUTE_NOTE_MAX);
	pthread_mutex_unlock(&job->lock);
	return atomic_load(&job->progress_ppm) / 1e6;
}

char *compute_log(const struct compute_job *job)
{
	size_t lines = job->log_count < COMPUTE_LOG_LINES ? job->log_count : COMPUTE_LOG_LINES;
	struct buf text;
	char *taken;

	buf_init(&text, sizeof(job->log) + COMPUTE_LOG_LINES + 1);
	buf_puts(&text, "");
	for (size_t i = job->log_count - lines; i < job->log_count; i++)
		buf_printf(&text, "%s\n", job->log[i % COMPUTE_LOG_LINES]);
	taken = buf_take(&text);
	buf_deinit(&text);
	return taken;
}

void compute_job_init(struct compute_job *job)
{
	*job = (struct compute_job){ 0 };
	pthread_mutex_init(&job->lock, NULL);
}

void compute_job_deinit(struct compute_job *job)
{
	pthread_mutex_destroy(&job->lock);
	mem_free(job->checkpoint);
	json_free(job->result);
	json_free(job->stats);
}

/* --- checkpoints ----------------------------------------------------------------------------------------- */

static int64_t checkpoint_wait_ms(struct compute_job *job)
{
	int64_t least = job->compute->config.checkpoint_ms;
	int64_t enough = CHECKPOINT_SPACING * atomic_load(&job->checkpoint_took_ms);

	return least == 0 || enough < least ? least : enough;
}

/* Now and then, and once more when the worker gives the task back; one at a time. */
static bool wants_checkpoint(struct compute_job *job)
{
	if (atomic_load(&job->checkpoint_busy))
		return false;
	if (must_stop(job))
		return atomic_load(&job->leaving);
	return now_ms(job->compute) - atomic_load(&job->checkpoint_asked_ms) >= checkpoint_wait_ms(job);
}

static int leave_checkpoint(void *ctx, const char *path)
{
	struct compute_job *job = ctx;

	atomic_store(&job->resumes, true);
	if (!path) {
		if (!wants_checkpoint(job))
			return 0;
		atomic_store(&job->checkpoint_asked_ms, now_ms(job->compute));
		return 1;
	}
	job->checkpoint = mem_strdup(path);
	if (!job->checkpoint)
		return -1;
	atomic_store(&job->checkpoint_busy, true);
	loop_post(job->compute->loop, &job->checkpoint_event);
	return 0;
}

/* --- running one job ------------------------------------------------------------------------------------- */

static int64_t cpu_ms(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000LL +
	       (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1000;
}

/* VmHWM, because ru_maxrss also counts the process that this one was forked from. 0 when unknown. */
static int64_t peak_rss_bytes(void)
{
	FILE *status = fopen("/proc/self/status", "re");
	long long kib = 0;
	char line[256];

	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmHWM: %lld kB", &kib) == 1)
			break;
	if (status)
		fclose(status);
	return kib * 1024;
}

static struct json *make_stats(struct compute *c, const struct compute_job *job, int64_t wall, int64_t cpu)
{
	struct json *o = json_new_object();

	if (o && json_set_int(o, "wall_ms", wall) == 0 && json_set_int(o, "cpu_ms", cpu) == 0 &&
	    json_set_int(o, "peak_rss_bytes", peak_rss_bytes()) == 0 &&
	    json_set_string(o, "backend", c->config.backend->name) == 0 &&
	    json_set_string(o, "identity", compute_identity(c)) == 0 &&
	    (job->piece_tokens == 0 || json_set_int(o, "piece_tokens", (int64_t)job->piece_tokens) == 0))
		return o;
	json_free(o);
	return NULL;
}

/* Half of the pieces that the task was run with, in whole sequences; 0: there are no smaller ones. */
static size_t smaller_piece(const struct task_env *env)
{
	return env->piece_used ? env->piece_used / env->piece_least / 2 * env->piece_least : 0;
}

/* As if the task had not been begun, with smaller pieces; what is kept of the one before leaves the device. */
static int begin_again(struct compute *c, struct compute_job *job, struct task_env *env)
{
	char note[COMPUTE_NOTE_MAX];

	env->piece_tokens = env->piece_used = job->piece_tokens = smaller_piece(env);
	snprintf(note, sizeof(note), "out of memory; again with pieces of %zu tokens", job->piece_tokens);
	report_progress(job, 0, note);
	log_warn("task %s: %s; again with pieces of %zu tokens", job->entry->task, job->err.text, job->piece_tokens);
	err_clear(&job->err);
	layer_keep_drop(&c->keep);
	return dir_remove(env->out_dir, &job->err) != 0 ? -1 : dir_make(env->out_dir, &job->err);
}

/* Out of memory for good: "...; tried with pieces of 512, 256 tokens". */
static int tell_tried(struct compute_job *job, const char *tried)
{
	const struct err why = job->err;

	return err_set(&job->err, why.code, "%.800s; tried with pieces of %s tokens", why.text, tried);
}

/* A device that is too small for the pieces that are best may have room for smaller ones: each time half of them, as long
 * as the task fails for lack of memory. */
static int run_in_pieces(struct compute *c, struct compute_job *job, struct task_env *env, struct json **result)
{
	char tried[TRIED_MAX] = "";
	size_t len = 0;

	for (int again = 0;; again++) {
		if (task_run(job->kind, job->spec, env, result, &job->err) == 0)
			return 0;
		if (!c->backend->ops->own_memory || job->err.code != ERR_NOMEM)
			return -1;
		len += (size_t)snprintf(tried + len, sizeof(tried) - len, "%s%zu", again ? ", " : "", env->piece_used);
		if (again == AGAIN_MOST || smaller_piece(env) == 0 || must_stop(job))
			return again ? tell_tried(job, tried) : -1;
		if (begin_again(c, job, env) != 0)
			return -1;
	}
}

static int run_task(struct compute *c, struct compute_job *job, const char *out, struct json **result)
{
	struct task_env env = {
		.backend = c->backend, .threads = c->config.options.threads, .keep = &c->keep,
		.inputs = job->inputs, .input_count = job->input_count,
		.out_dir = out, .progress = report_progress, .progress_ctx = job,
		.checkpoint = leave_checkpoint, .checkpoint_ctx = job,
	};
	char *scratch;
	int rc;

	/* Every kind there is reads the checkpoint. */
	if (!job->model)
		return err_set(&job->err, ERR_INVALID, "the lease of a %s task names no model", job->kind);
	layer_keep_model(&c->keep, json_get_string(job->model, "id", ""));
	if (strcmp(job->kind, "capture") != 0 && strcmp(job->kind, "quantize") != 0)
		layer_keep_drop(&c->keep);
	env.model = model_source_get(c->models, job->model, must_stop, job, &job->err);
	if (!env.model)
		return -1;
	env.scratch_dir = scratch = task_scratch_path(c->config.work, job->entry->task);
	if (!scratch)
		return err_set_nomem(&job->err, "a path");
	rc = run_in_pieces(c, job, &env, result);
	mem_free(scratch);
	return rc;
}

static int run_job(struct compute *c, struct compute_job *job)
{
	int64_t cpu = cpu_ms(), wall;
	char *out = spool_out_dir(job->entry);
	int rc = out ? run_task(c, job, out, &job->result) : err_set_nomem(&job->err, "a path");

	wall = now_ms(c) - job->started_ms;
	if (rc == 0 && !(job->stats = make_stats(c, job, wall, cpu_ms() - cpu)))
		rc = err_set_nomem(&job->err, "statistics");
	mem_free(out);
	return rc;
}

/* Whether the device still answers; asked after a failure, whatever that said. */
static bool device_is_lost(struct compute *c)
{
	struct backend_device now;

	return c->config.backend->describe && c->config.backend->describe(c->backend, &now) != 0;
}

/* With the lock held. */
static void open_backend(struct compute *c)
{
	const struct backend_ops *ops = c->config.backend;

	c->backend = ops->open(&c->config.options, &c->failure);
	if (c->backend && ops->describe && ops->describe(c->backend, &c->device) != 0) {
		err_set(&c->failure, ERR_UNAVAILABLE, "the device of the %s backend does not answer", ops->name);
		ops->close(c->backend);
		c->backend = NULL;
	}
	c->opened = true;
	pthread_cond_broadcast(&c->changed);
}

static void *compute_thread(void *ctx)
{
	struct compute *c = ctx;

	pthread_mutex_lock(&c->lock);
	open_backend(c);
	while (c->backend) {
		struct compute_job *job;

		while (!c->job && !c->ending)
			pthread_cond_wait(&c->changed, &c->lock);
		if (c->ending)
			break;
		job = c->job;
		pthread_mutex_unlock(&c->lock);
		job->started_ms = now_ms(c);
		atomic_store(&job->checkpoint_asked_ms, job->started_ms);
		job->rc = run_job(c, job);
		if (job->rc != 0)
			layer_keep_drop(&c->keep); /* memory for whoever tries again */
		job->device_lost = job->rc != 0 && device_is_lost(c);
		pthread_mutex_lock(&c->lock);
		c->job = NULL;
		loop_post(c->loop, &job->event);
	}
	pthread_mutex_unlock(&c->lock);
	layer_keep_drop(&c->keep);
	if (c->backend)
		c->config.backend->close(c->backend);
	return NULL;
}

void compute_submit(struct compute *c, struct compute_job *job)
{
	job->compute = c;
	job->event = (struct loop_event){ .happened = job->done, .ctx = job->ctx };
	job->checkpoint_event = (struct loop_event){ .happened = job->checkpoint_left, .ctx = job->ctx };
	pthread_mutex_lock(&c->lock);
	if (c->job) {
		log_error("two tasks at once in the compute thread");
		abort();
	}
	c->job = job;
	pthread_cond_signal(&c->changed);
	pthread_mutex_unlock(&c->lock);
}

/* --- life ---------------------------------------------------------------------------------------------------- */

const char *compute_identity(struct compute *c)
{
	return c->backend->ops->identity(c->backend);
}

const struct backend_device *compute_device(const struct compute *c)
{
	return c->config.backend->describe ? &c->device : NULL;
}

static void free_parts(struct compute *c)
{
	model_source_free(c->models);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->changed);
	mem_free(c);
}

/* Starts the thread and waits until it has opened the backend. */
static int start_thread(struct compute *c, struct err *err)
{
	bool open;

	if (pthread_create(&c->thread, NULL, compute_thread, c) != 0)
		return err_set(err, ERR_INTERNAL, "cannot start the compute thread");
	pthread_mutex_lock(&c->lock);
	while (!c->opened)
		pthread_cond_wait(&c->changed, &c->lock);
	open = c->backend != NULL;
	pthread_mutex_unlock(&c->lock);
	if (open)
		return 0;
	pthread_join(c->thread, NULL);
	*err = c->failure;
	return -1;
}

struct compute *compute_start(struct loop *loop, const struct compute_config *config, struct err *err)
{
	struct compute *c = mem_alloc(1, sizeof(*c));

	if (!c) {
		err_set_nomem(err, "the compute thread");
		return NULL;
	}
	c->config = *config;
	c->loop = loop;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->changed, NULL);
	c->models = model_source_new(config->client, config->clock, config->read_paths);
	if (!c->models)
		err_set_nomem(err, "the compute thread");
	else if (start_thread(c, err) == 0)
		return c;
	free_parts(c);
	return NULL;
}

static bool join_within(pthread_t thread, int64_t ms)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += ms % 1000 * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

bool compute_end(struct compute *c, int64_t wait_ms)
{
	if (!c)
		return true;
	pthread_mutex_lock(&c->lock);
	c->ending = true;
	if (c->job)
		atomic_store(&c->job->stop, true);
	pthread_cond_signal(&c->changed);
	pthread_mutex_unlock(&c->lock);
	if (!join_within(c->thread, wait_ms))
		return false;
	free_parts(c);
	return true;
}
