/* embedded.h - one job on a private fleet: start, submit, follow. `quantize` and `eval` are this and a printout.
 *
 * With --work DIR the job is resumable: DIR/submission.json remembers which job belongs to which model, texts and
 * recipe (one digest over all of them, also the Idempotency-Key), and the same command continues that job.
 */
#ifndef QUARRY_CLI_EMBEDDED_H
#define QUARRY_CLI_EMBEDDED_H

#include <limits.h>

#include "cli/args.h"
#include "cli/fleet_options.h"
#include "cli/local.h"
#include "cli/upload.h"
#include "common/err.h"
#include "common/json.h"

struct embedded {
	const struct args *args;
	struct json *recipe;            /* owned; texts are put in on submission */
	char model_dir[PATH_MAX];       /* absolute */
	char model_name[200];
	char reference_dir[PATH_MAX];   /* --reference, absolute; "" without */
	char reference_name[200];
	struct local *local;
	char job[SERVER_ID];
	const char *out_dir;            /* of embedded_fetch() */
};

/* Options every embedded command takes, to stand in its table: use EMBEDDED_SPECS. */
#define EMBEDDED_SPECS \
	{ "workers", "N", "local workers; the cores are split among them (default 1)" }, \
	{ "backend", "cpu|cuda|ref", "what computes (default cpu; cuda where the program was built with it)" }, \
	{ "devices", "LIST", "with cuda: GPUs, e.g. 0,1,2,3, one worker on each (default 0); more --workers share them in turn" }, \
	{ "gpu-memory", "SIZE", "with cuda: GPU memory that each worker may use (default: what there is)" }, \
	{ "memory", "SIZE", "memory each worker reports; the plan warns when a task needs more" }, \
	{ "work", "DIR", "keep private data here: the same command then resumes an interrupted job" }

/* Checks the model folder and the texts; nothing is started. *status is set on failure. */
int embedded_init(struct embedded *e, const struct args *args, const char *model_dir, enum exit_status *status,
		  struct err *err);
/* Starts the fleet (no workers for a dry run). */
int embedded_start(struct embedded *e, bool dry_run, struct err *err);
/* The plan of the job, owned by the caller. */
struct json *embedded_plan(struct embedded *e, struct err *err);
/* Submits, or finds the job of an earlier run, and follows it until it is DONE: its last description. */
struct json *embedded_finish(struct embedded *e, struct err *err);
/* Copies the result of a finished job; nothing is left in OUT_DIR or beside it when that fails. */
int embedded_fetch(struct embedded *e, const char *out_dir, struct err *err);
/* Stops the fleet. Says how to resume when `err` tells of an interruption. */
void embedded_deinit(struct embedded *e, const struct err *err);

#endif
