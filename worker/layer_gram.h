/* layer_gram.h - one pass of the calibration sequences through a block: H = mean of x x^T at its four input
 * sites, and, where asked for, the block's output.
 *
 * Sequences are taken in order and in pieces that depend on the shards alone, so the sums do not depend on
 * who computed the shards or how many threads there are.
 */
#ifndef QUARRY_WORKER_LAYER_GRAM_H
#define QUARRY_WORKER_LAYER_GRAM_H

#include "worker/forward.h"
#include "worker/hidden_shards.h"

struct layer_gram {
	struct backend *backend;
	double *h[SITE_COUNT];          /* (cols, cols), memory of the backend; NULL for a site nobody asked for */
	double *diagonal[SITE_COUNT];   /* (cols) what stands on its diagonal, in ordinary memory */
	size_t cols[SITE_COUNT];
	uint64_t rows[SITE_COUNT];      /* tokens seen */
};

/* What one pass is for. */
struct layer_pass {
	bool wanted[SITE_COUNT];        /* sites whose H is asked for */
	size_t samples;                 /* H is made of the first so many sequences; 0 = all */
	size_t outputs;                 /* the first so many go through the whole block and to output() */
	/* x, y (count, seq_len, hidden), input and output of sequences [first, first + count), in memory of the backend; may
	 * be NULL when outputs is 0. */
	int (*output)(void *ctx, size_t first, size_t count, const float *x, const float *y, struct err *err);
	void *ctx;
	double share;                   /* progress goes from 0 to this */
};

void layer_gram_deinit(struct layer_gram *g);
/* Drops one site's matrix early. */
void layer_gram_drop(struct layer_gram *g, enum block_site site);
/* f must be loaded. Give *g back with layer_gram_deinit() whatever comes out. */
int layer_gram_collect(struct layer_gram *g, struct layer_forward *f, struct hidden_shards *shards,
		       const struct layer_pass *pass, struct err *err);

#endif
