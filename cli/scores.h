/* scores.h - what a job reports of quality, as short phrases for people. Each function writes its phrase to `out` and
 * returns true, or returns false when the job does not (yet) tell it. */
#ifndef QUARRY_CLI_SCORES_H
#define QUARRY_CLI_SCORES_H

#include <stdbool.h>

#include "common/json.h"

enum { SCORE_MAX = 160 };

/* An entry of "perplexity": "KL divergence 0.2311, top-1 agreement 81.30 %". */
bool score_comparison(const struct json *text, char out[SCORE_MAX]);
/* A job: "12 blocks, relative loss 0.0512 -> 0.0312 on average". */
bool score_blocks(const struct json *job, char out[SCORE_MAX]);
/* A job: "end to end, KL divergence 0.2311 -> 0.1423 on calibration text". */
bool score_end_to_end(const struct json *job, char out[SCORE_MAX]);
/* A report: "3.21 % of the output energy after rounding, 2.85 % after refinement". */
bool score_steps(const struct json *report, char out[SCORE_MAX]);

#endif
