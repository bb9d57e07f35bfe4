/* engine.h - the coordinator's job engine: all durable state, behind typed JSON verbs.
 *
 * The HTTP layer (http.c, routes.c) knows no SQL and no job rules; this module knows no HTTP. A request is
 * a verb, the caller, path parameters and a JSON body; a reply is a status and a JSON body. Blob *bytes*
 * are the blob store's (blobs.h); blob *rows* (which exist, who reads them) are here.
 *
 * Invariants:
 *  1. One writer thread owns the only writing SQLite connection (WAL, synchronous=FULL) and does all
 *     checkpoints. Writes are group-committed: the queue is drained into one transaction; replies are given
 *     after COMMIT. A failed COMMIT fails every write of the batch and acknowledges nothing.
 *  2. Readers use read-only connections, one per calling thread at most, from a small pool.
 *  3. Every state change of a job or task is one guarded UPDATE that changes exactly one row.
 *  4. Time and randomness come from struct clock.
 * Threads: every function may be called from any thread.
 */
#ifndef QUARRY_SERVER_ENGINE_H
#define QUARRY_SERVER_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"
#include "common/json.h"

struct blobs;

enum role { ROLE_VIEWER, ROLE_SUBMITTER, ROLE_WORKER, ROLE_RELEASER, ROLE_ADMIN, ROLE_COUNT };

/* Read verbs run at once in the caller's thread; write verbs go through the writer. */
enum verb {
	/* reads */
	VERB_JOB_LIST, VERB_JOB_GET, VERB_JOB_CURVES, VERB_JOB_TASKS, VERB_JOB_REPORT, VERB_JOB_FILES, VERB_JOB_EVENTS,
	VERB_MODEL_LIST, VERB_MODEL_GET, VERB_DATASET_LIST, VERB_DATASET_GET, VERB_WORKER_LIST,
	VERB_WORKER_GET, VERB_STATS,
	/* writes */
	VERB_JOB_SUBMIT, VERB_JOB_CANCEL, VERB_JOB_RETRY, VERB_JOB_DELETE,
	VERB_MODEL_ADD, VERB_MODEL_DELETE, VERB_DATASET_ADD, VERB_DATASET_DELETE,
	VERB_WORKER_ADD, VERB_WORKER_DRAIN,
	VERB_LEASE, VERB_HEARTBEAT, VERB_CHECKPOINT, VERB_COMPLETE, VERB_FAIL, VERB_RELEASE,
	VERB_BLOB_ADD,
	VERB_COUNT
};

bool verb_is_write(enum verb verb);

struct engine_request {
	enum verb verb;
	char subject[64];               /* token id of the caller */
	enum role role;
	char id[128];                   /* path parameter: job, task, worker, model, dataset; or "" */
	char path[512];                 /* file path inside a job's results, or "" */
	char idempotency_key[128];      /* or "" */
	bool dry_run;
	/* list parameters (checked by the HTTP layer for form only) */
	char state[32];                 /* or "" */
	char cursor[128];               /* opaque, or "" */
	int64_t limit;                  /* 0 = default */
	int64_t after;                  /* events: sequence number seen last */
	struct json *body;              /* owned by the request; NULL when none */
};

struct engine_reply {
	int status;                     /* 200, 201, 204 ... */
	struct json *body;              /* owned; NULL when none. On failure: see err */
	char etag[80];                  /* strong, without quotes; "" when the verb has none */
	bool wait;                      /* VERB_LEASE: nothing now, a later wake may bring something */
	bool drain;                     /* VERB_LEASE: the worker is draining */
	bool left;                      /* VERB_LEASE: with nothing, because what is ready is left to faster workers */
	struct err err;                 /* err.code != ERR_NONE: the request failed */
	struct json *problems;          /* owned array of sentences with ERR_REFUSED, or NULL */
};

void engine_request_deinit(struct engine_request *r);
void engine_reply_deinit(struct engine_reply *r);

struct engine_config {
	const char *data_dir;           /* holds quarry.db and blobs/; exists */
	struct blobs *blobs;            /* the blob store, borrowed (blobs.h) */
	const char *const *model_roots; /* folders below which models may be registered, NULL-terminated */
	const char *tokens_file;        /* lines "role:token" taken as the first tokens, or NULL */
	const struct clock *clock;
	int64_t lease_ms, accept_ms;    /* 60000, 10000 */
	int max_attempts;               /* 3 */
	bool background;                /* start writer and timer threads; tests may pass false and call
	                                   engine_tick() and engine_call() only (writes then run inline) */
};

struct engine;

/* Opens or creates the database (applies migrations; a newer schema is refused). On first start makes one
 * token per role and hands each to `token_made` once (plain text is never stored). */
struct engine *engine_open(const struct engine_config *config,
			   void (*token_made)(void *ctx, enum role role, const char *token), void *ctx,
			   struct err *err);
void engine_close(struct engine *e); /* commits what was queued, stops the threads */

/* A bearer token -> subject and role. ERR_UNAUTHORIZED. */
int engine_authenticate(struct engine *e, const char *token, char subject[64], enum role *role,
			struct err *err);

/* Synchronous call; blocks for writes until COMMIT. Always fills *reply (caller deinits). */
void engine_call(struct engine *e, const struct engine_request *request, struct engine_reply *reply);

/* Asynchronous write: `done` is called exactly once, from the writer thread after COMMIT; it must not
 * block. The call, its request and reply belong to the caller until `done`, then `done` owns them. */
struct engine_call {
	struct engine_request request;
	struct engine_reply reply;
	void (*done)(struct engine_call *call);
	void *ctx;
	struct engine_call *next;       /* private */
};
/* ERR_BUSY when the queue is full (done is not called). */
int engine_post(struct engine *e, struct engine_call *call, struct err *err);

/* Wakes: called from the writer thread after COMMIT (must not block). kind 'L' = tasks may be leasable,
 * 'J' = job `id` changed, 'W' = a worker changed. */
void engine_on_change(struct engine *e, void (*changed)(void *ctx, char kind, const char *id), void *ctx);

/* Lapsed leases, blob deletion, lost workers: the timer thread calls it each second; tests call it. */
void engine_tick(struct engine *e);

/* Text for GET /metrics in Prometheus form; appended to `out`. */
struct buf;
int engine_metrics(struct engine *e, struct buf *out, struct err *err);
/* true when the last write succeeded and the disk has room: GET /readyz. `why` gets a sentence. */
bool engine_ready(struct engine *e, char *why, size_t why_cap);

#endif
