#include "cli/embedded.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/connect.h"
#include "cli/fetch.h"
#include "cli/follow.h"
#include "cli/interrupt.h"
#include "cli/submit.h"
#include "cli/text.h"
#include "common/alloc.h"
#include "common/digest.h"
#include "common/file.h"

enum { LOCAL_PATIENCE_MS = 60000, STEP_TRIES = 8, SUBMISSION_MAX = 4096 };

/* --- before anything starts -------------------------------------------------------------------------- */

/* `full` and `name` of the folder. what: "model folder" or the option that names it. */
static int check_model_dir(const char *what, const char *dir, char full[PATH_MAX], char name[200], struct err *err)
{
	struct stat st;

	if (stat(dir, &st) != 0)
		return err_set_errno(err, errno, "%s %s", what, dir);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, ERR_INVALID,
			       "%s is not a folder; a model is a folder with config.json and *.safetensors", dir);
	if (!realpath(dir, full))
		return err_set_errno(err, errno, "%s %s", what, dir);
	name_of_path(full, "model", name, 200);
	return 0;
}

int embedded_init(struct embedded *e, const struct args *args, const char *model_dir, enum exit_status *status,
		  struct err *err)
{
	const char *reference = args_get(args, "reference", NULL);
	struct local_config ignored;

	*e = (struct embedded){ .args = args };
	*status = EXIT_USAGE;
	if (fleet_options(&ignored, args, err) != 0)
		return -1;
	*status = EXIT_FAILED;
	if (check_model_dir("model folder", model_dir, e->model_dir, e->model_name, err) != 0 ||
	    (reference && check_model_dir("--reference", reference, e->reference_dir, e->reference_name, err) != 0) ||
	    submit_check_texts(args, err) != 0)
		return -1;
	e->recipe = json_copy(args->recipe);
	return e->recipe ? 0 : err_set_nomem(err, "the recipe");
}

int embedded_start(struct embedded *e, bool dry_run, struct err *err)
{
	struct local_config config;

	if (fleet_options(&config, e->args, err) != 0)
		return -1;
	config.model_dir = e->model_dir;
	config.reference_dir = e->reference_dir[0] ? e->reference_dir : NULL;
	config.work_dir = args_get(e->args, "work", NULL);
	if (dry_run)
		config.workers = 0;
	e->local = local_start(&config, err);
	return e->local ? 0 : -1;
}

/* --- which job this is --------------------------------------------------------------------------------- */

static void add_text(struct digest *d, const char *text)
{
	digest_add(d, text, strlen(text) + 1);
}

