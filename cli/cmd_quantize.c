#include <stdio.h>

#include "cli/connect.h"
#include "cli/embedded.h"
#include "cli/fetch.h"
#include "cli/submit.h"
#include "cli/summary.h"
#include "common/clock.h"

static const struct arg_spec options[] = {
	{ "output", "OUT_DIR", "a new or empty folder for the result (also -o)" },
	EMBEDDED_SPECS,
	{ "dry-run", NULL, "print the plan and stop" },
	{ NULL, NULL, NULL },
};

static int plan_only(struct embedded *e, struct err *err)
{
	struct json *plan;

	if (embedded_start(e, true, err) != 0)
		return -1;
	plan = embedded_plan(e, err);
	if (!plan)
		return -1;
	print_plan(plan);
	json_free(plan);
	return 0;
}

static int quantize(struct embedded *e, const char *out_dir, struct err *err)
{
	int64_t started_ms = clock_system.mono_ms(NULL);
	struct json *job;
	int rc;

	if (embedded_start(e, false, err) != 0)
		return -1;
	job = embedded_finish(e, err);
	if (!job)
		return -1;
	rc = embedded_fetch(e, out_dir, err);
	if (rc == 0)
		rc = summary_print(job, out_dir, (double)(clock_system.mono_ms(NULL) - started_ms) / 1000, err);
	json_free(job);
	return rc;
}

static enum exit_status run(const struct args *args, struct err *err)
{
	const char *out_dir = args_get(args, "output", NULL);
	bool dry_run = args_has(args, "dry-run");
	struct embedded e;
	enum exit_status status;
	int rc;

	if (!out_dir && !dry_run) {
		err_set(err, ERR_INVALID, "no output folder named; give -o OUT_DIR");
		return EXIT_USAGE;
	}
	if (out_dir && fetch_check_target(out_dir, NULL, err) != 0)
		return EXIT_FAILED;
	if (embedded_init(&e, args, args->positional[0], &status, err) != 0)
		return status;
	rc = dry_run ? plan_only(&e, err) : quantize(&e, out_dir, err);
	embedded_deinit(&e, err);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_quantize = {
	.name = "quantize", .usage = "MODEL_DIR -o OUT_DIR [options]", .summary = "quantize a model on this machine",
	.details = "Starts a private coordinator and local workers, waits for the job, copies the result to OUT_DIR and "
		   "stops\neverything. OUT_DIR then holds a folder per format and report.json.",
	.options = options, .recipe = true, .least = 1, .most = 1, .run = run,
};
