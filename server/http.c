/* The one file that knows libmicrohttpd (0.9.75): event threads, bodies, replies, suspension.
 *
 * Invariants:
 *  1. An exchange is made on the first call of on_request() for a request and freed in on_completed();
 *     libmicrohttpd completes no request while its connection is suspended.
 *  2. A reply that comes before the body (no token, too large) is sent after the body was read and
 *     dropped, so that the client can read it; bodies above HTTP_DROP_MAX are not read, their
 *     connection closes.
 *  3. Names and values are not decoded here: libmicrohttpd's own percent-decoding is switched off,
 *     because a decoded '/' would change what the path means.
 */
#include "server/http.h"

#include <microhttpd.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/log.h"
#include "server/conns.h"
#include "server/listen.h"

enum {
	HTTP_POOL_BYTES = 64 * 1024,            /* of one connection: headers, and body chunks */
	HTTP_DROP_MAX = 16 * 1024 * 1024,
	HTTP_STREAM_BLOCK = 4096,
};

struct http {
	struct MHD_Daemon *daemon;
	struct http_app app;
	struct conns *conns;
	int64_t header_ms, body_ms, idle_ms;
	unsigned port;
	int quiet_fd;           /* the listening socket after http_quiesce(), -1 before */
	atomic_uint suspended;
};

static int64_t now_ms(void)
{
	return clock_system.mono_ms(clock_system.ctx);
}

/* --- requests --------------------------------------------------------------------- */

const char *http_header(const struct http_exchange *x, const char *name)
{
	return MHD_lookup_connection_value(x->mhd, MHD_HEADER_KIND, name);
}

const char *http_query(const struct http_exchange *x, const char *name)
{
	return MHD_lookup_connection_value(x->mhd, MHD_GET_ARGUMENT_KIND, name);
}

static enum MHD_Result add_size(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
	size_t *sum = cls;

	(void)kind;
	*sum += strlen(name) + (value ? strlen(value) : 0) + 4; /* ": " and the line's end */
	return MHD_YES;
}

size_t http_header_bytes(const struct http_exchange *x)
{
	size_t sum = 0;

	MHD_get_connection_values(x->mhd, MHD_HEADER_KIND, add_size, &sum);
	return sum;
}

struct query_visit { void (*visit)(void *ctx, const char *name); void *ctx; };

static enum MHD_Result visit_query(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
	const struct query_visit *v = cls;

	(void)kind;
	(void)value;
	v->visit(v->ctx, name);
	return MHD_YES;
}

void http_each_query(const struct http_exchange *x, void (*visit)(void *ctx, const char *name), void *ctx)
{
	struct query_visit v = { visit, ctx };

	MHD_get_connection_values(x->mhd, MHD_GET_ARGUMENT_KIND, visit_query, &v);
}

void *http_context(const struct http_exchange *x)
{
	return x->http->app.ctx;
}

