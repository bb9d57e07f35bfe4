/* GET /v1/jobs/{id}/events: what happened to a job, as server-sent events.
 *
 * Each event is "id: SEQ" and one "data:" line of JSON; Last-Event-ID (or ?after=) says what the client has
 * seen. When the job is in a final state and everything was sent, "event: end" follows and the stream closes.
 * A client that comes back with nothing left to send gets 204, which tells an EventSource to stop asking.
 */
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "server/percent.h"
#include "server/reply.h"
#include "server/request.h"
#include "server/route_handlers.h"

enum { PING_MS = 15 * 1000, OUT_MAX = 4 * 1024 * 1024 };

static bool is_final(const char *state)
{
	return strcmp(state, "DONE") == 0 || strcmp(state, "FAILED") == 0 || strcmp(state, "CANCELLED") == 0;
}

static void append_event(struct request *r, const struct json *event)
{
	int64_t seq = json_get_int(event, "seq", r->last_seq);
	char *text = json_print(event, false);

	if (!text || buf_printf(&r->out, "id: %lld\ndata: %s\n\n", (long long)seq, text) == 0)
		r->last_seq = seq;
	mem_free(text);
}

/* Reads what is new into r->out; -1 when the job cannot be read. */
static int read_events(struct request *r, struct engine_reply *reply)
{
	struct engine_request q;
	const char *state;
	size_t count;

	request_fill(r, &q, VERB_JOB_EVENTS);
	q.after = r->last_seq;
	*reply = (struct engine_reply){ 0 };
	engine_call(r->app->engine, &q, reply);
	if (reply->err.code != ERR_NONE)
		return -1;
	count = json_size(json_get(reply->body, "items"));
	for (const struct json *e = json_first(json_get(reply->body, "items")); e; e = json_next(e))
		append_event(r, e);
	state = json_get_string(reply->body, "state", "");
	if (count == 0 && is_final(state)) {
		buf_printf(&r->out, "event: end\ndata: {\"state\":\"%s\"}\n\n", state);
		r->ended = true;
	}
	return buf_failed(&r->out) ? -1 : 0;
}

/* Something to send is in r->out (1), the exchange was parked (0), or the stream is over (-1). */
static int more(struct request *r)
{
	struct park *park = r->app->park;

	while (!http_peer_gone(r->x)) {
		const uint64_t generation = park_generation(park, PARK_JOB, r->captures.first);
		struct engine_reply reply;
		int rc = read_events(r, &reply);

		engine_reply_deinit(&reply);
		if (rc != 0)
			return -1;
		if (r->out.len == 0 && request_now_ms(r) >= r->ping_ms)
			buf_puts(&r->out, ": waiting\n\n");
		if (r->out.len > 0) {
			r->ping_ms = request_now_ms(r) + PING_MS;
			return 1;
		}
		switch (park_add(park, &r->slot, r->x, PARK_JOB, r->captures.first, generation, r->ping_ms)) {
		case PARKED:
			return 0;
		case PARK_CHANGED:
			continue;
		case PARK_CLOSED:
			return -1;
		}
	}
	return -1;
}

static ssize_t stream_read(struct http_exchange *x, char *out, size_t room)
{
	struct request *r = x->user;
	size_t n;

	if (r->sent == r->out.len) {
		int rc;

		buf_reset(&r->out);
		r->sent = 0;
		rc = r->ended ? -1 : more(r);
		if (rc <= 0)
			return rc;
	}
	n = r->out.len - r->sent;
	n = n < room ? n : room;
	memcpy(out, r->out.data + r->sent, n);
	r->sent += n;
	return (ssize_t)n;
}

static int64_t seen(const struct request *r)
{
	const char *text = http_header(r->x, "Last-Event-ID");

	if (!text)
		text = http_query(r->x, "after");
	return text && strlen(text) <= 15 ? strtoll(text, NULL, 10) : 0;
}

void route_events(struct request *r)
{
	struct engine_reply reply;
	const bool returning = http_header(r->x, "Last-Event-ID") != NULL;

	r->last_seq = seen(r);
	r->ping_ms = request_now_ms(r) + PING_MS;
	buf_init(&r->out, OUT_MAX);
	if (read_events(r, &reply) != 0) {
		reply_engine(r->x, &reply);
	} else if (returning && r->ended) {
		reply_empty(r->x, 204);
	} else {
		r->x->reply.status = 200;
		r->x->reply.type = "text/event-stream";
		r->x->reply.kind = HTTP_STREAM;
		r->x->reply.read = stream_read;
		http_field(&r->x->reply, "X-Content-Type-Options", "nosniff");
		http_field(&r->x->reply, "Cache-Control", "no-store");
	}
	engine_reply_deinit(&reply);
}
