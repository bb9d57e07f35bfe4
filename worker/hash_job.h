/* hash_job.h - the SHA-256 of a file, computed in the background. */
#ifndef QUARRY_WORKER_HASH_JOB_H
#define QUARRY_WORKER_HASH_JOB_H

#include "common/err.h"
#include "worker/loop.h"

struct hash_job;
/* hashed(ctx, hex, err) is called once in the loop, later; hex is valid when err->code is ERR_NONE.
 * The path is copied. NULL when out of memory. */
struct hash_job *hash_start(struct loop *loop, const char *path,
			    void (*hashed)(void *ctx, const char *sha256, const struct err *err), void *ctx);
/* hashed() will not be called; the job frees itself when its thread is through. NULL is fine. */
void hash_cancel(struct hash_job *job);

#endif
