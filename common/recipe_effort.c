/* recipe_effort.c - what an effort stands for: the one table of bundles.
 *
 * An effort sets defaults and nothing else: two recipes whose fields are equal give equal results, whichever
 * effort they name.
 */
#include "common/recipe.h"

static const struct bundle {
	int64_t refine;
	enum distill distill;
	int64_t distill_samples, block_epochs, epochs;
	bool train_codes;
} bundles[EFFORTS] = {
	[EFFORT_FAST]     = { 2, DISTILL_NONE, 0, 1, 3, true },
	[EFFORT_BALANCED] = { 2, DISTILL_FULL, 0, 1, 3, true },
	[EFFORT_BEST]     = { 4, DISTILL_FULL, 0, 2, 4, true },
};

void recipe_apply_effort(struct recipe *r, enum effort effort)
{
	const struct bundle *b = &bundles[effort];

	r->effort = effort;
	r->refine = b->refine;
	r->distill = b->distill;
	r->distill_samples = b->distill_samples;
	r->block_epochs = b->block_epochs;
	r->epochs = b->epochs;
	r->train_codes = b->train_codes;
}

bool recipe_distills_blocks(const struct recipe *r)
{
	return r->distill == DISTILL_BLOCK || r->distill == DISTILL_FULL;
}

bool recipe_distills_model(const struct recipe *r)
{
	return r->distill == DISTILL_END_TO_END || r->distill == DISTILL_FULL;
}

int64_t recipe_distill_sequences(const struct recipe *r)
{
	if (r->distill == DISTILL_NONE)
		return 0;
	return r->distill_samples > 0 ? r->distill_samples : r->samples;
}

int64_t recipe_sequences(const struct recipe *r)
{
	int64_t distilled = recipe_distill_sequences(r);

	return distilled > r->samples ? distilled : r->samples;
}
