/* A source over blobs: a name leads to a digest, a digest to a file. Keeps the last file open. */
#include "server/engine_model_source.h"

#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/blobs.h"

struct source_blobs {
	struct source base;     /* first: a pointer to it is a pointer to the whole */
	struct blobs *blobs;
	const struct json *files;
	const char *open_sha256;
	uint64_t open_bytes;
	int fd;
};

/* The blob behind a name, opened; NULL with err set. */
static const char *open_named(struct source_blobs *s, const char *file, struct err *err)
{
	const char *sha256 = NULL;

	for (const struct json *f = json_first(s->files); f && !sha256; f = json_next(f))
		if (strcmp(json_get_string(f, "name", ""), file) == 0)
			sha256 = json_get_string(f, "sha256", "");
	if (!sha256) {
		err_set(err, ERR_NOT_FOUND, "%s: there is no file %s", s->base.label, file);
		return NULL;
	}
	if (s->fd >= 0 && strcmp(sha256, s->open_sha256) == 0)
		return sha256;
	if (s->fd >= 0)
		close(s->fd);
	s->fd = blobs_open_fd(s->blobs, sha256, &s->open_bytes, err);
	s->open_sha256 = sha256;
	if (s->fd >= 0)
		return sha256;
	err_set(err, ERR_CORRUPT, "%s: the blob %s is not stored; upload it first", file, sha256);
	return NULL;
}

static int blobs_size(struct source *base, const char *file, uint64_t *bytes, struct err *err)
{
	struct source_blobs *s = (struct source_blobs *)base;

	if (!open_named(s, file, err))
		return -1;
	*bytes = s->open_bytes;
	return 0;
}

static int blobs_read(struct source *base, const char *file, uint64_t offset, void *bytes, size_t len,
		      struct err *err)
{
	struct source_blobs *s = (struct source_blobs *)base;

	return open_named(s, file, err) ? file_pread(s->fd, bytes, len, offset, file, err) : -1;
}

static void blobs_close_source(struct source *base)
{
	struct source_blobs *s = (struct source_blobs *)base;

	if (s->fd >= 0)
		close(s->fd);
	mem_free(s->base.label);
	mem_free(s);
}

struct source *source_blobs_open(struct blobs *blobs, const struct json *files, struct err *err)
{
	struct source_blobs *s = mem_alloc(1, sizeof(*s));
	char *label = mem_strdup("the uploaded files");

	if (!s || !label) {
		mem_free(s);
		mem_free(label);
		err_set_nomem(err, "a source");
		return NULL;
	}
	*s = (struct source_blobs){
		.base = { .size = blobs_size, .read = blobs_read, .close = blobs_close_source, .label = label },
		.blobs = blobs, .files = files, .fd = -1 };
	return &s->base;
}
