/* engine_progress.h - how far a job is, from its tasks. */
#ifndef QUARRY_SERVER_ENGINE_PROGRESS_H
#define QUARRY_SERVER_ENGINE_PROGRESS_H

#include "server/engine_internal.h"

struct job_progress {
	int64_t counts[KIND_COUNT][TASK_STATES];
	double fraction;        /* 0..1, weighed by estimated work; exactly 1 when every task is done */
	double work[KIND_COUNT], left[KIND_COUNT];              /* in all; of what is not done */
	double done_work[KIND_COUNT], done_ms[KIND_COUNT];
	double holders;         /* tasks that are leased */
};

int job_progress(struct store *db, const struct job_ref *job, struct job_progress *p, struct err *err);
/* Seconds left, from the speed of the job's finished tasks and of the workers that are there; negative: not known. */
int job_time_left(struct tx *tx, const struct job_ref *job, const struct job_progress *p, double *seconds, struct err *err);

#endif
