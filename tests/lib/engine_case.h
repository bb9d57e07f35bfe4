/* engine_case.h - an engine in a folder of its own, a virtual clock, and workers played in memory.
 *
 * Results and outputs that the played worker hands in are functions of the task alone, as a real worker's are.
 * Everything asserts; nothing returns an error.
 */
#ifndef QUARRY_TESTS_ENGINE_CASE_H
#define QUARRY_TESTS_ENGINE_CASE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/json.h"
#include "server/blobs.h"
#include "server/engine.h"

struct engine_case {
	char data_dir[256];
	struct blobs *blobs;
	struct engine *engine;
	struct clock clock;
	int64_t now_ms;         /* virtual time */
	int64_t wall_ahead_ms;  /* the wall clock was set forward by this much */
	uint64_t random;        /* counts up: ids are reproducible */
	bool background;
	const char *roots[3];   /* examples/, the working folder */
	char model_path[4200];  /* what play_model() registers; empty: examples/fable-tiny */
	int wakes;              /* 'L' wakes heard */
};

/* Opens (or opens again) the engine on data_dir; data_dir empty = "data" below the working folder. */
void play_open(struct engine_case *c);
void play_close(struct engine_case *c);

/* body: JSON text or NULL; quotes may be written as '. Expects `status`; the body is the caller's. */
struct json *play_call(struct engine_case *c, enum verb verb, const char *id, int status, const char *body, ...)
	__attribute__((format(printf, 5, 6)));
/* The same for a failure: returns the sentence (static storage). */
const char *play_refused(struct engine_case *c, enum verb verb, const char *id, enum err_code code,
			 const char *body, ...) __attribute__((format(printf, 5, 6)));
/* As another subject; NULL = the usual one. Stays until changed. */
extern const char *play_subject;
extern const char *play_idempotency_key;
extern bool play_dry_run;

/* Writes a llama checkpoint of this many layers, all zeros, 8 wide, to `dir` and makes it the model_path. */
void play_make_model(struct engine_case *c, const char *dir, size_t layers);
/* Registers the model_path; its id. */
const char *play_model(struct engine_case *c);
/* Submits with a recipe (JSON text, ' for "); the job's id is copied to out. */
void play_submit(struct engine_case *c, char out[64], const char *recipe);
/* A small recipe: 8 samples of 64 tokens, 2 bits, groups of 64; without distillation, and with all of it. */
extern const char *const play_small_recipe, *const play_distilled_recipe;
void play_worker(struct engine_case *c, char out[64], const char *name);

/* A leased task in the hands of a played worker. */
struct play_lease { struct json *json; char task[128], kind[32], worker[64]; int64_t epoch; };
/* false: nothing to lease. */
bool play_lease(struct engine_case *c, const char *worker, struct play_lease *out);
void play_lease_drop(struct play_lease *l);
void play_heartbeat(struct engine_case *c, const struct play_lease *l, double progress, int status);
/* Stores the outputs and completes with this status (200). */
void play_complete(struct engine_case *c, const struct play_lease *l, int status);
/* Only stores the outputs; text of "outputs" and "result" into `out`. */
void play_make_outputs(struct engine_case *c, const struct play_lease *l, char *out, size_t cap);
/* Lease, heartbeat, complete until nothing is left; how many tasks were done. */
int play_drain(struct engine_case *c, const char *worker);
/* Text of a file of a finished job; free with mem_free(). */
char *play_file(struct engine_case *c, const char *job, const char *path, size_t *len);
/* "RUNNING" ... */
const char *play_job_state(struct engine_case *c, const char *job);

#endif
