/* client_curl.h - what the client*.c files share: how a curl handle is set up, how its outcome is told, and
 * the calls under way. Nobody else includes it. */
#ifndef QUARRY_WORKER_CLIENT_CURL_H
#define QUARRY_WORKER_CLIENT_CURL_H

#include <curl/curl.h>

#include "common/err.h"
#include "worker/client.h"

struct client {
	const struct client_config *config;
	struct loop *loop;
	CURLM *multi;
	struct loop_timer *timer;       /* curl's time-out */
	struct client_call *calls;      /* under way */
	struct watch *spares;           /* for sockets to come; a list */
	size_t spare_count;
};

/* Memory for the sockets of one more call, so that watching them cannot fail later. -1: none. */
int client_reserve(struct client *client);

/* Ends the calls that curl has finished. */
void client_collect(struct client *client);

/* Options every request has: URL, agent, stall limit, protocols. 0 or -1 (out of memory). */
int client_curl_setup(CURL *easy, const struct client_config *config, const char *path);
/* Adds "Authorization: Bearer ..." when there is a token. NULL when out of memory (list freed). */
struct curl_slist *client_curl_headers(const struct client_config *config, struct curl_slist *list);
/* Appends and frees the list on failure. */
struct curl_slist *client_curl_append(struct curl_slist *list, const char *line);
/* A transport failure as ERR_UNAVAILABLE or ERR_TIMEOUT. Returns -1. */
int client_curl_failure(struct err *err, const struct client_config *config, CURLcode code,
			const char *detail);
/* A status >= 300 with its body (problem+json or anything) as an error. Returns -1. */
int client_curl_problem(struct err *err, const char *path, long status, const char *body, size_t len);

#endif
