/* pool.h - a fixed set of threads that share out the items of one loop at a time.
 *
 * Results never depend on the number of threads: callers cut work into items by shape alone, an item writes
 * only its own outputs, and per-worker scratch is fully rewritten by each item. Which thread takes
 * which item is left to chance. pool_run() allocates nothing and returns when every item is done.
 * One thread calls a pool at a time; pool_run() inside an item is not allowed.
 */
#ifndef QUARRY_WORKER_BACKEND_POOL_H
#define QUARRY_WORKER_BACKEND_POOL_H

#include <stddef.h>

#include "common/err.h"

struct pool;

enum { POOL_THREADS_MAX = 1024 };

/* `item` in 0 .. n_items-1; `worker` in 0 .. pool_workers()-1 is the same for all calls on one
 * thread during a run (index of scratch space). */
typedef void (*pool_fn)(void *ctx, size_t item, int worker);

/* threads in 1 .. POOL_THREADS_MAX, the calling thread included: 1 starts none. The others block all
 * signals. NULL with err set on failure. */
struct pool *pool_new(int threads, struct err *err);
void pool_free(struct pool *pool); /* NULL is fine */

int pool_workers(const struct pool *pool);

/* fn(ctx, item, worker) once for every item, in any order, on any of the threads. */
void pool_run(struct pool *pool, size_t n_items, pool_fn fn, void *ctx);

#endif
