/* One blob coming in.
 *
 *   start ─► (unproven in the cache) HASHING ──right──────────────────────────► done
 *     │                                 └─wrong─► download
 *     ├─► (the coordinator's file is visible) hard link ──────────────────────► done
 *     └─► download: .part's size ─► GET with Range ─► whole ─► HASHING ──right─► rename ─► done
 *             ▲                        │ cut off, 5xx              └─wrong─► again, 3 times in all
 *             └──────back-off──────────┘
 *
 * Invariant: bytes are written at the offset the reply names, never past `bytes`; the digest is taken
 * of the file as it lies on disk, so a resumed part is verified as a whole.
 */
#include "worker/transfer.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/agent_decide.h"
#include "worker/hash_job.h"

enum { WRONG_MOST = 3 };

struct fetch {
	struct transfer_env *env;
	char sha256[DIGEST_HEX];
	uint64_t bytes;
	void (*done)(void *ctx, const struct err *err);
	void *ctx;
	char *path;                     /* of the coordinator's file, or NULL */
	char *part;                     /* path of the download */
	int fd;
	uint64_t from;                  /* offset asked for */
	uint64_t end;                   /* where the next byte of this body goes */
	bool body_began;
	struct err failure;             /* why a body was not taken: of a local write, or ERR_INTERNAL */
	struct client_call *call;
	struct loop_timer *timer;
	struct hash_job *hash;
	unsigned failures;              /* in a row */
	unsigned wrong;                 /* digests that came out wrong */
	bool made_room;
};

static void download(void *ctx);

uint32_t transfer_random(const struct transfer_env *env)
{
	char hex[9] = "80000000";
	unsigned value = 0;

	env->clock->random_hex(env->clock->ctx, hex, 4);
	sscanf(hex, "%8x", &value);
	return value;
}

static void finish(struct fetch *f, const struct err *err)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
	f->done(f->ctx, err); /* may free f */
}

static void finish_well(struct fetch *f)
{
	const struct err none = ERR_INIT;

	finish(f, &none);
}

static void retry_later(struct fetch *f)
{
	f->failures++;
	loop_timer_start(f->timer, decide_backoff_ms(f->failures, transfer_random(f->env)));
}

/* A whole reply that is not the blob: from the start again, a few times. */
static void came_out_wrong(struct fetch *f, const char *how)
{
	struct err why = ERR_INIT;

	unlink(f->part);
	mem_free(f->path); /* a link to it would not be verified */
	f->path = NULL;
	err_set(&why, ERR_IO, "blob %s came with %s, %u times", f->sha256, how, ++f->wrong);
	if (f->wrong >= WRONG_MOST) {
		finish(f, &why);
		return;
	}
	log_warn("%s; it is fetched again", why.text);
	retry_later(f);
}

/* --- verifying ---------------------------------------------------------------------------------------- */

static void start_hash(struct fetch *f, char *path, void (*hashed)(void *, const char *, const struct err *))
{
	f->hash = path ? hash_start(f->env->loop, path, hashed, f) : NULL;
	if (!f->hash)
		retry_later(f);
}

static void part_hashed(void *ctx, const char *sha256, const struct err *err)
{
	struct fetch *f = ctx;
	struct err why = ERR_INIT;

	f->hash = NULL;
	if (err->code != ERR_NONE) {
		finish(f, err);
	} else if (strcmp(sha256, f->sha256) == 0) {
		if (cache_finish_part(f->env->cache, f->sha256, &why) == 0)
			finish_well(f);
		else
			finish(f, &why);
	} else {
		came_out_wrong(f, "another digest");
	}
}

static void cached_hashed(void *ctx, const char *sha256, const struct err *err)
{
	struct fetch *f = ctx;
	bool right = err->code == ERR_NONE && strcmp(sha256, f->sha256) == 0;

	f->hash = NULL;
	cache_verified(f->env->cache, f->sha256, right);
	if (right) {
		finish_well(f);
		return;
	}
	f->env->links.in = false; /* it may be the coordinator's file, and others may have changed as well */
	download(f);
}

/* --- downloading ---------------------------------------------------------------------------------------- */

static int take_bytes(void *ctx, uint64_t start, const void *bytes, size_t len)
{
	struct fetch *f = ctx;

	if (!f->body_began) {
		if (start != f->from && start != 0)
			return err_set(&f->failure, ERR_INTERNAL, "another range than was asked for");
		f->end = start;
		f->body_began = true;
	}
	if (len > f->bytes - f->end)
		return err_set(&f->failure, ERR_INTERNAL, "more bytes than the lease says");
	if (file_pwrite(f->fd, bytes, len, f->end, f->part, &f->failure) != 0)
		return -1;
	f->end += len;
	f->failures = 0; /* it moves */
	return 0;
}

/* A body that could not be taken: full disks get one try after evicting, the rest starts afresh. */
static void judge_failure(struct fetch *f)
{
	if (f->failure.code == ERR_NOSPC && !f->made_room) {
		f->made_room = true;
		cache_make_room(f->env->cache, UINT64_MAX);
		retry_later(f);
	} else if (f->failure.code == ERR_INTERNAL) {
		came_out_wrong(f, f->failure.text);
	} else {
		finish(f, &f->failure);
	}
}

