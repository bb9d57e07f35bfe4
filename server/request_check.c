#include "server/request_check.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "server/percent.h"
#include "server/rate.h"
#include "server/reply.h"
#include "server/request.h"

#define REFUSE(r, status, code, ...) (reply_problem_status((r)->x, status, code, __VA_ARGS__), -1)

static int check_rate(struct request *r)
{
	unsigned char address[16];

	http_peer_address(r->x, address);
	if (rate_take(r->app->rate, address, request_now_ms(r)))
		return 0;
	return REFUSE(r, 429, ERR_BUSY, "too many requests from this address; try again in a second");
}

static int check_limits(struct request *r)
{
	const char *coding = http_header(r->x, "Transfer-Encoding");

	if (atomic_load(&r->app->stopping)) {
		r->x->reply.close = true;
		return REFUSE(r, 503, ERR_UNAVAILABLE, "the coordinator is stopping; try again in a moment");
	}
	if (strlen(r->x->path) > HTTP_URL_MAX)
		return REFUSE(r, 414, ERR_TOO_LARGE, "the path is longer than %d bytes", HTTP_URL_MAX);
	if (http_header_bytes(r->x) > HTTP_HEADER_MAX)
		return REFUSE(r, 431, ERR_TOO_LARGE, "the request's headers are larger than %d bytes",
			      HTTP_HEADER_MAX);
	if (coding && (strcasecmp(coding, "chunked") != 0 || r->x->has_length)) {
		r->x->reply.close = true; /* where the body ends is anybody's guess */
		return REFUSE(r, 400, ERR_INVALID,
			      "send either Content-Length or Transfer-Encoding: chunked");
	}
	return 0;
}

static int check_route(struct request *r)
{
	char allow[64];

	switch (route_find(r->x->method, r->x->path, &r->route, &r->captures, allow)) {
	case MATCH_FOUND:
		return 0;
	case MATCH_METHOD:
		reply_problem_status(r->x, 405, ERR_INVALID, "%s is not possible here; possible: %s",
				     r->x->method, allow);
		http_field(&r->x->reply, "Allow", "%s", allow);
		return -1;
	case MATCH_NONE:
		break;
	}
	return REFUSE(r, 404, ERR_NOT_FOUND,
		      "there is nothing at this path; GET /api.yaml describes what there is");
}

/* The token of "Authorization: Bearer TOKEN". */
static const char *bearer(const struct request *r)
{
	const char *header = http_header(r->x, "Authorization");

	if (!header || strncasecmp(header, "Bearer ", 7) != 0)
		return NULL;
	return header + 7 + strspn(header + 7, " ");
}

static int check_token(struct request *r)
{
	const char *token;
	struct err err = ERR_INIT;

	if (r->route->access == ACCESS_PUBLIC)
		return 0;
	token = bearer(r);
	if (!token)
		err_set(&err, ERR_UNAUTHORIZED, "this needs a token: send Authorization: Bearer TOKEN");
	else if (engine_authenticate(r->app->engine, token, r->subject, &r->role, &err) == 0)
		return access_allows(r->route->access, r->role) ? 0
			: REFUSE(r, 403, ERR_FORBIDDEN,
				 "this needs a token with the role %s; yours has the role %s",
				 access_name(r->route->access), role_name(r->role));
	reply_problem(r->x, &err, NULL);
	if (err.code == ERR_UNAUTHORIZED)
		http_field(&r->x->reply, "WWW-Authenticate", "Bearer realm=\"quarry\"");
	return -1;
}

/* --- query parameters and headers that become engine fields ------------------------- */

static bool word_in(const char *words, const char *word)
{
	size_t len = strlen(word);

	while (*words) {
		size_t n = strcspn(words, " ");

		if (n == len && strncmp(words, word, n) == 0)
			return true;
		words += n + (words[n] == ' ');
	}
	return false;
}

struct unknown { const char *accepted, *name; };

static void find_unknown(void *ctx, const char *name)
{
	struct unknown *u = ctx;

	if (!u->name && !word_in(u->accepted, name))
		u->name = name;
}

