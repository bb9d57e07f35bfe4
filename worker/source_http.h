/* source_http.h - a checkpoint read by ranges from the coordinator: a struct source over HTTP.
 *
 * Blocking, for the compute thread. While the coordinator is away a read waits and tries again, until stop(ctx)
 * says to give up (ERR_CANCELLED). Small reads (headers, single rows) go through a cache of blocks, so that reading
 * them a few bytes at a time, by every task anew, costs one request per block; large ones go
 * straight into the caller's memory.
 */
#ifndef QUARRY_WORKER_SOURCE_HTTP_H
#define QUARRY_WORKER_SOURCE_HTTP_H

#include <stdbool.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/source.h"
#include "worker/client.h"

enum { SOURCE_HTTP_BLOCK_BYTES = 256 * 1024, SOURCE_HTTP_BLOCKS = 32 };

/* GET /v1/models/<id>/files/<name>. `model` is the lease's object (files are copied); config and clock are
 * borrowed for the source's life. */
struct source *source_http_open(const struct client_config *config, const struct clock *clock,
				const struct json *model, struct err *err);
/* Whom to ask whether to give up; set before each task. Only for sources from source_http_open(). */
void source_http_stop_with(struct source *s, bool (*stop)(void *ctx), void *ctx);

#endif
