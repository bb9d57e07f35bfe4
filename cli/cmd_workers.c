#include <stdio.h>

#include "cli/connect.h"
#include "cli/paging.h"
#include "cli/text.h"

enum { WORKERS_MOST = 10000 };

static const struct arg_spec options[] = {
	{ "json", NULL, "the list as JSON" },
	{ NULL, NULL, NULL },
};

static void task_cell(struct table *t, const struct json *worker)
{
	const struct json *task = json_first(json_get(worker, "tasks"));
	char cell[320] = "-";

	if (task)
		snprintf(cell, sizeof(cell), "%s %.0f %% %s", json_get_string(task, "kind", "?"),
			 json_get_number(task, "progress", 0) * 100, json_get_string(task, "note", ""));
	table_cell(t, cell);
}

/* "0 NVIDIA H200" */
static void device_cell(struct table *t, const struct json *worker)
{
	const struct json *device = json_get(worker, "device");
	char cell[192] = "-";

	if (json_type(device) == JSON_OBJECT)
		snprintf(cell, sizeof(cell), "%lld %s", (long long)json_get_int(device, "number", 0),
			 json_get_string(device, "name", "?"));
	table_cell(t, cell);
}

static void add_row(struct table *t, const struct json *worker)
{
	char cell[64], bytes[TEXT_SHORT];

	table_cell(t, json_get_string(worker, "name", "?"));
	table_cell(t, json_get_string(worker, "state", "?"));
	table_cell(t, json_get_string(worker, "backend", "?"));
	device_cell(t, worker);
	snprintf(cell, sizeof(cell), "%lld", (long long)json_get_int(worker, "threads", 0));
	table_cell(t, cell);
	table_cell(t, text_bytes(json_get_number(worker, "memory_bytes", 0), bytes));
	snprintf(cell, sizeof(cell), "%lld", (long long)json_get_int(worker, "done", 0));
	table_cell(t, cell);
	snprintf(cell, sizeof(cell), "%lld", (long long)json_get_int(worker, "failed", 0));
	table_cell(t, cell);
	task_cell(t, worker);
}

static int print_workers(const struct json *items, struct err *err)
{
	static const char *const titles[] = { "WORKER", "STATE", "BACKEND", "DEVICE", "THREADS", "MEMORY", "DONE",
					      "FAILED", "TASK" };
	struct table *t = table_new(titles, 9);
	int rc;

	for (const struct json *w = json_first(items); t && w; w = json_next(w))
		add_row(t, w);
	rc = t ? table_print(t) : -1;
	table_free(t);
	return rc == 0 ? 0 : err_set_nomem(err, "the list");
}

static enum exit_status run(const struct args *args, struct err *err)
{
	enum exit_status status;
	struct client *c = connect_from_args(args, &status, err);
	struct json *items;
	int rc = 0;

	if (!c)
		return status;
	items = fetch_pages(c, "/v1/workers", NULL, NULL, WORKERS_MOST, err);
	client_free(c);
	if (!items)
		return failed_status(err);
	if (args_has(args, "json"))
		print_json(items);
	else
		rc = print_workers(items, err);
	json_free(items);
	return rc == 0 ? EXIT_OK : EXIT_FAILED;
}

const struct command cmd_workers = {
	.name = "workers", .usage = "[options]", .summary = "list the workers of a coordinator",
	.options = options, .connects = true, .run = run,
};
