/* From headers to handler: limits, route, token, role, body; and the ways to go on later.
 *
 * Invariants:
 *  1. Every request passes the checks of begin() in one order: limits, route, token, role, query, body.
 *     Nothing of a body is kept before all of them passed.
 *  2. After request_post(), request_offload() or a successful park_add() the handler returns at once: another
 *     thread may own the request.
 */
#include "server/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/log.h"
#include "server/percent.h"
#include "server/reply.h"
#include "server/request_check.h"
#include "server/route_handlers.h"

enum { PART_BODY_MS = 10 * 60 * 1000 };

int64_t request_now_ms(const struct request *r)
{
	(void)r;
	return clock_system.mono_ms(clock_system.ctx);
}

/* --- the exchange's calls ------------------------------------------------------------- */

static struct request *request_new(struct http_exchange *x)
{
	struct request *r = mem_alloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->x = x;
	r->app = http_context(x);
	atomic_fetch_add(&r->app->requests, 1);
	buf_init(&r->body, APP_JSON_MAX);
	return r;
}

static void begin(struct http_exchange *x)
{
	struct request *r = request_new(x);

	x->user = r;
	if (!r) {
		reply_problem_status(x, 503, ERR_NOMEM, "out of memory for a request; try again in a moment");
		return;
	}
	if (request_check(r) != 0)
		return;
	if (r->route->body == BODY_RAW)
		x->body_ms = PART_BODY_MS;
}

static void body(struct http_exchange *x, const void *bytes, size_t len)
{
	struct request *r = x->user;

	if (r->route->body == BODY_RAW)
		route_upload_bytes(r, bytes, len);
	else if (buf_append(&r->body, bytes, len) != 0)
		request_body_too_large(r);
}

static bool parse_body(struct request *r)
{
	struct err err = ERR_INIT;

	if (r->body.len == 0) {
		if (r->route->body == BODY_JSON)
			reply_problem_status(r->x, 400, ERR_INVALID,
					     "the body must be a JSON object; none was sent");
		return r->route->body != BODY_JSON;
	}
	r->json = json_parse(buf_text(&r->body), r->body.len, &err);
	buf_deinit(&r->body);
	if (!r->json) {
		err_prefix(&err, "the body is not valid JSON");
		reply_problem(r->x, &err, NULL);
	} else if (json_type(r->json) != JSON_OBJECT) {
		reply_problem_status(r->x, 400, ERR_INVALID, "the body must be a JSON object");
	}
	return r->x->reply.status == 0;
}

static void step(struct http_exchange *x)
{
	struct request *r = x->user;
	void (*next)(struct request *r) = r->next;

	r->next = NULL;
	if (next)
		next(r);
	else if (r->route->body == BODY_RAW || parse_body(r))
		r->route->handle(r);
}

static void call_free(struct engine_call *call)
{
	if (!call)
		return;
	engine_request_deinit(&call->request);
	engine_reply_deinit(&call->reply);
	mem_free(call);
}

static void over(struct http_exchange *x)
{
	struct request *r = x->user;
	unsigned class = (unsigned)x->reply.status / 100;

	if (!r)
		return;
	log_debug("%s %s %d %s", x->method, x->path, x->reply.status, r->subject);
	atomic_fetch_add(&r->app->replies[class < 6 ? class : 0], 1);
	atomic_fetch_sub(&r->app->body_reserved, r->reserved);
	atomic_fetch_sub(&r->app->requests, 1);
	call_free(r->call);
	json_free(r->json);
	buf_deinit(&r->body);
	buf_deinit(&r->out);
	mem_free(r);
}

const struct http_app request_app = { .begin = begin, .body = body, .step = step, .over = over };

/* --- engine ------------------------------------------------------------------------------ */

static void copy(char *out, size_t cap, const char *text)
{
	snprintf(out, cap, "%s", text ? text : "");
}

