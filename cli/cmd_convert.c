/* cmd_convert.c - other formats of a checkpoint that is quantized already. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/connect.h"
#include "cli/fetch.h"
#include "cli/interrupt.h"
#include "cli/place.h"
#include "cli/stored.h"
#include "cli/text.h"
#include "cli/write.h"
#include "common/alloc.h"
#include "common/file.h"
#include "common/recipe.h"

static const struct arg_spec options[] = {
	{ "format", "LIST", "formats to write, comma separated" },
	{ "output", "OUT_DIR", "where a folder for each format appears (also -o)" },
	{ "embeddings", "16|8|6|4", "bits of the embedding table (default: as the checkpoint has it)" },
	{ "lm-head", "16|8|6|4", "bits of the output head; a tied head is the embedding" },
	{ "max-shard-size", "SIZE", "largest output file, as in 2GB (default 5GB)" },
	{ NULL, NULL, NULL },
};

enum { FORMATS_MAX = 16 };

struct convert {
	const struct output_format *formats[FORMATS_MAX];
	size_t count;
	const char *out_dir;
	struct recipe recipe;
	int embeddings, lm_head;        /* 0: as the checkpoint has it */
	char folder[PATH_MAX];          /* of a fetched job; "" otherwise */
	char name[256];
	struct place places[FORMATS_MAX];
	struct written written[FORMATS_MAX];
};

/* --- the command line ---------------------------------------------------------------------------- */

static int unknown_format(const char *word, struct err *err)
{
	const char *names[FORMATS_MAX], *nearest;
	char list[256] = "";
	size_t count = 0;

	for (const struct output_format *f = output_formats; f->name && count < FORMATS_MAX; f++) {
		const size_t used = strlen(list);

		names[count++] = f->name;
		snprintf(list + used, sizeof(list) - used, "%s%s", used ? ", " : "", f->name);
	}
	nearest = nearest_word(word, names, count);
	if (nearest)
		return err_set(err, ERR_INVALID, "--format: unknown format '%s'; did you mean '%s'?", word, nearest);
	return err_set(err, ERR_INVALID, "--format: unknown format '%s'; there are %s", word, list);
}

static int add_format(struct convert *c, const char *word, struct err *err)
{
	const struct output_format *f = output_format_find(word);

	if (!f)
		return unknown_format(word, err);
	for (size_t i = 0; i < c->count; i++)
		if (c->formats[i] == f)
			return err_set(err, ERR_INVALID, "--format names %s twice", word);
	c->formats[c->count++] = f; /* as many as there are formats at most */
	return 0;
}

static int read_formats(struct convert *c, const char *list, struct err *err)
{
	char word[64];

	for (const char *p = list;; p++) {
		const size_t len = strcspn(p, ",");

		snprintf(word, sizeof(word), "%.*s", (int)(len < sizeof(word) ? len : sizeof(word) - 1), p);
		if (add_format(c, word, err) != 0)
			return -1;
		p += len;
		if (!*p)
			return 0;
	}
}

static int read_recipe(struct convert *c, const struct args *args, struct err *err)
{
	static const char *const names[] = { "embeddings", "lm-head", "max-shard-size" };
	struct json *o = json_new_object();
	int rc = o ? 0 : err_set_nomem(err, "the options");

	for (size_t i = 0; rc == 0 && i < sizeof(names) / sizeof(names[0]); i++) {
		const char *value = args_get(args, names[i], NULL);

		if (value)
			rc = recipe_option(o, names[i], value, err);
	}
	if (rc == 0)
		rc = recipe_from_json(&c->recipe, o, NULL, err);
	c->embeddings = args_has(args, "embeddings") ? (int)c->recipe.embeddings : 0;
	c->lm_head = args_has(args, "lm-head") ? (int)c->recipe.lm_head : 0;
	json_free(o);
	return rc;
}

static int read_args(struct convert *c, const struct args *args, struct err *err)
{
	const char *list = args_get(args, "format", NULL);

	c->out_dir = args_get(args, "output", NULL);
	if (!c->out_dir)
		return err_set(err, ERR_INVALID, "no output folder named; give -o OUT_DIR");
	if (!list)
		return err_set(err, ERR_INVALID, "no format named; give --format, as in --format mlx,gguf");
	if (read_formats(c, list, err) != 0)
		return -1;
	return read_recipe(c, args, err);
}

