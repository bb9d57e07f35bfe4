/* One blob going out.
 *
 *   begin: POST /v1/uploads ──exists──────────────────────────────────────────► done
 *     ▲        │ parts_done, place
 *     │        ├─────► hard link at `place` ──made──► POST …/complete placed ──201──► done
 *     │        ▼           │ not made                       │ refused: never again for this file
 *     │    PUT missing parts, a few at a time ──all──► POST …/complete ──201──► done
 *     │        │ failure: let the others end, back-off     │ 422 wrong digest, 404 forgotten
 *     └────────┴───────────────────────────────────────────┘
 *
 * Whatever goes wrong, the way back is through `begin`, whose answer says what is stored already.
 * Any verdict on a placed file but "stored" counts as refused: also when the coordinator could not flush it, since a second
 * flush of the same file would tell nothing. No verdict (no reply, busy verifying) is none here either.
 */
#include "worker/transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/agent_decide.h"
#include "worker/agent_wire.h"

/* The coordinator hashes a whole blob before it answers `complete`. */
enum { PARTS_AT_ONCE = 3, WRONG_MOST = 3, VERIFY_SECONDS = 600 };

/* One PUT under way. */
struct part_slot {
	struct send *send;
	struct client_call *call;       /* NULL = free */
	size_t part;
};

struct send {
	struct transfer_env *env;
	char *path;
	char sha256[DIGEST_HEX];
	uint64_t bytes;
	void (*done)(void *ctx, const struct err *err);
	void *ctx;
	int fd;
	struct wire_upload upload;
	size_t next_part;
	struct part_slot slots[PARTS_AT_ONCE];
	bool broken;                    /* a part failed: begin again when no PUT is left */
	bool placed;                    /* the file has a second name at upload.place, and the coordinator may take it */
	bool unplaceable;               /* this file goes up in parts */
	struct err refusal;             /* for good */
	struct client_call *call;       /* begin or complete */
	struct loop_timer *timer;
	unsigned failures;              /* in a row */
	unsigned wrong;
};

static void finish(struct send *s, const struct err *err)
{
	s->done(s->ctx, err); /* may free s */
}

static void retry_later(struct send *s)
{
	s->failures++;
	loop_timer_start(s->timer, decide_backoff_ms(s->failures, transfer_random(s->env)));
}

/* The verdicts that end a round of begin, parts, complete. VERDICT_DONE is the caller's. */
static void end_round(struct send *s, enum verdict verdict, const struct err *why)
{
	struct err err = ERR_INIT;

	switch (verdict) {
	case VERDICT_UPLOAD_AGAIN:
		if (++s->wrong >= WRONG_MOST) {
			err_set(&err, ERR_IO, "%s was stored with another digest %d times; the file or the way is damaged",
				s->path, WRONG_MOST);
			finish(s, &err);
			return;
		}
		retry_later(s);
		return;
	case VERDICT_RETRY:
	case VERDICT_REGISTER:
	case VERDICT_DONE:
		retry_later(s);
		return;
	case VERDICT_LOST:
	case VERDICT_REFUSED:
		finish(s, why);
		return;
	}
}

/* --- completing ---------------------------------------------------------------------------------------------- */

static void tell(struct send *s, const char *why)
{
	log_line(s->env->links.out_told ? LOG_DEBUG : LOG_INFO, "blob %s is sent in parts: %s", s->sha256, why);
	s->env->links.out_told = true;
}

/* Takes the name away again, unless the coordinator was faster. */
static void displace(struct send *s)
{
	if (s->placed)
		unlink(s->upload.place);
	s->placed = false;
}

static bool is_verdict(const struct client_reply *reply)
{
	return reply->status != 0 && reply->status != 429;
}

static void completed(void *ctx, const struct client_reply *reply)
{
	struct send *s = ctx;
	const struct err none = ERR_INIT;
	enum verdict verdict = decide_reply(REQUEST_UPLOAD_COMPLETE, reply->status, reply->err.code);

	s->call = NULL;
	s->env->contact(s->env->contact_ctx, reply);
	if (verdict == VERDICT_DONE) {
		s->placed = false;
		finish(s, &none);
	} else if (s->placed && is_verdict(reply)) {
		tell(s, reply->err.text);
		s->unplaceable = true;
		loop_timer_start(s->timer, 0);
	} else {
		end_round(s, verdict, &reply->err);
	}
}

static void complete(struct send *s)
{
	char path[WIRE_ID_MAX + 64];
	const struct client_request rq = {
		.method = "POST", .path = path, .json = s->placed ? "{\"placed\":true}" : "{}", .quiet_s = VERIFY_SECONDS,
		.done = completed, .ctx = s,
	};

	snprintf(path, sizeof(path), "/v1/uploads/%s/complete", s->upload.id);
	s->call = client_send(s->env->client, &rq);
	if (!s->call)
		retry_later(s);
}

/* --- parts ------------------------------------------------------------------------------------------------------ */

static void put_parts(struct send *s);

static size_t parts_under_way(const struct send *s)
{
	size_t n = 0;

	for (size_t i = 0; i < PARTS_AT_ONCE; i++)
		n += s->slots[i].call != NULL;
	return n;
}

