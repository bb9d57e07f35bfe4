/* late.h - whether a worker gets a ready task now, or leaves it to faster ones (late binding).
 *
 * A worker is given a task only if it would be done with it before the faster workers were through with
 * everything that is ready: near the end of a job, and where a job hangs on one chain of tasks, a slow
 * worker that takes one makes all wait for it. Pure arithmetic on measured rates. Nobody starves:
 *  1. What is not known leaves nothing to others: a worker without a rate for a kind gets the task, and so
 *     is measured; others without one are not counted on.
 *  2. Only live workers that take tasks are counted on, and one that overdraws the time of what it holds
 *     is expected to need as long again, so that in the end somebody else is sooner.
 *  3. The fastest worker leaves nothing to anybody.
 */
#ifndef QUARRY_SERVER_LATE_H
#define QUARRY_SERVER_LATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/states.h"

enum { LATE_WORKERS_MAX = 256, LATE_READY_MAX = 512 };

/* A worker with less than this times another one's rate is slower than it: measured rates scatter. */
extern const double late_slower;
/* Seconds that must be gained for a task to be left: a poll or two. */
extern const double late_gain_seconds;

struct late_worker {
	int64_t worker;
	double work[KIND_COUNT], seconds[KIND_COUNT];   /* measured, 0 = not */
	double rate[KIND_COUNT];                        /* work a second by late_rates(), 0 = not known */
	double busy_seconds;                            /* until it is through with what it holds */
};
struct late_task { int64_t kind; double work; };

struct late_view {
	struct late_worker asking;
	struct late_worker others[LATE_WORKERS_MAX];    /* alive, not draining */
	size_t other_count;
	struct late_task ready[LATE_READY_MAX];         /* in the order in which they are given out */
	size_t ready_count;
	bool more;                                      /* there are ready tasks beyond those */
};

/* Rates of the kinds that were measured; and among those that are matrix products above all (capture,
 * quantize, distill, evaluate), of the others by plan_default_rate, made faster or slower as the measured
 * ones are: on a device they stand to each other as on a processor. */
void late_rates(struct late_worker *w);
/* Seconds until a lease ends: `progress` 0..1 after `elapsed` seconds of a task of that work; rate 0: not
 * known. */
double late_remaining(double work, double rate, double elapsed, double progress);
/* Whether some other worker is faster than the asking one at this kind. */
bool late_has_faster(const struct late_view *v, int64_t kind);
/* Seconds until those that are faster at this kind are through with everything that is ready, each task
 * going to the one that ends it first; below 0: there are none, or nobody can tell. */
double late_drained(const struct late_view *v, int64_t kind);
/* true: the asking worker leaves the task, which is among the ready ones, to those who are through after
 * `drained`. */
bool late_leave(const struct late_view *v, const struct late_task *task, double drained);

#endif
