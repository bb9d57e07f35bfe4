/* engine_internal.h - what the engine_*.c files share; nobody outside the engine includes it.
 *
 * A request is served by a handler: it gets a connection (a reader's snapshot, or the writer's open
 * transaction inside a savepoint) and fills the reply. Returning -1 with reply->err set undoes
 * what it wrote. What must happen outside the database once the COMMIT is through (deleting files,
 * waking pollers) goes into `effects`, which follows the transaction: an undone handler's effects go too.
 */
#ifndef QUARRY_SERVER_ENGINE_INTERNAL_H
#define QUARRY_SERVER_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/digest.h"
#include "server/engine.h"
#include "server/states.h"
#include "server/store.h"

enum {
	ID_MAX = 64,                    /* any id with its NUL */
	ENGINE_BATCH = 64,              /* writes in one transaction */
	ENGINE_QUEUE_MAX = 8192,        /* writes waiting */
	ENGINE_READERS = 4,
	LIST_DEFAULT = 50, LIST_MAX = 500,
};


/* --- effects ------------------------------------------------------------------ */

/* Kinds of engine_on_change(), and one that stays inside: a job waits for finish_pending(). */
enum { WAKE_LEASE = 'L', WAKE_JOB = 'J', WAKE_WORKER = 'W', WAKE_FINISH = 'F' };
struct wake { char kind; char id[ID_MAX]; };

struct effects {
	struct wake *wakes; size_t wake_count, wake_cap;
	char (*deletes)[DIGEST_HEX]; size_t delete_count, delete_cap;
};

struct effects_mark { size_t wakes, deletes; };

int effects_wake(struct effects *fx, char kind, const char *id, struct err *err);
int effects_delete_blob(struct effects *fx, const char *sha256, struct err *err);
struct effects_mark effects_mark(const struct effects *fx);
void effects_undo(struct effects *fx, struct effects_mark mark);
void effects_deinit(struct effects *fx);

/* --- requests ----------------------------------------------------------------- */

struct tx {
	struct engine *e;
	struct store *db;
	int64_t now_ms;
	struct effects *fx;             /* NULL for reads */
};

typedef int (*verb_handler)(struct tx *tx, const struct engine_request *r, struct engine_reply *reply);

struct token { char subject[64]; enum role role; char sha256[DIGEST_HEX]; };

struct engine {
	struct engine_config config;
	char *db_path;
	char **model_roots;             /* real paths, NULL-terminated */
	struct store *writer;           /* under write_lock */
	pthread_mutex_t write_lock;     /* held by whoever runs a batch */
	struct effects effects;         /* of the running batch */

	struct token *tokens; size_t token_count; /* fixed after opening, sorted by sha256 */

	pthread_mutex_t queue_lock;
	pthread_cond_t queue_filled;
	struct engine_call *queue_head, **queue_tail;
	size_t queue_length;
	bool stopping;
	pthread_t writer_thread; bool writer_running;

	pthread_mutex_t helper_lock;
	pthread_cond_t helper_wanted;
	struct engine_call *helper_head, **helper_tail; /* calls with a slow first half (engine_models.c) */
	bool helper_kick, helper_stop;
	pthread_t helper_thread; bool helper_running;

	pthread_mutex_t reader_lock;
	pthread_cond_t reader_freed;
	struct store *readers[ENGINE_READERS]; size_t reader_count; /* free ones */
	size_t readers_open;

	pthread_mutex_t finish_lock;    /* finish_pending() runs once at a time */

	pthread_mutex_t change_lock;
	void (*changed)(void *ctx, char kind, const char *id);
	void *changed_ctx;

	pthread_mutex_t health_lock;
	struct err last_failure;        /* code NONE: the last write transaction succeeded */

	int64_t orphans_checked_ms, ticked_wall_ms, ticked_mono_ms; /* the ticker's */
	_Atomic uint64_t commits, writes, failed_commits;
};

int64_t engine_now(struct engine *e);
/* "j_" and 12 random hex characters. */
int engine_new_id(struct engine *e, const char *prefix, char out[ID_MAX], struct err *err);

