#include "cli/upload.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/interrupt.h"
#include "cli/text.h"
#include "common/alloc.h"
#include "common/file.h"

enum { MODEL_FILES_MAX = 4096, SHOW_BYTES = 32 << 20 };
#define PART_BYTES_MAX ((int64_t)1 << 30)

/* --- blobs ------------------------------------------------------------------------------------ */

struct shown { const char *name; uint64_t before, total; };

static void show_moved(void *ctx, uint64_t bytes)
{
	const struct shown *s = ctx;
	char line[256], name[128], done[TEXT_SHORT], all[TEXT_SHORT];

	if (s->total < SHOW_BYTES)
		return;
	snprintf(line, sizeof(line), "uploading %s  %s of %s", text_safe(s->name, name, sizeof(name)),
		 text_bytes((double)(s->before + bytes), done), text_bytes((double)s->total, all));
	status_draw_often(line);
}

static bool part_is_done(const struct json *done, int64_t part)
{
	int64_t n;

	for (const struct json *d = json_first(done); d; d = json_next(d))
		if (json_int(d, &n) && n == part)
			return true;
	return false;
}

static int send_parts(struct client *c, const struct json *upload, int fd, const char *path, uint64_t bytes,
		      struct err *err)
{
	const char *id = json_get_string(upload, "upload", "");
	int64_t part_bytes;
	struct shown shown = { .name = path, .total = bytes };

	if (json_require_int(upload, "part_bytes", 1, PART_BYTES_MAX, &part_bytes, err) != 0)
		return err_prefix(err, "the server's reply to an upload");
	for (int64_t part = 0; (uint64_t)part * (uint64_t)part_bytes < bytes; part++) {
		uint64_t offset = (uint64_t)part * (uint64_t)part_bytes;
		uint64_t len = bytes - offset < (uint64_t)part_bytes ? bytes - offset : (uint64_t)part_bytes;
		char where[256];

		if (part_is_done(json_get(upload, "parts_done"), part))
			continue;
		shown.before = offset;
		snprintf(where, sizeof(where), "/v1/uploads/%s/parts/%lld", id, (long long)part);
		if (client_upload(c, where, fd, path, offset, len, show_moved, &shown, err) != 0)
			return -1;
	}
	return 0;
}

static int complete_upload(struct client *c, const char *id, struct err *err)
{
	char where[256];
	struct json *reply;

	snprintf(where, sizeof(where), "/v1/uploads/%s/complete", id);
	reply = client_post(c, where, NULL, err);
	json_free(reply);
	return reply ? 0 : -1;
}

static bool id_is_plain(const char *id)
{
	return *id && strlen(id) < SERVER_ID &&
	       strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == strlen(id);
}

static int send_file(struct client *c, const struct json *upload, const char *path, uint64_t bytes,
		     struct err *err)
{
	const char *id = json_get_string(upload, "upload", "");
	int fd, rc;

	if (json_get_bool(upload, "exists", false))
		return 0;
	if (!id_is_plain(id))
		return err_set(err, ERR_INTERNAL, "the server's reply to an upload names no upload");
	fd = file_open(path, O_RDONLY, 0, err);
	if (fd < 0)
		return -1;
	rc = send_parts(c, upload, fd, path, bytes, err);
	close(fd);
	return rc == 0 ? complete_upload(c, id, err) : -1;
}

int upload_file(struct client *c, const char *path, char sha256[DIGEST_HEX], struct err *err)
{
	struct json *body, *upload;
	uint64_t bytes;
	int rc;

	if (digest_file(path, sha256, &bytes, err) != 0 || interrupt_check(err) != 0)
		return -1;
	body = json_new_object();
	if (json_set_string(body, "sha256", sha256) != 0 || json_set_int(body, "bytes", (int64_t)bytes) != 0) {
		json_free(body);
		return err_set_nomem(err, "an upload");
	}
	upload = client_post(c, "/v1/uploads", body, err);
	json_free(body);
	rc = upload ? send_file(c, upload, path, bytes, err) : -1;
	json_free(upload);
	status_clear();
	return rc == 0 ? 0 : err_prefix(err, "uploading %s", path);
}

/* --- data sets -------------------------------------------------------------------------------- */

