/* head.h - from the last block's output to the loss of each prediction.
 *
 * Applies the final norm, then streams the output embedding (lm_head, or the input embedding when
 * tied) through the backend in tiles of at most HEAD_TILE_BYTES: the logits of a whole vocabulary
 * never exist. Each call reads the whole output embedding, so pass many rows at once.
 */
#ifndef QUARRY_WORKER_MODEL_HEAD_H
#define QUARRY_WORKER_MODEL_HEAD_H

#include <stddef.h>
#include <stdint.h>

#include "common/checkpoint.h"
#include "worker/backend/backend.h"

enum { HEAD_TILE_BYTES = 8 << 20 };

/* hidden (rows, hidden): the last block's output, not normalized. targets (rows): the id that each row
 * should predict, or -1 for none. nll_out (rows): -log p(target), 0 where there is no target.
 * top_id (rows): the likeliest id, or NULL. */
int head_nll(struct backend *be, struct checkpoint *ck, const float *hidden, const int32_t *targets,
	     size_t rows, double *nll_out, int32_t *top_id, struct err *err);

/* out (rows, hidden) = final norm of hidden; out may be hidden. */
int head_final_norm(struct backend *be, struct checkpoint *ck, const float *hidden, size_t rows,
		    float *out, struct err *err);

#endif