/* engine_writer.c: runs calls as one transaction and calls their done(). write_lock is taken inside. */
void writer_run_batch(struct engine *e, struct engine_call **calls, size_t count);
/* One internal write as its own transaction; the helper and the tick use it. */
int writer_run(struct engine *e, int (*step)(struct tx *tx, void *ctx, struct err *err), void *ctx,
	       struct err *err);
int writer_post(struct engine *e, struct engine_call *call, struct err *err); /* ERR_BUSY when full */
int writer_start(struct engine *e, struct err *err);
void writer_stop(struct engine *e);     /* after what is queued */

/* engine_helper.c. Kick: a job may be ready to finish. Without threads nobody listens. */
int helper_start(struct engine *e, struct err *err);
void helper_stop(struct engine *e);
void helper_kick(struct engine *e);
int helper_post(struct engine *e, struct engine_call *call, struct err *err);

/* engine_readers.c: a connection inside a read transaction. */
struct store *reader_take(struct engine *e, struct err *err);
void reader_give(struct engine *e, struct store *db);
void readers_close(struct engine *e);

/* engine_tokens.c */
int tokens_load(struct engine *e, void (*made)(void *ctx, enum role role, const char *token), void *ctx,
		struct err *err);

/* engine_verbs.c */
verb_handler verb_handler_of(enum verb verb);

/* --- handlers, by file -------------------------------------------------------- */

#define ENGINE_HANDLER(name) int name(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
ENGINE_HANDLER(verb_job_list);
ENGINE_HANDLER(verb_job_get);
ENGINE_HANDLER(verb_job_curves);
ENGINE_HANDLER(verb_job_tasks);
ENGINE_HANDLER(verb_job_report);
ENGINE_HANDLER(verb_job_files);
ENGINE_HANDLER(verb_job_events);
ENGINE_HANDLER(verb_model_list);
ENGINE_HANDLER(verb_model_get);
ENGINE_HANDLER(verb_dataset_list);
ENGINE_HANDLER(verb_dataset_get);
ENGINE_HANDLER(verb_worker_list);
ENGINE_HANDLER(verb_worker_get);
ENGINE_HANDLER(verb_stats);
ENGINE_HANDLER(verb_job_submit);
ENGINE_HANDLER(verb_job_cancel);
ENGINE_HANDLER(verb_job_retry);
ENGINE_HANDLER(verb_job_delete);
ENGINE_HANDLER(verb_model_add);
ENGINE_HANDLER(verb_model_delete);
ENGINE_HANDLER(verb_dataset_add);
ENGINE_HANDLER(verb_dataset_delete);
ENGINE_HANDLER(verb_worker_add);
ENGINE_HANDLER(verb_worker_drain);
ENGINE_HANDLER(verb_lease);
ENGINE_HANDLER(verb_heartbeat);
ENGINE_HANDLER(verb_checkpoint);
ENGINE_HANDLER(verb_complete);
ENGINE_HANDLER(verb_fail);
ENGINE_HANDLER(verb_release);
ENGINE_HANDLER(verb_blob_add);

/* --- shared steps ------------------------------------------------------------- */

/* A job's row. */
struct job_ref {
	int64_t pk, state, change, kind, first_task, task_count, first_quantize, unfinished, unfinished_main,
		created_ms, started_ms, finished_ms;
	char id[ID_MAX], subject[64];
};
int job_find(struct store *db, const char *id, struct job_ref *job, struct err *err); /* ERR_NOT_FOUND */
int job_load(struct store *db, int64_t pk, struct job_ref *job, struct err *err);
/* Raises the change counter and wakes those who wait for it. */
int job_touch(struct tx *tx, int64_t pk, const char *id, struct err *err);
int job_event(struct tx *tx, int64_t pk, const char *kind, struct err *err, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));
/* Ends the job as FAILED: open tasks are cancelled. task = 0: no task is to blame. */
int job_fail(struct tx *tx, const struct job_ref *job, int64_t task, const char *detail, struct err *err);
/* RUNNING=>ASSEMBLING when only assemble tasks are left. */
int job_advance(struct tx *tx, int64_t pk, struct err *err);
/* BLOCKED, READY, LEASED => CANCELLED. */
int job_cancel_tasks(struct tx *tx, const struct job_ref *job, struct err *err);

