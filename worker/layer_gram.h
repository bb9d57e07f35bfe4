/* layer_gram.h - H = mean of x x^T at the four input sites of a block, over all calibration shards.
 *
 * Shards are taken in order and each in pieces of whole sequences, so the sums do not depend on
 * who computed the shards or how many threads there are.
 */
#ifndef QUARRY_WORKER_LAYER_GRAM_H
#define QUARRY_WORKER_LAYER_GRAM_H

#include "worker/forward.h"

struct layer_gram {
	double *h[SITE_COUNT];          /* (cols, cols); NULL for a site nobody asked for */
	size_t cols[SITE_COUNT];
	uint64_t rows[SITE_COUNT];      /* tokens seen */
};

void layer_gram_deinit(struct layer_gram *g);
/* Drops one site's matrix early. */
void layer_gram_drop(struct layer_gram *g, enum block_site site);
/* Reads inputs "hidden-0" ... and accumulates the sites for which wanted[site]; progress goes from 0 to `share`.
 * f must be loaded. */
int layer_gram_collect(struct layer_gram *g, struct layer_forward *f, const bool wanted[SITE_COUNT],
		       struct task_env *env, double share, struct err *err);

#endif
