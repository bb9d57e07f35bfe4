/* job_action.h - commands that are one POST about one job. */
#ifndef QUARRY_CLI_JOB_ACTION_H
#define QUARRY_CLI_JOB_ACTION_H

#include "cli/args.h"

/* POST /v1/jobs/{first argument}/{action}; prints the state it is in then. */
enum exit_status job_action(const struct args *args, const char *action, struct err *err);

#endif
