/* restart.h - a worker that lost its device starts its program again, with the same arguments, in the same
 * process.
 *
 * A driver's hold on a device that failed ends only with the process image. WORK/restarts remembers when
 * that happened, so that a device that fails again and again, or a task that breaks every one, does not
 * make the worker turn in circles.
 */
#ifndef QUARRY_WORKER_RESTART_H
#define QUARRY_WORKER_RESTART_H

#include <stdint.h>

#include "common/err.h"

enum { RESTARTS_MOST = 5, RESTART_WINDOW_MS = 60 * 60 * 1000 };

/* Notes one more at `now_ms` (wall clock). ERR_UNAVAILABLE, and nothing is noted, when there were
 * RESTARTS_MOST in the RESTART_WINDOW_MS before. A file that makes no sense counts as empty. */
int restart_note(const char *work, int64_t now_ms, struct err *err);
/* Replaces the process: no descriptor above standard error is passed on. Returns only when that failed. */
int restart_exec(char **argv, struct err *err);

#endif
