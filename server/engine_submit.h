/* engine_submit.h - what engine_submit.c (reading and planning) and engine_submit_store.c (storing) share. */
#ifndef QUARRY_SERVER_ENGINE_SUBMIT_H
#define QUARRY_SERVER_ENGINE_SUBMIT_H

#include "server/engine_internal.h"
#include "server/plan.h"

enum { JOB_NAME_MAX = 200 };

/* One submission on its way. Everything is owned and freed by the request's handler. */
struct submit {
	struct tx *tx;
	const struct engine_request *request;
	struct engine_reply *reply;
	struct err *err;
	struct problems problems;

	int64_t model_pk;
	char model_id[ID_MAX];
	char *model_name, *config_text;
	struct json *tensors, *files;
	const char **shards; uint64_t *shard_bytes; size_t shard_count;
	struct model_config config;
	struct recipe recipe; bool has_recipe;
	struct dataset_ref datasets[RECIPE_EVALS_MAX + 1]; /* calibration first, then evaluation texts */
	struct plan_request plan_request;
	struct plan plan; bool has_plan;
};

/* Stores the planned job with all its tasks and moves it to RUNNING; its id and pk. */
int submit_store(struct submit *s, char id[ID_MAX], int64_t *job);

#endif
