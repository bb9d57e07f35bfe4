/* schedule.h - which ready task a worker gets. Order of preference: docs/protocol.md. */
#ifndef QUARRY_SERVER_SCHEDULE_H
#define QUARRY_SERVER_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "server/states.h"

struct store;

struct schedule_request {
	int64_t worker;                 /* workers.pk */
	int64_t live_since_ms;          /* workers seen since then are alive */
	int64_t now_ms;
	const char *const *have;        /* digests of blobs the worker holds */
	size_t have_count;
};

/* 1 = *task is to be leased, 0 = nothing for this worker now, -1 = error. Changes nothing.
 * *left: some task was left to faster workers (late.h). */
int schedule_pick(struct store *db, const struct schedule_request *request, struct task_ref *task, bool *left,
		  struct err *err);

#endif
