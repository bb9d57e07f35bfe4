/* model_rope.h - the rotary embedding's part of config.json, in its older and newer spelling. */
#ifndef QUARRY_COMMON_MODEL_ROPE_H
#define QUARRY_COMMON_MODEL_ROPE_H

#include "common/findings.h"
#include "common/json.h"
#include "common/model_config.h"

/* Fills *rope from "rope_parameters" (newer), or "rope_scaling" and "rope_theta" (older). */
void model_rope_read(struct findings *f, struct rope_config *rope, const struct json *config);

#endif
