/* store_sql.h - the names of all SQL statements, with their parameters (in order) and the columns they give.
 *
 * The texts are in store_base.c, store_jobs.c, store_tasks.c and store_models.c. To add one: a name here (anywhere
 * before SQL_COUNT), a row in one of those tables. Nothing else in the server writes SQL.
 */
#ifndef QUARRY_SERVER_STORE_SQL_H
#define QUARRY_SERVER_STORE_SQL_H

enum sql {
	/* --- connections and tokens --- */
	SQL_BEGIN,
	SQL_BEGIN_READ,
	SQL_COMMIT,
	SQL_ROLLBACK,
	SQL_SAVEPOINT,
	SQL_RELEASE,
	SQL_ROLLBACK_TO,
	SQL_META_SET,               /* (key value) */
	SQL_TOKEN_ADD,              /* (subject role sha256 now) */
	SQL_TOKEN_COUNT,            /* -> count */
	SQL_TOKEN_LIST,             /* -> subject role sha256 */
	/* --- jobs and what belongs to them --- */
	SQL_JOB_BY_ID,              /* (id) -> the columns of read_job() */
	SQL_JOB_BY_PK,              /* (job) -> the same */
	SQL_JOB_PK,                 /* (id) -> pk */
	SQL_JOB_ADD,                /* (id subject kind first_task task_count first_quantize main_tasks now) */
	SQL_JOB_DETAILS_ADD,        /* (job name model summary recipe plan reference) */
	SQL_JOB_DETAILS,            /* (job) -> name summary recipe plan failure failed_task */
	SQL_JOB_DATASET_ADD,        /* (job ord role dataset name sha256 bytes) */
	SQL_JOB_DATASETS,           /* (job) -> ord role name sha256 bytes */
	SQL_JOB_MOVE,               /* (job from to entering_running entering_final now) */
	SQL_JOB_COUNT,              /* (job leased_delta done done_main) */
	SQL_JOB_TOUCH,              /* (job) */
	SQL_JOB_SET_FAILURE,        /* (job detail task) */
	SQL_JOB_SET_REPORT,         /* (job sha256) */
	SQL_JOB_REMOVE,             /* (job) */
	SQL_JOB_LIST,               /* (state (0: all) below limit) -> the columns of read_job_row() */
	SQL_JOB_COUNTS,             /* -> state count */
	SQL_JOBS_TO_FINISH,         /* -> job */
	SQL_JOB_FAIRNESS,           /* (job) -> first_quantize, leases of the tenant */
	SQL_JOB_PROGRESS,           /* (first last) -> kind state count work work*progress wall_ms */
	SQL_JOB_TASKS,              /* (first last limit) -> the columns of task_row() */
	SQL_JOB_MODULES,            /* (job) -> layer name skip bits group_size loss energy state progress worker */
	SQL_MODULE_ADD,             /* (job layer ord name skip bits group_size task) */
	SQL_MODULE_RESULT,          /* (job layer name loss energy result) */
	SQL_MODULES_MISSING,        /* (job layer) -> count */
	SQL_MODULE_RESULTS,         /* (job) -> layer result loss energy */
	SQL_EVENT_ADD,              /* (job now kind text) */
	SQL_EVENTS,                 /* (job after limit) -> seq at_ms kind text */
	SQL_FILE_ADD,               /* (job path sha256 bytes) */
	SQL_FILE_GET,               /* (job path) -> path sha256 bytes */
	SQL_FILES_REMOVE,           /* (job) */
	SQL_FILE_COUNT,             /* (job) -> count */
	SQL_FILES,                  /* (job above limit) -> path sha256 bytes */
	SQL_IDEMPOTENCY_ADD,        /* (subject key body job) */
	SQL_IDEMPOTENCY_GET,        /* (subject key) -> body job_id state */
	/* --- tasks, their inputs and outputs, and leases --- */
	SQL_TASK_NEXT_PK,           /* -> pk */
	SQL_TASK_ADD,               /* (pk job kind state rank layer shard deps work) */
	SQL_TASK_SPEC_ADD,          /* (task spec) */
	SQL_TASK_INPUT_ADD,         /* (task ord name from_task output sha256 bytes) */
	SQL_TASK_GET,               /* (task) -> job kind state epoch attempts leased_ms worker */
	SQL_TASK_LAYER,             /* (task) -> layer */
	SQL_TASK_SPEC,              /* (task) -> spec */
	SQL_TASK_INPUTS,            /* (task) -> name sha256 bytes */
	SQL_TASK_LEASE,             /* (task epoch worker deadline now) */
	SQL_TASK_DONE,              /* (task epoch wall_ms) */
	SQL_TASK_MOVE,              /* (task from epoch to attempts) */
	SQL_TASK_HEARTBEAT,         /* (task epoch deadline progress note) */
	SQL_TASKS_OPEN,             /* (first last) -> pk kind state epoch attempts */
	SQL_TASKS_STOPPED,          /* (first last) -> pk kind state epoch deps_left */
	SQL_TASKS_REMOVE,           /* (first last) */
	SQL_TASK_COUNTS,            /* -> state count */
	SQL_KIND_SPEEDS,            /* (live_since newest least_work) -> kind work wall_ms, by live workers */
	SQL_TASK_STATS,             /* (first last) -> kind wall_ms stats worker */
	SQL_SPECS_OF_KIND,          /* (first last kind) -> spec */
	SQL_RESULTS_OF_KIND,        /* (first last kind) -> spec result output_bytes */
	SQL_TASK_RESULTS,           /* (first last kind) -> spec result (NULL while open) */
	SQL_DISTILL_LAYERS,         /* (first last) -> layer distill */
	SQL_RESULT_ADD,             /* (task digest result stats worker_name) */
	SQL_RESULT_DIGEST,          /* (task) -> digest */
	SQL_CONSUMERS,              /* (task above limit) -> task */
	SQL_DEP_DONE,               /* (task) */
	SQL_DEPS_LEFT,              /* (task) -> count */
	SQL_INPUTS_FROM,            /* (task above limit) -> ord from_task output */
	SQL_OUTPUTS_WANTED,         /* (task) -> name readers, of the outputs that inputs name */
	SQL_OUTPUT_ADD,             /* (task name sha256 bytes readers) */
	SQL_OUTPUT_READ,            /* (task name) */
	SQL_OUTPUT_UNREAD,          /* (task name) -> sha256 when nobody needs it */
	SQL_OUTPUT_REMOVE,          /* (task name) */
	SQL_OUTPUTS_OF,             /* (first last) -> sha256 */
	SQL_OUTPUTS_REMOVE,         /* (first last) */
	SQL_CHECKPOINT_SET,         /* (task sha256 bytes) */
	SQL_CHECKPOINT_REMOVE,      /* (task) */
	SQL_CHECKPOINTS,            /* (first last) -> task sha256 bytes, of the first that has one */
	SQL_READY_NEXT_GROUP,       /* (rank job) -> rank job */
	SQL_READY_IN_GROUP,         /* (rank job) -> the columns of read_candidate() */
	SQL_READY_READERS,          /* (sha256 rank) -> the same */
	SQL_READY_BETWEEN,          /* (first last) -> 1 when one is ready that has not failed yet */
	SQL_ANY_READY,              /* -> 1 */
	SQL_ANY_LAPSED,             /* (now) -> 1 */
	SQL_LAPSED,                 /* (now limit) -> pk job kind epoch attempts accepted worker worker_name */
	SQL_LEASES_REFRESH,         /* (deadline) */
	SQL_ATTEMPT_ADD,            /* (task epoch worker now error detail log counted): if it counts or was accepted */
	SQL_ATTEMPT_BY,             /* (task worker) -> 1, of those that count */
	SQL_ATTEMPTS,               /* (task) -> worker error detail log ended_ms backend identity, of those that count */
	SQL_ATTEMPTS_OF_JOB,        /* (first last) -> task kind layer worker error backend identity, and stats worker result of the
	                               one that did it */
	SQL_TASKS_IN_PIECES,        /* (first last) -> task kind layer null null null null, and stats worker result: of those that tell of
	                               pieces */
	SQL_ATTEMPTS_LOST,          /* (task error) -> count of those that do not count */
	SQL_ATTEMPTS_FORGET,        /* (first last): none of them counts for anything any more */
	SQL_READY_WORK,             /* (limit) -> kind work, in the order of preference */
	SQL_HELD_WORK,              /* (live_since) -> worker kind work progress leased_ms, by worker */
	/* --- blobs, models, datasets, workers --- */
	SQL_BLOB_ADD,               /* (sha256 bytes now) */
	SQL_BLOB_BYTES,             /* (sha256) -> bytes */
	SQL_BLOB_USED,              /* (sha256) -> 1 when something names the blob */
	SQL_BLOB_REMOVE,            /* (sha256) */
	SQL_BLOB_ORPHANS,           /* (before limit) -> sha256 */
	SQL_BLOB_COUNTS,            /* -> count bytes */
	SQL_MODEL_ADD,              /* (id name path digest subject now bytes config tensors) */
	SQL_MODEL_FILE_ADD,         /* (model_id name role bytes sha256 header_sha256) */
	SQL_MODEL_PK,               /* (id) -> pk */
	SQL_MODEL_BY_ID,            /* (id) -> the columns of model_row(), digest */
	SQL_MODEL_BY_DIGEST,        /* (digest) -> id */
	SQL_MODEL_LIST,             /* (below limit) -> the columns of model_row() */
	SQL_MODEL_PLAN,             /* (id) -> pk id name path bytes config tensors */
	SQL_MODEL_FILES,            /* (model) -> name role bytes sha256 header_sha256 */
	SQL_MODEL_IN_USE,           /* (model) -> a job that may still run */
	SQL_MODEL_REMOVE,           /* (model) */
	SQL_JOB_MODEL,              /* (job) -> pk id path config */
	SQL_JOB_REFERENCE,          /* (job) -> pk id path config name of the reference model */
	SQL_JOB_MODEL_FILES,        /* (job) -> name role bytes sha256 header_sha256 */
	SQL_DATASET_ADD,            /* (id name sha256 bytes format subject now) */
	SQL_DATASET_BY_ID,          /* (id) -> the columns of dataset_row() */
	SQL_DATASET_LIST,           /* (below limit) -> the same */
	SQL_DATASET_IN_USE,         /* (dataset) -> a job that may still run */
	SQL_DATASET_REMOVE,         /* (dataset) */
	SQL_BACKEND_ADD,            /* (backend identity) */
	SQL_WORKER_ADD,             /* (id subject name backend identity version threads memory_bytes sees_paths now device) */
	SQL_WORKER_SAME,            /* (subject name backend identity threads device) -> 1 when it was registered like that */
	SQL_RATE_ADD,               /* (worker task least_work): what the DONE task tells of its worker, if anything */
	SQL_RATES_REMOVE,           /* (subject name) */
	SQL_RATES,                  /* (worker live_since) -> worker kind work seconds: its own, and those of live workers */
	SQL_WORKER_ID_OF,           /* (subject name) -> id */
	SQL_WORKER_OF,              /* (id subject) -> pk id name draining last_seen_ms memory_bytes sees_paths */
	SQL_WORKER_OTHER,           /* (task worker live_since) -> 1 when another live worker has not failed the task */
	SQL_WORKER_SEEN,            /* (worker now) */
	SQL_HOLDERS_SEEN,           /* (now) */
	SQL_WORKER_DONE,            /* (worker) */
	SQL_WORKER_FAILED,          /* (worker) */
	SQL_WORKER_DRAIN,           /* (id subject (NULL: any)) */
	SQL_WORKER_GET,             /* (id) -> the columns of read_row() */
	SQL_WORKER_LIST,            /* (below limit) -> the same */
	SQL_WORKER_UNACCEPTED,      /* (worker) -> pk job kind epoch attempts leased_ms job_id first_task */
	SQL_WORKER_TASKS,           /* (worker) -> pk job_id first_task kind layer progress note leased_ms */
	SQL_WORKER_COUNTS,          /* (live_since) -> lost draining busy idle */
	SQL_WORKER_MOST_MEMORY,     /* (live_since) -> bytes */
	SQL_WORKER_THREADS,         /* (live_since) -> workers threads devices threads-beside-a-device, of those that take tasks */
	SQL_COUNT
};

/* One table per file; each ends with text == NULL. */
struct sql_text { enum sql which; const char *text; };
extern const struct sql_text store_sql_base[];
extern const struct sql_text store_sql_jobs[];
extern const struct sql_text store_sql_tasks[];
extern const struct sql_text store_sql_models[];

#endif
