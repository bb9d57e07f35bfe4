/* plan_time.h - how long a planned job will take on a fleet: its tasks played through, without doing them.
 *
 * Pure arithmetic. A task lasts its work divided by the worker's rate for its kind, and a moment for lease and
 * transfer; whoever is free takes the ready task of the best rank, as the scheduler does. So what can run side by side
 * does, and chains (captures of a shard, the sequential order, the distill task) take the time they take.
 */
#ifndef QUARRY_SERVER_PLAN_TIME_H
#define QUARRY_SERVER_PLAN_TIME_H

#include "server/plan.h"

/* Who is there: workers and the threads of all of them, both at least 1; how many of them compute on a device, and the
 * threads of those. */
struct plan_crew { int64_t workers, threads, devices, device_threads; };

struct plan_fleet {
	struct plan_crew crew;
	bool measured;                  /* rates come from finished tasks */
	double rate[KIND_COUNT];        /* work (see plan.h) a second of one worker */
};

/* Work a second of one thread, per kind: the cpu backend on a core of an AMD EPYC (Zen 4, AVX-512), rounded; a core with
 * AVX2 alone is about half as fast. Used where no worker has finished a task yet. */
extern const double plan_default_rate[KIND_COUNT];
/* Threads that a device is worth in the kinds that are matrix products above all: 32 million million operations a second,
 * where one NVIDIA H200 does 34 (capture) and 54 (quantize, no training) for a layer of Llama-2-7B's shape over 128 x 2048
 * tokens, files and copies included (docs/performance.md). Workers that share a device are taken as if each had its own. */
extern const double plan_device_threads;
/* Capture, quantize, distill, evaluate: what they cost is products of matrices, which a device does; the rest is the
 * processor's. */
bool plan_is_product(int64_t kind);
/* What every task takes beside its work: lease, inputs, outputs. */
extern const double plan_task_seconds;
/* A task with less work tells of overheads, not of speed. */
enum { PLAN_WORK_LEAST = 1000 };

/* What the workers have done: work and busy seconds per kind, 0 = nothing. A kind that was not measured gets the default
 * rate of a worker of this crew, on average, made faster or slower as the measured kinds are that are products like it, or
 * like it are not: how fast a worker reads files says nothing of how fast it multiplies. */
struct plan_history { double work[KIND_COUNT], seconds[KIND_COUNT]; };
void plan_fleet_init(struct plan_fleet *fleet, const struct plan_crew *crew, const struct plan_history *history);

/* Seconds from submission to the last task; -1 without memory. */
double plan_seconds(const struct plan *plan, const struct plan_fleet *fleet);

/* The job as planned, and with the bundles of each effort in its place; below 0: that cannot be planned. */
struct plan_forecast { struct plan_fleet fleet; double seconds, efforts[EFFORTS]; };
/* with_efforts false: only the job itself. 0, or -1 without memory. */
int plan_forecast(struct plan_forecast *forecast, const struct plan *plan, const struct plan_request *request,
		  bool with_efforts, struct err *err);

#endif
