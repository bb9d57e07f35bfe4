/* The calling thread is worker 0 and takes items like the others. A run is announced by raising
 * `generation` under the lock; every helper takes part in every generation exactly once, and
 * `busy` counts those that have not finished it. Items are claimed with one atomic addition. */
#include "worker/backend/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "common/alloc.h"

struct helper {
	struct pool *pool;
	pthread_t thread;
	int index;
};

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t start, done;
	uint64_t generation;    /* of the current or last run */
	int busy;               /* helpers still in it */
	bool stop;
	pool_fn fn;
	void *ctx;
	size_t n_items;
	atomic_size_t next;     /* first unclaimed item */
	int workers;            /* helpers + 1 */
	int started;            /* helpers that run */
	struct helper *helpers;
};

static void take_items(struct pool *pool, int worker)
{
	size_t item;

	while ((item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < pool->n_items)
		pool->fn(pool->ctx, item, worker);
}

static void *helper_main(void *arg)
{
	struct helper *self = arg;
	struct pool *pool = self->pool;
	uint64_t seen = 0;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		while (!pool->stop && pool->generation == seen)
			pthread_cond_wait(&pool->start, &pool->lock);
		if (pool->stop)
			break;
		seen = pool->generation;
		pthread_mutex_unlock(&pool->lock);
		take_items(pool, self->index);
		pthread_mutex_lock(&pool->lock);
		if (--pool->busy == 0)
			pthread_cond_signal(&pool->done);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Helpers take no signals: those belong to the program's main loop. */
static int start_helpers(struct pool *pool, struct err *err)
{
	sigset_t all, old;
	int rc = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (int i = 0; i < pool->workers - 1 && rc == 0; i++) {
		struct helper *h = &pool->helpers[i];

		*h = (struct helper){ .pool = pool, .index = i + 1 };
		rc = pthread_create(&h->thread, NULL, helper_main, h);
		if (rc == 0)
			pool->started++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc != 0)
		return err_set(err, ERR_UNAVAILABLE, "cannot start compute thread %d of %d: %s",
			       pool->started + 2, pool->workers, strerror(rc));
	return 0;
}

struct pool *pool_new(int threads, struct err *err)
{
	struct pool *pool;

	if (threads < 1 || threads > POOL_THREADS_MAX) {
		err_set(err, ERR_INVALID, "threads is %d; it must be 1 to %d", threads, POOL_THREADS_MAX);
		return NULL;
	}
	pool = mem_alloc(1, sizeof(*pool));
	if (!pool) {
		err_set_nomem(err, "the thread pool");
		return NULL;
	}
	pool->workers = threads;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->start, NULL);
	pthread_cond_init(&pool->done, NULL);
	pool->helpers = mem_alloc((size_t)threads, sizeof(*pool->helpers));
	if (!pool->helpers) {
		err_set_nomem(err, "the thread pool");
		pool_free(pool);
		return NULL;
	}
	if (start_helpers(pool, err) != 0) {
		pool_free(pool);
		return NULL;
	}
	return pool;
}

void pool_free(struct pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->start);
	pthread_mutex_unlock(&pool->lock);
	for (int i = 0; i < pool->started; i++)
		pthread_join(pool->helpers[i].thread, NULL);
	pthread_cond_destroy(&pool->start);
	pthread_cond_destroy(&pool->done);
	pthread_mutex_destroy(&pool->lock);
	mem_free(pool->helpers);
	mem_free(pool);
}

int pool_workers(const struct pool *pool)
{
	return pool->workers;
}

void pool_run(struct pool *pool, size_t n_items, pool_fn fn, void *ctx)
{
	if (pool->started == 0 || n_items <= 1) {
		for (size_t i = 0; i < n_items; i++)
			fn(ctx, i, 0);
		return;
	}
	pthread_mutex_lock(&pool->lock);
	pool->fn = fn;
	pool->ctx = ctx;
	pool->n_items = n_items;
	atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
	pool->busy = pool->started;
	pool->generation++;
	pthread_cond_broadcast(&pool->start);
	pthread_mutex_unlock(&pool->lock);

	take_items(pool, 0);

	pthread_mutex_lock(&pool->lock);
	while (pool->busy > 0)
		pthread_cond_wait(&pool->done, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
}