/* --- the source ---------------------------------------------------------------------------------- */

static bool is_path(const char *text)
{
	struct stat st;

	return stat(text, &st) == 0 || strchr(text, '/');
}

/* Beside the folder of the files, where a result folder has it. */
static int fetch_report(const struct convert *c, struct client *client, const char *id, struct err *err)
{
	char path[64 + SERVER_ID];
	struct json *report;
	char *text, *file;
	int rc = -1;

	snprintf(path, sizeof(path), "/v1/jobs/%s/report", id);
	report = client_get(client, path, err);
	if (!report)
		return -1;
	text = json_print(report, true);
	file = path_join(c->folder, "report.json");
	rc = text && file ? file_write_atomic(file, text, strlen(text), err) : err_set_nomem(err, "report.json");
	mem_free(text);
	mem_free(file);
	json_free(report);
	return rc;
}

static int fetch_packed(struct convert *c, const struct args *args, char path[PATH_MAX], enum exit_status *status,
			struct err *err)
{
	char id[SERVER_ID];
	struct client *client;
	int rc;

	*status = EXIT_USAGE;
	if (job_argument(args, id, err) != 0)
		return err_prefix(err, "%s is no folder or file here", args->positional[0]);
	client = connect_from_args(args, status, err);
	if (!client)
		return err_prefix(err, "%s is no folder or file here, and to fetch a job of that id", id);
	*status = EXIT_FAILED;
	rc = temporary_folder(c->folder, err);
	if (rc == 0)
		rc = (size_t)snprintf(path, PATH_MAX, "%s/job", c->folder) < PATH_MAX ? 0 : err_set(err, ERR_INVALID, "too long a path");
	if (rc == 0)
		rc = fetch_format(client, id, "packed", path, err);
	if (rc == 0)
		rc = fetch_report(c, client, id, err);
	if (rc == 0)
		snprintf(c->name, sizeof(c->name), "job %s", id);
	client_free(client);
	return rc;
}

/* --- writing ------------------------------------------------------------------------------------- */

static int format_path(const struct convert *c, size_t i, char out[PATH_MAX], struct err *err)
{
	const int n = snprintf(out, PATH_MAX, "%s/%s", c->out_dir, c->formats[i]->name);

	return n > 0 && n < PATH_MAX ? 0 : err_set(err, ERR_INVALID, "the path %s is too long", c->out_dir);
}

static int check_targets(const struct convert *c, struct err *err)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < c->count; i++)
		if (format_path(c, i, path, err) != 0 || fetch_check_target(path, NULL, err) != 0)
			return -1;
	return 0;
}

/* Every sentence of every format before anything is written. */
static int check_formats(const struct convert *c, struct stored_folder *f, struct err *err)
{
	struct problems problems = { 0 };
	int rc = 0;

	if (stored_folder_tables(f, c->embeddings, c->lm_head, err) != 0)
		return -1;
	for (size_t i = 0; i < c->count; i++) {
		struct err reason = ERR_INIT;

		if (write_check(f, c->formats[i], &problems, &reason) != 0 && rc == 0)
			rc = err_set(err, reason.code, "%s", reason.text);
	}
	print_other_problems(&problems);
	return rc;
}

static int write_format(struct convert *c, struct stored_folder *f, size_t i, struct err *err)
{
	struct advance advance;
	char what[64], path[PATH_MAX];
	int rc;

	snprintf(what, sizeof(what), "writing %s", c->formats[i]->name);
	if (format_path(c, i, path, err) != 0 || place_make(&c->places[i], path, err) != 0)
		return -1;
	advance_begin(&advance, what);
	rc = write_checkpoint(f, c->formats[i], c->recipe.max_shard_size, c->name, c->places[i].staging, &advance, &c->written[i],
			      err);
	status_clear();
	if (rc == 0)
		advance_end(&advance);
	return rc;
}

