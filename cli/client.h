/* client.h - requests to a coordinator; the only module of the client that knows libcurl.
 *
 * Invariants:
 *  1. Only http and https, no redirects, no compressed bodies; JSON replies of at most CLIENT_JSON_MAX bytes.
 *  2. A failed request gives one sentence: the server's `detail` when it sent problem+json, else what went
 *     wrong on the way. err.code is the problem's type.
 *  3. Connection failures and retryable problems are repeated with growing pauses for up to `patience_ms`;
 *     every request made here may be repeated (docs/protocol.md).
 *  4. A signal that asks to stop ends any wait within a moment with ERR_CANCELLED.
 * Not thread-safe: one client per thread.
 */
#ifndef QUARRY_CLI_CLIENT_H
#define QUARRY_CLI_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"

#define CLIENT_JSON_MAX (64u << 20)

struct client;

/* `token` may be NULL. NULL with err: no http(s) URL, a token with odd characters, out of memory. */
struct client *client_new(const char *url, const char *token, struct err *err);
void client_free(struct client *c);
/* How long a request is repeated while the server cannot be reached or asks for patience. */
void client_set_patience(struct client *c, int64_t patience_ms);
const char *client_url(const struct client *c);

struct client_request {
	const char *method;             /* "GET", "POST", ... */
	const char *path;               /* "/v1/jobs?limit=5": already escaped */
	const struct json *body;        /* or NULL */
	const char *idempotency_key;    /* or NULL */
	const char *if_none_match;      /* an ETag without quotes, or NULL */
	int64_t wait_s;                 /* how long the server may hold the reply (long poll) */
};

struct client_reply {
	int status;
	struct json *body;              /* owned; NULL when none */
	char etag[128];                 /* without quotes; "" when none */
	struct json *problems;          /* owned array of sentences of a refused request, or NULL */
};

/* 0 on 2xx and 304. Always deinit the reply. */
int client_call(struct client *c, const struct client_request *request, struct client_reply *reply,
		struct err *err);
void client_reply_deinit(struct client_reply *r);
/* A GET whose JSON body the caller owns; NULL with err. */
struct json *client_get(struct client *c, const char *path, struct err *err);
/* A POST; the reply's body, owned, NULL with err. An empty reply gives an empty object. */
struct json *client_post(struct client *c, const char *path, const struct json *body, struct err *err);

/* Called now and then with the bytes moved so far within this call. May be NULL. */
typedef void (*client_moved)(void *ctx, uint64_t bytes);

/* Downloads bytes [from, total) of `path` into fd at their offsets; continues by Range after a failure. */
int client_download(struct client *c, const char *path, int fd, const char *file, uint64_t from, uint64_t total,
		    client_moved moved, void *ctx, struct err *err);
/* PUTs `len` bytes of fd from `offset` on. */
int client_upload(struct client *c, const char *path, int fd, const char *file, uint64_t offset, uint64_t len,
		  client_moved moved, void *ctx, struct err *err);

/* One path segment or query value, percent-encoded; free with mem_free(); NULL when out of memory. */
char *url_escape(const char *text);

#endif
