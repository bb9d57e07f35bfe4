#include <stdio.h>

#include "cli/connect.h"
#include "cli/fetch.h"
#include "cli/interrupt.h"
#include "cli/text.h"

static const struct arg_spec options[] = {
	{ "output", "OUT_DIR", "a new or empty folder for the result (also -o)" },
	{ NULL, NULL, NULL },
};

static enum exit_status run(const struct args *args, struct err *err)
{
	const char *out_dir = args_get(args, "output", NULL);
	char id[SERVER_ID];
	enum exit_status status;
	struct client *c;
	int rc;

	if (!out_dir) {
		err_set(err, ERR_INVALID, "no output folder named; give -o OUT_DIR");
		return EXIT_USAGE;
	}
	if (job_argument(args, id, err) != 0)
		return EXIT_USAGE;
	if (fetch_check_target(out_dir, id, err) != 0)
		return EXIT_FAILED;
	c = connect_from_args(args, &status, err);
	if (!c)
		return status;
	rc = fetch_job(c, id, out_dir, err);
	client_free(c);
	if (rc == 0)
		printf("the result of job %s lies in %s\n", id, out_dir);
	else if (interrupted())
		print_note("what has arrived is kept beside %s; the same command goes on from there", out_dir);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_fetch = {
	.name = "fetch", .usage = "JOB -o OUT_DIR [options]", .summary = "copy a finished job's result",
	.details = "Every file is checked against its SHA-256. OUT_DIR appears when all is there; an interrupted copy "
		   "goes on where it\nstopped when the command is given again.",
	.options = options, .connects = true, .least = 1, .most = 1, .run = run,
};
