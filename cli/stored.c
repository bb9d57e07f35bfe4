#include "cli/stored.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/text.h"
#include "cli/upload.h"
#include "common/alloc.h"
#include "common/file.h"
#include "common/json.h"

enum { REPORT_MAX = 64 << 20 };

static bool holds(const char *dir, const char *name)
{
	char path[PATH_MAX];
	const int n = snprintf(path, sizeof(path), "%s/%s", dir, name);

	return n > 0 && (size_t)n < sizeof(path) && file_exists(path);
}

bool stored_is_checkpoint(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && (!S_ISDIR(st.st_mode) || !holds(path, "report.json"));
}

int stored_place(const char *path, char out[PATH_MAX], struct err *err)
{
	struct stat st;
	const bool result = stat(path, &st) == 0 && S_ISDIR(st.st_mode) && !holds(path, "config.json") &&
			    holds(path, "packed/config.json");
	const int n = snprintf(out, PATH_MAX, "%s%s", path, result ? "/packed" : "");

	return n >= 0 && n < PATH_MAX ? 0 : err_set(err, ERR_INVALID, "the path %s is too long", path);
}

void print_other_problems(struct problems *p)
{
	for (size_t i = 1; i < p->count; i++)
		print_error("%s", p->items[i]);
	problems_deinit(p);
}

int stored_open(struct stored_folder *f, const char *path, struct err *err)
{
	struct problems problems = { 0 };
	const int rc = stored_folder_open(f, path, &problems, err);

	print_other_problems(&problems);
	return rc;
}

int stored_open_whole(struct stored_folder *f, const char *path, struct err *err)
{
	struct problems problems = { 0 };
	struct advance advance;
	int rc;

	if (stored_open(f, path, err) != 0)
		return -1;
	advance_begin(&advance, "reading");
	rc = stored_folder_scan(f, advance_to, &advance, &problems, err);
	if (rc == 0)
		advance_end(&advance);
	status_clear();
	print_other_problems(&problems);
	if (rc != 0)
		stored_folder_close(f);
	return rc;
}

bool stored_has_text(struct stored_folder *f, const char *file)
{
	const struct output_source source = stored_folder_source(f);
	size_t len = 0;
	char *text = source.text(source.ctx, file, &len, NULL);

	mem_free(text);
	return text != NULL;
}

/* --- the report ---------------------------------------------------------------------------------- */

int stored_report(const struct stored_folder *f, struct json **out, struct err *err)
{
	struct err reason = ERR_INIT;
	char path[PATH_MAX];
	size_t len = 0;
	char *text;
	const int n = snprintf(path, sizeof(path), "%s/../report.json", f->dir);

	*out = NULL;
	if (n < 0 || (size_t)n >= sizeof(path) || !file_exists(path))
		return 0;
	text = file_read_all(path, REPORT_MAX, &len, &reason);
	*out = text ? json_parse(text, len, &reason) : NULL;
	mem_free(text);
	return reason.code == ERR_NOMEM ? err_set_nomem(err, path) : 0;
}

struct weights { const char *dir; uint64_t bytes; };

static int add_bytes(void *ctx, const char *name)
{
	struct weights *w = ctx;
	char path[PATH_MAX];
	struct stat st;
	const int n = snprintf(path, sizeof(path), "%s/%s", w->dir, name);

	if (n > 0 && (size_t)n < sizeof(path) && stat(path, &st) == 0)
		w->bytes += (uint64_t)st.st_size;
	return 0;
}

bool stored_reported(const struct stored_folder *f, const struct json *report)
{
	const struct json *recipe = json_get(report, "recipe"), *outputs = json_get(report, "outputs");
	struct weights w = { .dir = f->dir };

	stored_folder_files(f, add_bytes, &w);
	return json_get_number(json_get(outputs, f->format), "bytes", -1) == (double)w.bytes &&
	       json_get_int(recipe, "embeddings", 0) == f->table_bits[0] &&
	       (f->config.tied_embeddings || json_get_int(recipe, "lm_head", 0) == f->table_bits[1]);
}

/* --- names --------------------------------------------------------------------------------------- */

void stored_name(const struct stored_folder *f, char *out, size_t cap)
{
	char full[PATH_MAX];
	char *slash;

	if (!realpath(f->dir, full))
		snprintf(full, sizeof(full), "%s", f->dir);
	slash = strrchr(full, '/');
	if (slash && slash > full && output_format_find(slash + 1))
		*slash = '\0';
	name_of_path(full, "model", out, cap);
}
