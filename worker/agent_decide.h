/* agent_decide.h - every judgement of the agent as a pure function: no I/O, no clock, no state. */
#ifndef QUARRY_WORKER_AGENT_DECIDE_H
#define QUARRY_WORKER_AGENT_DECIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "worker/agent_state.h"

enum {
	DECIDE_BACKOFF_FIRST_MS = 250, DECIDE_BACKOFF_MOST_MS = 10000,
	DECIDE_UPLOADS_MOST = 4,        /* finished results that may wait before no more tasks are taken */
	DECIDE_DRAIN_SOON_MS = 20000,   /* a drain waits for a task that needs no longer than this */
	DECIDE_DRAIN_AWAY_MS = 20000,   /* a drain waits so long for an absent coordinator */
	DECIDE_HURRY_MS = 3000,         /* everything must be over so soon after a second SIGTERM */
	DECIDE_REUPLOADS_MOST = 5,
};

/* Delay before attempt `failures` + 1: doubles from 250 ms to 10 s; `random` spreads it over the upper half. */
int64_t decide_backoff_ms(unsigned failures, uint32_t random);
/* A quarter of the lease, 50 ms to 60 s. */
int64_t decide_heartbeat_ms(int64_t lease_ms);
/* After a heartbeat that got no answer: soon, but never later than the next regular one. */
int64_t decide_heartbeat_retry_ms(int64_t lease_ms, unsigned failures, uint32_t random);

enum request_kind {
	REQUEST_REGISTER, REQUEST_LEASE, REQUEST_HEARTBEAT, REQUEST_COMPLETE, REQUEST_FAIL, REQUEST_RELEASE,
	REQUEST_CHECKPOINT,
	REQUEST_UPLOAD_BEGIN, REQUEST_UPLOAD_PART, REQUEST_UPLOAD_COMPLETE, REQUEST_DOWNLOAD,
};

enum verdict {
	VERDICT_DONE,
	VERDICT_RETRY,          /* the same again after a delay */
	VERDICT_LOST,           /* the task is not ours any more */
	VERDICT_REGISTER,       /* the coordinator does not know this worker */
	VERDICT_UPLOAD_AGAIN,   /* blobs are missing or came out wrong */
	VERDICT_REFUSED,        /* asking again cannot help */
};
/* status 0 = no reply. `code` is the error in the reply, or that of the transport. */
enum verdict decide_reply(enum request_kind kind, int status, enum err_code code);

/* What the agent has at hand. */
struct decide_view {
	enum agent_state state;
	bool lease_under_way;
	size_t busy;            /* holds before UPLOADING, and those whose compute thread still runs */
	size_t sealing;         /* holds in SEALING */
	size_t sealing_soon;    /* of these, those that have been there for a moment only */
	size_t uploading;       /* holds in UPLOADING or COMPLETING */
	size_t parting;         /* holds in FAILING or RELEASING */
	size_t held;            /* all */
};
/* Ask for a task now? One is computed at a time; the next is asked for while results are sealed, if that takes long, and go
 * up. */
bool decide_want_lease(const struct decide_view *view);

/* After "nothing to do": at once when the coordinator kept the poll for a while, otherwise a little later,
 * so that one that does not wait is not asked in a tight loop. */
int64_t decide_poll_again_ms(int64_t poll_took_ms);

/* On drain: true = give the task back, false = finish it. `progress` 0..1 after `elapsed_ms` of
 * computing. `hurry`: second signal. */
bool decide_give_back(enum hold_state state, double progress, int64_t elapsed_ms, bool hurry);
/* The same for a task at COMPUTING that resumes where it was: giving it back costs next to nothing, and how long the rest
 * takes cannot be told from when this process began with it. Not for a hurry. */
bool decide_leave(double progress);
/* May a draining agent stop? `away_ms`: how long the coordinator has not answered (0 = it does);
 * `hurry_ms`: since the second signal (-1 = there was none). */
bool decide_stop(const struct decide_view *view, int64_t away_ms, int64_t hurry_ms);
/* The same for one that lost its device and starts anew: as soon as the last word about what it computed was heard. Results
 * that still go up wait on disk meanwhile. */
bool decide_start_anew(const struct decide_view *view);

#endif
