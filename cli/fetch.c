#include "cli/fetch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/interrupt.h"
#include "cli/text.h"
#include "cli/upload.h"
#include "common/alloc.h"
#include "common/digest.h"
#include "common/file.h"

enum { FILES_MAX = 65536 };
#define SIZE_MOST ((int64_t)1 << 50)

struct fetch {
	struct client *client;
	const char *job, *out_dir;
	const char *format;     /* only the files of this folder, and without it; NULL: all */
	char staging[PATH_MAX];
	bool inside;            /* staging lies in out_dir */
	uint64_t total, done;   /* bytes */
};

/* --- where to ----------------------------------------------------------------------------------- */

bool fetch_path_is_safe(const char *path)
{
	unsigned depth = 0;

	for (;;) {
		const char *slash = strchr(path, '/');
		size_t len = slash ? (size_t)(slash - path) : strlen(path);
		char part[256];

		if (len >= sizeof(part) || ++depth > FETCH_DEPTH_MAX)
			return false;
		memcpy(part, path, len);
		part[len] = '\0';
		if (!path_is_plain_name(part))
			return false;
		if (!slash)
			return true;
		path = slash + 1;
	}
}

/* The folder that will hold `path`: its deepest ancestor that exists. */
static int existing_parent(const char *path, char out[PATH_MAX], struct err *err)
{
	struct stat st;

	if ((size_t)snprintf(out, PATH_MAX, "%s", path) >= PATH_MAX)
		return err_set(err, ERR_INVALID, "the path %s is too long", path);
	do {
		size_t len = strlen(out);
		char *slash;

		while (len > 1 && out[len - 1] == '/')
			out[--len] = '\0';
		slash = strrchr(out, '/');
		if (!slash)
			snprintf(out, PATH_MAX, ".");
		else
			slash[slash == out] = '\0';
	} while (stat(out, &st) != 0 && strcmp(out, ".") != 0 && strcmp(out, "/") != 0);
	if (stat(out, &st) != 0 || !S_ISDIR(st.st_mode))
		return err_set(err, ERR_INVALID, "%s is not a folder, so %s cannot be made", out, path);
	return 0;
}

/* Empty but for the entry `staging`. */
static bool holds_only(const char *dir, const char *staging)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	bool only = d != NULL;

	while (only && (e = readdir(d)))
		only = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
		       (staging && strcmp(e->d_name, staging) == 0);
	if (d)
		closedir(d);
	return only;
}

int fetch_check_target(const char *out_dir, const char *job, struct err *err)
{
	char parent[PATH_MAX], staging[SERVER_ID + 16];
	struct stat st;

	if (!*out_dir)
		return err_set(err, ERR_INVALID, "the output folder's name is empty");
	snprintf(staging, sizeof(staging), ".partial-%s", job ? job : "");
	if (lstat(out_dir, &st) == 0) {
		if (stat(out_dir, &st) != 0 || !S_ISDIR(st.st_mode))
			return err_set(err, ERR_INVALID, "the output %s exists and is not a folder", out_dir);
		if (!holds_only(out_dir, job ? staging : NULL))
			return err_set(err, ERR_INVALID,
				       "the output folder %s is not empty; name a new or empty one", out_dir);
		snprintf(parent, sizeof(parent), "%s", out_dir);
	} else if (existing_parent(out_dir, parent, err) != 0) {
		return -1;
	}
	if (access(parent, W_OK | X_OK) != 0)
		return err_set_errno(err, errno, "cannot write in %s", parent);
	return 0;
}

static int name_staging(struct fetch *f, struct err *err)
{
	char trimmed[PATH_MAX];
	size_t len = strlen(f->out_dir);
	int n;

	while (len > 1 && f->out_dir[len - 1] == '/')
		len--;
	snprintf(trimmed, sizeof(trimmed), "%.*s", (int)len, f->out_dir);
	f->inside = file_exists(trimmed);
	n = snprintf(f->staging, sizeof(f->staging), "%s%s.partial-%s", trimmed, f->inside ? "/" : "", f->job);
	if (n < 0 || (size_t)n >= sizeof(f->staging))
		return err_set(err, ERR_INVALID, "the path %s is too long", f->out_dir);
	return 0;
}

