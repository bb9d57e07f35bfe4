/* The helper thread: what would hold up the writer. Reading a model's files before VERB_MODEL_ADD is queued,
 * finishing jobs, and the tick of each second. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "server/engine_internal.h"

enum { TICK_MS = 1000 };

static struct engine_call *take_call(struct engine *e)
{
	struct engine_call *call = e->helper_head;

	if (call) {
		e->helper_head = call->next;
		if (!e->helper_head)
			e->helper_tail = &e->helper_head;
	}
	return call;
}

static void prepare_and_queue(struct engine *e, struct engine_call *call)
{
	if (model_add_prepare(e, &call->request, &call->reply) != 0 ||
	    writer_post(e, call, &call->reply.err) != 0)
		call->done(call);
}

static int64_t mono_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Sleeps until something is wanted or the next tick is due; false when told to stop. */
static bool wait_for_work(struct engine *e, int64_t tick_at, struct engine_call **call, bool *kicked)
{
	struct timespec until = { .tv_sec = tick_at / 1000, .tv_nsec = tick_at % 1000 * 1000000 };
	bool stop;

	pthread_mutex_lock(&e->helper_lock);
	while (!e->helper_stop && !e->helper_kick && !e->helper_head)
		if (pthread_cond_timedwait(&e->helper_wanted, &e->helper_lock, &until) == ETIMEDOUT)
			break;
	*call = take_call(e);
	*kicked = e->helper_kick;
	e->helper_kick = false;
	stop = e->helper_stop && !*call;
	pthread_mutex_unlock(&e->helper_lock);
	return !stop;
}

static void *helper_main(void *arg)
{
	struct engine *e = arg;
	int64_t tick_at = mono_ms() + TICK_MS;
	struct engine_call *call;
	bool kicked;

	while (wait_for_work(e, tick_at, &call, &kicked)) {
		if (call)
			prepare_and_queue(e, call);
		if (kicked)
			finish_pending(e);
		if (mono_ms() >= tick_at) {
			engine_tick(e);
			tick_at = mono_ms() + TICK_MS;
		}
	}
	return NULL;
}

int helper_start(struct engine *e, struct err *err)
{
	int rc = pthread_create(&e->helper_thread, NULL, helper_main, e);

	if (rc != 0)
		return err_set_errno(err, rc, "cannot start the helper thread");
	e->helper_running = true;
	return 0;
}

void helper_stop(struct engine *e)
{
	if (!e->helper_running)
		return;
	pthread_mutex_lock(&e->helper_lock);
	e->helper_stop = true;
	pthread_cond_signal(&e->helper_wanted);
	pthread_mutex_unlock(&e->helper_lock);
	pthread_join(e->helper_thread, NULL);
	e->helper_running = false;
}

void helper_kick(struct engine *e)
{
	pthread_mutex_lock(&e->helper_lock);
	e->helper_kick = true;
	pthread_cond_signal(&e->helper_wanted);
	pthread_mutex_unlock(&e->helper_lock);
}

int helper_post(struct engine *e, struct engine_call *call, struct err *err)
{
	bool stopping;

	call->next = NULL;
	pthread_mutex_lock(&e->helper_lock);
	stopping = e->helper_stop;
	if (!stopping) {
		*e->helper_tail = call;
		e->helper_tail = &call->next;
		pthread_cond_signal(&e->helper_wanted);
	}
	pthread_mutex_unlock(&e->helper_lock);
	return stopping ? err_set(err, ERR_UNAVAILABLE, "the coordinator is stopping") : 0;
}
