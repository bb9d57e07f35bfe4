#include <stdio.h>
#include <string.h>

#include "cli/connect.h"
#include "cli/paging.h"
#include "cli/text.h"
#include "common/alloc.h"
#include "common/clock.h"

static const struct arg_spec options[] = {
	{ "state", "STATE", "only PLANNING, RUNNING, ASSEMBLING, DONE, FAILED or CANCELLED ones" },
	{ "limit", "N", "at most so many, the newest first (default 50)" },
	{ "json", NULL, "the list as JSON" },
	{ NULL, NULL, NULL },
};

static void add_row(struct table *t, const struct json *job)
{
	char cell[64], age[TEXT_SHORT];
	double created = json_get_number(job, "created_ms", 0);

	table_cell(t, json_get_string(job, "id", "?"));
	table_cell(t, json_get_string(job, "state", "?"));
	snprintf(cell, sizeof(cell), "%.0f %%", json_get_number(job, "progress", 0) * 100);
	table_cell(t, cell);
	table_cell(t, json_get_string(job, "kind", "?"));
	snprintf(cell, sizeof(cell), "%s",
		 text_duration(((double)clock_system.wall_ms(NULL) - created) / 1000, age));
	table_cell(t, cell);
	table_cell(t, json_get_string(job, "model_name", ""));
	table_cell(t, json_get_string(job, "name", ""));
}

static int print_jobs(const struct json *items, struct err *err)
{
	static const char *const titles[] = { "JOB", "STATE", "DONE", "KIND", "AGE", "MODEL", "NAME" };
	struct table *t = table_new(titles, 7);
	int rc;

	for (const struct json *j = json_first(items); t && j; j = json_next(j))
		add_row(t, j);
	rc = t ? table_print(t) : -1;
	table_free(t);
	return rc == 0 ? 0 : err_set_nomem(err, "the list");
}

static int list_jobs(struct client *c, const struct args *args, int64_t limit, struct err *err)
{
	const char *state = args_get(args, "state", NULL);
	struct json *items;
	int rc = 0;

	items = fetch_pages(c, "/v1/jobs", "state", state, limit, err);
	if (!items)
		return -1;
	if (args_has(args, "json"))
		print_json(items);
	else
		rc = print_jobs(items, err);
	json_free(items);
	return rc;
}

static enum exit_status run(const struct args *args, struct err *err)
{
	enum exit_status status;
	struct client *c;
	int64_t limit;
	int rc;

	if (args_int(args, "limit", 1, 100000, 50, &limit, err) != 0)
		return EXIT_USAGE;
	c = connect_from_args(args, &status, err);
	if (!c)
		return status;
	rc = list_jobs(c, args, limit, err);
	client_free(c);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_jobs = {
	.name = "jobs", .usage = "[options]", .summary = "list the jobs of a coordinator",
	.options = options, .connects = true, .run = run,
};
