/* The first half of VERB_MODEL_ADD, outside any transaction: config.json, the index and the shards' headers
 * are read and checked, digests taken. What was found replaces the request's body:
 *   {"name","path"|null,"digest","bytes","config","tensors":{"<name>":"<dtype>"},
 *    "files":[{"name","role","bytes","sha256"|null,"header_sha256"}]}
 * so the second half (engine_models.c) only stores. Nothing a client sends survives unchecked.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "server/blobs.h"
#include "server/engine_internal.h"
#include "server/engine_model_source.h"

enum { CHUNK_BYTES = 1 << 16, FILES_MAX = 4096, NAME_MAX_BYTES = 200 };
static const uint64_t small_file_max = 256 << 20; /* carried files are stored whole when the job ends */

struct scan {
	struct source *source;
	struct checkpoint ck;
	const struct json *uploaded;    /* "files" of the request, or NULL */
	struct json *files, *tensors;
	struct digest *digest;          /* of path and files: names the model */
	uint64_t bytes;
};

/* --- digests ------------------------------------------------------------------ */

static int digest_range(struct source *s, const char *file, uint64_t len, char hex[DIGEST_HEX], struct err *err)
{
	struct digest *d = digest_new();
	unsigned char *chunk = mem_alloc(CHUNK_BYTES, 1);
	int rc = d && chunk ? 0 : err_set_nomem(err, "a digest");

	for (uint64_t at = 0; rc == 0 && at < len; at += CHUNK_BYTES) {
		size_t now = len - at < CHUNK_BYTES ? (size_t)(len - at) : CHUNK_BYTES;

		rc = s->read(s, file, at, chunk, now, err);
		if (rc == 0)
			digest_add(d, chunk, now);
	}
	if (rc == 0)
		digest_finish(d, hex);
	digest_free(d);
	mem_free(chunk);
	return rc;
}

static const char *uploaded_sha256(const struct scan *scan, const char *name)
{
	for (const struct json *f = json_first(scan->uploaded); f; f = json_next(f))
		if (strcmp(json_get_string(f, "name", ""), name) == 0)
			return json_get_string(f, "sha256", NULL);
	return NULL;
}

/* header_bytes: what header_sha256 covers; the whole file for small ones. */
static int add_file(struct scan *scan, const char *name, enum model_file_role role, uint64_t bytes,
		    uint64_t header_bytes, struct err *err)
{
	const char *whole = uploaded_sha256(scan, name);
	struct json *o;
	char hex[DIGEST_HEX];
	int rc;

	if (role == MODEL_FILE_CARRIED && bytes > small_file_max)
		return err_set(err, ERR_TOO_LARGE, "%s has %llu bytes; at most %llu are accepted", name,
			       (unsigned long long)bytes, (unsigned long long)small_file_max);
	if (digest_range(scan->source, name, header_bytes, hex, err) != 0)
		return err_prefix(err, "%s", name);
	if (!whole && header_bytes == bytes)
		whole = hex;
	digest_add(scan->digest, name, strlen(name) + 1);
	digest_add(scan->digest, whole ? whole : hex, DIGEST_HEX);
	digest_add(scan->digest, &bytes, sizeof(bytes));
	scan->bytes += bytes;
	o = json_new_object();
	rc = json_set_string(o, "name", name) | json_set_int(o, "role", role) |
	     json_set_int(o, "bytes", (int64_t)bytes) | json_set_string(o, "header_sha256", hex);
	rc |= whole ? json_set_string(o, "sha256", whole) : json_set_null(o, "sha256");
	return (rc | json_push(scan->files, o)) == 0 ? 0 : err_set_nomem(err, "the model's files");
}

/* Files that need not be there. */
static int add_optional(struct scan *scan, const char *name, enum model_file_role role, struct err *err)
{
	struct err absent = ERR_INIT;
	uint64_t bytes;

	if (scan->source->size(scan->source, name, &bytes, &absent) == 0)
		return add_file(scan, name, role, bytes, bytes, err);
	if (absent.code == ERR_NOT_FOUND)
		return 0;
	*err = absent;
	return -1;
}

static int add_shards(struct scan *scan, struct err *err)
{
	for (size_t i = 0; i < scan->ck.file_count; i++) {
		const struct checkpoint_file *f = &scan->ck.files[i];

		if (add_file(scan, f->name, MODEL_FILE_SHARD, f->bytes, f->header.data_start, err) != 0)
			return -1;
		for (size_t t = 0; t < f->header.count; t++)
			if (json_set_string(scan->tensors, f->header.tensors[t].name,
					    st_dtype_name(f->header.tensors[t].dtype)) != 0)
				return err_set_nomem(err, "the model's tensors");
	}
	return 0;
}

static int add_files(struct scan *scan, struct err *err)
{
	if (add_file(scan, "config.json", MODEL_FILE_CONFIG, scan->ck.config_len, scan->ck.config_len, err) != 0 ||
	    add_optional(scan, "model.safetensors.index.json", MODEL_FILE_INDEX, err) != 0 ||
	    add_shards(scan, err) != 0)
		return -1;
	for (const char *const *name = checkpoint_carried_files; *name; name++)
		if (add_optional(scan, *name, MODEL_FILE_CARRIED, err) != 0)
			return -1;
	return 0;
}

/* --- where the files are ------------------------------------------------------ */

static bool below_root(const struct engine *e, const char *path)
{
	for (char **root = e->model_roots; *root; root++) {
		size_t len = strlen(*root);

		if (strcmp(*root, "/") == 0 ||
		    (strncmp(path, *root, len) == 0 && (path[len] == '\0' || path[len] == '/')))
			return true;
	}
	return false;
}

