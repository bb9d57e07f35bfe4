/* Long polls: a worker that waits for a task, a client that waits for a job to change.
 *
 * Both loop: read the generation, look, and park with that generation; being woken means looking again.
 */
#include <string.h>

#include "server/percent.h"
#include "server/reply.h"
#include "server/request.h"
#include "server/route_handlers.h"

enum { JOB_WAIT_S = 25 };

/* --- POST /v1/leases -------------------------------------------------------------- */

static void lease_done(struct request *r);

static void lease_nothing(struct request *r, bool drain)
{
	reply_empty(r->x, 204);
	if (drain)
		http_field(&r->x->reply, "Quarry-Drain", "true");
}

/* Woken, or the first time. A dead client must not be handed a task. */
static void lease_try(struct request *r)
{
	if (r->call && (request_now_ms(r) >= r->until_ms || atomic_load(&r->app->stopping) ||
			http_peer_gone(r->x))) {
		park_lease_tried(r->app->park, LEASE_MISSED); /* pass the wake on */
		lease_nothing(r, false);
		return;
	}
	r->slot.generation = park_generation(r->app->park, PARK_LEASE, "");
	if (r->call) {
		request_post_again(r, lease_done);
	} else {
		struct json *body = r->json;

		r->json = NULL;
		request_post(r, VERB_LEASE, body, lease_done);
	}
}

static void lease_done(struct request *r)
{
	const struct engine_reply *reply = &r->call->reply;
	const bool failed = reply->err.code != ERR_NONE;

	park_lease_tried(r->app->park, !failed && reply->status == 200 ? LEASE_TAKEN :
				       reply->left ? LEASE_LEFT : LEASE_MISSED);
	if (failed || !reply->wait) {
		reply_engine(r->x, reply);
		if (!failed && reply->drain)
			http_field(&r->x->reply, "Quarry-Drain", "true");
		return;
	}
	if (request_now_ms(r) >= r->until_ms) {
		lease_nothing(r, reply->drain);
		return;
	}
	r->next = lease_try;
	switch (park_add(r->app->park, &r->slot, r->x, PARK_LEASE, "", r->slot.generation, r->until_ms)) {
	case PARKED:
		return;
	case PARK_CHANGED:
		r->next = NULL;
		lease_try(r);
		return;
	case PARK_CLOSED:
		r->next = NULL;
		lease_nothing(r, false);
		return;
	}
}

void route_lease(struct request *r)
{
	r->until_ms = request_now_ms(r) + request_wait_s(r, 0) * 1000;
	lease_try(r);
}

/* --- GET /v1/jobs/{id} --------------------------------------------------------------- */

/* The ETag of ?wait_for_change=, with or without its quotes; false when absent or not one. */
static bool known_etag(const struct request *r, char etag[80])
{
	const char *text = http_query(r->x, "wait_for_change");
	char value[96];
	size_t len;

	if (!text || percent_decode(text, strlen(text), value, sizeof(value)) != 0)
		return false;
	len = strlen(value);
	if (len >= 2 && value[0] == '"' && value[len - 1] == '"') {
		value[len - 1] = '\0';
		memmove(value, value + 1, len - 1);
	}
	if (strlen(value) >= 80)
		return false;
	memcpy(etag, value, strlen(value) + 1);
	return true;
}

static enum park_result job_park(struct request *r, uint64_t generation)
{
	enum park_result result;

	if (request_now_ms(r) >= r->until_ms)
		return PARK_CLOSED;
	r->next = route_job;
	result = park_add(r->app->park, &r->slot, r->x, PARK_JOB, r->captures.first, generation, r->until_ms);
	if (result != PARKED)
		r->next = NULL;
	return result;
}

void route_job(struct request *r)
{
	struct park *park = r->app->park;
	char known[80];
	const bool waits = known_etag(r, known);
	enum park_result parked;

	if (r->until_ms == 0)
		r->until_ms = request_now_ms(r) + request_wait_s(r, JOB_WAIT_S) * 1000;
	do {
		const uint64_t generation = park_generation(park, PARK_JOB, r->captures.first);
		struct engine_reply reply;
		bool unchanged;

		request_read(r, VERB_JOB_GET, &reply);
		unchanged = waits && reply.err.code == ERR_NONE && strcmp(reply.etag, known) == 0;
		parked = unchanged ? job_park(r, generation) : PARK_CLOSED;
		if (parked == PARK_CLOSED && unchanged)
			reply_not_modified(r->x, known);
		else if (!unchanged)
			reply_engine(r->x, &reply);
		engine_reply_deinit(&reply);
	} while (parked == PARK_CHANGED);
}