/* --- files -------------------------------------------------------------------------------------- */

struct wanted { const char *path, *sha256; uint64_t bytes; };

static int read_wanted(const struct json *item, struct wanted *w, struct err *err)
{
	int64_t bytes;

	if (json_require_string(item, "path", &w->path, err) != 0 ||
	    json_require_string(item, "sha256", &w->sha256, err) != 0 ||
	    json_require_int(item, "bytes", 0, SIZE_MOST, &bytes, err) != 0)
		return err_prefix(err, "the server's list of files");
	if (!fetch_path_is_safe(w->path) || !digest_is_hex(w->sha256))
		return err_set(err, ERR_REFUSED, "the server names a file '%s' that is not written below a folder",
			       w->path);
	w->bytes = (uint64_t)bytes;
	return 0;
}

/* Where a file goes below out_dir; NULL when it is not wanted. */
static const char *local_path(const struct fetch *f, const char *path)
{
	const size_t len = f->format ? strlen(f->format) : 0;

	if (!f->format)
		return path;
	return strncmp(path, f->format, len) == 0 && path[len] == '/' ? path + len + 1 : NULL;
}

static void show_fetched(void *ctx, uint64_t bytes)
{
	const struct fetch *f = ctx;
	char line[128], done[TEXT_SHORT], all[TEXT_SHORT];

	snprintf(line, sizeof(line), "fetching  %s of %s", text_bytes((double)(f->done + bytes), done),
		 text_bytes((double)f->total, all));
	status_draw_often(line);
}

static bool digest_matches(const char *file, const struct wanted *w)
{
	char sha256[DIGEST_HEX];
	uint64_t bytes;

	return digest_file(file, sha256, &bytes, NULL) == 0 && bytes == w->bytes &&
	       strcmp(sha256, w->sha256) == 0;
}

static char *file_url(const struct fetch *f, const char *path)
{
	size_t len = strlen(f->job) + strlen(path) + 32; /* safe paths need no escaping */
	char *url = mem_alloc(len, 1);

	if (url)
		snprintf(url, len, "/v1/jobs/%s/files/%s", f->job, path);
	return url;
}

static int transfer(struct fetch *f, const struct wanted *w, const char *file, struct err *err)
{
	int fd = file_open(file, O_RDWR | O_CREAT | O_NOFOLLOW, 0644, err), rc = 0;
	struct stat st;
	char *url = NULL;
	uint64_t have = 0;

	if (fd < 0)
		return -1;
	if (fstat(fd, &st) == 0 && (uint64_t)st.st_size < w->bytes)
		have = (uint64_t)st.st_size;
	else if (ftruncate(fd, 0) != 0)
		rc = err_set_errno(err, errno, "cannot shorten %s", file);
	if (rc == 0 && !(url = file_url(f, w->path)))
		rc = err_set_nomem(err, "a request");
	if (rc == 0)
		rc = client_download(f->client, url, fd, file, have, w->bytes, show_fetched, f, err);
	if (rc == 0)
		rc = file_sync(fd, file, err);
	mem_free(url);
	if (close(fd) != 0 && rc == 0)
		rc = err_set_errno(err, errno, "cannot write %s", file);
	return rc;
}

/* A file that came out wrong is fetched once more from its first byte. */
static int fetch_file(struct fetch *f, const struct wanted *w, const char *file, struct err *err)
{
	if (digest_matches(file, w))
		return 0;
	for (int attempt = 0; attempt < 2; attempt++) {
		if (transfer(f, w, file, err) != 0)
			return -1;
		if (digest_matches(file, w))
			return 0;
		unlink(file);
	}
	return err_set(err, ERR_CORRUPT, "%s arrives with other bytes than its SHA-256 says", w->path);
}

static int fetch_one(struct fetch *f, const struct json *item, struct err *err)
{
	struct wanted w;
	char *file, *slash;
	int rc;

	if (read_wanted(item, &w, err) != 0)
		return -1;
	if (!local_path(f, w.path))
		return 0;
	file = path_join(f->staging, local_path(f, w.path));
	if (!file)
		return err_set_nomem(err, "a path");
	slash = strrchr(file, '/');
	*slash = '\0';
	rc = dir_make(file, err);
	*slash = '/';
	if (rc == 0)
		rc = fetch_file(f, &w, file, err);
	f->done += w.bytes;
	mem_free(file);
	return rc;
}

