/* routes.h - every route in one table; tests/unit/test_server_routes.c holds it to api.yaml.
 *
 * A pattern is literal segments, {name} for one segment and {name*} for the rest of the path. HEAD is
 * answered wherever GET is. To add a route: a row in routes.c, a handler in the route_*.c it belongs to
 * (or route_verb for one that only passes JSON to the engine), the operation in api.yaml.
 */
#ifndef QUARRY_SERVER_ROUTES_H
#define QUARRY_SERVER_ROUTES_H

#include <stdbool.h>
#include <stddef.h>

#include "server/engine.h"

struct request;

enum { NO_VERB = -1 };

/* Who may call it; each row names the roles and how api.yaml and a refusal spell them. */
enum access {
	ACCESS_PUBLIC,
	ACCESS_VIEW,            /* viewer, submitter, releaser, admin */
	ACCESS_SUBMIT,          /* submitter, releaser, admin */
	ACCESS_WORK,            /* worker, admin */
	ACCESS_BLOBS,           /* submitter, worker, releaser, admin */
	ACCESS_RELEASE,         /* releaser, admin */
	ACCESS_COUNT
};

enum route_body {
	BODY_NONE,              /* none expected; a JSON object is tolerated */
	BODY_JSON,              /* a JSON object, required */
	BODY_RAW,               /* bytes, streamed to the handler */
};

struct route {
	const char *method;
	const char *pattern;
	int verb;                               /* enum verb, or NO_VERB */
	void (*handle)(struct request *r);
	enum access access;
	enum route_body body;
	const char *query;                      /* accepted query parameters, space-separated */
};

extern const struct route routes[];             /* ends with method == NULL */

/* What a path's {…} parts were, percent-decoded, in order. */
struct captures { char first[128]; char second[512]; };

enum match { MATCH_NONE, MATCH_METHOD, MATCH_FOUND };

/* Finds the row. MATCH_METHOD: the path exists, not with this method; `allow` then has the methods.
 * MATCH_NONE also for parts that are not well percent-encoded, too long, or hold control characters. */
enum match route_find(const char *method, const char *path, const struct route **route,
		      struct captures *captures, char allow[64]);

bool access_allows(enum access access, enum role role);
const char *access_name(enum access access);    /* "submitter or worker" */
const char *role_name(enum role role);

#endif
