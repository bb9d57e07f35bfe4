/* The table of verbs. To add one: a name in engine.h, a row here, a handler, a route, api.yaml. */
#include "server/engine_internal.h"

static const struct { verb_handler handler; bool write; } verbs[VERB_COUNT] = {
	[VERB_JOB_LIST]       = { verb_job_list, false },
	[VERB_JOB_GET]        = { verb_job_get, false },
	[VERB_JOB_CURVES]     = { verb_job_curves, false },
	[VERB_JOB_TASKS]      = { verb_job_tasks, false },
	[VERB_JOB_REPORT]     = { verb_job_report, false },
	[VERB_JOB_FILES]      = { verb_job_files, false },
	[VERB_JOB_EVENTS]     = { verb_job_events, false },
	[VERB_MODEL_LIST]     = { verb_model_list, false },
	[VERB_MODEL_GET]      = { verb_model_get, false },
	[VERB_DATASET_LIST]   = { verb_dataset_list, false },
	[VERB_DATASET_GET]    = { verb_dataset_get, false },
	[VERB_WORKER_LIST]    = { verb_worker_list, false },
	[VERB_WORKER_GET]     = { verb_worker_get, false },
	[VERB_STATS]          = { verb_stats, false },
	[VERB_JOB_SUBMIT]     = { verb_job_submit, true },
	[VERB_JOB_CANCEL]     = { verb_job_cancel, true },
	[VERB_JOB_RETRY]      = { verb_job_retry, true },
	[VERB_JOB_DELETE]     = { verb_job_delete, true },
	[VERB_MODEL_ADD]      = { verb_model_add, true },
	[VERB_MODEL_DELETE]   = { verb_model_delete, true },
	[VERB_DATASET_ADD]    = { verb_dataset_add, true },
	[VERB_DATASET_DELETE] = { verb_dataset_delete, true },
	[VERB_WORKER_ADD]     = { verb_worker_add, true },
	[VERB_WORKER_DRAIN]   = { verb_worker_drain, true },
	[VERB_LEASE]          = { verb_lease, true },
	[VERB_HEARTBEAT]      = { verb_heartbeat, true },
	[VERB_CHECKPOINT]     = { verb_checkpoint, true },
	[VERB_COMPLETE]       = { verb_complete, true },
	[VERB_FAIL]           = { verb_fail, true },
	[VERB_RELEASE]        = { verb_release, true },
	[VERB_BLOB_ADD]       = { verb_blob_add, true },
};

bool verb_is_write(enum verb verb)
{
	return verbs[verb].write;
}

verb_handler verb_handler_of(enum verb verb)
{
	return verbs[verb].handler;
}