static int check_list(struct fetch *f, const struct json *items, struct err *err)
{
	uint64_t room;
	struct wanted w;
	char need[TEXT_SHORT], have[TEXT_SHORT];

	if (json_size(items) == 0)
		return err_set(err, ERR_NOT_FOUND, "job %s has no files; only a finished job has", f->job);
	if (json_size(items) > FILES_MAX)
		return err_set(err, ERR_TOO_LARGE, "the server lists more than %d files", FILES_MAX);
	for (const struct json *i = json_first(items); i; i = json_next(i)) {
		if (read_wanted(i, &w, err) != 0)
			return -1;
		f->total += local_path(f, w.path) ? w.bytes : 0;
	}
	if (f->format && f->total == 0)
		return err_set(err, ERR_NOT_FOUND, "job %s has no files of format %s", f->job, f->format);
	if (disk_free(f->staging, &room, err) != 0)
		return -1;
	if (f->total > room)
		return err_set(err, ERR_NOSPC, "no space: the result has %s, and %s has %s left",
			       text_bytes((double)f->total, need), f->out_dir,
			       text_bytes((double)room, have));
	return 0;
}

static int fetch_all(struct fetch *f, struct err *err)
{
	char path[SERVER_ID + 32];
	struct json *list;
	const struct json *items;
	int rc;

	snprintf(path, sizeof(path), "/v1/jobs/%s/files", f->job);
	list = client_get(f->client, path, err);
	if (!list)
		return -1;
	items = json_get(list, "items");
	rc = check_list(f, items, err);
	for (const struct json *i = json_first(items); rc == 0 && i; i = json_next(i))
		rc = interrupt_check(err) != 0 ? -1 : fetch_one(f, i, err);
	json_free(list);
	status_clear();
	return rc;
}

/* --- into place ----------------------------------------------------------------------------------- */

static int move_up(struct fetch *f, const char *name, struct err *err)
{
	char *from = path_join(f->staging, name), *to = path_join(f->out_dir, name);
	int rc = from && to ? file_rename_durable(from, to, err) : err_set_nomem(err, "a path");

	mem_free(from);
	mem_free(to);
	return rc;
}

static int move_entries_up(struct fetch *f, struct err *err)
{
	struct dirent **names = NULL;
	int count = scandir(f->staging, &names, NULL, alphasort), rc = 0;
	bool report = false;

	if (count < 0)
		return err_set_errno(err, errno, "cannot read %s", f->staging);
	for (int i = 0; i < count; i++) {
		const char *name = names[i]->d_name;

		if (strcmp(name, "report.json") == 0)
			report = true;
		else if (rc == 0 && name[0] != '.')
			rc = move_up(f, name, err);
		free(names[i]);
	}
	free(names);
	if (rc == 0 && report)
		rc = move_up(f, "report.json", err);
	return rc == 0 ? dir_remove(f->staging, err) : -1;
}

static int put_in_place(struct fetch *f, struct err *err)
{
	if (f->inside)
		return move_entries_up(f, err);
	return file_rename_durable(f->staging, f->out_dir, err);
}

int fetch_job(struct client *c, const char *job, const char *out_dir, struct err *err)
{
	return fetch_format(c, job, NULL, out_dir, err);
}

int fetch_format(struct client *c, const char *job, const char *format, const char *out_dir, struct err *err)
{
	struct fetch f = { .client = c, .job = job, .out_dir = out_dir, .format = format };

	if (fetch_check_target(out_dir, job, err) != 0 || name_staging(&f, err) != 0 ||
	    dir_make(f.staging, err) != 0 || fetch_all(&f, err) != 0)
		return -1;
	return put_in_place(&f, err);
}

int fetch_discard(const char *job, const char *out_dir, struct err *err)
{
	struct fetch f = { .job = job, .out_dir = out_dir };

	return name_staging(&f, err) == 0 ? dir_remove(f.staging, err) : -1;
}
