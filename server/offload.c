#include "server/offload.h"

#include <pthread.h>
#include <stdbool.h>

#include "common/alloc.h"

struct offload {
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct offload_job *first, **last;
	unsigned queued, queue_max;
	bool stopping;
	pthread_t threads[OFFLOAD_THREADS_MAX];
	unsigned thread_count;
};

static struct offload_job *take(struct offload *o)
{
	struct offload_job *job;

	pthread_mutex_lock(&o->lock);
	while (!o->first && !o->stopping)
		pthread_cond_wait(&o->work, &o->lock);
	job = o->first;
	if (job) {
		o->first = job->next;
		if (!o->first)
			o->last = &o->first;
		o->queued--;
	}
	pthread_mutex_unlock(&o->lock);
	return job;
}

static void *work(void *ctx)
{
	struct offload_job *job;

	while ((job = take(ctx)))
		job->run(job);
	return NULL;
}

struct offload *offload_new(unsigned threads, unsigned queue_max, struct err *err)
{
	struct offload *o = mem_alloc(1, sizeof(*o));

	if (!o) {
		err_set_nomem(err, "helper threads");
		return NULL;
	}
	pthread_mutex_init(&o->lock, NULL);
	pthread_cond_init(&o->work, NULL);
	o->last = &o->first;
	o->queue_max = queue_max;
	for (; o->thread_count < threads && o->thread_count < OFFLOAD_THREADS_MAX; o->thread_count++)
		if (pthread_create(&o->threads[o->thread_count], NULL, work, o) != 0) {
			err_set(err, ERR_INTERNAL, "cannot start a helper thread");
			offload_free(o);
			return NULL;
		}
	return o;
}

void offload_free(struct offload *o)
{
	if (!o)
		return;
	pthread_mutex_lock(&o->lock);
	o->stopping = true;
	pthread_cond_broadcast(&o->work);
	pthread_mutex_unlock(&o->lock);
	for (unsigned i = 0; i < o->thread_count; i++)
		pthread_join(o->threads[i], NULL);
	pthread_cond_destroy(&o->work);
	pthread_mutex_destroy(&o->lock);
	mem_free(o);
}

int offload_post(struct offload *o, struct offload_job *job, struct err *err)
{
	int rc = 0;

	pthread_mutex_lock(&o->lock);
	if (o->queued == o->queue_max) {
		rc = err_set(err, ERR_BUSY, "%u uploads are waiting to be verified; ask again in a moment",
			     o->queued);
	} else {
		job->next = NULL;
		*o->last = job;
		o->last = &job->next;
		o->queued++;
		pthread_cond_signal(&o->work);
	}
	pthread_mutex_unlock(&o->lock);
	return rc;
}
