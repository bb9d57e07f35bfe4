#include <stdio.h>
#include <string.h>

#include "cli/connect.h"
#include "cli/follow.h"
#include "cli/grid.h"
#include "cli/scores.h"
#include "cli/text.h"

static const struct arg_spec options[] = {
	{ "json", NULL, "the job as JSON" },
	{ "report", NULL, "the finished job's report.json" },
	{ NULL, NULL, NULL },
};

static void print_perplexity(const struct json *job)
{
	char name[256], score[SCORE_MAX];

	for (const struct json *p = json_first(json_get(job, "perplexity")); p; p = json_next(p)) {
		double before = json_get_number(p, "original", -1), after = json_get_number(p, "quantized", -1);
		double reference = json_get_number(p, "reference", -1);

		printf("perplexity  %s:", text_safe(json_get_string(p, "text", "?"), name, sizeof(name)));
		if (before >= 0)
			printf(" %.3f", before);
		if (after >= 0)
			printf(" -> %.3f", after);
		if (reference >= 0)
			printf(" (reference %.3f)", reference);
		if (score_comparison(p, score))
			printf(", %s", score);
		printf("%s\n", before < 0 && after < 0 ? " not measured yet" : "");
	}
}

static void print_distillation(const struct json *job)
{
	char score[SCORE_MAX];

	if (score_blocks(job, score))
		printf("distilled   %s\n", score);
	if (score_end_to_end(job, score))
		printf("distilled   %s\n", score);
}

static void print_head(const struct json *job)
{
	char line[512], safe[1024];

	printf("job         %s  %s\n", json_get_string(job, "id", "?"),
	       text_safe(json_get_string(job, "name", ""), safe, sizeof(safe)));
	printf("model       %s\n",
	       text_safe(json_get_string(json_get(job, "model"), "name", "?"), safe, sizeof(safe)));
	if (json_type(json_get(job, "reference")) == JSON_OBJECT)
		printf("reference   %s\n",
		       text_safe(json_get_string(json_get(job, "reference"), "name", "?"), safe, sizeof(safe)));
	progress_line(job, false, line, sizeof(line));
	printf("state       %s %s\n", text_safe(json_get_string(job, "state", "?"), safe, sizeof(safe)), line);
}

static void print_end(const struct json *job)
{
	const char *detail = json_get_string(json_get(job, "failure"), "detail", NULL);
	char safe[4096];

	print_perplexity(job);
	print_distillation(job);
	for (const struct json *w = json_first(json_get(job, "warnings")); w; w = json_next(w))
		printf("warning     %s\n", text_safe(json_string(w, ""), safe, sizeof(safe)));
	if (detail)
		printf("failure     %s\n", text_safe(detail, safe, sizeof(safe)));
}

static int show(const struct args *args, const struct json *reply, struct err *err)
{
	if (args_has(args, "json") || args_has(args, "report")) {
		print_json(reply);
		return 0;
	}
	print_head(reply);
	printf("\n");
	if (grid_print(reply) != 0)
		return err_set_nomem(err, "the grid");
	printf("%s", json_size(json_get(reply, "layers")) ? "\n" : "");
	print_end(reply);
	return 0;
}

static enum exit_status run(const struct args *args, struct err *err)
{
	char id[SERVER_ID], path[SERVER_ID + 32];
	enum exit_status status;
	struct client *c;
	struct json *reply;
	int rc;

	if (job_argument(args, id, err) != 0)
		return EXIT_USAGE;
	c = connect_from_args(args, &status, err);
	if (!c)
		return status;
	snprintf(path, sizeof(path), "/v1/jobs/%s%s", id, args_has(args, "report") ? "/report" : "");
	reply = client_get(c, path, err);
	client_free(c);
	rc = reply ? show(args, reply, err) : -1;
	json_free(reply);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_show = {
	.name = "show", .usage = "JOB [options]", .summary = "show a job as a grid of layers and modules",
	.details = "A cell is a module's loss relative to its output's energy; 'kept' marks modules that are not "
		   "quantized.",
	.options = options, .connects = true, .least = 1, .most = 1, .run = run,
};
