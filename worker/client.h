/* client.h - HTTP requests to the coordinator.
 *
 * Two forms share one configuration: client_send() on the event loop (many at a time), and
 * client_fetch_range(), which blocks and is for the compute thread. The client*.c files are all that
 * knows libcurl. Every body has a limit; redirects are not followed; only http and https.
 */
#ifndef QUARRY_WORKER_CLIENT_H
#define QUARRY_WORKER_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "worker/loop.h"

enum {
	CLIENT_JSON_LIMIT = 1024 * 1024,        /* ordinary replies */
	CLIENT_LEASE_LIMIT = 16 * 1024 * 1024,  /* leases of big models list many tensors */
	CLIENT_STALL_S = 30,                    /* no byte for so long = the connection is dead */
};

/* Plain data, readable from every thread once made. */
struct client_config {
	char *base_url;         /* "http://host:port", no slash at the end */
	char *token;            /* or NULL */
	char *user_agent;
};
/* Checks the URL and the token; -1 with a sentence. */
int client_config_init(struct client_config *config, const char *url, const char *token,
		       const char *user_agent, struct err *err);
void client_config_deinit(struct client_config *config);

struct client;
struct client_call;

struct client_reply {
	int status;             /* HTTP status; 0 when no (whole) reply came: see err */
	const char *body;       /* NUL-terminated; empty when a sink took it */
	size_t len;
	bool drain;             /* header "Quarry-Drain: true" */
	uint64_t range_start;   /* of a 206: where the body begins */
	/* ERR_NONE for 2xx. Without a reply ERR_UNAVAILABLE or ERR_TIMEOUT. Otherwise from the
	 * problem+json body, or from the status when there is none. */
	struct err err;
};

struct client_request {
	const char *method;     /* "GET", "POST", "PUT" */
	const char *path;       /* "/v1/..." */
	const char *json;       /* POST: body, copied; NULL = none */
	/* PUT: `length` bytes of descriptor `fd` at `offset` (borrowed until done or cancelled). */
	int fd;
	uint64_t offset, length;
	uint64_t range_from;    /* GET: "Range: bytes=<from>-" when not 0 */
	int wait_s;             /* "Prefer: wait=<s>" when not 0 */
	int quiet_s;            /* seconds without a byte beyond wait_s and CLIENT_STALL_S that are no stall */
	int timeout_s;          /* whole request; 0 = only the stall limit */
	size_t limit;           /* most body bytes kept; 0 = CLIENT_JSON_LIMIT */
	/* Takes the body of 200 and 206 replies instead; `start` = offset of the first byte of this
	 * body in the whole (0 for 200). -1 ends the request. May be NULL. */
	int (*sink)(void *ctx, uint64_t start, const void *bytes, size_t len);
	void (*done)(void *ctx, const struct client_reply *reply); /* the reply is valid during the call */
	void *ctx;
};

struct client *client_open(struct loop *loop, const struct client_config *config, struct err *err);
void client_close(struct client *client); /* cancels what is under way */

/* NULL when out of memory; otherwise done() comes later, once, unless cancelled. */
struct client_call *client_send(struct client *client, const struct client_request *request);
/* No done() afterwards. NULL is fine. Not from inside that call's own sink or done. */
void client_cancel(struct client_call *call);

/* --- blocking, for the compute thread ------------------------------------------------------------- */

struct client_blocking;
struct client_blocking *client_blocking_new(const struct client_config *config, struct err *err);
void client_blocking_free(struct client_blocking *cb);
/* GET path, bytes [offset, offset+len) into `bytes`. stop(ctx) is asked about once a second and ends
 * the request with ERR_CANCELLED when true. A server without Range support is ERR_INTERNAL.
 * ERR_UNAVAILABLE or ERR_TIMEOUT: no reply. One attempt; the caller retries. */
int client_fetch_range(struct client_blocking *cb, const char *path, uint64_t offset, void *bytes,
		       size_t len, bool (*stop)(void *ctx), void *ctx, struct err *err);

#endif
