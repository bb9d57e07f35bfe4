/* Routes that only carry JSON between a client and the engine. */
#include "server/reply.h"
#include "server/request.h"
#include "server/route_handlers.h"

static void verb_done(struct request *r)
{
	reply_engine(r->x, &r->call->reply);
}

void route_verb(struct request *r)
{
	const enum verb verb = (enum verb)r->route->verb;
	struct engine_reply reply;
	struct json *body = r->json;

	if (verb_is_write(verb)) {
		r->json = NULL;
		request_post(r, verb, body, verb_done);
		return;
	}
	request_read(r, verb, &reply);
	reply_engine(r->x, &reply);
	engine_reply_deinit(&reply);
}
