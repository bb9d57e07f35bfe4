#include "worker/hidden_lane.h"

#include <signal.h>
#include <string.h>

/* Whether the lane may work up to there; waits for it. */
static bool may_go(struct hidden_lane *l, uint64_t upto)
{
	bool stop;

	pthread_mutex_lock(&l->lock);
	while (!l->stop && l->allowed < upto)
		pthread_cond_wait(&l->changed, &l->lock);
	stop = l->stop;
	pthread_mutex_unlock(&l->lock);
	return !stop;
}

/* Says how far the lane is, or that it failed; whether it goes on. */
static bool tell(struct hidden_lane *l, uint64_t at, const struct err *failure)
{
	bool go;

	pthread_mutex_lock(&l->lock);
	if (failure) {
		l->failed = true;
		l->err = *failure;
	} else {
		l->at = at;
	}
	go = !failure && !l->stop;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	return go;
}

static bool work_piece(struct hidden_lane *l, size_t i)
{
	const uint64_t begin = hidden_pieces_at(l->pieces, i), end = hidden_pieces_at(l->pieces, i + 1);
	const size_t bytes = (size_t)(end - begin);
	char *buffer = l->buffer[i % HIDDEN_BUFFERS];
	bool go = may_go(l, end);

	for (size_t from = 0, now; go && from < bytes; from += now) {
		struct err err = ERR_INIT;
		int rc;

		now = bytes - from < l->chunk ? bytes - from : l->chunk;
		rc = l->work(l->ctx, i, from, buffer + from, now, &err);
		go = tell(l, begin + from + now, rc == 0 ? NULL : &err);
	}
	return go;
}

static void *lane_main(void *ctx)
{
	struct hidden_lane *l = ctx;

	for (size_t i = 0; i < l->pieces->count; i++)
		if (!work_piece(l, i))
			break;
	return NULL;
}

int hidden_lane_start(struct hidden_lane *l, const char *what, struct err *err)
{
	sigset_t all, old;
	int rc;

	l->allowed = l->at = 0;
	l->stop = l->failed = false;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->changed, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&l->thread, NULL, lane_main, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	l->running = rc == 0;
	if (rc == 0)
		return 0;
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	return err_set(err, ERR_UNAVAILABLE, "cannot start a thread to %s: %s", what, strerror(rc));
}

void hidden_lane_allow(struct hidden_lane *l, uint64_t upto)
{
	pthread_mutex_lock(&l->lock);
	l->allowed = upto;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

int hidden_lane_wait(struct hidden_lane *l, uint64_t upto, uint64_t *at, struct err *err)
{
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	while (l->at < upto && !l->failed)
		pthread_cond_wait(&l->changed, &l->lock);
	if (at)
		*at = l->at;
	if (l->at < upto) {
		if (err)
			*err = l->err;
		rc = -1;
	}
	pthread_mutex_unlock(&l->lock);
	return rc;
}

void hidden_lane_stop(struct hidden_lane *l)
{
	if (!l->running)
		return;
	pthread_mutex_lock(&l->lock);
	l->stop = true;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	pthread_join(l->thread, NULL);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	l->running = false;
}