static void downloaded(void *ctx, const struct client_reply *reply)
{
	struct fetch *f = ctx;

	f->call = NULL;
	close(f->fd);
	f->fd = -1;
	f->env->contact(f->env->contact_ctx, reply);
	if (f->failure.code != ERR_NONE) {
		judge_failure(f);
		return;
	}
	switch (decide_reply(REQUEST_DOWNLOAD, reply->status, reply->err.code)) {
	case VERDICT_DONE:
		if (f->body_began && f->end == f->bytes)
			start_hash(f, f->part, part_hashed);
		else
			came_out_wrong(f, "fewer bytes than the lease says");
		break;
	case VERDICT_RETRY:
		if (reply->status == 416)
			came_out_wrong(f, "fewer bytes than the lease says");
		else
			retry_later(f);
		break;
	case VERDICT_LOST:
	case VERDICT_REGISTER:
	case VERDICT_UPLOAD_AGAIN:
	case VERDICT_REFUSED:
		finish(f, &reply->err);
		break;
	}
}

/* Opens the part; *have = the bytes of it that an earlier attempt left. */
static int open_part(struct fetch *f, uint64_t *have, struct err *err)
{
	f->fd = file_open(f->part, O_RDWR | O_CREAT, 0644, err);
	if (f->fd < 0 || file_size(f->part, have, err) != 0)
		return -1;
	if (*have <= f->bytes)
		return 0;
	*have = 0;
	return ftruncate(f->fd, 0) == 0 ? 0 : err_set(err, ERR_IO, "cannot empty %s", f->part);
}

static void request(struct fetch *f)
{
	char path[DIGEST_HEX + 32];
	const struct client_request rq = {
		.method = "GET", .path = path, .range_from = f->from, .sink = take_bytes,
		.done = downloaded, .ctx = f,
	};

	snprintf(path, sizeof(path), "/v1/blobs/%s", f->sha256);
	f->call = client_send(f->env->client, &rq);
	if (!f->call) {
		close(f->fd);
		f->fd = -1;
		retry_later(f);
	}
}

static void download(void *ctx)
{
	struct fetch *f = ctx;
	struct err err = ERR_INIT;

	f->body_began = false;
	err_clear(&f->failure);
	if (open_part(f, &f->from, &err) != 0) {
		finish(f, &err);
		return;
	}
	if (f->from == f->bytes) {
		start_hash(f, f->part, part_hashed);
		return;
	}
	cache_make_room(f->env->cache, f->bytes - f->from);
	request(f);
}

/* --- linking -------------------------------------------------------------------------------------------------- */

static bool linked(struct fetch *f)
{
	struct transfer_links *links = &f->env->links;
	struct err why = ERR_INIT;

	if (!f->path || !links->in)
		return false;
	cache_make_room(f->env->cache, f->bytes);
	if (cache_link(f->env->cache, f->sha256, f->path, f->bytes, &why) == 0) {
		log_debug("blob %s is linked from %s", f->sha256, f->path);
		return true;
	}
	log_line(links->in_told ? LOG_DEBUG : LOG_INFO, "blob %s is fetched: %s", f->sha256, why.text);
	links->in_told = true;
	return false;
}

/* The first step, off the caller's stack: what has the cache? */
static void begin(void *ctx)
{
	struct fetch *f = ctx;
	uint64_t bytes = 0;
	char *path;

	switch (cache_find(f->env->cache, f->sha256, &bytes)) {
	case CACHE_READY:
		finish_well(f);
		return;
	case CACHE_UNPROVEN:
		path = cache_path(f->env->cache, f->sha256);
		start_hash(f, path, cached_hashed);
		mem_free(path);
		return;
	case CACHE_ABSENT:
		break;
	}
	if (linked(f))
		finish_well(f);
	else
		download(f);
}

struct fetch *fetch_start(struct transfer_env *env, const char *sha256, uint64_t bytes, const char *path,
			  void (*done)(void *ctx, const struct err *err), void *ctx)
{
	struct fetch *f = mem_alloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->env = env;
	f->bytes = bytes;
	f->done = done;
	f->ctx = ctx;
	f->fd = -1;
	snprintf(f->sha256, sizeof(f->sha256), "%s", sha256);
	f->path = path ? mem_strdup(path) : NULL;
	f->part = cache_part_path(env->cache, sha256);
	f->timer = loop_timer_new(env->loop, begin, f);
	if (!f->part || !f->timer || (path && !f->path)) {
		fetch_free(f);
		return NULL;
	}
	loop_timer_start(f->timer, 0);
	return f;
}

void fetch_free(struct fetch *f)
{
	if (!f)
		return;
	client_cancel(f->call);
	hash_cancel(f->hash);
	loop_timer_free(f->timer);
	if (f->fd >= 0)
		close(f->fd);
	mem_free(f->path);
	mem_free(f->part);
	mem_free(f);
}
