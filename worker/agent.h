/* agent.h - the worker daemon: registers, takes tasks, hands in results, until it is told to stop.
 *
 * agent_state.h has the pictures. Everything runs in one loop, except computing (compute.h) and hashing.
 * Invariants:
 *  1. Every request about a task carries its epoch; 409 or 404 means that the work is dropped, and
 *     nothing of it is sent afterwards.
 *  2. A result is in the spool before its first byte goes up, and stays there until the coordinator has
 *     acknowledged or refused it.
 *  3. No answer is no verdict: heartbeats, uploads and completions are repeated with back-off, and
 *     computing goes on.
 *  4. At most one task is computed or prepared at a time; finished ones go up beside it.
 */
#ifndef QUARRY_WORKER_AGENT_H
#define QUARRY_WORKER_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"
#include "worker/backend/backend.h"
#include "worker/client.h"

struct agent_config {
	struct client_config client;
	const char *token_file;         /* for messages; may be NULL */
	const char *work;               /* the work folder, made and locked by the caller */
	const char *name;
	const char *version;
	const struct backend_ops *backend;
	const struct clock *clock;
	struct backend_options compute; /* threads, device, its memory */
	uint64_t memory_bytes, cache_bytes;
	bool read_paths;                /* read checkpoints from local folders that match, link local blobs */
	bool wait_for_server;           /* at the first registration */
	int64_t checkpoint_ms;          /* at least so long between two checkpoints of a task */
	int parent;                     /* process whose end means hurry; 0 = none */
};

struct agent;

/* Opens cache, spool, backend; nothing is sent yet. */
struct agent *agent_new(const struct agent_config *config, struct err *err);
/* Returns when the agent stopped: 0 after a drain or for a lost device, -1 with err when it could not serve. */
int agent_run(struct agent *a, struct err *err);
/* It stopped because the device of its backend was lost, and nobody asked it to stop: *why. A new process may use the
 * device again; everything that this one held was given back or waits on disk. */
bool agent_lost_device(const struct agent *a, struct err *why);
/* false: the compute thread did not end in time, and memory it uses was left alone; end the process. */
bool agent_free(struct agent *a);

#endif
