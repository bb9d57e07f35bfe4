/* late_view.h - what the store knows of workers and ready tasks, as late.h wants it. Read when it is first
 * needed: most fleets have no worker that is much faster than another. */
#ifndef QUARRY_SERVER_LATE_VIEW_H
#define QUARRY_SERVER_LATE_VIEW_H

#include <stdint.h>

#include "common/err.h"

struct store;
struct late_fleet;

/* The worker that asks (workers.pk), and the others that were seen since live_since_ms and are not
 * draining. */
struct late_fleet *late_fleet_read(struct store *db, int64_t worker, int64_t live_since_ms, int64_t now_ms,
				   struct err *err);
void late_fleet_free(struct late_fleet *fleet); /* NULL is fine */
/* 1: the worker leaves a ready task of this kind and work to faster ones; 0; -1 = error. */
int late_fleet_leaves(struct late_fleet *fleet, int64_t kind, double work, struct err *err);

#endif
