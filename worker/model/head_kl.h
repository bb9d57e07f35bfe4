/* head_kl.h - what a model and its original say about the next token: loss and gradient at the last block's output.
 *
 * Loss per token = KL(reference || model) of the next-token distributions + weight times the mean over `hidden` of the
 * squared difference of the final-normalized hidden states. Every token of a sequence counts, also its last.
 * The reference's hidden states meet the source's output embedding, the model's the one that its checkpoint will have
 * (`bits`, table.h). What of them is needed is held as float32 when it is no larger than HEAD_KL_HELD_BYTES, otherwise
 * read tile by tile at each call; the digits are the same. Sequences go through the backend one by one, so they do not
 * depend on which others are in the call. Single-threaded.
 */
#ifndef QUARRY_WORKER_MODEL_HEAD_KL_H
#define QUARRY_WORKER_MODEL_HEAD_KL_H

#include <stdbool.h>
#include <stddef.h>

#include "common/checkpoint.h"
#include "worker/backend/backend.h"
#include "worker/model/table.h"

enum { HEAD_KL_HELD_BYTES = 1 << 30 };

struct head_kl {
	struct backend *be;
	struct checkpoint *ck;          /* borrowed */
	size_t hidden, vocab, seq_len, sequences;
	float *norm;                    /* (hidden) */
	struct head_rows table;         /* of the whole vocabulary when `held`, else of tile_rows */
	bool held;
	size_t tile_rows;
	float *x, *ref, *dx;            /* (sequences * seq_len, hidden) normalized; gradient */
	double *numbers;                /* of the states below and kl */
	struct head_state state, ref_state;
	double *kl;                     /* (sequences * seq_len) */
	int32_t *targets;               /* -1: none is asked for */
};

/* For calls of at most `sequences` sequences of seq_len tokens. held_bytes: HEAD_KL_HELD_BYTES. */
int head_kl_init(struct head_kl *h, struct backend *be, struct checkpoint *ck, int bits, size_t sequences, size_t seq_len,
		 size_t held_bytes, struct err *err);
void head_kl_deinit(struct head_kl *h);

/* Sums over the tokens of a call. */
struct head_loss { double kl, hidden; };

/* y, target (n * seq_len, hidden): the last block's outputs of model and reference, not normalized. *loss is set. dy
 * (same shape), NULL: not wanted: gradient of (kl + weight * hidden) / (n * seq_len) with respect to y. */
int head_kl_loss(struct head_kl *h, const float *y, const float *target, size_t n, double weight,
		 struct head_loss *loss, float *dy, struct err *err);

#endif
