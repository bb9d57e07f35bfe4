#include "worker/source_http.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/agent_decide.h"

struct remote_file { char *name; uint64_t bytes; };

struct block {
	unsigned char *bytes;           /* SOURCE_HTTP_BLOCK_BYTES, or NULL */
	const struct remote_file *file;
	uint64_t index;
	uint64_t used;                  /* larger = later */
};

struct source_http {
	struct source base;             /* first */
	char *model_id;
	const struct clock *clock;
	struct client_blocking *client;
	struct remote_file *files;
	size_t file_count;
	struct block blocks[SOURCE_HTTP_BLOCKS];
	uint64_t last_use;
	bool (*stop)(void *ctx);
	void *stop_ctx;
};

static const struct remote_file *find_file(struct source_http *h, const char *name, struct err *err)
{
	for (size_t i = 0; i < h->file_count; i++)
		if (strcmp(h->files[i].name, name) == 0)
			return &h->files[i];
	err_set(err, ERR_NOT_FOUND, "%s has no file %s", h->base.label, name);
	return NULL;
}

/* --- requests that wait for the coordinator ------------------------------------------------------------ */

static bool must_stop(const struct source_http *h)
{
	return h->stop && h->stop(h->stop_ctx);
}

static uint32_t random_u32(const struct source_http *h)
{
	char hex[9] = "80000000";
	unsigned value = 0;

	h->clock->random_hex(h->clock->ctx, hex, 4);
	sscanf(hex, "%8x", &value);
	return value;
}

/* Sleeps in slices, so that a stop is heard. */
static int wait_ms(const struct source_http *h, int64_t ms, struct err *err)
{
	const struct timespec slice = { .tv_nsec = 100 * 1000000L };

	for (; ms > 0; ms -= 100) {
		if (must_stop(h))
			return err_set(err, ERR_CANCELLED, "stopped while waiting for the coordinator");
		nanosleep(&slice, NULL);
	}
	return 0;
}

static int request(struct source_http *h, const struct remote_file *file, uint64_t offset, void *bytes,
		   size_t len, struct err *err)
{
	char path[512];

	snprintf(path, sizeof(path), "/v1/models/%s/files/%s", h->model_id, file->name);
	for (unsigned failures = 1;; failures++) {
		if (client_fetch_range(h->client, path, offset, bytes, len, h->stop, h->stop_ctx, err) == 0)
			return 0;
		if (!err_retryable(err->code))
			return -1;
		if (failures == 1)
			log_warn("reading %s: %s; trying again", file->name, err->text);
		if (wait_ms(h, decide_backoff_ms(failures, random_u32(h)), err) != 0)
			return -1;
	}
}

/* --- blocks -------------------------------------------------------------------------------------------------- */

static struct block *find_block(struct source_http *h, const struct remote_file *file, uint64_t index)
{
	for (size_t i = 0; i < SOURCE_HTTP_BLOCKS; i++)
		if (h->blocks[i].file == file && h->blocks[i].index == index)
			return &h->blocks[i];
	return NULL;
}

static struct block *oldest_block(struct source_http *h)
{
	struct block *oldest = &h->blocks[0];

	for (size_t i = 1; i < SOURCE_HTTP_BLOCKS; i++)
		if (h->blocks[i].used < oldest->used)
			oldest = &h->blocks[i];
	return oldest;
}

static struct block *get_block(struct source_http *h, const struct remote_file *file, uint64_t index,
			       struct err *err)
{
	struct block *b = find_block(h, file, index);
	uint64_t offset = index * SOURCE_HTTP_BLOCK_BYTES, left = file->bytes - offset;
	size_t len = left < SOURCE_HTTP_BLOCK_BYTES ? (size_t)left : SOURCE_HTTP_BLOCK_BYTES;

	if (!b) {
		b = oldest_block(h);
		b->file = NULL;
		if (!b->bytes && !(b->bytes = mem_alloc(SOURCE_HTTP_BLOCK_BYTES, 1))) {
			err_set_nomem(err, "a block of the checkpoint");
			return NULL;
		}
		if (request(h, file, offset, b->bytes, len, err) != 0)
			return NULL;
		b->file = file;
		b->index = index;
	}
	b->used = ++h->last_use;
	return b;
}

