/* engine_submit.h - what engine_submit.c (reading and planning) and engine_submit_store.c (storing) share. */
#ifndef QUARRY_SERVER_ENGINE_SUBMIT_H
#define QUARRY_SERVER_ENGINE_SUBMIT_H

#include "server/engine_internal.h"
#include "server/plan_time.h"

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
	char *model_name, *model_path, *config_text; /* model_path: NULL when it was uploaded */
	struct json *tensors, *files;
	const char **shards; uint64_t *shard_bytes; size_t shard_count;
	struct model_config config;
	struct recipe recipe; bool has_recipe;
	int64_t reference_pk;           /* 0: there is none */
	char *reference_name;
	struct model_config reference_config;
	char tokenizer[DIGEST_HEX], reference_tokenizer[DIGEST_HEX]; /* with a reference */
	struct dataset_ref datasets[RECIPE_EVALS_MAX + 1]; /* calibration first, then evaluation texts */
	struct plan_request plan_request;
	struct plan plan; bool has_plan;
};

/* A file whose size changed would fail every task that reads it: noted as a problem. */
int submit_check_size(struct submit *s, const char *folder, const char *name, int64_t bytes);
/* engine_submit_reference.c: the recipe's reference, into the plan's request. */
int submit_load_reference(struct submit *s);

/* engine_submit_texts.c: whether the formats can carry tokenizer and the like; what not becomes a problem. */
int submit_check_texts(struct submit *s);

/* engine_forecast.c: how long the plan takes on the workers that are there now. */
int submit_forecast(struct submit *s, bool with_efforts, struct plan_forecast *out);

/* Stores the planned job with all its tasks and moves it to RUNNING; its id and pk. */
int submit_store(struct submit *s, char id[ID_MAX], int64_t *job);

#endif
