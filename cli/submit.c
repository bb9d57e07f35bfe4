#include "cli/submit.h"

#include <stdio.h>
#include <string.h>

#include "cli/text.h"
#include "common/file.h"
#include "common/recipe.h"

/* --- texts ------------------------------------------------------------------------------------ */

static int check_text(const char *option, const char *path, struct err *err)
{
	uint64_t bytes;

	if (file_size(path, &bytes, err) != 0)
		return err_prefix(err, "--%s", option);
	if (bytes == 0)
		return err_set(err, ERR_INVALID, "--%s: %s is empty", option, path);
	return 0;
}

static bool is_word(const char *value, const char *word)
{
	return strcmp(value, word) == 0;
}

int submit_check_texts(const struct args *args, struct err *err)
{
	const char *path = args_get(args, "calibration", NULL);
	size_t count = 0;

	if (path && !is_word(path, "builtin") && check_text("calibration", path, err) != 0)
		return -1;
	for (; (path = args_nth(args, "eval", count)); count++) {
		if (is_word(path, "none") || is_word(path, "builtin")) {
			if (count > 0 || args_nth(args, "eval", 1))
				return err_set(err, ERR_INVALID, "--eval %s cannot be combined with other texts",
					       path);
		} else if (check_text("eval", path, err) != 0) {
			return -1;
		}
	}
	if (count > RECIPE_EVALS_MAX)
		return err_set(err, ERR_INVALID, "--eval: %zu texts given; at most %d are evaluated", count,
			       RECIPE_EVALS_MAX);
	return 0;
}

static int submit_evals(struct client *c, const struct args *args, struct json *recipe, struct err *err)
{
	char id[SERVER_ID];
	const char *path;

	for (size_t i = 0; (path = args_nth(args, "eval", i)); i++) {
		if (is_word(path, "none") || is_word(path, "builtin"))
			snprintf(id, sizeof(id), "%s", path);
		else if (upload_dataset(c, path, id, err) != 0)
			return -1;
		if (recipe_option(recipe, "eval", id, err) != 0)
			return -1;
	}
	return 0;
}

int submit_texts(struct client *c, const struct args *args, struct json *recipe, struct err *err)
{
	const char *path = args_get(args, "calibration", NULL);
	char id[SERVER_ID] = "builtin";

	if (path && !is_word(path, "builtin") && upload_dataset(c, path, id, err) != 0)
		return -1;
	if (path && recipe_option(recipe, "calibration", id, err) != 0)
		return -1;
	return submit_evals(c, args, recipe, err);
}

/* --- jobs ------------------------------------------------------------------------------------- */

static struct json *job_body(const char *name, const char *model, const struct json *recipe)
{
	struct json *body = json_new_object();

	if (!body || json_set_string(body, "name", name) != 0 || json_set_string(body, "model", model) != 0 ||
	    json_set(body, "recipe", json_copy(recipe)) != 0) {
		json_free(body);
		return NULL;
	}
	return body;
}

struct json *submit_job(struct client *c, const char *name, const char *model, const struct json *recipe,
			const char *key, bool dry_run, struct json **problems, struct err *err)
{
	struct json *body = job_body(name, model, recipe), *result = NULL;
	struct client_request request = { .method = "POST", .body = body, .idempotency_key = key,
					  .path = dry_run ? "/v1/jobs?dry_run=true" : "/v1/jobs" };
	struct client_reply reply = { 0 };

	*problems = NULL;
	if (!body) {
		err_set_nomem(err, "a job");
		return NULL;
	}
	if (client_call(c, &request, &reply, err) == 0) {
		result = reply.body;
		reply.body = NULL;
		if (!result)
			err_set(err, ERR_INTERNAL, "the server's reply to a job is empty");
	}
	*problems = reply.problems;
	reply.problems = NULL;
	client_reply_deinit(&reply);
	json_free(body);
	return result;
}

int submit_job_id(const struct json *reply, char id[SERVER_ID], struct err *err)
{
	const char *text;

	if (json_require_string(reply, "job", &text, err) != 0)
		return err_prefix(err, "the server's reply to a job");
	return copy_id(text, "job", id, err);
}

/* --- for people ------------------------------------------------------------------------------- */

void print_problems(struct json *problems, const struct err *err)
{
	for (const struct json *p = json_first(problems); p; p = json_next(p)) {
		const char *text = json_string(p, "");

		if (*text && strcmp(text, err->text) != 0)
			print_note("  %s", text);
	}
	json_free(problems);
}

static void print_plan_tasks(const struct json *tasks)
{
	char name[64];

	printf("tasks    %lld:", (long long)json_get_int(tasks, "total", 0));
	for (const struct json *kind = json_first(tasks); kind; kind = json_next(kind))
		if (strcmp(json_key(kind), "total") != 0)
			printf(" %.0f %s", json_number(kind, 0), text_safe(json_key(kind), name, sizeof(name)));
	printf("\n");
}

/* What each effort takes, and the recipe as it was given. */
static void print_estimate(const struct json *plan)
{
	const struct json *e = json_get(plan, "estimate");
	const long long devices = json_get_int(e, "devices", 0);
	char took[TEXT_SHORT], name[64], on_device[64] = "";

	if (!e)
		return;
	if (devices > 0)
		snprintf(on_device, sizeof(on_device), " and %lld device%s", devices, devices == 1 ? "" : "s");
	printf("time     %s on %lld worker%s with %lld thread%s%s, by %s\n",
	       text_duration(json_get_number(e, "seconds", 0), took), (long long)json_get_int(e, "workers", 1),
	       json_get_int(e, "workers", 1) == 1 ? "" : "s", (long long)json_get_int(e, "threads", 1),
	       json_get_int(e, "threads", 1) == 1 ? "" : "s", on_device,
	       json_get_bool(e, "measured", false) ? "what they did before" : "rule of thumb");
	for (const struct json *x = json_first(json_get(e, "efforts")); x; x = json_next(x))
		printf("         %-9s %s\n", text_safe(json_key(x), name, sizeof(name)),
		       text_duration(json_number(x, 0), took));
}

void print_plan(const struct json *plan)
{
	char a[TEXT_SHORT], b[TEXT_SHORT], safe[2048];
	size_t quantized = 0, skipped = 0;

	for (const struct json *m = json_first(json_get(plan, "modules")); m; m = json_next(m))
		*(json_get_bool(m, "skip", false) ? &skipped : &quantized) += 1;
	print_plan_tasks(json_get(plan, "tasks"));
	printf("modules  %zu quantized, %zu skipped\n", quantized, skipped);
	printf("model    %s\n", text_bytes(json_get_number(plan, "model_bytes", 0), a));
	for (const struct json *f = json_first(json_get(plan, "output_bytes")); f; f = json_next(f))
		printf("output   %s as %s\n", text_bytes(json_number(f, 0), a),
		       text_safe(json_key(f), safe, sizeof(safe)));
	printf("disk     %s needed, %s free\n", text_bytes(json_get_number(plan, "disk_bytes", 0), a),
	       text_bytes(json_get_number(plan, "disk_free_bytes", 0), b));
	printf("memory   %s per task\n", text_bytes(json_get_number(plan, "memory_per_task_bytes", 0), a));
	print_estimate(plan);
	for (const struct json *w = json_first(json_get(plan, "warnings")); w; w = json_next(w))
		printf("warning  %s\n", text_safe(json_string(w, ""), safe, sizeof(safe)));
}
