/* seal_job.h - a finished result sealed into the spool in the background: hashing it takes as long as computing it, and
 * the compute thread has better to do. */
#ifndef QUARRY_WORKER_SEAL_JOB_H
#define QUARRY_WORKER_SEAL_JOB_H

#include <stdbool.h>

#include "common/err.h"
#include "common/json.h"
#include "worker/loop.h"
#include "worker/spool.h"

struct seal_job;

/* Takes over entry, result and stats, unless it returns NULL (out of memory). sealed(ctx, entry, err) is called once in the
 * loop, later, and gives the entry back: with err->code ERR_NONE it is in done/, else where it was. `work` is borrowed until
 * then. */
struct seal_job *seal_start(struct loop *loop, const char *work, struct spool_entry *entry, struct json *result,
			    struct json *stats,
			    void (*sealed)(void *ctx, struct spool_entry *entry, const struct err *err), void *ctx);
/* sealed() will not be called; the entry is freed when the thread is through with it, and with `drop` its folder is removed:
 * nobody wants the result. Without, it waits on disk for the next process. NULL is fine. */
void seal_abandon(struct seal_job *job, bool drop);

#endif
