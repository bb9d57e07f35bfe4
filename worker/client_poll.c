/* curl's multi interface driven by the event loop: curl says which sockets and which time-out to
 * watch, uv tells when they are due. */
#include <uv.h>

#include "common/alloc.h"
#include "worker/client_curl.h"

/* One socket that curl wants watched. */
struct watch {
	uv_poll_t uv;
	struct client *client;
	curl_socket_t fd;
	struct watch *next;     /* while it is a spare */
};

/* A call may try two addresses at a time, and again on a fresh connection. */
enum { SPARES = 4 };

/* --- sockets and time-outs --------------------------------------------------------------------------------- */

static void socket_ready(uv_poll_t *poll, int status, int events)
{
	struct watch *watch = poll->data;
	struct client *client = watch->client;
	int flags = 0, running;

	if (status < 0)
		flags = CURL_CSELECT_ERR;
	if (events & UV_READABLE)
		flags |= CURL_CSELECT_IN;
	if (events & UV_WRITABLE)
		flags |= CURL_CSELECT_OUT;
	curl_multi_socket_action(client->multi, watch->fd, flags, &running);
	client_collect(client);
}

static void watch_closed(uv_handle_t *handle)
{
	mem_free(handle->data);
}

int client_reserve(struct client *client)
{
	while (client->spare_count < SPARES) {
		struct watch *spare = mem_alloc(1, sizeof(*spare));

		if (!spare)
			return -1;
		spare->next = client->spares;
		client->spares = spare;
		client->spare_count++;
	}
	return 0;
}

static struct watch *take_spare(struct client *client)
{
	struct watch *spare = client->spares;

	if (!spare)
		return mem_alloc(1, sizeof(*spare));
	client->spares = spare->next;
	client->spare_count--;
	return spare;
}

static struct watch *watch_new(struct client *client, curl_socket_t fd)
{
	struct watch *watch = take_spare(client);

	if (!watch)
		return NULL;
	watch->client = client;
	watch->fd = fd;
	if (uv_poll_init_socket(loop_uv(client->loop), &watch->uv, fd) != 0) {
		mem_free(watch);
		return NULL;
	}
	watch->uv.data = watch;
	curl_multi_assign(client->multi, fd, watch);
	return watch;
}

static int watch_socket(CURL *easy, curl_socket_t fd, int what, void *ctx, void *socket_ctx)
{
	struct client *client = ctx;
	struct watch *watch = socket_ctx;
	int events = (what & CURL_POLL_IN ? UV_READABLE : 0) | (what & CURL_POLL_OUT ? UV_WRITABLE : 0);

	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		if (watch) {
			uv_poll_stop(&watch->uv);
			uv_close((uv_handle_t *)&watch->uv, watch_closed);
			curl_multi_assign(client->multi, fd, NULL);
		}
		return 0;
	}
	if (!watch)
		watch = watch_new(client, fd);
	return watch && uv_poll_start(&watch->uv, events, socket_ready) == 0 ? 0 : -1;
}

static void time_out(void *ctx)
{
	struct client *client = ctx;
	int running;

	curl_multi_socket_action(client->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	client_collect(client);
}

static int set_time_out(CURLM *multi, long ms, void *ctx)
{
	struct client *client = ctx;

	(void)multi;
	if (ms < 0)
		loop_timer_stop(client->timer);
	else
		loop_timer_start(client->timer, ms);
	return 0;
}

/* --- life ------------------------------------------------------------------------------------------------ */

struct client *client_open(struct loop *loop, const struct client_config *config, struct err *err)
{
	struct client *client = mem_alloc(1, sizeof(*client));

	if (!client)
		goto nomem;
	client->loop = loop;
	client->config = config;
	client->timer = loop_timer_new(loop, time_out, client);
	client->multi = curl_multi_init();
	if (!client->timer || !client->multi)
		goto nomem;
	curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
	curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
	curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, set_time_out);
	curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
	curl_multi_setopt(client->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, 16L);
	return client;
nomem:
	if (client && client->multi)
		curl_multi_cleanup(client->multi);
	if (client)
		loop_timer_free(client->timer);
	mem_free(client);
	err_set_nomem(err, "the HTTP client");
	return NULL;
}

void client_close(struct client *client)
{
	if (!client)
		return;
	while (client->calls)
		client_cancel(client->calls);
	curl_multi_cleanup(client->multi);
	while (client->spares)
		mem_free(take_spare(client));
	loop_timer_free(client->timer);
	mem_free(client);
}
