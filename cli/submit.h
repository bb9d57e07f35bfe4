/* submit.h - from a command line to a job: texts become data sets, the recipe becomes a request.
 *
 * Shared by `quantize`, `eval` and `submit`, so that the three cannot differ in what an option means.
 */
#ifndef QUARRY_CLI_SUBMIT_H
#define QUARRY_CLI_SUBMIT_H

#include "cli/args.h"
#include "cli/client.h"
#include "cli/upload.h"
#include "common/err.h"
#include "common/json.h"

/* Looks at --calibration and --eval files before anything is started: there, regular, not empty. */
int submit_check_texts(const struct args *args, struct err *err);
/* Uploads them and puts their ids into `recipe`. */
int submit_texts(struct client *c, const struct args *args, struct json *recipe, struct err *err);

/* POST /v1/jobs. `key` may be NULL. The reply's body is the caller's: {"job",…}, or the plan of a dry run. */
struct json *submit_job(struct client *c, const char *name, const char *model, const struct json *recipe,
			const char *key, bool dry_run, struct json **problems, struct err *err);
/* The job's id out of such a reply. */
int submit_job_id(const struct json *reply, char id[SERVER_ID], struct err *err);

/* Prints every problem of a refused request but the one that err already says, then frees them. */
void print_problems(struct json *problems, const struct err *err);
/* Prints a plan for people. */
void print_plan(const struct json *plan);

#endif
