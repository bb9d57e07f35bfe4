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
	uint64_t random;        /* counts up: ids are reproducible */
	bool background;
	const char *roots[3];
	int wakes;              /* 'L' wakes heard */
};

/* Opens (or opens again) the engine on data_dir; data_dir empty = "data" below the working folder. */
void case_open(struct engine_case *c);
void case_close(struct engine_case *c);

/* body: JSON text or NULL; quotes may be written as '. Expects `status`; the body is the caller's. */
struct json *case_call(struct engine_case *c, enum verb verb, const char *id, int status, const char *body, ...)
	__attribute__((format(printf, 5, 6)));
/* The same for a failure: returns the sentence (static storage). */
const char *case_refused(struct engine_case *c, enum verb verb, const char *id, enum err_code code,
			 const char *body, ...) __attribute__((format(printf, 5, 6)));
/* As another subject; NULL = the usual one. Stays until changed. */
extern const char *case_subject;
extern const char *case_idempotency_key;
extern bool case_dry_run;

/* Registers examples/fable-tiny; its id. */
const char *case_model(struct engine_case *c);
/* Submits with a recipe (JSON text, ' for "); the job's id is copied to out. */
void case_submit(struct engine_case *c, char out[64], const char *recipe);
/* A small recipe: 8 samples of 64 tokens, 2 bits, groups of 64. */
extern const char *const case_small_recipe;
void case_worker(struct engine_case *c, char out[64], const char *name);

/* A leased task in the hands of a played worker. */
struct case_lease { struct json *json; char task[128], kind[32], worker[64]; int64_t epoch; };
/* false: nothing to lease. */
bool case_lease(struct engine_case *c, const char *worker, struct case_lease *out);
void case_lease_drop(struct case_lease *l);
void case_heartbeat(struct engine_case *c, const struct case_lease *l, double progress, int status);
/* Stores the outputs and completes with this status (200). */
void case_complete(struct engine_case *c, const struct case_lease *l, int status);
/* Only stores the outputs; text of "outputs" and "result" into `out`. */
void case_make_outputs(struct engine_case *c, const struct case_lease *l, char *out, size_t cap);
/* Lease, heartbeat, complete until nothing is left; how many tasks were done. */
int case_drain(struct engine_case *c, const char *worker);
/* Text of a file of a finished job; free with mem_free(). */
char *case_file(struct engine_case *c, const char *job, const char *path, size_t *len);
/* "RUNNING" ... */
const char *case_job_state(struct engine_case *c, const char *job);

#endif
