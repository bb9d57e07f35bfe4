/* The libuv side of the agent. Handles live on the heap until uv has closed them, because uv owns
 * a handle from init to its close callback. */
#include "worker/loop.h"

#include <pthread.h>
#include <uv.h>

#include "common/alloc.h"

struct loop {
	uv_loop_t uv;
	uv_async_t wake;
	pthread_mutex_t lock;           /* guards events */
	struct loop_event *events;      /* posted, newest first */
};

struct loop_timer {
	uv_timer_t uv;
	void (*fire)(void *ctx);
	void *ctx;
};

struct loop_job {
	uv_work_t uv;
	void (*work)(void *ctx);
	void (*done)(void *ctx);
	void *ctx;
};

struct loop_signal {
	uv_signal_t uv;
	void (*caught)(void *ctx);
	void *ctx;
};

static int uv_error(struct err *err, int status, const char *what)
{
	return err_set(err, ERR_INTERNAL, "cannot %s: %s", what, uv_strerror(status));
}

/* --- events ------------------------------------------------------------------------------------ */

static struct loop_event *take_events(struct loop *loop)
{
	struct loop_event *newest, *oldest = NULL;

	pthread_mutex_lock(&loop->lock);
	newest = loop->events;
	loop->events = NULL;
	pthread_mutex_unlock(&loop->lock);
	while (newest) {
		struct loop_event *next = newest->next;

		newest->next = oldest;
		oldest = newest;
		newest = next;
	}
	return oldest;
}

static void deliver_events(uv_async_t *wake)
{
	struct loop_event *event = take_events(wake->data);

	while (event) {
		struct loop_event *next = event->next;

		event->happened(event->ctx); /* may free the event */
		event = next;
	}
}

void loop_post(struct loop *loop, struct loop_event *event)
{
	pthread_mutex_lock(&loop->lock);
	event->next = loop->events;
	loop->events = event;
	pthread_mutex_unlock(&loop->lock);
	uv_async_send(&loop->wake);
}

/* --- life ---------------------------------------------------------------------------------------- */

struct loop *loop_new(struct err *err)
{
	struct loop *loop = mem_alloc(1, sizeof(*loop));
	int status;

	if (!loop) {
		err_set_nomem(err, "the event loop");
		return NULL;
	}
	pthread_mutex_init(&loop->lock, NULL);
	status = uv_loop_init(&loop->uv);
	if (status == 0) {
		status = uv_async_init(&loop->uv, &loop->wake, deliver_events);
		loop->wake.data = loop;
		if (status == 0)
			return loop;
		uv_loop_close(&loop->uv);
	}
	uv_error(err, status, "start the event loop");
	pthread_mutex_destroy(&loop->lock);
	mem_free(loop);
	return NULL;
}

static void free_handle(uv_handle_t *handle)
{
	mem_free(handle); /* timers and signals begin with their handle */
}

static void close_handle(uv_handle_t *handle, void *ctx)
{
	const struct loop *loop = ctx;

	if (!uv_is_closing(handle))
		uv_close(handle, handle == (const uv_handle_t *)&loop->wake ? NULL : free_handle);
}

void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	uv_walk(&loop->uv, close_handle, loop);
	uv_run(&loop->uv, UV_RUN_DEFAULT);
	uv_loop_close(&loop->uv);
	pthread_mutex_destroy(&loop->lock);
	mem_free(loop);
}

void loop_run(struct loop *loop)
{
	uv_run(&loop->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *loop)
{
	uv_stop(&loop->uv);
}

int64_t loop_now_ms(const struct loop *loop)
{
	(void)loop;
	return (int64_t)(uv_hrtime() / 1000000);
}

void *loop_uv(struct loop *loop)
{
	return &loop->uv;
}

/* --- timers ---------------------------------------------------------------------------------------- */

struct loop_timer *loop_timer_new(struct loop *loop, void (*fire)(void *ctx), void *ctx)
{
	struct loop_timer *timer = mem_alloc(1, sizeof(*timer));

	if (!timer)
		return NULL;
	uv_timer_init(&loop->uv, &timer->uv);
	timer->fire = fire;
	timer->ctx = ctx;
	return timer;
}

static void timer_fired(uv_timer_t *uv)
{
	struct loop_timer *timer = (struct loop_timer *)uv;

	timer->fire(timer->ctx); /* may free the timer */
}

void loop_timer_start(struct loop_timer *timer, int64_t delay_ms)
{
	uv_update_time(timer->uv.loop);
	uv_timer_start(&timer->uv, timer_fired, delay_ms > 0 ? (uint64_t)delay_ms : 0, 0);
}

void loop_timer_stop(struct loop_timer *timer)
{
	uv_timer_stop(&timer->uv);
}

void loop_timer_free(struct loop_timer *timer)
{
	if (!timer)
		return;
	uv_timer_stop(&timer->uv);
	uv_close((uv_handle_t *)&timer->uv, free_handle);
}

/* --- background work ---------------------------------------------------------------------------------- */

static void job_work(uv_work_t *uv)
{
	struct loop_job *job = (struct loop_job *)uv;

	job->work(job->ctx);
}

static void job_done(uv_work_t *uv, int status)
{
	struct loop_job *job = (struct loop_job *)uv;

	(void)status; /* jobs are never cancelled inside uv */
	job->done(job->ctx);
	mem_free(job);
}

int loop_background(struct loop *loop, void (*work)(void *ctx), void (*done)(void *ctx), void *ctx)
{
	struct loop_job *job = mem_alloc(1, sizeof(*job));

	if (!job)
		return -1;
	job->work = work;
	job->done = done;
	job->ctx = ctx;
	uv_queue_work(&loop->uv, &job->uv, job_work, job_done);
	return 0;
}

/* --- signals --------------------------------------------------------------------------------------------- */

static void signal_caught(uv_signal_t *uv, int signum)
{
	struct loop_signal *sig = (struct loop_signal *)uv;

	(void)signum;
	sig->caught(sig->ctx);
}

int loop_on_signal(struct loop *loop, int signum, void (*caught)(void *ctx), void *ctx,
		   struct err *err)
{
	struct loop_signal *sig = mem_alloc(1, sizeof(*sig));
	int status;

	if (!sig)
		return err_set_nomem(err, "a signal handler");
	uv_signal_init(&loop->uv, &sig->uv);
	sig->caught = caught;
	sig->ctx = ctx;
	status = uv_signal_start(&sig->uv, signal_caught, signum);
	if (status == 0)
		return 0;
	uv_close((uv_handle_t *)&sig->uv, free_handle);
	return uv_error(err, status, "catch signals");
}
