#include "server/conns.h"

#include <pthread.h>
#include <sys/socket.h>

#include "common/alloc.h"

struct http_conn {
	int fd;
	int64_t deadline_ms;
	struct http_conn *prev, *next;
};

struct conns {
	pthread_mutex_t lock;
	struct http_conn *first;
	unsigned count;
};

struct conns *conns_new(void)
{
	struct conns *c = mem_alloc(1, sizeof(*c));

	if (c)
		pthread_mutex_init(&c->lock, NULL);
	return c;
}

void conns_free(struct conns *c)
{
	if (!c)
		return;
	pthread_mutex_destroy(&c->lock);
	mem_free(c);
}

struct http_conn *conn_add(struct conns *c, int fd, int64_t deadline_ms)
{
	struct http_conn *conn = mem_alloc(1, sizeof(*conn));

	if (!conn)
		return NULL;
	conn->fd = fd;
	conn->deadline_ms = deadline_ms;
	pthread_mutex_lock(&c->lock);
	conn->next = c->first;
	if (c->first)
		c->first->prev = conn;
	c->first = conn;
	c->count++;
	pthread_mutex_unlock(&c->lock);
	return conn;
}

void conn_remove(struct conns *c, struct http_conn *conn)
{
	pthread_mutex_lock(&c->lock);
	if (conn->prev)
		conn->prev->next = conn->next;
	else
		c->first = conn->next;
	if (conn->next)
		conn->next->prev = conn->prev;
	c->count--;
	pthread_mutex_unlock(&c->lock);
	mem_free(conn);
}

void conn_deadline(struct conns *c, struct http_conn *conn, int64_t deadline_ms)
{
	pthread_mutex_lock(&c->lock);
	conn->deadline_ms = deadline_ms;
	pthread_mutex_unlock(&c->lock);
}

void conns_cut(struct conns *c, int64_t now_ms)
{
	pthread_mutex_lock(&c->lock);
	for (struct http_conn *conn = c->first; conn; conn = conn->next)
		if (conn->deadline_ms && now_ms >= conn->deadline_ms) {
			shutdown(conn->fd, SHUT_RDWR);
			conn->deadline_ms = 0;
		}
	pthread_mutex_unlock(&c->lock);
}

unsigned conns_count(struct conns *c)
{
	unsigned count;

	pthread_mutex_lock(&c->lock);
	count = c->count;
	pthread_mutex_unlock(&c->lock);
	return count;
}
