#include <stdio.h>

#include "cli/connect.h"
#include "cli/follow.h"
#include "cli/watching.h"

static enum exit_status run(const struct args *args, struct err *err)
{
	char id[SERVER_ID];
	enum exit_status status;
	struct client *c;
	int rc;

	if (job_argument(args, id, err) != 0)
		return EXIT_USAGE;
	c = connect_from_args(args, &status, err);
	if (!c)
		return status;
	rc = watch_to_end(c, id, err);
	client_free(c);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_watch = {
	.name = "watch", .usage = "JOB [options]", .summary = "follow a job until it ends",
	.details = "Exit status 0 when the job is DONE, 1 when it failed or was cancelled. Ctrl-C ends the watching, "
		   "not the job.",
	.connects = true, .least = 1, .most = 1, .run = run,
};