/* "t_<job hex>-<index>" for a task of this job, and back. */
void task_id_text(char out[ID_MAX], const char *job_id, int64_t first_task, int64_t pk);
int task_find(struct store *db, const char *id, struct task_ref *t, struct job_ref *job, struct err *err);
int task_load(struct store *db, int64_t pk, struct task_ref *t, struct err *err);

/* Deletes row and (after COMMIT) file when nothing refers to the blob any more. */
int blob_drop_if_unused(struct tx *tx, const char *sha256, struct err *err);
int blob_require(struct store *db, const char *sha256, int64_t *bytes, struct err *err);
/* Drops all outputs that tasks of the job still keep. */
int job_drop_outputs(struct tx *tx, const struct job_ref *job, struct err *err);

struct worker_ref { int64_t pk, draining, last_seen_ms, memory_bytes, sees_paths; char id[ID_MAX], name[128]; };
/* The worker of the request's body field "worker", which must belong to the caller; notes that it was seen. */
int worker_of_request(struct tx *tx, const struct engine_request *r, struct worker_ref *w, struct err *err);

/* The task of the request, held by the calling worker at the epoch it names; otherwise 409. */
int lease_held(struct tx *tx, const struct engine_request *r, struct worker_ref *w, struct task_ref *t,
	       struct job_ref *job, struct err *err);

/* engine_unheard.c: takes back the leases that the worker has neither accepted nor named in `holds`, the array of task
 * ids of its lease request; NULL (an older worker): none. */
int leases_unheard(struct tx *tx, const struct worker_ref *w, const struct json *holds, struct err *err);

/* engine_checkpoint.c */
/* The tasks first..last are over: their checkpoints go. */
int checkpoints_drop(struct tx *tx, int64_t first, int64_t last, struct err *err);
/* Appends the task's checkpoint, if it has one, to the inputs of a lease. */
int checkpoint_add_input(struct store *db, int64_t task, struct json *inputs, struct err *err);

/* All leases get a full fresh deadline, and their holders count as seen. A writer_run() step. */
int leases_refresh(struct tx *tx, void *ctx, struct err *err);
/* A lease that ran out: back to READY, or the task (and job) fails. counted: the attempt counts. */
int lease_end(struct tx *tx, struct task_ref *t, const char *error, const char *detail, const char *log,
	      bool counted, bool fatal, struct err *err);

/* engine_datasets.c: the row of a dataset id; "builtin" texts are stored on first use. */
struct dataset_ref { int64_t pk, bytes; char id[ID_MAX], name[128], format[8], sha256[DIGEST_HEX]; };
int dataset_resolve(struct tx *tx, const char *id, const char *role, bool store, struct dataset_ref *d,
		    struct err *err);

/* engine_models.c, engine_model_view.c */
struct json *model_files_json(struct store *db, int64_t model, struct err *err);
struct json *model_config_json(const char *config_text, struct err *err);
/* First half of VERB_MODEL_ADD, outside the transaction: reads the files and replaces the request's body by
 * what it found (see engine_model_scan.c). -1: reply->err. */
int model_add_prepare(struct engine *e, struct engine_request *r, struct engine_reply *reply);

/* finish.c: finishes every job that waits for it. Never inside a transaction. */
void finish_pending(struct engine *e);

/* Small helpers. */
int reply_fail(struct engine_reply *reply, enum err_code code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* {"items":[…]} bookkeeping: limit, cursor. */
int list_limit(const struct engine_request *r);
int list_cursor(const struct engine_request *r, int64_t otherwise, int64_t *out, struct err *err);
int list_reply(struct engine_reply *reply, struct json *items, bool more, int64_t next);
struct json *json_parse_stored(const char *text, struct err *err);

#endif
