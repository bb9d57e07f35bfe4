/* distill_case.h - the inputs of a `distill` task, made by the tasks before it on the sample model, and ways to run
 * it: to its end, or until somebody wants it to stop. Everything ends the test on failure.
 */
#ifndef QUARRY_TESTS_LIB_DISTILL_CASE_H
#define QUARRY_TESTS_LIB_DISTILL_CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/json.h"
#include "worker/task.h"

enum { DISTILL_CASE_INPUTS = 192 };

struct distill_case {
	struct source *model;
	const char *dir;                /* folder of the inputs */
	size_t layers, sequences, seq_len;
	struct task_input inputs[DISTILL_CASE_INPUTS];
	size_t input_count;
	char *owned[2 * DISTILL_CASE_INPUTS]; size_t owned_count;
};

struct distill_case_options {
	const char *model_dir;          /* absolute */
	const char *dir;                /* made here */
	const char *settings;           /* of every module, JSON members, NULL: 2 bits, groups of 64 */
	const char *skip;               /* part of a module's name that is not quantized, or NULL */
	size_t sequences, seq_len, per_shard;
};

/* tokenize, embed, capture, quantize with the tested backend (tested_backend.h). */
void distill_case_make(struct distill_case *c, const struct distill_case_options *options);
void distill_case_free(struct distill_case *c);

/* One run of the task. */
struct distill_run_options {
	const char *backend;            /* NULL: the tested one */
	int threads;                    /* 0: 1 */
	const char *spec;               /* JSON */
	const char *out, *scratch;      /* folders; scratch may be NULL */
	const char *checkpoint;         /* input of that name, or NULL */
	/* Called with every progress note; false stops the task. May be NULL. */
	bool (*progress)(void *ctx, double fraction, const char *what);
	void *ctx;
	void (*ready)(void *ctx);       /* right before the task begins, given ctx; may be NULL */
	int (*leave)(void *ctx, const char *path); /* task_env.checkpoint, given ctx too */
};
/* NULL with err when it failed. */
struct json *distill_case_run(const struct distill_case *c, const struct distill_run_options *run, struct err *err);
struct json *distill_case_must_run(const struct distill_case *c, const struct distill_run_options *run);
/* In a child that kills itself when `stop_at` occurs in a note for the nth time. */
void distill_case_kill(const struct distill_case *c, const struct distill_run_options *run, const char *stop_at, int nth);

/* Every output of the two folders has the same bytes. */
void distill_case_assert_same(const struct distill_case *c, const char *a, const char *b);
bool distill_case_same(const struct distill_case *c, const char *a, const char *b);

#endif
