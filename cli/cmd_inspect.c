/* cmd_inspect.c - what a checkpoint on disk holds, and whether all of it is right. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/args.h"
#include "cli/connect.h"
#include "cli/inspect.h"
#include "cli/text.h"
#include "common/file.h"

static const struct arg_spec options[] = {
	{ "json", NULL, "everything as JSON: an object, or an array for the result folder of a job" },
	{ NULL, NULL, NULL },
};

struct inspection { bool json; struct json *list; size_t checkpoints, faults; char first[ERR_TEXT_MAX]; };

static int inspect_one(struct inspection *all, const char *path, struct err *err)
{
	struct inspected i;
	int rc = inspect_read(&i, path, err);

	if (rc == 0 && all->json)
		rc = json_push(all->list, inspect_json(&i)) == 0 ? 0 : err_set_nomem(err, "the result");
	else if (rc == 0) {
		printf("%s", all->checkpoints ? "\n" : "");
		rc = inspect_print(&i, err);
	}
	all->checkpoints++;
	for (size_t k = 0; rc == 0 && k < i.faults.count; k++) {
		if (all->faults++ == 0)
			snprintf(all->first, sizeof(all->first), "%s", i.faults.items[k]);
		else
			print_error("%s", i.faults.items[k]);
	}
	inspect_deinit(&i);
	return rc;
}

/* The result of a job: a folder for each format, and nothing of a checkpoint itself. */
static bool is_result(const char *path)
{
	char report[PATH_MAX], config[PATH_MAX];
	const int n = snprintf(report, sizeof(report), "%s/report.json", path);
	const int m = snprintf(config, sizeof(config), "%s/config.json", path);

	return n > 0 && n < PATH_MAX && m > 0 && m < PATH_MAX && file_exists(report) && !file_exists(config);
}

static int inspect_result(struct inspection *all, const char *path, struct err *err)
{
	struct dirent **names = NULL;
	const int count = scandir(path, &names, NULL, alphasort);
	int rc = 0;

	if (count < 0)
		return err_set_errno(err, errno, "cannot read %s", path);
	for (int i = 0; i < count; i++) {
		char inside[PATH_MAX];
		const int n = snprintf(inside, sizeof(inside), "%s/%s", path, names[i]->d_name);

		if (rc == 0 && n > 0 && n < PATH_MAX && output_format_find(names[i]->d_name))
			rc = inspect_one(all, inside, err);
		free(names[i]);
	}
	free(names);
	if (rc == 0 && all->checkpoints == 0)
		rc = err_set(err, ERR_NOT_FOUND, "%s holds no checkpoint", path);
	return rc;
}

static enum exit_status run(const struct args *args, struct err *err)
{
	const char *path = args->positional[0];
	struct inspection all = { .json = args_has(args, "json"), .list = json_new_array() };
	const bool result = is_result(path);
	int rc = all.list ? 0 : err_set_nomem(err, "the result");

	if (rc == 0)
		rc = result ? inspect_result(&all, path, err) : inspect_one(&all, path, err);
	if (rc == 0 && all.json)
		print_json(result ? all.list : json_first(all.list));
	json_free(all.list);
	if (rc == 0 && all.faults > 0)
		rc = err_set(err, ERR_CORRUPT, "%s", all.first);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_inspect = {
	.name = "inspect", .usage = "DIR|FILE.gguf [options]", .summary = "tell what a checkpoint holds, and verify it",
	.details = "Format, model, bits per weight, the settings of every module (equal layers in one row), sizes and SHA-256 of the files,\n"
		   "compared with report.json where it says them. Every tensor is read and every module decoded: whatever is missing,\n"
		   "left over, of a wrong type or shape, or not finite is told in a sentence each, and the exit status is 1.",
	.options = options, .least = 1, .most = 1, .run = run,
};
