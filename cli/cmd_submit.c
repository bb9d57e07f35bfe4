#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "cli/connect.h"
#include "cli/submit.h"
#include "cli/text.h"
#include "cli/watching.h"
#include "common/digest.h"

static const struct arg_spec options[] = {
	{ "server-path", "DIR", "the model's folder as the coordinator sees it, instead of uploading one" },
	{ "name", "NAME", "the job's name (default: the model's)" },
	{ "idempotency-key", "KEY", "submitting twice with one key gives one job" },
	{ "dry-run", NULL, "print the plan; no job is made" },
	{ "wait", NULL, "follow the job until it ends" },
	{ "json", NULL, "the coordinator's reply as JSON" },
	{ NULL, NULL, NULL },
};

static int check_model_argument(const struct args *args, struct err *err)
{
	const char *dir = args->positional_count ? args->positional[0] : NULL;
	struct stat st;

	if (!dir == !args_has(args, "server-path"))
		return err_set(err, ERR_INVALID, "give either a MODEL_DIR to upload or --server-path DIR");
	if (dir && (stat(dir, &st) != 0 || !S_ISDIR(st.st_mode)))
		return err_set(err, ERR_INVALID, "%s is not a folder", dir);
	return 0;
}

static int bring_model(struct client *c, const struct args *args, char name[200], char id[SERVER_ID],
		       struct err *err)
{
	const char *path = args_get(args, "server-path", NULL);
	struct json *problems = NULL;
	char full[PATH_MAX];
	int rc;

	if (!path && !realpath(args->positional[0], full))
		return err_set(err, ERR_NOT_FOUND, "cannot read the folder %s", args->positional[0]);
	name_of_path(path ? path : full, "model", name, 200);
	rc = path ? register_model_path(c, path, name, id, &problems, err)
		  : upload_model(c, full, name, id, &problems, err);
	print_problems(problems, err);
	return rc;
}

static int after_submission(struct client *c, const struct args *args, const struct json *reply, struct err *err)
{
	char id[SERVER_ID];

	if (args_has(args, "json"))
		print_json(reply);
	if (args_has(args, "dry-run")) {
		if (!args_has(args, "json"))
			print_plan(reply);
		return 0;
	}
	if (submit_job_id(reply, id, err) != 0)
		return -1;
	if (!args_has(args, "json"))
		printf("job %s\n", id);
	fflush(stdout);
	return args_has(args, "wait") ? watch_to_end(c, id, err) : 0;
}

static int submit(struct client *c, const struct args *args, struct err *err)
{
	char name[200], model[SERVER_ID], random_key[33];
	const char *key = args_get(args, "idempotency-key", NULL);
	struct json *reply, *problems = NULL, *recipe = json_copy(args->recipe);
	int rc = -1;

	if (!recipe)
		return err_set_nomem(err, "the recipe");
	if (!key && random_hex(random_key, 16) == 0)
		key = random_key; /* a request repeated by the client stays one job */
	if (bring_model(c, args, name, model, err) == 0 && submit_texts(c, args, recipe, err) == 0) {
		reply = submit_job(c, args_get(args, "name", name), model, recipe, key,
				   args_has(args, "dry-run"), &problems, err);
		print_problems(problems, err);
		rc = reply ? after_submission(c, args, reply, err) : -1;
		json_free(reply);
	}
	json_free(recipe);
	return rc;
}

static enum exit_status run(const struct args *args, struct err *err)
{
	enum exit_status status;
	struct client *c;
	int rc;

	if (check_model_argument(args, err) != 0)
		return EXIT_USAGE;
	if (submit_check_texts(args, err) != 0)
		return EXIT_FAILED;
	c = connect_from_args(args, &status, err);
	if (!c)
		return status;
	rc = submit(c, args, err);
	client_free(c);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_submit = {
	.name = "submit", .usage = "MODEL_DIR | --server-path DIR [options]",
	.summary = "submit a job to a coordinator",
	.details = "MODEL_DIR is uploaded file by file; an interrupted upload goes on where it stopped when the command "
		   "is given again.",
	.options = options, .connects = true, .recipe = true, .least = 0, .most = 1, .run = run,
};