static void read_framing(struct http_exchange *x)
{
	const char *length = http_header(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
	const char *expect = http_header(x, MHD_HTTP_HEADER_EXPECT);

	x->has_length = length != NULL;
	x->length = length ? strtoull(length, NULL, 10) : 0;
	x->has_body = x->length > 0 || http_header(x, MHD_HTTP_HEADER_TRANSFER_ENCODING);
	x->expect_continue = expect && strcasecmp(expect, "100-continue") == 0;
}

static struct http_exchange *exchange_new(struct http *h, struct MHD_Connection *c, const char *method,
					  const char *url)
{
	struct http_exchange *x = mem_alloc(1, sizeof(*x));

	if (!x)
		return NULL;
	x->http = h;
	x->mhd = c;
	x->method = method;
	x->path = url;
	x->reply.fd = -1;
	x->conn = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
	x->fd = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
	read_framing(x);
	return x;
}

static void on_completed(void *cls, struct MHD_Connection *c, void **con_cls,
			 enum MHD_RequestTerminationCode why)
{
	struct http *h = cls;
	struct http_exchange *x = *con_cls;

	(void)c;
	(void)why;
	if (!x)
		return;
	*con_cls = NULL;
	h->app.over(x);
	conn_deadline(h->conns, x->conn, now_ms() + h->idle_ms + h->header_ms);
	http_reply_deinit(&x->reply);
	mem_free(x);
}

/* --- replies ------------------------------------------------------------------------ */

void http_field(struct http_reply *r, const char *name, const char *fmt, ...)
{
	struct http_field *f = &r->fields[r->field_count];
	va_list args;

	if (r->field_count == HTTP_FIELDS_MAX)
		return;
	r->field_count++;
	f->name = name;
	va_start(args, fmt);
	vsnprintf(f->value, sizeof(f->value), fmt, args);
	va_end(args);
}

void http_reply_deinit(struct http_reply *r)
{
	if (r->kind == HTTP_BYTES)
		mem_free(r->bytes);
	if (r->kind == HTTP_FILE && r->fd >= 0)
		close(r->fd);
	*r = (struct http_reply){ .fd = -1 };
}

static ssize_t on_read(void *cls, uint64_t pos, char *out, size_t room)
{
	struct http_exchange *x = cls;
	ssize_t got = x->reply.read(x, out, room);

	(void)pos;
	return got < 0 ? MHD_CONTENT_READER_END_OF_STREAM : got;
}

/* Moves the reply's body into a response. */
static struct MHD_Response *make_response(struct http_exchange *x)
{
	struct http_reply *r = &x->reply;
	struct MHD_Response *response = NULL;

	switch (r->kind) {
	case HTTP_NO_BODY:
		return MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
	case HTTP_STATIC:
		return MHD_create_response_from_buffer(r->length, r->bytes, MHD_RESPMEM_PERSISTENT);
	case HTTP_BYTES:
		response = MHD_create_response_from_buffer(r->length, r->bytes, MHD_RESPMEM_MUST_FREE);
		break;
	case HTTP_FILE:
		if (r->length == 0) {
			close(r->fd);
			r->kind = HTTP_NO_BODY;
			return MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
		}
		response = MHD_create_response_from_fd_at_offset64(r->length, r->fd, r->offset);
		break;
	case HTTP_STREAM:
		return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, HTTP_STREAM_BLOCK, on_read, x,
							 NULL);
	}
	if (response)
		r->kind = HTTP_NO_BODY;
	return response;
}

static enum MHD_Result send_reply(struct http_exchange *x)
{
	struct http_reply *r = &x->reply;
	struct MHD_Response *response = make_response(x);
	enum MHD_Result queued;

	if (!response)
		return MHD_NO;
	if (r->type)
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, r->type);
	for (size_t i = 0; i < r->field_count; i++)
		MHD_add_response_header(response, r->fields[i].name, r->fields[i].value);
	if (r->close)
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
	queued = MHD_queue_response(x->mhd, (unsigned)r->status, response);
	MHD_destroy_response(response);
	return queued;
}

/* --- the life of a request ------------------------------------------------------------ */

static enum MHD_Result begin(struct http *h, struct http_exchange *x)
{
	int64_t body_ms;

	h->app.begin(x);
	body_ms = x->body_ms ? x->body_ms : h->body_ms;
	conn_deadline(h->conns, x->conn, x->has_body ? now_ms() + body_ms : 0);
	if (x->reply.status && x->has_body &&
	    (x->expect_continue || !x->has_length || x->length > HTTP_DROP_MAX)) {
		x->reply.close = true;
		return send_reply(x);
	}
	return MHD_YES;
}

static enum MHD_Result take_body(struct http *h, struct http_exchange *x, const char *bytes, size_t len)
{
	x->body_seen += len;
	if (x->reply.status == 0)
		h->app.body(x, bytes, len);
	else if (x->body_seen > HTTP_DROP_MAX)
		return MHD_NO;
	return MHD_YES;
}

static enum MHD_Result step(struct http *h, struct http_exchange *x)
{
	conn_deadline(h->conns, x->conn, 0);
	x->suspended = false;
	if (x->reply.status == 0)
		h->app.step(x);
	if (x->suspended) /* somebody else may own it by now; only this flag is ours to read */
		return MHD_YES;
	return x->reply.status ? send_reply(x) : MHD_NO;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url, const char *method,
				  const char *version, const char *bytes, size_t *len, void **con_cls)
{
	struct http *h = cls;
	struct http_exchange *x = *con_cls;
	size_t have = *len;

	(void)version;
	if (!x) {
		x = exchange_new(h, c, method, url);
		if (!x || !x->conn) {
			mem_free(x);
			return MHD_NO;
		}
		*con_cls = x;
		return begin(h, x);
	}
	if (have == 0)
		return step(h, x);
	*len = 0;
	return take_body(h, x, bytes, have);
}

static void on_connection(void *cls, struct MHD_Connection *c, void **socket_context,
			  enum MHD_ConnectionNotificationCode code)
{
	struct http *h = cls;

