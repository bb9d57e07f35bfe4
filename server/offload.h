/* offload.h - a few threads for work that would hold up an event thread: hashing a large upload.
 *
 * The job belongs to the caller and must live until run() returns; run() is called once, on one
 * of the threads. Jobs still queued at offload_free() are run first.
 */
#ifndef QUARRY_SERVER_OFFLOAD_H
#define QUARRY_SERVER_OFFLOAD_H

#include "common/err.h"

enum { OFFLOAD_THREADS_MAX = 16 };

struct offload;

struct offload_job {
	void (*run)(struct offload_job *job);
	struct offload_job *next; /* private */
};

struct offload *offload_new(unsigned threads, unsigned queue_max, struct err *err);
void offload_free(struct offload *o);
/* ERR_BUSY when the queue is full. */
int offload_post(struct offload *o, struct offload_job *job, struct err *err);

#endif
