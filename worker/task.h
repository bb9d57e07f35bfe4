/* task.h - what the agent asks the compute thread to do: one task, blobs in, blobs out.
 *
 * A task is a pure function: same spec, same inputs, same backend, same bytes. It runs in the
 * compute thread, knows nothing of leases or HTTP, and reaches the world only through struct
 * task_env. docs/protocol.md describes each kind's spec, inputs, outputs and result.
 * To add a kind: task_<kind>.c, a line in task_kinds (task.c), server/plan.c, docs/protocol.md.
 */
#ifndef QUARRY_WORKER_TASK_H
#define QUARRY_WORKER_TASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "common/source.h"
#include "worker/backend/backend.h"

struct task_input {
	const char *name;
	const char *path;
	uint64_t bytes;
	const char *sha256;                     /* of its bytes as hex; NULL when the caller does not know */
};

struct layer_keep;

struct task_env {
	struct backend *backend;
	int threads;                            /* that may read weights at a time; 0 is 1 */
	struct layer_keep *keep;                /* of the compute thread; NULL: every task loads its layers anew */
	struct source *model;                   /* the job's checkpoint; NULL when it has none */
	const struct task_input *inputs;        /* local files, verified */
	size_t input_count;
	const char *out_dir;                    /* an empty folder for outputs */
	/* Progress 0..1 with a few words; returns false when the task should stop (cancelled, lease
	 * lost): the task then returns -1 with ERR_CANCELLED. Cheap; call often. May be NULL. */
	bool (*progress)(void *ctx, double fraction, const char *what);
	void *progress_ctx;
	size_t piece_tokens;                    /* tokens to give to a block at a time; 0: the backend's piece_tokens */
	/* Set by tasks that send sequences through blocks: tokens of a full piece, and of one sequence, which no piece is
	 * smaller than. */
	size_t piece_used, piece_least;
	/* A folder that belongs to this task alone and survives the process, for kinds that resume where they
	 * were; may not exist yet. NULL: there is none. */
	const char *scratch_dir;
	/* Leaves a checkpoint with the coordinator, which gives it to the next lease of the task as its input
	 * "checkpoint". path NULL asks whether one is wanted now: 1 or 0. Otherwise the file at path, which
	 * the callee removes when it is through with it: 0 = taken, -1 = not (the file stays the task's). Cheap.
	 * May be NULL. */
	int (*checkpoint)(void *ctx, const char *path);
	void *checkpoint_ctx;
};

/* Runs `kind`. On success *result (owned by the caller) is the JSON result of the kind and the outputs are
 * files in out_dir, one per output, named as the output ('/' never occurs in output names). */
int task_run(const char *kind, const struct json *spec, struct task_env *env,
	     struct json **result, struct err *err);

/* Helpers for the kinds. */
const struct task_input *task_input_find(const struct task_env *env, const char *name,
					 struct err *err);
/* The path of an input, or NULL when the task has none of that name. */
const char *task_input_path(const struct task_env *env, const char *name);
/* out_dir/name; free with mem_free(). */
char *task_output_path(const struct task_env *env, const char *name, struct err *err);
/* -1 with ERR_CANCELLED when the task should stop. */
int task_step(const struct task_env *env, double fraction, const char *what, struct err *err);

#endif