	if (code == MHD_CONNECTION_NOTIFY_STARTED) {
		int fd = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;

		*socket_context = conn_add(h->conns, fd, now_ms() + h->header_ms);
	} else if (*socket_context) {
		conn_remove(h->conns, *socket_context);
		*socket_context = NULL;
	}
}

void http_suspend(struct http_exchange *x)
{
	x->suspended = true;
	atomic_fetch_add(&x->http->suspended, 1);
	MHD_suspend_connection(x->mhd);
}

void http_resume(struct http_exchange *x)
{
	struct http *h = x->http;

	MHD_resume_connection(x->mhd);
	atomic_fetch_sub(&h->suspended, 1);
}

void http_peer_address(const struct http_exchange *x, unsigned char address[16])
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(x->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
	const struct sockaddr *any = info ? info->client_addr : NULL;

	memset(address, 0, 16);
	if (any && any->sa_family == AF_INET6) {
		memcpy(address, &((const struct sockaddr_in6 *)(const void *)any)->sin6_addr, 16);
	} else if (any && any->sa_family == AF_INET) {
		address[10] = address[11] = 0xff;
		memcpy(address + 12, &((const struct sockaddr_in *)(const void *)any)->sin_addr, 4);
	}
}

bool http_peer_gone(const struct http_exchange *x)
{
	struct pollfd p = { .fd = x->fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0;
}

/* --- starting and stopping --------------------------------------------------------------- */

static void on_log(void *cls, const char *fmt, va_list args)
{
	char text[512];

	(void)cls;
	vsnprintf(text, sizeof(text), fmt, args);
	text[strcspn(text, "\n")] = '\0';
	log_debug("http: %s", text);
}

static size_t keep_escapes(void *cls, struct MHD_Connection *c, char *text)
{
	(void)cls;
	(void)c;
	return strlen(text);
}

static struct MHD_Daemon *start_daemon(struct http *h, const struct http_config *config, int fd)
{
	const unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
	unsigned threads = config->threads;

	return MHD_start_daemon(flags, 0, NULL, NULL, on_request, h,
				MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
				MHD_OPTION_LISTEN_SOCKET, fd,
				MHD_OPTION_THREAD_POOL_SIZE, threads,
				MHD_OPTION_CONNECTION_LIMIT, config->connections,
				MHD_OPTION_PER_IP_CONNECTION_LIMIT, config->connections_per_ip,
				MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_POOL_BYTES,
				MHD_OPTION_CONNECTION_TIMEOUT, config->idle_s,
				MHD_OPTION_STRICT_FOR_CLIENT, 1,
				MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,
				MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
				MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
				MHD_OPTION_END);
}

struct http *http_start(const struct http_config *config, const struct http_app *app, struct err *err)
{
	struct http *h = mem_alloc(1, sizeof(*h));
	int fd = -1;

	if (!h || !(h->conns = conns_new())) {
		err_set_nomem(err, "the HTTP server");
		goto fail;
	}
	h->app = *app;
	h->quiet_fd = -1;
	h->header_ms = config->header_ms;
	h->body_ms = config->body_ms;
	h->idle_ms = (int64_t)config->idle_s * 1000;
	fd = listen_open(config->listen, &h->port, err);
	if (fd < 0)
		goto fail;
	h->daemon = start_daemon(h, config, fd);
	if (h->daemon)
		return h;
	err_set(err, ERR_INTERNAL, "libmicrohttpd could not start on %s", config->listen);
fail:
	if (fd >= 0)
		close(fd);
	if (h)
		conns_free(h->conns);
	mem_free(h);
	return NULL;
}

unsigned http_port(const struct http *h)
{
	return h->port;
}

unsigned http_suspended(struct http *h)
{
	return atomic_load(&h->suspended);
}

unsigned http_connections(const struct http_exchange *x)
{
	return conns_count(x->http->conns);
}

void http_tick(struct http *h)
{
	conns_cut(h->conns, now_ms());
}

void http_quiesce(struct http *h)
{
	h->quiet_fd = MHD_quiesce_daemon(h->daemon);
	if (h->quiet_fd >= 0)
		shutdown(h->quiet_fd, SHUT_RD); /* turns newcomers away; event threads may still hold it */
}

void http_stop(struct http *h)
{
	if (!h)
		return;
	MHD_stop_daemon(h->daemon);
	if (h->quiet_fd >= 0)
		close(h->quiet_fd);
	conns_free(h->conns);
	mem_free(h);
}