void name_of_path(const char *path, const char *otherwise, char *out, size_t cap)
{
	size_t end = strlen(path), begin, used = 0;

	while (end > 0 && path[end - 1] == '/')
		end--;
	for (begin = end; begin > 0 && path[begin - 1] != '/'; begin--)
		;
	for (; begin < end && used + 1 < cap; begin++) {
		char letter[2] = { path[begin], '\0' };

		out[used++] = strspn(letter, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
				      ? *letter : '_';
	}
	out[used] = '\0';
	if (used == 0 || out[0] == '.')
		snprintf(out, cap, "%s", otherwise);
}

int copy_id(const char *text, const char *what, char id[SERVER_ID], struct err *err)
{
	if (!id_is_plain(text))
		return err_set(err, ERR_INVALID, "'%s' is not the id of a %s", text, what);
	snprintf(id, SERVER_ID, "%s", text);
	return 0;
}

static int take_id(const struct json *reply, const char *field, char id[SERVER_ID], struct err *err)
{
	return copy_id(json_get_string(reply, field, ""), field, id, err);
}

int upload_dataset(struct client *c, const char *path, char id[SERVER_ID], struct err *err)
{
	char sha256[DIGEST_HEX], name[200];
	struct json *body, *reply;
	uint64_t bytes;
	int rc;

	if (file_size(path, &bytes, err) != 0)
		return -1;
	if (bytes == 0)
		return err_set(err, ERR_INVALID, "%s is empty", path);
	if (upload_file(c, path, sha256, err) != 0)
		return -1;
	name_of_path(path, "text", name, sizeof(name));
	body = json_new_object();
	if (json_set_string(body, "name", name) != 0 || json_set_string(body, "sha256", sha256) != 0) {
		json_free(body);
		return err_set_nomem(err, "a data set");
	}
	reply = client_post(c, "/v1/datasets", body, err);
	json_free(body);
	rc = reply ? take_id(reply, "dataset", id, err) : -1;
	json_free(reply);
	return rc == 0 ? 0 : err_prefix(err, "data set %s", path);
}

/* --- models ----------------------------------------------------------------------------------- */

static int post_model(struct client *c, struct json *body, char id[SERVER_ID], struct json **problems,
		      struct err *err)
{
	struct client_request request = { .method = "POST", .path = "/v1/models", .body = body };
	struct client_reply reply = { 0 };
	int rc = client_call(c, &request, &reply, err);

	if (rc == 0)
		rc = take_id(reply.body, "model", id, err);
	*problems = reply.problems;
	reply.problems = NULL;
	client_reply_deinit(&reply);
	json_free(body);
	return rc;
}

int register_model_path(struct client *c, const char *path, const char *name, char id[SERVER_ID],
			struct json **problems, struct err *err)
{
	struct json *body = json_new_object();

	*problems = NULL;
	if (json_set_string(body, "name", name) != 0 || json_set_string(body, "path", path) != 0) {
		json_free(body);
		return err_set_nomem(err, "a model");
	}
	return post_model(c, body, id, problems, err);
}

/* The files a checkpoint consists of; pickles and everything else stay here. */
static bool belongs_to_model(const char *dir, const char *name)
{
	static const char *const endings[] = { ".json", ".safetensors", ".jinja", ".model", ".txt" };
	const char *dot = strrchr(name, '.');
	char *path;
	struct stat st;
	bool regular;

	if (!dot || !path_is_plain_name(name) || !(path = path_join(dir, name)))
		return false;
	regular = stat(path, &st) == 0 && S_ISREG(st.st_mode);
	mem_free(path);
	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++)
		if (strcmp(dot, endings[i]) == 0)
			return regular;
	return false;
}

static int add_model_file(struct client *c, const char *dir, const char *name, struct json *files,
			  struct err *err)
{
	char *path = path_join(dir, name);
	struct json *entry = json_new_object();
	char sha256[DIGEST_HEX];
	int rc = path && entry ? upload_file(c, path, sha256, err) : err_set_nomem(err, "a file name");

	mem_free(path);
	if (rc == 0 && (json_set_string(entry, "name", name) != 0 || json_set_string(entry, "sha256", sha256) != 0))
		rc = err_set_nomem(err, "a file list");
	if (rc != 0) {
		json_free(entry);
		return -1;
	}
	return json_push(files, entry) == 0 ? 0 : err_set_nomem(err, "a file list");
}

static int add_model_files(struct client *c, const char *dir, struct json *files, struct err *err)
{
	struct dirent **names = NULL;
	int count = scandir(dir, &names, NULL, alphasort), rc = 0;

	if (count < 0)
		return err_set_errno(err, errno, "cannot read the model folder %s", dir);
	if (count > MODEL_FILES_MAX)
		rc = err_set(err, ERR_INVALID, "%s holds more than %d files", dir, MODEL_FILES_MAX);
	for (int i = 0; i < count; i++) {
		if (rc == 0 && belongs_to_model(dir, names[i]->d_name))
			rc = add_model_file(c, dir, names[i]->d_name, files, err);
		free(names[i]);
	}
	free(names);
	return rc;
}

int upload_model(struct client *c, const char *dir, const char *name, char id[SERVER_ID],
		 struct json **problems, struct err *err)
{
	struct json *body = json_new_object(), *files = json_new_array();

	*problems = NULL;
	if (!files || json_set_string(body, "name", name) != 0) {
		json_free(files);
		json_free(body);
		return err_set_nomem(err, "a model");
	}
	if (add_model_files(c, dir, files, err) != 0) {
		json_free(files);
		json_free(body);
		return -1;
	}
	if (json_set(body, "files", files) != 0) {
		json_free(body);
		return err_set_nomem(err, "a model");
	}
	return post_model(c, body, id, problems, err);
}
