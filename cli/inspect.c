#include "cli/inspect.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/advance.h"
#include "cli/stored.h"
#include "cli/text.h"
#include "common/alloc.h"
#include "common/file.h"

enum { FILES_MAX = 4096 };

/* --- digests ------------------------------------------------------------------------------------- */

/* "outputs": {"<format>": {"sha256": {"<file>": "<digest>"}}} */
static int compare(const struct json *report, const char *format, const struct inspected_file *file)
{
	const struct json *known = json_get(json_get(json_get(report, "outputs"), format), "sha256");
	const char *said = json_get_string(known, file->name, NULL);

	return said ? strcmp(said, file->sha256) == 0 : -1;
}

static int add_file(struct inspected *i, const char *dir, const char *name, struct err *err)
{
	struct inspected_file *file = &i->files[i->file_count];
	char *path = path_join(dir, name);
	struct stat st;
	int rc = path ? 0 : err_set_nomem(err, "a path");

	if (rc == 0 && (stat(path, &st) != 0 || !S_ISREG(st.st_mode))) {
		mem_free(path);
		return 0;
	}
	if (rc == 0)
		rc = digest_file(path, file->sha256, &file->bytes, err);
	mem_free(path);
	snprintf(file->name, sizeof(file->name), "%s", name);
	i->file_count += rc == 0;
	return rc;
}

static int is_shown(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

static int add_files(struct inspected *i, struct advance *advance, struct err *err)
{
	const char *dir = i->folder.dir;
	struct dirent **names = NULL;
	const int count = scandir(dir, &names, is_shown, alphasort);
	int rc = 0;

	if (count < 0)
		return err_set_errno(err, errno, "cannot read %s", dir);
	i->files = mem_alloc((size_t)count, sizeof(*i->files));
	if (!i->files)
		rc = err_set_nomem(err, "the list of files");
	for (int k = 0; k < count; k++) {
		if (rc == 0)
			rc = advance_to(advance, (double)k / count, err);
		if (rc == 0)
			rc = add_file(i, dir, names[k]->d_name, err);
		free(names[k]);
	}
	free(names);
	return rc;
}

/* A .gguf file that was named stands for itself alone. */
static int digest_all(struct inspected *i, struct advance *advance, struct err *err)
{
	struct json *report;
	struct stat st;
	int rc;

	if (stored_report(&i->folder, &report, err) != 0)
		return -1;
	if (stat(i->path, &st) == 0 && !S_ISDIR(st.st_mode)) {
		i->files = mem_alloc(1, sizeof(*i->files));
		rc = i->files ? add_file(i, i->folder.dir, i->folder.gguf_file, err) : err_set_nomem(err, "the list of files");
	} else {
		rc = add_files(i, advance, err);
	}
	for (size_t k = 0; k < i->file_count; k++) {
		i->files[k].reported = compare(report, i->folder.format, &i->files[k]);
		if (i->files[k].reported == 0)
			problems_add(&i->faults, "%s has another SHA-256 than report.json says", i->files[k].name);
	}
	json_free(report);
	return rc;
}

static int add_bytes(void *ctx, const char *name)
{
	struct inspected *i = ctx;

	for (size_t k = 0; k < i->file_count; k++)
		if (strcmp(i->files[k].name, name) == 0)
			i->weight_bytes += i->files[k].bytes;
	return 0;
}

/* --- the whole ----------------------------------------------------------------------------------- */

static bool is_machine(const struct err *err)
{
	return err_retryable(err->code) || err->code == ERR_CANCELLED || err->code == ERR_NOMEM;
}

int inspect_read(struct inspected *i, const char *path, struct err *err)
{
	struct advance advance;
	int rc;

	*i = (struct inspected){ .path = path };
	advance_begin(&advance, "reading");
	if (stored_folder_open(&i->folder, path, &i->faults, err) != 0)
		return is_machine(err) ? -1 : 0;
	i->open = true;
	advance_part(&advance, 0, 0.8);
	rc = stored_folder_scan(&i->folder, advance_to, &advance, &i->faults, err);
	if (rc != 0 && is_machine(err))
		return -1;
	err_clear(err);
	advance_part(&advance, 0.8, 0.2);
	rc = digest_all(i, &advance, err);
	status_clear();
	if (rc != 0)
		return -1;
	return stored_folder_files(&i->folder, add_bytes, i);
}

void inspect_deinit(struct inspected *i)
{
	if (i->open)
		stored_folder_close(&i->folder);
	mem_free(i->files);
	problems_deinit(&i->faults);
	*i = (struct inspected){ 0 };
}