static void copy_query(const struct request *r, const char *name, char *out, size_t cap)
{
	const char *text = http_query(r->x, name);

	if (!text || percent_decode(text, strlen(text), out, cap) != 0)
		*out = '\0';
}

void request_fill(const struct request *r, struct engine_request *q, enum verb verb)
{
	const char *dry = http_query(r->x, "dry_run");
	char number[24];

	*q = (struct engine_request){ .verb = verb, .role = r->role };
	copy(q->subject, sizeof(q->subject), r->subject);
	copy(q->id, sizeof(q->id), r->captures.first);
	copy(q->path, sizeof(q->path), r->captures.second);
	copy(q->idempotency_key, sizeof(q->idempotency_key), http_header(r->x, "Idempotency-Key"));
	copy_query(r, "state", q->state, sizeof(q->state));
	copy_query(r, "cursor", q->cursor, sizeof(q->cursor));
	copy_query(r, "limit", number, sizeof(number));
	q->limit = strtoll(number, NULL, 10); /* request_check() saw that it is one */
	q->dry_run = dry && strcmp(dry, "true") == 0;
}

void request_read(struct request *r, enum verb verb, struct engine_reply *reply)
{
	struct engine_request q;

	request_fill(r, &q, verb);
	*reply = (struct engine_reply){ 0 };
	engine_call(r->app->engine, &q, reply);
}

/* Suspends, unless the server is stopping; false = replied. */
static bool leave_thread(struct request *r, void (*next)(struct request *r))
{
	struct app *a = r->app;
	bool going;

	atomic_fetch_add(&a->posting, 1); /* before the look at `stopping`: app_stop() waits for it */
	going = !atomic_load(&a->stopping);
	if (going) {
		r->next = next;
		http_suspend(r->x);
	} else {
		reply_problem_status(r->x, 503, ERR_UNAVAILABLE,
				     "the coordinator is stopping; try again in a moment");
		r->x->reply.close = true;
	}
	atomic_fetch_sub(&a->posting, 1);
	return going;
}

static void post_done(struct engine_call *call)
{
	struct request *r = call->ctx;

	r->call = call;
	http_resume(r->x);
}

static void post(struct request *r, struct engine_call *call, void (*next)(struct request *r))
{
	struct err err = ERR_INIT;

	call->done = post_done;
	call->ctx = r;
	r->call = NULL;
	if (!leave_thread(r, next)) {
		call_free(call);
	} else if (engine_post(r->app->engine, call, &err) != 0) {
		call->reply.err = err;
		post_done(call);
	}
}

void request_post(struct request *r, enum verb verb, struct json *body, void (*next)(struct request *r))
{
	struct engine_call *call = mem_alloc(1, sizeof(*call));

	call_free(r->call);
	r->call = NULL;
	if (!call) {
		json_free(body);
		reply_problem_status(r->x, 503, ERR_NOMEM, "out of memory for a request");
		return;
	}
	request_fill(r, &call->request, verb);
	call->request.body = body;
	post(r, call, next);
}

void request_post_again(struct request *r, void (*next)(struct request *r))
{
	struct engine_call *call = r->call;

	engine_reply_deinit(&call->reply);
	call->reply = (struct engine_reply){ 0 };
	post(r, call, next);
}

void request_offload(struct request *r, void (*run)(struct offload_job *job), void (*next)(struct request *r))
{
	r->job.run = run;
	err_clear(&r->err);
	if (leave_thread(r, next) && offload_post(r->app->offload, &r->job, &r->err) != 0)
		http_resume(r->x);
}

int64_t request_wait_s(const struct request *r, int64_t otherwise)
{
	const char *prefer = http_header(r->x, "Prefer");
	const char *wait = prefer ? strcasestr(prefer, "wait=") : NULL;
	long long seconds = wait ? strtoll(wait + 5, NULL, 10) : otherwise;

	if (seconds < 0)
		return 0;
	return seconds > APP_WAIT_MAX_S ? APP_WAIT_MAX_S : seconds;
}
