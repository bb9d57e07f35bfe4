/* head.h - from the last block's output to the loss of each prediction.
 *
 * Applies the final norm, then streams the output embedding (lm_head, or the input embedding when
 * tied) through the backend in tiles of at most HEAD_TILE_BYTES: the logits of a whole vocabulary
 * never exist. Each call reads the whole output embedding (head_compare() twice), so pass many rows
 * at once. `bits`: those in which the output embedding of the model is stored (table.h).
 */
#ifndef QUARRY_WORKER_MODEL_HEAD_H
#define QUARRY_WORKER_MODEL_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/checkpoint.h"
#include "common/digest.h"
#include "worker/backend/backend.h"

enum { HEAD_TILE_BYTES = 8 << 20 };

/* hidden (rows, hidden): the last block's output, not normalized. targets (rows): the id that each row
 * should predict, or -1 for none. nll_out (rows): -log p(target), 0 where there is no target.
 * top_id (rows): the likeliest id, or NULL. */
int head_nll(struct backend *be, struct checkpoint *ck, int bits, const float *hidden, const int32_t *targets,
	     size_t rows, double *nll_out, int32_t *top_id, struct err *err);

/* A model against a reference whose head is the same, in the source's values. hidden, reference (rows, hidden): the
 * last blocks' outputs, not normalized; BOTH ARE NORMALIZED IN PLACE, so that memory beyond them is one tile (two when
 * bits are not 16) and 72 bytes a row. targets as in head_nll(). Per row, 0 or false where there is no target:
 * nll_out = -log p(target) of the model; kl_out = KL(reference || model) of the next-token
 * distribution, at least 0 (rounding below it is cut off); same_top_out = the likeliest ids agree. */
int head_compare(struct backend *be, struct checkpoint *ck, int bits, float *hidden, float *reference,
		 const int32_t *targets, size_t rows, double *nll_out, double *kl_out,
		 bool *same_top_out, struct err *err);

/* SHA-256 over the norm's epsilon, the final norm and the source's output embedding (as float32): equal for models
 * that turn the same hidden states into the same logits, in whatever dtype and files they are stored. */
int head_digest(struct checkpoint *ck, char hex[DIGEST_HEX], struct err *err);

/* out (rows, hidden) = final norm of hidden; out may be hidden. */
int head_final_norm(struct backend *be, struct checkpoint *ck, const float *hidden, size_t rows,
		    float *out, struct err *err);

#endif