static void part_put(void *ctx, const struct client_reply *reply)
{
	struct part_slot *slot = ctx;
	struct send *s = slot->send;
	enum verdict verdict = decide_reply(REQUEST_UPLOAD_PART, reply->status, reply->err.code);

	slot->call = NULL;
	s->env->contact(s->env->contact_ctx, reply);
	if (verdict == VERDICT_DONE) {
		s->upload.done[slot->part] = 1;
		s->failures = 0;
	} else {
		s->broken = true;
		if (verdict == VERDICT_REFUSED)
			s->refusal = reply->err;
	}
	put_parts(s);
}

static int put_part(struct send *s, struct part_slot *slot, size_t part)
{
	char path[WIRE_ID_MAX + 64];
	uint64_t offset = (uint64_t)part * s->upload.part_bytes, left = s->bytes - offset;
	const struct client_request rq = {
		.method = "PUT", .path = path, .fd = s->fd, .offset = offset,
		.length = left < s->upload.part_bytes ? left : s->upload.part_bytes,
		.done = part_put, .ctx = slot,
	};

	snprintf(path, sizeof(path), "/v1/uploads/%s/parts/%zu", s->upload.id, part);
	slot->send = s;
	slot->part = part;
	slot->call = client_send(s->env->client, &rq);
	return slot->call ? 0 : -1;
}

/* Keeps the slots busy; when nothing is left to do or to wait for, takes the next step. */
static void put_parts(struct send *s)
{
	for (size_t i = 0; i < PARTS_AT_ONCE && !s->broken; i++) {
		if (s->slots[i].call)
			continue;
		while (s->next_part < s->upload.parts && s->upload.done[s->next_part])
			s->next_part++;
		if (s->next_part == s->upload.parts)
			break;
		if (put_part(s, &s->slots[i], s->next_part++) != 0)
			s->broken = true;
	}
	if (parts_under_way(s) > 0)
		return;
	if (s->refusal.code != ERR_NONE)
		finish(s, &s->refusal);
	else if (s->broken)
		retry_later(s);
	else
		complete(s);
}

/* --- placing ----------------------------------------------------------------------------------------------------- */

static bool place(struct send *s)
{
	const char *to = s->upload.place;
	struct err why = ERR_INIT;
	int rc;

	if (!to || s->unplaceable)
		return false;
	rc = linkat(AT_FDCWD, s->path, AT_FDCWD, to, 0);
	if (rc != 0 && errno == EEXIST && unlink(to) == 0) /* nobody completed it; whoever still will has the same bytes */
		rc = linkat(AT_FDCWD, s->path, AT_FDCWD, to, 0);
	s->placed = rc == 0;
	s->unplaceable = rc != 0;
	if (s->placed) {
		log_debug("blob %s is placed at %s", s->sha256, to);
	} else {
		err_set_errno(&why, errno, "cannot link %s to %s", s->path, to);
		tell(s, why.text);
	}
	return s->placed;
}

/* --- beginning --------------------------------------------------------------------------------------------------- */

static void began(void *ctx, const struct client_reply *reply)
{
	struct send *s = ctx;
	struct err err = ERR_INIT;
	enum verdict verdict = decide_reply(REQUEST_UPLOAD_BEGIN, reply->status, reply->err.code);

	s->call = NULL;
	s->env->contact(s->env->contact_ctx, reply);
	if (verdict != VERDICT_DONE) {
		end_round(s, verdict, &reply->err);
	} else if (wire_parse_upload(&s->upload, s->sha256, s->bytes, reply->body, reply->len, &err) != 0) {
		log_warn("the answer to an upload: %s", err.text);
		retry_later(s);
	} else if (s->upload.exists) {
		finish(s, &err);
	} else if (place(s)) {
		complete(s);
	} else {
		s->next_part = 0;
		put_parts(s);
	}
}

static void begin(void *ctx)
{
	struct send *s = ctx;
	struct err err = ERR_INIT;
	char *body;
	struct client_request rq = {
		.method = "POST", .path = "/v1/uploads", .timeout_s = 60,
		/* parts_done may list a million parts */
		.limit = CLIENT_LEASE_LIMIT, .done = began, .ctx = s,
	};

	displace(s);
	wire_upload_deinit(&s->upload);
	s->broken = false;
	if (s->fd < 0 && (s->fd = file_open(s->path, O_RDONLY, 0, &err)) < 0) {
		finish(s, &err);
		return;
	}
	rq.json = body = wire_upload_begin(s->sha256, s->bytes, s->env->links.out && !s->unplaceable);
	s->call = body ? client_send(s->env->client, &rq) : NULL;
	mem_free(body);
	if (!s->call)
		retry_later(s);
}

struct send *send_start(struct transfer_env *env, const char *path, const char *sha256,
			uint64_t bytes, void (*done)(void *ctx, const struct err *err), void *ctx)
{
	struct send *s = mem_alloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->env = env;
	s->bytes = bytes;
	s->done = done;
	s->ctx = ctx;
	s->fd = -1;
	snprintf(s->sha256, sizeof(s->sha256), "%s", sha256);
	s->path = mem_strdup(path);
	s->timer = loop_timer_new(env->loop, begin, s);
	if (!s->path || !s->timer) {
		send_free(s);
		return NULL;
	}
	loop_timer_start(s->timer, 0);
	return s;
}

void send_free(struct send *s)
{
	if (!s)
		return;
	client_cancel(s->call);
	for (size_t i = 0; i < PARTS_AT_ONCE; i++)
		client_cancel(s->slots[i].call);
	loop_timer_free(s->timer);
	if (s->fd >= 0)
		close(s->fd);
	displace(s);
	wire_upload_deinit(&s->upload);
	mem_free(s->path);
	mem_free(s);
}