/* The folder's real path (freed with free()), inside a model root; nothing else is looked at. */
static char *folder_path(const struct engine *e, const char *path, struct err *err)
{
	char *real = path[0] == '/' ? realpath(path, NULL) : NULL;
	struct stat st;

	if (real && below_root(e, real) && stat(real, &st) == 0 && S_ISDIR(st.st_mode))
		return real;
	free(real);
	err_set(err, ERR_FORBIDDEN,
		"\"path\" %.300s must be an existing folder, absolute, below one of the server's --model-root folders",
		path);
	return NULL;
}

static int check_uploaded(const struct json *files, struct err *err)
{
	if (json_type(files) != JSON_ARRAY || json_size(files) == 0 || json_size(files) > FILES_MAX)
		return err_set(err, ERR_INVALID, "give \"path\", or \"files\" as an array of 1 to %d {\"name\",\"sha256\"}",
			       FILES_MAX);
	for (const struct json *f = json_first(files); f; f = json_next(f)) {
		const char *name = json_get_string(f, "name", "");

		if (!path_is_plain_name(name) || !digest_is_hex(json_get_string(f, "sha256", "")))
			return err_set(err, ERR_INVALID,
				       "each of \"files\" needs a plain file \"name\" and a \"sha256\" of 64 hex characters; '%.80s' does not",
				       name);
	}
	return 0;
}

/* --- the whole scan ----------------------------------------------------------- */

static int refuse(struct engine_reply *reply, const struct problems *problems)
{
	if (problems->count == 0)
		return -1; /* not the model's fault: I/O, memory */
	if (err_http_status(reply->err.code) != 422 && !err_retryable(reply->err.code))
		reply->err.code = ERR_REFUSED;
	reply->problems = json_new_array();
	for (size_t i = 0; i < problems->count; i++)
		if (json_push(reply->problems, json_new_string(problems->items[i])) != 0)
			return err_set_nomem(&reply->err, "the list of problems");
	return -1;
}

static int open_checkpoint(struct scan *scan, struct engine_reply *reply)
{
	struct problems problems = { 0 };
	int rc = checkpoint_open(&scan->ck, scan->source, &problems, &reply->err);

	if (rc != 0)
		refuse(reply, &problems);
	problems_deinit(&problems);
	return rc;
}

static struct json *description(struct scan *scan, const char *name, const char *path, struct err *err)
{
	struct json *o = json_new_object();
	char hex[DIGEST_HEX];
	int rc;

	if (path)
		digest_add(scan->digest, path, strlen(path));
	digest_finish(scan->digest, hex);
	rc = json_set_string(o, "name", name) | json_set_string(o, "digest", hex) |
	     json_set_int(o, "bytes", (int64_t)scan->bytes) | json_set_string(o, "config", scan->ck.config_text);
	rc |= path ? json_set_string(o, "path", path) : json_set_null(o, "path");
	rc |= json_set(o, "tensors", scan->tensors);
	rc |= json_set(o, "files", scan->files);
	scan->tensors = scan->files = NULL;
	if (rc == 0)
		return o;
	json_free(o);
	err_set_nomem(err, "the model");
	return NULL;
}

static int scan_model(struct scan *scan, const char *name, const char *path, struct engine_request *r,
		      struct engine_reply *reply)
{
	struct json *body = NULL;

	scan->files = json_new_array();
	scan->tensors = json_new_object();
	scan->digest = digest_new();
	if (!scan->files || !scan->tensors || !scan->digest)
		return err_set_nomem(&reply->err, "the model");
	if (open_checkpoint(scan, reply) != 0)
		return -1;
	if (add_files(scan, &reply->err) == 0)
		body = description(scan, name, path, &reply->err);
	checkpoint_close(&scan->ck);
	if (!body)
		return -1;
	json_free(r->body);
	r->body = body;
	return 0;
}

static const char *last_part(const char *path)
{
	const char *slash = path ? strrchr(path, '/') : NULL;

	return slash && slash[1] ? slash + 1 : "model";
}

int model_add_prepare(struct engine *e, struct engine_request *r, struct engine_reply *reply)
{
	const char *asked = json_get_string(r->body, "path", NULL);
	struct scan scan = { 0 };
	char *path = NULL, *name = NULL;
	int rc = -1;

	if (asked) {
		path = folder_path(e, asked, &reply->err);
		scan.source = path ? source_dir_open(path, &reply->err) : NULL;
	} else {
		scan.uploaded = json_get(r->body, "files");
		if (check_uploaded(scan.uploaded, &reply->err) == 0)
			scan.source = source_blobs_open(e->config.blobs, scan.uploaded, &reply->err);
	}
	if (!scan.source)
		goto out;
	name = mem_strdup(json_get_string(r->body, "name", last_part(path)));
	if (!name)
		err_set_nomem(&reply->err, "the model's name");
	else if (name[0] == '\0' || strlen(name) > NAME_MAX_BYTES)
		err_set(&reply->err, ERR_INVALID, "\"name\" of a model must have 1 to %d bytes", NAME_MAX_BYTES);
	else
		rc = scan_model(&scan, name, path, r, reply);
out:
	json_free(scan.files);
	json_free(scan.tensors);
	digest_free(scan.digest);
	if (scan.source)
		scan.source->close(scan.source);
	mem_free(name);
	free(path);
	return rc;
}
