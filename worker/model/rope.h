/* rope.h - tables of the rotary position embedding.
 *
 * Frequencies as in transformers: theta^(-2i/head_dim), for "linear" divided by factor, for "llama3"
 * divided where the wavelength is longer than the original context allows, blended in between. All
 * in double, rounded once to float. The attention scaling factor of these three types is 1.
 */
#ifndef QUARRY_WORKER_MODEL_ROPE_H
#define QUARRY_WORKER_MODEL_ROPE_H

#include <stddef.h>

#include "common/model_config.h"
#include "worker/backend/backend.h"

struct rope {
	struct rope_table table;        /* borrows `data` */
	float *data;                    /* cos (seq_len, head_dim/2), then sin */
	size_t floats;                  /* in data */
};

/* Uses config's head_dim (even) and rope; seq_len >= 1. */
int rope_init(struct rope *rope, const struct model_config *config, size_t seq_len, struct err *err);
void rope_deinit(struct rope *rope);
size_t rope_bytes(const struct rope *rope); /* of `data` */

/* Angle per position of pair i, i < head_dim/2. */
double rope_frequency(const struct rope_config *config, size_t head_dim, size_t i);

#endif