/* All of them, or none. */
static int write_formats(struct convert *c, struct stored_folder *f, struct err *err)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < c->count; i++)
		rc = write_format(c, f, i, err);
	for (size_t i = 0; rc == 0 && i < c->count; i++)
		rc = place_keep(&c->places[i], err);
	for (size_t i = c->count; i > 0; i--)
		place_drop(&c->places[i - 1]);
	return rc;
}

static void print_written(const struct convert *c)
{
	char bytes[TEXT_SHORT];

	for (size_t i = 0; i < c->count; i++) {
		const struct written *w = &c->written[i];

		printf("checkpoint   %s/%s  (%s", c->out_dir, c->formats[i]->name, text_bytes((double)w->bytes, bytes));
		if (w->bits_per_weight > 0)
			printf(", %.2f bits per weight in the quantized modules", w->bits_per_weight);
		if (w->rounding > 0)
			printf(", largest rounding %.2g", w->rounding);
		printf(")\n");
	}
}

/* Tables that grow: no format takes their rounding as it is. */
static void note_tables(const struct stored_folder *f)
{
	static const char *const names[2] = { "model.embed_tokens", "lm_head" };

	for (int t = 0; t < 2; t++)
		if (f->tables[t].quantized && f->tables[t].why_plain)
			print_note("%s is written as plain numbers: %s", names[t], f->tables[t].why_plain);
}

/* What known readers make of the formats. */
static int note_readers(const struct convert *c, struct stored_folder *f, struct err *err)
{
	struct problems warnings = { 0 };
	struct output_model model;
	int rc = 0;

	stored_folder_model(f, &model);
	for (size_t i = 0; i < c->count; i++)
		rc |= output_caution(c->formats[i], &model, &warnings);
	for (size_t i = 0; i < warnings.count; i++)
		print_note("%s", warnings.items[i]);
	problems_deinit(&warnings);
	return rc == 0 ? 0 : err_set_nomem(err, "a note");
}

static int convert(struct convert *c, const char *path, struct err *err)
{
	char place[PATH_MAX];
	struct stored_folder f;
	int rc;

	if (stored_place(path, place, err) != 0 || stored_open_whole(&f, place, err) != 0)
		return -1;
	if (!c->name[0])
		stored_name(&f, c->name, sizeof(c->name));
	rc = check_formats(c, &f, err);
	if (rc == 0) {
		note_tables(&f);
		rc = note_readers(c, &f, err);
	}
	if (rc == 0)
		rc = write_formats(c, &f, err);
	if (rc == 0)
		print_written(c);
	stored_folder_close(&f);
	return rc;
}

static enum exit_status run_with(struct convert *c, const struct args *args, struct err *err)
{
	enum exit_status status = EXIT_USAGE;
	char path[PATH_MAX];

	if (read_args(c, args, err) != 0)
		return EXIT_USAGE;
	if (check_targets(c, err) != 0)
		return EXIT_FAILED;
	if (is_path(args->positional[0]))
		snprintf(path, sizeof(path), "%s", args->positional[0]);
	else if (fetch_packed(c, args, path, &status, err) != 0)
		return status == EXIT_FAILED ? failed_status(err) : status;
	return convert(c, path, err) == 0 ? EXIT_OK : failed_status(err);
}

static enum exit_status run(const struct args *args, struct err *err)
{
	struct convert *c = mem_alloc(1, sizeof(*c));
	enum exit_status status;

	if (!c) {
		err_set_nomem(err, "the command");
		return EXIT_FAILED;
	}
	status = run_with(c, args, err);
	if (c->folder[0])
		dir_remove(c->folder, NULL);
	recipe_deinit(&c->recipe);
	mem_free(c);
	return status;
}

const struct command cmd_convert = {
	.name = "convert", .usage = "JOB|DIR|FILE.gguf --format LIST -o OUT_DIR [options]",
	.summary = "write other formats of a quantized checkpoint",
	.details = "Nothing is quantized again and no value is changed. A folder of any format, the result folder of a job and a .gguf\n"
		   "file are read where they lie; of a job of a coordinator the packed files are fetched into a temporary folder first.\n"
		   "OUT_DIR/<format>/ appears when everything is there; what a format cannot hold is refused before anything is written.",
	.options = options, .connects = true, .least = 1, .most = 1, .run = run,
};
