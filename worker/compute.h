/* compute.h - the compute thread: runs one task at a time, away from the loop.
 *
 * The thread opens the backend, uses it and closes it; compute_start() waits until it is open. A job is
 * filled in by the loop's thread, handed over by compute_submit(), and handed back by a loop event: in
 * between only `stop`, and progress through compute_progress(), are touched by the loop. The thread runs the
 * task; its result is sealed into the spool by others (seal_job.h), and survives this process only then. A task for
 * which a backend with memory of its own has too little is run again with smaller pieces (task.h), a few times; its
 * "stats" then tell how small, because that may show in the bits of the result. Each task begins with full pieces. A task
 * that resumes leaves checkpoints on its way: the file is handed to the loop, which sends it while the task
 * goes on.
 */
#ifndef QUARRY_WORKER_COMPUTE_H
#define QUARRY_WORKER_COMPUTE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"
#include "common/json.h"
#include "worker/backend/backend.h"
#include "worker/loop.h"
#include "worker/model_source.h"
#include "worker/spool.h"
#include "worker/task.h"

struct compute;

enum { COMPUTE_NOTE_MAX = 128, COMPUTE_LOG_LINES = 32 };

struct compute_job {
	/* in; borrowed until done */
	const char *kind;
	const struct json *spec;
	const struct json *model;               /* of the lease; NULL is an error of the job */
	const struct task_input *inputs;
	size_t input_count;
	struct spool_entry *entry;              /* in run/ */
	void (*done)(void *ctx);                /* in the loop */
	/* In the loop: `checkpoint` is there to be sent; the thread leaves no other until checkpoint_busy is
	 * cleared. It may come after done(). */
	void (*checkpoint_left)(void *ctx);
	void *ctx;
	/* while it runs */
	atomic_bool stop;
	atomic_bool leaving;                    /* with stop: a checkpoint is wanted before the task ends */
	atomic_bool resumes;                    /* the task can leave checkpoints */
	atomic_bool checkpoint_busy;
	atomic_llong checkpoint_asked_ms;       /* when the last one was asked for */
	atomic_llong checkpoint_took_ms;        /* from then until the coordinator had it; the loop sets it */
	char *checkpoint;                       /* path; the loop takes it over */
	atomic_int progress_ppm;
	pthread_mutex_t lock;                   /* guards note */
	char note[COMPUTE_NOTE_MAX];
	/* out, after done */
	int rc;                                 /* 0: its outputs are in the entry's folder */
	struct json *result, *stats;            /* of a success, for spool_seal() */
	struct err err;
	bool device_lost;                       /* it failed because the backend's device does not answer any more */
	char log[COMPUTE_LOG_LINES][COMPUTE_NOTE_MAX + 32]; /* the last notes with their times, a ring */
	size_t log_count;                       /* notes in all */
	/* private */
	struct compute *compute;
	size_t piece_tokens;                    /* pieces were made that small for lack of memory; 0: they were not */
	int64_t started_ms;
	struct loop_event event, checkpoint_event;
};

struct compute_config {
	const struct backend_ops *backend;
	struct backend_options options;         /* to open it with */
	const char *work;                       /* the work folder */
	const struct client_config *client;
	const struct clock *clock;
	bool read_paths;                        /* model_source_new() */
	/* At least so long between two checkpoints of a task, and ten times as long as the last one took, so that making
	 * and sending them stays a small part of the work. 0: as often as there is something new. */
	int64_t checkpoint_ms;
};

/* Opens the backend, starts the thread. Everything in config is borrowed. */
struct compute *compute_start(struct loop *loop, const struct compute_config *config, struct err *err);
/* Asks a running job to stop and ends the thread; its done() is not called. false: it did not stop within
 * wait_ms, and everything it uses was left alone. NULL is fine. */
bool compute_end(struct compute *c, int64_t wait_ms);
/* What determines results, for registration and stats. */
const char *compute_identity(struct compute *c);
/* As it was when the backend was opened; NULL: it computes without a device. */
const struct backend_device *compute_device(const struct compute *c);

void compute_job_init(struct compute_job *job);
void compute_job_deinit(struct compute_job *job);
/* One job at a time: not before the one before is done. */
void compute_submit(struct compute *c, struct compute_job *job);
/* Progress 0..1 and what it is at; `note` of COMPUTE_NOTE_MAX bytes. From the loop. */
double compute_progress(struct compute_job *job, char *note);
/* The last notes, one a line, oldest first; after done. Free with mem_free(); NULL when out of memory. */
char *compute_log(const struct compute_job *job);

#endif
