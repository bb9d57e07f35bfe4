#include "cli/job_action.h"

static enum exit_status run(const struct args *args, struct err *err)
{
	return job_action(args, "retry", err);
}

const struct command cmd_retry = {
	.name = "retry", .usage = "JOB [options]", .summary = "take up a failed job again",
	.details = "Failed tasks get fresh attempts; finished work is kept.",
	.connects = true, .least = 1, .most = 1, .run = run,
};
