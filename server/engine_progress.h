/* engine_progress.h - how far a job is, from its tasks. */
#ifndef QUARRY_SERVER_ENGINE_PROGRESS_H
#define QUARRY_SERVER_ENGINE_PROGRESS_H

#include "server/engine_internal.h"

struct job_progress {
	int64_t counts[KIND_COUNT][TASK_STATES];
	double fraction;        /* 0..1, weighed by estimated work; exactly 1 when every task is done */
	double eta_seconds;     /* from the speed of the job's finished tasks and of its workers; negative: not known */
};

int job_progress(struct tx *tx, const struct job_ref *job, struct job_progress *p, struct err *err);

#endif
