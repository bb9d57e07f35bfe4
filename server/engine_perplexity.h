/* engine_perplexity.h - perplexity of each evaluation text from the results of its chunks. */
#ifndef QUARRY_SERVER_ENGINE_PERPLEXITY_H
#define QUARRY_SERVER_ENGINE_PERPLEXITY_H

#include "server/engine_internal.h"

/* [{"text","original"|null,"quantized"|null}], null until all chunks are done. full: with "windows", "predictions"
 * and the sums, for the report. Chunks are summed in their order, so the digits do not depend on who was
 * first. NULL with err set. */
struct json *perplexity_json(struct store *db, const struct job_ref *job, bool full, struct err *err);

#endif
