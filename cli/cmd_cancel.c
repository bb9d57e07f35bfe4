#include "cli/job_action.h"

static enum exit_status run(const struct args *args, struct err *err)
{
	return job_action(args, "cancel", err);
}

const struct command cmd_cancel = {
	.name = "cancel", .usage = "JOB [options]", .summary = "cancel a job",
	.details = "Its workers stop within a heartbeat, and no result of it is accepted afterwards.",
	.connects = true, .least = 1, .most = 1, .run = run,
};
