/* follow.h - waiting for a job, and saying how far it is.
 *
 * On a terminal: one standing line per finished stage and one living line with bar, percentage, time left,
 * tasks and the worst module so far. Elsewhere: a plain line every few seconds, when something changed.
 * Waiting is a long poll with the job's ETag; a coordinator that is away is waited for.
 */
#ifndef QUARRY_CLI_FOLLOW_H
#define QUARRY_CLI_FOLLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/client.h"
#include "common/err.h"
#include "common/json.h"

struct follow {
	struct client *client;
	const char *job;
	/* Called about every second; -1 with err ends the wait. NULL: nothing to look after. */
	int (*tend)(void *ctx, struct err *err);
	void *tend_ctx;
	int64_t patience_ms;    /* how long the coordinator may be away */
};

/* Until the job is DONE, FAILED or CANCELLED: *job is its last description, owned by the caller. -1: the wait
 * itself failed (ERR_CANCELLED when interrupted). */
int follow_job(const struct follow *f, struct json **job, struct err *err);
bool job_is_final(const struct json *job);
/* 0 when DONE, else the sentence of the failure or cancellation. */
int job_outcome(const struct json *job, struct err *err);
/* The attempts of a failed job, on stderr. */
void print_attempts(const struct json *job);

/* One line: "quantize 3/6, 42 %, 31 s left, worst …". Safe text. */
void progress_line(const struct json *job, bool bar, char *out, size_t cap);
/* "layer.module" with the largest relative loss so far and that loss; false when there is none. */
bool worst_module(const struct json *job, char *name, size_t cap, double *loss);

#endif
