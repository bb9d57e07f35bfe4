#include "worker/model_source.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "worker/source_http.h"

enum { VERDICTS_MAX = 64 };

struct verdict { char *id; bool same; };

struct model_source {
	const struct client_config *config;
	const struct clock *clock;
	bool allow_path;
	char *id;               /* of the source that is open */
	struct source *source;
	bool http;
	struct verdict verdicts[VERDICTS_MAX]; /* comparisons made so far; the oldest give way */
	size_t verdict_count;
};

struct model_source *model_source_new(const struct client_config *config, const struct clock *clock,
				      bool allow_path)
{
	struct model_source *m = mem_alloc(1, sizeof(*m));

	if (m) {
		m->config = config;
		m->clock = clock;
		m->allow_path = allow_path;
	}
	return m;
}

static void close_source(struct model_source *m)
{
	if (m->source)
		m->source->close(m->source);
	mem_free(m->id);
	m->source = NULL;
	m->id = NULL;
}

void model_source_free(struct model_source *m)
{
	if (!m)
		return;
	close_source(m);
	for (size_t i = 0; i < VERDICTS_MAX; i++)
		mem_free(m->verdicts[i].id);
	mem_free(m);
}

/* --- is it the same folder? --------------------------------------------------------------------------------- */

static bool is_shard(const char *name)
{
	size_t len = strlen(name);

	return len > 12 && strcmp(name + len - 12, ".safetensors") == 0;
}

/* How many first bytes of a file its header digest covers. */
static int header_length(int fd, const char *path, const char *name, uint64_t bytes, uint64_t *len,
			 struct err *err)
{
	unsigned char head[8];
	uint64_t n = 0;

	*len = bytes;
	if (!is_shard(name))
		return 0;
	if (file_pread(fd, head, sizeof(head), 0, path, err) != 0)
		return -1;
	for (int i = 7; i >= 0; i--)
		n = n << 8 | head[i];
	if (n > ST_HEADER_MAX || n + 8 > bytes)
		return err_set(err, ERR_CORRUPT, "%s has no safetensors header", path);
	*len = n + 8;
	return 0;
}

static int digest_head(int fd, const char *path, uint64_t len, char hex[DIGEST_HEX], struct err *err)
{
	enum { CHUNK = 256 * 1024 };
	struct digest *d = digest_new();
	char *chunk = mem_alloc(CHUNK, 1);
	int rc = d && chunk ? 0 : err_set_nomem(err, "a digest");

	for (uint64_t done = 0; rc == 0 && done < len;) {
		size_t now = len - done < CHUNK ? (size_t)(len - done) : CHUNK;

		rc = file_pread(fd, chunk, now, done, path, err);
		if (rc == 0)
			digest_add(d, chunk, now);
		done += now;
	}
	if (rc == 0)
		digest_finish(d, hex);
	digest_free(d);
	mem_free(chunk);
	return rc;
}

static int compare_file(const char *path, const struct json *file, struct err *err)
{
	const char *name = json_get_string(file, "name", ""), *expected;
	char hex[DIGEST_HEX];
	uint64_t bytes, len;
	int fd, rc;

	if (file_size(path, &bytes, err) != 0)
		return -1;
	if (json_get_int(file, "bytes", -1) != (int64_t)bytes)
		return err_set(err, ERR_CONFLICT, "%s has another size", path);
	if (json_require_string(file, "header_sha256", &expected, err) != 0)
		return -1;
	fd = file_open(path, O_RDONLY, 0, err);
	if (fd < 0)
		return -1;
	rc = header_length(fd, path, name, bytes, &len, err);
	if (rc == 0)
		rc = digest_head(fd, path, len, hex, err);
	close(fd);
	if (rc == 0 && strcmp(hex, expected) != 0)
		return err_set(err, ERR_CONFLICT, "%s has another header", path);
	return rc;
}

bool model_source_matches(const char *folder, const struct json *files, struct err *why)
{
	const struct json *file;

	if (json_size(files) == 0) {
		err_set(why, ERR_INVALID, "the lease lists no files");
		return false;
	}
	for (file = json_first(files); file; file = json_next(file)) {
		const char *name = json_get_string(file, "name", "");
		char *path = path_is_plain_name(name) ? path_join(folder, name) : NULL;
		int rc = path ? compare_file(path, file, why) : err_set(why, ERR_INVALID, "a file has no plain name");

		mem_free(path);
		if (rc != 0)
			return false;
	}
	return true;
}

/* --- choosing ---------------------------------------------------------------------------------------------------- */

/* Compares once per id. */
static bool is_same_folder(struct model_source *m, const char *id, const char *path,
			   const struct json *files)
{
	struct err why = ERR_INIT;
	struct verdict *v;

	for (size_t i = 0; i < VERDICTS_MAX; i++)
		if (m->verdicts[i].id && strcmp(m->verdicts[i].id, id) == 0)
			return m->verdicts[i].same;
	v = &m->verdicts[m->verdict_count++ % VERDICTS_MAX];
	mem_free(v->id);
	v->id = mem_strdup(id); /* NULL: compared again next time */
	v->same = model_source_matches(path, files, &why);
	log_info("model %s: %s %s%s", id, path, v->same ? "holds the same files; it is read directly"
							: "is not used: ", why.text);
	return v->same;
}

static struct source *open_source(struct model_source *m, const struct json *model, struct err *err)
{
	const char *path = json_get_string(model, "path", NULL), *id = json_get_string(model, "id", "");

	m->http = false;
	if (m->allow_path && path && is_same_folder(m, id, path, json_get(model, "files")))
		return source_dir_open(path, err);
	m->http = true;
	return source_http_open(m->config, m->clock, model, err);
}

struct source *model_source_get(struct model_source *m, const struct json *model,
				bool (*stop)(void *ctx), void *ctx, struct err *err)
{
	const char *id = json_get_string(model, "id", "");

	if (!m->source || strcmp(m->id, id) != 0) {
		close_source(m);
		m->id = mem_strdup(id);
		if (!m->id) {
			err_set_nomem(err, "a source");
			return NULL;
		}
		m->source = open_source(m, model, err);
		if (!m->source)
			return NULL;
	}
	if (m->http)
		source_http_stop_with(m->source, stop, ctx);
	return m->source;
}