static int read_blocks(struct source_http *h, const struct remote_file *file, uint64_t offset,
		       unsigned char *bytes, size_t len, struct err *err)
{
	while (len > 0) {
		uint64_t index = offset / SOURCE_HTTP_BLOCK_BYTES;
		size_t skip = (size_t)(offset % SOURCE_HTTP_BLOCK_BYTES);
		size_t now = SOURCE_HTTP_BLOCK_BYTES - skip;
		const struct block *b = get_block(h, file, index, err);

		if (!b)
			return -1;
		if (now > len)
			now = len;
		memcpy(bytes, b->bytes + skip, now);
		bytes += now;
		offset += now;
		len -= now;
	}
	return 0;
}

/* --- the source ------------------------------------------------------------------------------------------------ */

static int http_size(struct source *s, const char *name, uint64_t *bytes, struct err *err)
{
	const struct remote_file *file = find_file((struct source_http *)s, name, err);

	if (!file)
		return -1;
	*bytes = file->bytes;
	return 0;
}

static int http_read(struct source *s, const char *name, uint64_t offset, void *bytes, size_t len,
		     struct err *err)
{
	struct source_http *h = (struct source_http *)s;
	const struct remote_file *file = find_file(h, name, err);

	if (!file)
		return -1;
	if (offset > file->bytes || len > file->bytes - offset)
		return err_set(err, ERR_CORRUPT, "%s ends at byte %llu, %zu bytes from byte %llu were wanted",
			       name, (unsigned long long)file->bytes, len, (unsigned long long)offset);
	if (len >= SOURCE_HTTP_BLOCK_BYTES)
		return request(h, file, offset, bytes, len, err);
	return read_blocks(h, file, offset, bytes, len, err);
}

static void http_close(struct source *s)
{
	struct source_http *h = (struct source_http *)s;

	client_blocking_free(h->client);
	for (size_t i = 0; i < SOURCE_HTTP_BLOCKS; i++)
		mem_free(h->blocks[i].bytes);
	for (size_t i = 0; i < h->file_count; i++)
		mem_free(h->files[i].name);
	mem_free(h->files);
	mem_free(h->model_id);
	mem_free(h->base.label);
	mem_free(h);
}

static int copy_files(struct source_http *h, const struct json *files, struct err *err)
{
	const struct json *o;

	h->files = mem_alloc(json_size(files), sizeof(*h->files));
	if (!h->files)
		return err_set_nomem(err, "the files of a checkpoint");
	for (o = json_first(files); o; o = json_next(o)) {
		struct remote_file *file = &h->files[h->file_count];
		const char *name = json_get_string(o, "name", "");
		int64_t bytes = json_get_int(o, "bytes", -1);

		if (!path_is_plain_name(name) || bytes < 0)
			return err_set(err, ERR_INVALID, "model file \"%.100s\" has no plain name or no size", name);
		file->bytes = (uint64_t)bytes;
		file->name = mem_strdup(name);
		if (!file->name)
			return err_set_nomem(err, "the files of a checkpoint");
		h->file_count++;
	}
	return 0;
}

static char *make_label(const struct client_config *config, const char *id)
{
	size_t len = strlen(config->base_url) + strlen(id) + 32;
	char *label = mem_alloc(len, 1);

	if (label)
		snprintf(label, len, "%s/v1/models/%s", config->base_url, id);
	return label;
}

struct source *source_http_open(const struct client_config *config, const struct clock *clock,
				const struct json *model, struct err *err)
{
	struct source_http *h = mem_alloc(1, sizeof(*h));
	const char *id = json_get_string(model, "id", "");

	if (!h) {
		err_set_nomem(err, "a source");
		return NULL;
	}
	h->base = (struct source){ .size = http_size, .read = http_read, .close = http_close };
	h->clock = clock;
	h->model_id = mem_strdup(id);
	h->base.label = make_label(config, id);
	if (!h->model_id || !h->base.label)
		err_set_nomem(err, "a source");
	else if (copy_files(h, json_get(model, "files"), err) == 0 &&
		 (h->client = client_blocking_new(config, err)))
		return &h->base;
	http_close(&h->base);
	return NULL;
}

void source_http_stop_with(struct source *s, bool (*stop)(void *ctx), void *ctx)
{
	struct source_http *h = (struct source_http *)s;

	h->stop = stop;
	h->stop_ctx = ctx;
}