/* Name, size and time of every file: enough to notice another model in the same folder. */
static int add_model(struct digest *d, const char *dir, struct err *err)
{
	struct dirent **names = NULL;
	int count = scandir(dir, &names, NULL, alphasort);

	if (count < 0)
		return err_set_errno(err, errno, "model folder %s", dir);
	add_text(d, dir);
	for (int i = 0; i < count; i++) {
		char *path = path_join(dir, names[i]->d_name), line[128];
		struct stat st;

		if (path && stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
			snprintf(line, sizeof(line), "%lld %lld %ld", (long long)st.st_size,
				 (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
			add_text(d, names[i]->d_name);
			add_text(d, line);
		}
		mem_free(path);
		free(names[i]);
	}
	free(names);
	return 0;
}

static int add_text_file(struct digest *d, const char *option, const char *path, struct err *err)
{
	char sha256[DIGEST_HEX] = "";

	add_text(d, option);
	if (strcmp(path, "none") == 0 || strcmp(path, "builtin") == 0)
		add_text(d, path);
	else if (digest_file(path, sha256, NULL, err) != 0)
		return -1;
	add_text(d, sha256);
	return 0;
}

static int add_texts(struct digest *d, const struct args *args, struct err *err)
{
	const char *path = args_get(args, "calibration", NULL);

	if (path && add_text_file(d, "calibration", path, err) != 0)
		return -1;
	for (size_t i = 0; (path = args_nth(args, "eval", i)); i++)
		if (add_text_file(d, "eval", path, err) != 0)
			return -1;
	return 0;
}

static int submission_key(const struct embedded *e, char key[DIGEST_HEX], struct err *err)
{
	struct digest *d = digest_new();
	char *recipe = json_print(e->recipe, false);
	int rc = d && recipe ? 0 : err_set_nomem(err, "a digest");

	if (rc == 0) {
		add_text(d, recipe);
		rc = add_model(d, e->model_dir, err);
	}
	if (rc == 0 && e->reference_dir[0])
		rc = add_model(d, e->reference_dir, err);
	if (rc == 0)
		rc = add_texts(d, e->args, err);
	if (rc == 0)
		digest_finish(d, key);
	mem_free(recipe);
	digest_free(d);
	return rc;
}

/* --- submission.json ------------------------------------------------------------------------------------- */

/* The job noted for `key`, or "" when there is none. Trouble with the file counts as none. */
static void recall_job(const struct embedded *e, const char *key, char job[SERVER_ID])
{
	char *path = path_join(local_folder(e->local), "submission.json"), *text = NULL;
	struct json *note = NULL;
	size_t len = 0;

	job[0] = '\0';
	if (path && file_exists(path))
		text = file_read_all(path, SUBMISSION_MAX, &len, NULL);
	if (text)
		note = json_parse(text, len, NULL);
	if (strcmp(json_get_string(note, "key", ""), key) == 0 &&
	    copy_id(json_get_string(note, "job", ""), "job", job, NULL) != 0)
		job[0] = '\0';
	json_free(note);
	mem_free(text);
	mem_free(path);
}

static int note_job(const struct embedded *e, const char *key, struct err *err)
{
	char *path = path_join(local_folder(e->local), "submission.json"), text[SUBMISSION_MAX];
	int rc;

	if (!path)
		return err_set_nomem(err, "a path");
	snprintf(text, sizeof(text), "{\"key\":\"%s\",\"job\":\"%s\"}\n", key, e->job);
	rc = file_write_atomic(path, text, strlen(text), err);
	mem_free(path);
	return rc;
}

/* --- submitting ------------------------------------------------------------------------------------------- */

static int register_model(struct embedded *e, const char *dir, const char *name, char model[SERVER_ID],
			  struct err *err)
{
	struct json *problems = NULL;
	int rc = register_model_path(local_client(e->local), dir, name, model, &problems, err);

	print_problems(problems, err);
	return rc;
}

/* Registers the reference, if there is one, and names it in the recipe. */
static int submit_reference(struct embedded *e, struct json *recipe, struct err *err)
{
	char id[SERVER_ID];

	if (!e->reference_dir[0])
		return 0;
	if (register_model(e, e->reference_dir, e->reference_name, id, err) != 0)
		return err_prefix(err, "--reference");
	return json_set_string(recipe, "reference", id) == 0 ? 0 : err_set_nomem(err, "the recipe");
}

static struct json *submit(struct embedded *e, const char *key, bool dry_run, struct err *err)
{
	struct client *c = local_client(e->local);
	char model[SERVER_ID];
	struct json *problems = NULL, *reply = NULL, *recipe = json_copy(e->recipe);

	if (!recipe)
		err_set_nomem(err, "the recipe");
	else if (register_model(e, e->model_dir, e->model_name, model, err) == 0 &&
		 submit_reference(e, recipe, err) == 0 && submit_texts(c, e->args, recipe, err) == 0)
		reply = submit_job(c, e->model_name, model, recipe, key, dry_run, &problems, err);
	print_problems(problems, err);
	json_free(recipe);
	return reply;
}

struct json *embedded_plan(struct embedded *e, struct err *err)
{
	return submit(e, NULL, true, err);
}

static int submit_new(struct embedded *e, const char *note_key, const char *key, struct err *err)
{
	struct json *reply = submit(e, key, false, err);
	int rc = reply ? submit_job_id(reply, e->job, err) : -1;

	json_free(reply);
	return rc == 0 ? note_job(e, note_key, err) : -1;
}

/* Takes up the job of an earlier run. 1 = it cannot go on, a new one is needed. */
static int resume(struct embedded *e, struct err *err)
{
	char path[SERVER_ID + 32];
	struct err gone = ERR_INIT;
	struct json *job, *reply;
	const char *state;
	int rc = 0;

	snprintf(path, sizeof(path), "/v1/jobs/%s", e->job);
	job = client_get(local_client(e->local), path, &gone);
	if (!job)
		return gone.code == ERR_NOT_FOUND ? 1 : err_set(err, gone.code, "%s", gone.text);
	state = json_get_string(job, "state", "");
	if (strcmp(state, "CANCELLED") == 0) {
		rc = 1;
	} else if (strcmp(state, "FAILED") == 0) {
		snprintf(path, sizeof(path), "/v1/jobs/%s/retry", e->job);
		reply = client_post(local_client(e->local), path, NULL, err);
		rc = reply ? 0 : -1;
		json_free(reply);
	}
	if (rc == 0)
		print_note("going on with job %s of %s", e->job, local_folder(e->local));
	json_free(job);
	return rc;
}

static int find_or_submit(struct embedded *e, struct err *err)
{
	char key[DIGEST_HEX], fresh[DIGEST_HEX + 20], salt[17] = "";
	int rc = 1;

	if (submission_key(e, key, err) != 0)
		return -1;
	recall_job(e, key, e->job);
	if (e->job[0]) {
		rc = resume(e, err);
		/* The old key would bring the cancelled job back. */
		if (rc == 1 && random_hex(salt, 8) != 0)
			return err_set(err, ERR_INTERNAL, "the system gives no random bytes");
	}
	snprintf(fresh, sizeof(fresh), "%s%s", key, salt);
	return rc == 1 ? submit_new(e, key, fresh, err) : rc;
}

/* Does a step again while the local server is being started again; every step may be repeated. */
static int with_restarts(struct embedded *e, int (*step)(struct embedded *e, struct err *err), struct err *err)
{
	int rc = -1;

	for (int tries = 0; rc != 0 && tries < STEP_TRIES; tries++) {
		err_clear(err);
		if (interrupt_check(err) != 0 || local_tend(e->local, err) != 0)
			return -1;
		rc = step(e, err);
		if (rc != 0 && err->code != ERR_UNAVAILABLE)
			return -1;
	}
	return rc;
}

static int fetch(struct embedded *e, struct err *err)
{
	return fetch_job(local_client(e->local), e->job, e->out_dir, err);
}

int embedded_fetch(struct embedded *e, const char *out_dir, struct err *err)
{
	struct err ignored = ERR_INIT;

	e->out_dir = out_dir;
	if (with_restarts(e, fetch, err) == 0)
		return 0;
	fetch_discard(e->job, out_dir, &ignored);
	return -1;
}

static int tend(void *ctx, struct err *err)
{
	return local_tend(ctx, err);
}

struct json *embedded_finish(struct embedded *e, struct err *err)
{
	struct follow follow = { .tend = tend, .patience_ms = LOCAL_PATIENCE_MS };
	struct json *job = NULL;

	if (with_restarts(e, find_or_submit, err) != 0)
		return NULL;
	follow.client = local_client(e->local);
	follow.job = e->job;
	follow.tend_ctx = e->local;
	if (follow_job(&follow, &job, err) == 0 && job_outcome(job, err) == 0)
		return job;
	if (job)
		print_attempts(job);
	json_free(job);
	return NULL;
}

void embedded_deinit(struct embedded *e, const struct err *err)
{
	const char *work = args_get(e->args, "work", NULL);

	if (e->local) {
		if (interrupted())
			print_note("stopping the local fleet");
		local_stop(e->local);
	}
	if (err->code != ERR_NONE && e->job[0]) {
		if (work)
			print_note("finished work is kept in %s; the same command goes on from there", work);
		else if (interrupted())
			print_note("nothing is kept; with --work DIR the same command would go on from here");
	}
	json_free(e->recipe);
	e->recipe = NULL;
}
