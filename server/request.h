/* request.h - one request on its way through the application: between http.h and engine.h.
 *
 * A handler (routes.h) runs in an event thread when the whole JSON body is there and either replies with
 * one of the reply_*() functions, or goes asynchronous with request_post(), request_offload() or park_add()
 * and is continued later in the same event thread. `struct request` lives as long as its exchange.
 */
#ifndef QUARRY_SERVER_REQUEST_H
#define QUARRY_SERVER_REQUEST_H

#include <stdatomic.h>

#include "common/buf.h"
#include "common/digest.h"
#include "server/app.h"
#include "server/blobs.h"
#include "server/engine.h"
#include "server/http.h"
#include "server/offload.h"
#include "server/park.h"
#include "server/routes.h"

struct request {
	struct app *app;
	struct http_exchange *x;
	const struct route *route;
	struct captures captures;
	char subject[64];
	enum role role;
	struct json *json;              /* the body; NULL when there was none */
	/* where to continue after a suspension; NULL: route->handle */
	void (*next)(struct request *r);
	struct engine_call *call;       /* the write that was posted; its reply after done */
	struct park_slot slot;
	struct offload_job job;
	int64_t until_ms;               /* a long poll's deadline; 0 = not set yet */
	/* uploads (route_blobs.c) */
	char sha256[DIGEST_HEX];
	size_t part;
	uint64_t bytes;
	struct err err;
	/* event streams (route_events.c) */
	struct buf out;
	size_t sent;
	int64_t last_seq, ping_ms;
	bool ended;
	/* private to request.c */
	struct buf body;
	uint64_t reserved;              /* of app->body_budget */
};

/* The application of http_start(); ctx is a struct app. */
extern const struct http_app request_app;

/* Runs the route's verb (or another one) as a read and replies. */
void request_read(struct request *r, enum verb verb, struct engine_reply *reply);
/* Fills what every engine request has: verb, caller, id, query parameters. */
void request_fill(const struct request *r, struct engine_request *q, enum verb verb);
/* Posts a write; `next` runs when r->call->reply is there (also when the queue was full). Takes `body`. */
void request_post(struct request *r, enum verb verb, struct json *body, void (*next)(struct request *r));
/* Posts the same call again (lease). */
void request_post_again(struct request *r, void (*next)(struct request *r));
/* Runs job_run in a helper thread with r->job; then `next`. */
void request_offload(struct request *r, void (*run)(struct offload_job *job),
		     void (*next)(struct request *r));

/* Seconds of "Prefer: wait=N", at most 60; `otherwise` when absent. */
int64_t request_wait_s(const struct request *r, int64_t otherwise);
int64_t request_now_ms(const struct request *r);

#endif
