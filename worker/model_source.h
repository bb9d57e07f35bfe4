/* model_source.h - chooses how this worker reads a job's checkpoint, and keeps the choice.
 *
 * When the folder named in the lease is readable here and every file listed has the size and the header digest
 * that the coordinator saw, it is read directly; otherwise by ranges over HTTP. The comparison is made once
 * per model id and process. Compute thread only.
 */
#ifndef QUARRY_WORKER_MODEL_SOURCE_H
#define QUARRY_WORKER_MODEL_SOURCE_H

#include <stdbool.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/source.h"
#include "worker/client.h"

struct model_source;

/* allow_path = false: always HTTP. NULL when out of memory. */
struct model_source *model_source_new(const struct client_config *config, const struct clock *clock,
				      bool allow_path);
void model_source_free(struct model_source *m);

/* The source for the lease's `model` object; it stays open until another model is asked for and
 * belongs to `m`. stop(ctx): see source_http.h. */
struct source *model_source_get(struct model_source *m, const struct json *model,
				bool (*stop)(void *ctx), void *ctx, struct err *err);

/* Are the files in `folder` those of `files` (the lease's list)? *why says what differs. */
bool model_source_matches(const char *folder, const struct json *files, struct err *why);

#endif