/* A parameter's decoded value must be `least`..`most` characters out of `set` (NULL: any). */
static int check_value(struct request *r, const char *name, const char *set, size_t most, const char *right)
{
	const char *text = http_query(r->x, name);
	char value[256];
	size_t len;

	if (!text)
		return 0;
	if (percent_decode(text, strlen(text), value, sizeof(value)) == 0) {
		len = strlen(value);
		if (len > 0 && len <= most && (!set || strspn(value, set) == len))
			return 0;
	}
	return REFUSE(r, 400, ERR_INVALID, "query parameter %s must be %s", name, right);
}

static int check_limit(struct request *r)
{
	const char *limit = http_query(r->x, "limit");
	int value = 0;

	if (check_value(r, "limit", "0123456789", 3, "a number from 1 to 500") != 0)
		return -1;
	for (; limit && *limit; limit++)
		value = value * 10 + (*limit - '0');
	if (http_query(r->x, "limit") && (value < 1 || value > 500))
		return REFUSE(r, 400, ERR_INVALID, "query parameter limit must be a number from 1 to 500");
	return 0;
}

static int check_query(struct request *r)
{
	struct unknown u = { r->route->query, NULL };
	const char *dry = http_query(r->x, "dry_run");
	const char *key = http_header(r->x, "Idempotency-Key");

	http_each_query(r->x, find_unknown, &u);
	if (u.name)
		return REFUSE(r, 400, ERR_INVALID, "query parameter %.64s is not known here%s%s", u.name,
			      *r->route->query ? "; known: " : "", r->route->query);
	if (dry && strcmp(dry, "true") != 0 && strcmp(dry, "false") != 0)
		return REFUSE(r, 400, ERR_INVALID, "query parameter dry_run must be true or false");
	if (key && (*key == '\0' || strlen(key) > 127))
		return REFUSE(r, 400, ERR_INVALID, "Idempotency-Key must have 1 to 127 characters");
	if (check_value(r, "state", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", 31, "a state such as RUNNING") != 0 ||
	    check_value(r, "cursor", NULL, 127, "the next of an earlier answer") != 0 ||
	    check_value(r, "after", "0123456789", 15, "an event's number") != 0)
		return -1;
	return check_limit(r);
}

/* --- the body's framing ---------------------------------------------------------------- */

void request_body_too_large(struct request *r)
{
	reply_problem_status(r->x, 413, ERR_TOO_LARGE, "the body is larger than %llu bytes",
			     r->route->body == BODY_RAW ? (unsigned long long)BLOB_PART_BYTES
							: (unsigned long long)APP_JSON_MAX);
}

static bool media_type_is(const char *header, const char *type)
{
	size_t len = strlen(type);

	return header && strncasecmp(header, type, len) == 0 && strchr("; \t", header[len]);
}

static int reserve_memory(struct request *r)
{
	uint64_t want = r->x->has_length ? r->x->length : APP_JSON_MAX;

	r->reserved = want;
	if (atomic_fetch_add(&r->app->body_reserved, want) + want <= APP_BODY_BUDGET)
		return 0;
	return REFUSE(r, 429, ERR_BUSY, "too many large requests at one time; try again in a moment");
}

static int check_body(struct request *r)
{
	const char *coding = http_header(r->x, "Content-Encoding");
	const bool raw = r->route->body == BODY_RAW;

	if (!r->x->has_body)
		return 0;
	if (coding && strcasecmp(coding, "identity") != 0)
		return REFUSE(r, 415, ERR_INVALID,
			      "Content-Encoding %.32s is not accepted; send the body as it is", coding);
	if (r->x->has_length && r->x->length > (raw ? (uint64_t)BLOB_PART_BYTES : (uint64_t)APP_JSON_MAX)) {
		request_body_too_large(r);
		return -1;
	}
	if (raw)
		return 0;
	if (!media_type_is(http_header(r->x, "Content-Type"), "application/json"))
		return REFUSE(r, 415, ERR_INVALID,
			      "the body must be JSON, sent with Content-Type: application/json");
	return reserve_memory(r);
}

int request_check(struct request *r)
{
	if (check_limits(r) != 0 || check_rate(r) != 0 || check_route(r) != 0 || check_token(r) != 0 || check_query(r) != 0)
		return -1;
	return check_body(r);
}
