/* agent_parts.h - what the agent*.c files share: the agent and the tasks it holds. Nobody else includes it. */
#ifndef QUARRY_WORKER_AGENT_PARTS_H
#define QUARRY_WORKER_AGENT_PARTS_H

#include "worker/agent.h"
#include "worker/agent_decide.h"
#include "worker/agent_state.h"
#include "worker/agent_wire.h"
#include "worker/cache.h"
#include "worker/compute.h"
#include "worker/hash_job.h"
#include "worker/loop.h"
#include "worker/seal_job.h"
#include "worker/spool.h"
#include "worker/transfer.h"

enum {
	HOLD_FETCHES = 4,               /* inputs downloaded at a time */
	HOLD_DEFAULT_LEASE_MS = 60000,  /* of a result found in the spool */
	REQUEST_SECONDS = 30,           /* small requests */
	LEASE_WAIT_S = 25,
	/* A result that is sealed so soon is in the cache when the next task is asked for, and may decide which one it is. */
	SEAL_SOON_MS = 20,
};

struct hold;

struct input_slot { struct hold *hold; struct fetch *fetch; size_t input; };

/* A task this worker holds. */
struct hold {
	struct agent *agent;
	struct hold *next;
	enum hold_state state;
	char task[WIRE_ID_MAX + 1];
	int64_t epoch, lease_ms;
	struct lease lease;             /* empty when it comes from the spool */
	bool started;                   /* requests may be sent (the worker is registered) */

	struct client_call *beat;       /* heartbeat */
	struct loop_timer *beat_timer;
	unsigned beat_failures;

	struct client_call *call;       /* complete, fail or release */
	struct loop_timer *timer;       /* the step's next attempt */
	unsigned failures, reuploads;

	struct input_slot slots[HOLD_FETCHES];
	size_t next_input, inputs_ready;
	bool pinned;
	struct task_input *inputs;      /* for the compute thread; paths owned */

	struct compute_job job;
	bool running;                   /* the compute thread has `job` */
	int64_t running_since_ms;

	struct spool_entry *entry;      /* NULL while it is being sealed */
	struct seal_job *seal;
	int64_t sealing_since_ms;
	struct send *send;
	size_t next_output;

	/* A checkpoint on its way to the coordinator, beside the computing. */
	struct {
		char *path;             /* NULL = none */
		char sha256[DIGEST_HEX];
		uint64_t bytes;
		struct hash_job *hash;
		struct send *send;
		struct client_call *call;
		struct loop_timer *timer;
		unsigned failures;
	} checkpoint;
	bool leaving;                   /* given back as soon as the compute thread and the checkpoint are through */
	bool over;                      /* nobody will want what the task keeps in its scratch folder */
	bool wreck;                     /* of an earlier process: what it kept may be of use */

	struct err why;                 /* of FAILING; of RELEASING where it is not a drain, else ERR_NONE */
	char *log;
};

struct agent {
	struct agent_config config;
	enum agent_state state;
	struct loop *loop;
	struct client *client;
	struct cache *cache;
	struct compute *compute;
	struct transfer_env transfer;
	char *worker;                   /* id; NULL before the first registration */
	struct hold *holds;

	struct client_call *call;       /* register or lease */
	struct loop_timer *timer;       /* its next attempt */
	unsigned failures;
	int64_t asked_ms;               /* when the poll under way began */

	struct loop_timer *settle_timer;
	bool away;                      /* the coordinator does not answer */
	int64_t away_since_ms;
	unsigned signals;
	int64_t hurry_since_ms;         /* -1: no hurry */
	struct err failure;             /* why agent_run() fails */
	bool device_lost;               /* draining for it, and to be started anew unless somebody asks to stop */
	struct err loss;
};

/* --- agent.c --- */

/* Soon, off the caller's stack: frees what is gone, asks for work, stops. Call after every change. */
void agent_settle_soon(struct agent *a);
/* The coordinator wants this worker to stop: finish what is held. */
void agent_drain(struct agent *a);
/* The device of the backend does not answer any more: no more tasks; what is at hand is given back. */
void agent_device_gone(struct agent *a, const struct err *why);
int64_t agent_backoff_ms(const struct agent *a, unsigned failures);

/* --- agent_hold.c: life, heartbeats, endings --- */

/* From the text of a lease. NULL: err says why; nothing is held. */
struct hold *hold_from_lease(struct agent *a, const char *text, size_t len, struct err *err);
/* From the spool; takes the entry. NULL when out of memory (the entry is freed, the disk left alone). */
struct hold *hold_from_spool(struct agent *a, struct spool_entry *entry);
/* A task that an earlier process lost. */
struct hold *hold_from_wreck(struct agent *a, const char *task, int64_t epoch, const char *why);
/* The worker is registered: begin (again) to send. */
void hold_start(struct hold *h);
/* A signal asks to stop: give it back if that is the better choice. */
void hold_consider_release(struct hold *h, bool hurry);
/* Forgets it without touching the disk; not while `running`. */
void hold_free(struct hold *h);
/* Counts for decide_view. */
bool hold_is_busy(const struct hold *h);
bool hold_is_uploading(const struct hold *h);
/* In SEALING, and not for long yet. */
bool hold_is_sealed_soon(const struct hold *h);

void hold_set(struct hold *h, enum hold_state to);
/* Tells the coordinator that it went wrong, and forgets it. */
void hold_fail(struct hold *h, const struct err *why);
/* The coordinator says that it is not ours. */
void hold_lost(struct hold *h, const struct err *why);
/* Nothing more to say about it: GONE, or STOPPING while the compute thread runs. */
void hold_end(struct hold *h);
/* The step's request has no result yet: again after a delay, by the timer. */
void hold_retry(struct hold *h);
/* Sends a POST /v1/leases/{task}/<verb>; takes `body` (NULL = out of memory: retried). */
void hold_post(struct hold *h, const char *verb, char *body,
	       void (*done)(void *ctx, const struct client_reply *reply));

/* Nothing holds it back any more: RELEASING. */
void hold_release(struct hold *h);
/* It failed through no fault of its own: RELEASING, with the reason. */
void hold_hand_back(struct hold *h, const struct err *why);

/* --- agent_checkpoint.c: beside COMPUTING --- */

/* The timer's attempt. */
void hold_checkpoint_step(void *ctx);
/* The compute thread left one (compute_job.checkpoint_left). */
void hold_checkpoint_left(void *ctx);
/* Stops sending, removes the file. */
void hold_forget_checkpoint(struct hold *h);
/* The task stopped so that it can be given back: now, or when its checkpoint is with the coordinator. */
void hold_leave(struct hold *h);

/* --- agent_inputs.c: FETCHING and COMPUTING --- */

int hold_pin_inputs(struct hold *h, struct err *err);
void hold_unpin_inputs(struct hold *h);
void hold_fetch_inputs(struct hold *h);         /* enters FETCHING */
void hold_stop_fetching(struct hold *h);

/* --- agent_results.c: SEALING, UPLOADING and COMPLETING --- */

void hold_seal(struct hold *h);                 /* in SEALING; goes on to UPLOADING */
void hold_upload(struct hold *h);               /* in UPLOADING: sends what remains */
void hold_complete(struct hold *h);             /* in COMPLETING */

#endif
