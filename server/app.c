#include "server/app.h"

#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "server/http.h"
#include "server/offload.h"
#include "server/park.h"
#include "server/rate.h"
#include "server/request.h"

enum {
	APP_THREADS = 4, APP_HELPERS_LEAST = 2, APP_HELPER_QUEUE = 256,
	APP_IDLE_S = 75, APP_BODY_MS = 60 * 1000, APP_LINGER_MS = 2000,
};

static int64_t now_ms(void)
{
	return clock_system.mono_ms(clock_system.ctx);
}

/* Uploads are verified as fast as workers can make them: half of the processors, if need be. */
static unsigned helpers(void)
{
	const long half = sysconf(_SC_NPROCESSORS_ONLN) / 2;

	return half < APP_HELPERS_LEAST ? APP_HELPERS_LEAST : half < OFFLOAD_THREADS_MAX ? (unsigned)half : OFFLOAD_THREADS_MAX;
}

/* From the engine's writer thread. */
static void on_change(void *ctx, char kind, const char *id)
{
	struct app *a = ctx;

	if (kind == 'L')
		park_changed(a->park, PARK_LEASE, "");
	else if (kind == 'J')
		park_changed(a->park, PARK_JOB, id);
}

int app_start(struct app *a, const struct app_config *config, struct engine *engine, struct blobs *blobs,
	      struct err *err)
{
	const struct http_config http = {
		.listen = config->listen, .threads = APP_THREADS, .connections = config->connections,
		.connections_per_ip = config->connections_per_ip, .header_ms = config->header_ms,
		.body_ms = APP_BODY_MS, .idle_s = APP_IDLE_S,
	};
	struct http_app handlers = request_app;

	a->engine = engine;
	a->blobs = blobs;
	handlers.ctx = a;
	a->park = park_new();
	if (!a->park)
		return err_set_nomem(err, "the list of waiting requests");
	a->rate = rate_new(config->requests_per_second);
	if (!a->rate)
		return err_set_nomem(err, "the table of request rates");
	a->offload = offload_new(helpers(), APP_HELPER_QUEUE, err);
	if (!a->offload)
		return -1;
	engine_on_change(engine, on_change, a);
	a->http = http_start(&http, &handlers, err);
	return a->http ? 0 : -1;
}

void app_tick(struct app *a)
{
	http_tick(a->http);
	park_tick(a->park, now_ms(), true);
}

static void pause_ms(long ms)
{
	const struct timespec t = { .tv_nsec = ms * 1000000 };

	nanosleep(&t, NULL);
}

static void finish_requests(struct app *a)
{
	int64_t linger_until;

	http_quiesce(a->http);
	atomic_store(&a->stopping, true);
	park_close(a->park);
	/* An event thread inside request_post() has counted itself before it looked at `stopping`. */
	while (atomic_load(&a->posting) > 0 || http_suspended(a->http) > 0)
		pause_ms(5);
	linger_until = now_ms() + APP_LINGER_MS;
	while (atomic_load(&a->requests) > 0 && now_ms() < linger_until)
		pause_ms(5);
}

void app_stop(struct app *a)
{
	if (a->http) {
		finish_requests(a);
		http_stop(a->http);
	}
	offload_free(a->offload);
	a->http = NULL;
	a->offload = NULL;
}

void app_free(struct app *a)
{
	park_free(a->park);
	rate_free(a->rate);
	a->park = NULL;
}
