/* plan.h - from a recipe and a model's headers to the whole task graph, in memory.
 *
 * Pure: no database, no files, no clock. Everything that can fail later is checked here, and every
 * problem is listed. Task indexes follow dependency order: a task's inputs come from lower indexes.
 * Work is an estimate in million operations: it weighs progress and times, nothing else.
 */
#ifndef QUARRY_SERVER_PLAN_H
#define QUARRY_SERVER_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "common/model_config.h"
#include "common/recipe.h"
#include "formats/output.h"
#include "server/states.h"

/* A calibration or evaluation text. */
struct plan_text {
	const char *id;         /* as in the recipe */
	const char *name, *format; /* "calibration.jsonl", "jsonl" */
	const char *sha256;
	uint64_t bytes;
	int64_t max_windows;    /* 0 = all */
	int64_t pk;             /* the engine's; not used here */
};

/* The model that an evaluate job compares with. */
struct plan_reference {
	const char *name;
	const struct model_config *config;      /* NULL: there is none */
	const char *tokenizer_sha256;           /* of tokenizer.json, or NULL */
};

struct plan_request {
	const struct recipe *recipe;            /* resolved: see plan_resolve() */
	const struct model_config *config;
	const char *model_name, *tokenizer_sha256; /* used beside a reference */
	struct plan_reference reference;
	const struct json *dtypes;              /* {"<tensor>": "BF16"} of the source */
	const char *const *shards;              /* names of the source's shard files, sorted */
	const uint64_t *shard_bytes;
	size_t shard_count;
	uint64_t model_bytes;
	struct plan_text calibration;           /* quantize jobs */
	struct plan_text evals[RECIPE_EVALS_MAX]; /* recipe->eval_count of them */
	uint64_t disk_free_bytes;               /* UINT64_MAX: not checked */
};

enum { PLAN_INPUT_NAME_MAX = 32 };

struct plan_input {
	char name[PLAN_INPUT_NAME_MAX];
	int64_t from;           /* index of the producer, or -1 */
	char output[PLAN_INPUT_NAME_MAX]; /* with from >= 0: which of the producer's blobs */
	const char *sha256;     /* with from == -1; borrowed from the request */
	uint64_t bytes;
};

struct plan_task {
	enum task_kind kind;
	int64_t layer, shard;   /* -1 when they mean nothing */
	int64_t rank;           /* order of preference, smallest first */
	int64_t work;
	char *spec;             /* JSON text, owned */
	struct plan_input *inputs; /* owned */
	size_t input_count;
};

struct plan_module {
	char name[MODEL_NAME_MAX];
	const char *suffix;     /* "self_attn.q_proj" */
	int64_t layer;
	enum block_linear linear;
	uint64_t rows, cols;
	struct module_settings settings;
};

enum { PLAN_OUTPUTS_MAX = 16 };

struct plan_output {
	const struct output_format *format;
	uint64_t bytes; size_t files;
	double bits_per_weight; /* of the quantized modules of the blocks; 0 when there are none */
};

struct plan {
	struct plan_task *tasks; size_t task_count, task_cap;
	struct plan_module *modules; size_t module_count; /* layer by layer, canonical order */
	size_t first_quantize;  /* index of quantize(0); the others follow */
	int64_t *quantize;      /* index of quantize(l) for every layer; owned, NULL in an evaluate job */
	int64_t distill;        /* index of the distill task, or -1 */
	int64_t shards, per_shard;
	int64_t chunks[RECIPE_EVALS_MAX];
	uint64_t disk_bytes, memory_bytes;
	/* The same modules as formats see them; then embedding and head where they are quantized. Names are those of
	 * `modules`. */
	struct codec_module *stored; size_t stored_count;
	struct plan_output outputs[PLAN_OUTPUTS_MAX]; size_t output_count;
	struct problems warnings;
};

/* Fills what the recipe leaves to the model: seq_len and lm_head. */
void plan_resolve(struct recipe *recipe, const struct model_config *config);

/* 0, or -1: ERR_REFUSED with all sentences in `problems` (err = the first), or ERR_NOMEM. */
int plan_make(struct plan *plan, const struct plan_request *request, struct problems *problems,
	      struct err *err);
void plan_deinit(struct plan *plan);

/* The reply to a dry run, its times by plan_time.h; NULL when out of memory. */
struct plan_forecast;
struct json *plan_to_json(const struct plan *plan, const struct plan_request *request,
			  const struct plan_forecast *forecast);

#endif
