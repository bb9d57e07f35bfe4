/* http.h - HTTP/1.1 for the rest of the server; http.c is the only file that knows libmicrohttpd.
 *
 * One request is one `struct http_exchange`, from its headers to its last byte. The application
 * (struct http_app) is called, always from an event thread of the exchange's connection and never
 * from two threads at once:
 *   begin()  headers are in. It may set a reply at once (the body is then read and dropped, or the
 *            connection closed), otherwise body bytes follow.
 *   body()   some bytes of the body; after a reply was set no more come.
 *   step()   the body is complete, or the exchange was resumed. It must set a reply or have called
 *            http_suspend(), after which nothing touches the exchange until http_resume().
 *   over()   the exchange ends, replied or not: free x->user.
 * Rules that keep suspended exchanges safe:
 *  1. http_suspend() is called before the exchange is handed to anything that may resume it.
 *  2. A suspended exchange cannot end, so a pointer to it stays valid until somebody resumes it;
 *     it is resumed exactly once.
 *  3. http_stop() first needs every suspended exchange to be resumed (http_suspended() == 0).
 * Limits: header block 16 KiB, one absolute deadline for a header block and one for a body, an idle time-out,
 * connections in total and per address. Bodies are limited by the application.
 */
#ifndef QUARRY_SERVER_HTTP_H
#define QUARRY_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

enum {
	HTTP_HEADER_MAX = 16 * 1024,
	HTTP_URL_MAX = 4096,
	HTTP_FIELDS_MAX = 12,
};

enum http_body { HTTP_NO_BODY, HTTP_BYTES, HTTP_STATIC, HTTP_FILE, HTTP_STREAM };

struct http_exchange;

struct http_field { const char *name; char value[256]; }; /* name: a literal */

/* What to answer. Zero-initialized status = no reply yet. */
struct http_reply {
	int status;
	const char *type;               /* Content-Type, a literal; NULL = none */
	struct http_field fields[HTTP_FIELDS_MAX];
	size_t field_count;
	enum http_body kind;
	char *bytes;                    /* HTTP_BYTES: mem_alloc'ed, taken; HTTP_STATIC: borrowed for ever */
	uint64_t length;                /* of bytes, or of the file's range */
	int fd;                         /* HTTP_FILE: taken */
	uint64_t offset;
	/* HTTP_STREAM: fills up to `room` bytes; 0 after http_suspend(), -1 at the end. */
	ssize_t (*read)(struct http_exchange *x, char *out, size_t room);
	bool close;                     /* the connection ends with this reply */
};

struct http_exchange {
	/* read by the application */
	const char *method;             /* "GET" */
	const char *path;               /* still percent-encoded, without the query */
	bool has_length;
	uint64_t length;                /* Content-Length when has_length */
	bool has_body;                  /* a length other than 0, or chunked */
	bool expect_continue;
	/* written by the application */
	void *user;
	struct http_reply reply;
	int64_t body_ms;                /* begin(): time the whole body may take; 0 = default */
	/* private to http.c */
	struct http *http;
	struct http_conn *conn;
	void *mhd;
	int fd;
	bool suspended;
	uint64_t body_seen;
};

struct http_app {
	void (*begin)(struct http_exchange *x);
	void (*body)(struct http_exchange *x, const void *bytes, size_t len);
	void (*step)(struct http_exchange *x);
	void (*over)(struct http_exchange *x);
	void *ctx;
};

struct http_config {
	const char *listen;             /* "ADDR:PORT", "[::1]:PORT"; port 0 = any */
	unsigned threads;
	unsigned connections, connections_per_ip;
	int64_t header_ms, body_ms;     /* absolute deadlines */
	unsigned idle_s;                /* a connection without traffic */
};

struct http;

/* Starts listening and serving. */
struct http *http_start(const struct http_config *config, const struct http_app *app, struct err *err);
unsigned http_port(const struct http *h);
void http_quiesce(struct http *h);      /* no new connections */
/* Cuts connections past their deadline; call a few times a second. */
void http_tick(struct http *h);
void http_stop(struct http *h);
unsigned http_suspended(struct http *h);
/* Connections open now, this one included. */
unsigned http_connections(const struct http_exchange *x);
/* The client's address as 16 bytes, IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2). */
void http_peer_address(const struct http_exchange *x, unsigned char address[16]);
void *http_context(const struct http_exchange *x); /* app.ctx */

const char *http_header(const struct http_exchange *x, const char *name);
/* Bytes of the header block without the request line. */
size_t http_header_bytes(const struct http_exchange *x);
/* Query parameter, percent-decoded by nobody yet; NULL when absent. */
const char *http_query(const struct http_exchange *x, const char *name);
/* visit() for each query parameter name. */
void http_each_query(const struct http_exchange *x, void (*visit)(void *ctx, const char *name), void *ctx);

/* See the rules above. http_resume() may be called from any thread. */
void http_suspend(struct http_exchange *x);
void http_resume(struct http_exchange *x);
/* true when the client of a suspended exchange has hung up. */
bool http_peer_gone(const struct http_exchange *x);

/* --- filling a reply ------------------------------------------------------------ */

void http_reply_deinit(struct http_reply *r);
void http_field(struct http_reply *r, const char *name, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
