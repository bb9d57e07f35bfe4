/* Files of a job's results and of a registered model, with Range.
 *
 * Names are looked up in the engine's lists, never joined to a path before they were found there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/reply.h"
#include "server/request.h"
#include "server/route_handlers.h"

static const char *type_of(const char *name)
{
	const char *dot = strrchr(name, '.');

	if (dot && strcmp(dot, ".json") == 0)
		return "application/json";
	if (dot && strcmp(dot, ".md") == 0)
		return "text/markdown; charset=utf-8";
	return "application/octet-stream";
}

static void send_blob(struct request *r, const char *sha256, const char *name)
{
	uint64_t bytes;
	int fd = blobs_open_fd(r->app->blobs, sha256, &bytes, &r->err);

	if (fd < 0)
		reply_problem(r->x, &r->err, NULL);
	else
		reply_file(r->x, fd, bytes, sha256, type_of(name));
}

void route_job_file(struct request *r)
{
	struct engine_reply reply;

	request_read(r, VERB_JOB_FILES, &reply);
	if (reply.err.code != ERR_NONE)
		reply_engine(r->x, &reply);
	else
		send_blob(r, json_get_string(reply.body, "sha256", ""), r->captures.second);
	engine_reply_deinit(&reply);
}

/* --- models --------------------------------------------------------------------------- */

static const struct json *find_file(const struct json *model, const char *name)
{
	const struct json *f = json_first(json_get(model, "files"));

	while (f && strcmp(json_get_string(f, "name", ""), name) != 0)
		f = json_next(f);
	return f;
}

/* Changes when the file does: which file, how large, when written. */
static void folder_etag(const struct stat *st, char etag[80])
{
	snprintf(etag, 80, "%llx-%llx-%llx-%lx", (unsigned long long)st->st_ino,
		 (unsigned long long)st->st_size, (unsigned long long)st->st_mtim.tv_sec,
		 (unsigned long)st->st_mtim.tv_nsec);
}

static void send_folder_file(struct request *r, const char *folder, const char *name, int64_t bytes)
{
	char *path = path_join(folder, name);
	int fd = path ? file_open(path, O_RDONLY | O_NONBLOCK, 0, &r->err) : err_set_nomem(&r->err, "a path");
	struct stat st;
	char etag[80];

	if (fd >= 0 && (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size != bytes)) {
		err_set(&r->err, ERR_CONFLICT,
			"%s of model %s changed since it was registered; register the model again",
			name, r->captures.first);
		close(fd);
		fd = -1;
	}
	if (fd < 0) {
		reply_problem(r->x, &r->err, NULL);
	} else {
		folder_etag(&st, etag);
		reply_file(r->x, fd, (uint64_t)bytes, etag, type_of(name));
	}
	mem_free(path);
}

static void send_model_file(struct request *r, const struct json *model)
{
	const char *name = r->captures.second;
	const char *folder = json_get_string(model, "path", NULL);
	const struct json *file = path_is_plain_name(name) ? find_file(model, name) : NULL;

	if (!file)
		reply_problem_status(r->x, 404, ERR_NOT_FOUND, "model %s has no file of this name",
				     r->captures.first);
	else if (folder)
		send_folder_file(r, folder, name, json_get_int(file, "bytes", -1));
	else
		send_blob(r, json_get_string(file, "sha256", ""), name);
}

void route_model_file(struct request *r)
{
	struct engine_reply reply;

	request_read(r, VERB_MODEL_GET, &reply);
	if (reply.err.code != ERR_NONE)
		reply_engine(r->x, &reply);
	else
		send_model_file(r, reply.body);
	engine_reply_deinit(&reply);
}
