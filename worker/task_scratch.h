/* task_scratch.h - folders that unfinished tasks keep across restarts of the worker: WORK/scratch/<task>/.
 *
 * A task that resumes (task.h: scratch_dir) makes its folder when it has something to keep. It goes when the task is
 * over: acknowledged, cancelled, lost, or failed for a reason that no second try mends. What is left of a task that this
 * worker never met again goes when nothing was written there for TASK_SCRATCH_DAYS. Names come from the coordinator: only
 * plain ones become paths.
 */
#ifndef QUARRY_WORKER_TASK_SCRATCH_H
#define QUARRY_WORKER_TASK_SCRATCH_H

#include <stdint.h>

#include "common/err.h"

enum { TASK_SCRATCH_DAYS = 7 };

/* Makes WORK/scratch and removes what is too old; now_ms: since the Unix epoch. */
int task_scratch_prepare(const char *work, int64_t now_ms, struct err *err);
/* The folder of a task, which need not exist; free with mem_free(). NULL when out of memory or not a plain name. */
char *task_scratch_path(const char *work, const char *task);
/* Removes it if it is there. Failures are logged: nothing depends on it. */
void task_scratch_drop(const char *work, const char *task);

#endif
