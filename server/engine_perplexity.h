/* engine_perplexity.h - what each evaluation text says of the models, from the results of its chunks. */
#ifndef QUARRY_SERVER_ENGINE_PERPLEXITY_H
#define QUARRY_SERVER_ENGINE_PERPLEXITY_H

#include "server/engine_internal.h"

/* [{"text","original"|null,"quantized"|null,"kl"|null,"top1"|null,"windows"|null}], each null until all chunks it
 * needs are done: perplexities; mean KL divergence (natural log) and share of predictions with the same likeliest
 * token, of the quantized model against the original. A job with a reference model has "reference" (its
 * perplexity), and kl and top1 hold the job's model against it. full: with "predictions" and the sums, for the
 * report. Chunks are summed in their order, so the digits do not depend on who was first. NULL with err set. */
struct json *perplexity_json(struct store *db, const struct job_ref *job, bool full, struct err *err);

#endif
