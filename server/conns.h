/* conns.h - deadlines of connections: who has been talking for too long without saying anything whole.
 *
 * libmicrohttpd only knows a time-out between bytes, which a client that sends one byte now and
 * then never meets. A connection here has one absolute deadline, for its header block, then for its body;
 * conns_cut() shuts the socket of those past it down, and the event thread then sees the end.
 * Thread-safe. A connection's descriptor is valid between conn_add() and conn_remove().
 */
#ifndef QUARRY_SERVER_CONNS_H
#define QUARRY_SERVER_CONNS_H

#include <stdint.h>

struct conns;
struct http_conn;

struct conns *conns_new(void);
void conns_free(struct conns *c);
struct http_conn *conn_add(struct conns *c, int fd, int64_t deadline_ms);
void conn_remove(struct conns *c, struct http_conn *conn);
/* Monotonic milliseconds; 0 = none. */
void conn_deadline(struct conns *c, struct http_conn *conn, int64_t deadline_ms);
void conns_cut(struct conns *c, int64_t now_ms);
unsigned conns_count(struct conns *c);

#endif
