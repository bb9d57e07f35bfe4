/* engine_distill.h - what distillation reported: block by block inside the quantize tasks, and end to end. */
#ifndef QUARRY_SERVER_ENGINE_DISTILL_H
#define QUARRY_SERVER_ENGINE_DISTILL_H

#include "server/engine_internal.h"

/* Checks the member "distill" of a quantize result (absent or null: nothing was distilled) and the result of a
 * distill task: finite losses, curves of a bounded length. ERR_INVALID. */
int distill_check_block(const struct json *result, struct err *err);
int distill_check_end(const struct json *result, struct err *err);

/* What a view holds of each: the losses before and after, the curve, and where the last lease took it up. */
enum { DISTILL_LOSSES = 1, DISTILL_CURVE = 2, DISTILL_RUN = 4 };

/* [{"layer",…}] of the layers that were distilled, in order; NULL with err set. */
struct json *distill_layers_json(struct store *db, const struct job_ref *job, int parts, struct err *err);
/* The end-to-end result; JSON null when there is none (yet). NULL with err set. */
struct json *distill_end_json(struct store *db, const struct job_ref *job, int parts, struct err *err);

#endif
