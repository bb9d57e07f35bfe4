/* app.h - what all requests share. Owned by main.c; set up before http_start(). */
#ifndef QUARRY_SERVER_APP_H
#define QUARRY_SERVER_APP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

enum {
	APP_JSON_MAX = 1024 * 1024,
	APP_BODY_BUDGET = 16 * 1024 * 1024,     /* JSON bodies in memory at one time, all requests */
	APP_WAIT_MAX_S = 60,
};

struct app {
	struct engine *engine;
	struct blobs *blobs;
	struct park *park;
	struct offload *offload;
	struct http *http;              /* the main thread's: event threads run before it is set */
	struct rate *rate;
	atomic_bool stopping;           /* set once: nothing may suspend any more */
	atomic_uint posting;            /* event threads inside request_post() and the like */
	atomic_uint requests;           /* exchanges alive */
	atomic_uint_fast64_t body_reserved;
	atomic_uint_fast64_t replies[6];        /* by hundreds of their status */
};

struct app_config {
	const char *listen;
	int64_t header_ms;
	unsigned connections, connections_per_ip, requests_per_second;
};

/* Parks, helpers and HTTP on top of an engine and a blob store, which stay the caller's. */
int app_start(struct app *a, const struct app_config *config, struct engine *engine, struct blobs *blobs,
	      struct err *err);
/* Deadlines and clients that hung up; a few times a second. */
void app_tick(struct app *a);
/* Answers what waits, finishes what runs, closes. Also after a failed app_start(). */
void app_stop(struct app *a);
/* The rest, after engine_close(): the engine reports changes until then. */
void app_free(struct app *a);

#endif
