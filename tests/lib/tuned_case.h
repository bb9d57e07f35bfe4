/* tuned_case.h - a random block, quantized module by module (min-max, nearest codes), opened for training.
 *
 * As forward_case.h: everything ends the test on failure.
 */
#ifndef QUARRY_TESTS_LIB_TUNED_CASE_H
#define QUARRY_TESTS_LIB_TUNED_CASE_H

#include "tests/lib/forward_case.h"
#include "worker/quant/tuned.h"

struct tuned_case {
	struct forward_case block;      /* shape, n_seq, seq_len, biases, head_norms set by the test */
	struct grid grid;               /* of every module; group 0 = a whole row */
	unsigned skip;                  /* bit i: module i keeps its weights */
	bool fixed_codes;
	struct tuned_plan plan;         /* from here on filled by tuned_case_init() */
	struct { const float *w; uint8_t *codes; float *scales, *zeros; size_t groups; } module[TUNED_MODULES];
	struct backend *be;
	float *state;
	struct tuned_sizes sizes;
	struct tuned_scratch scratch;
	struct tuned t;
};

void tuned_case_init(struct tuned_case *c, struct backend *be);
void tuned_case_deinit(struct tuned_case *c);
/* Resets the state and fills it again. */
void tuned_case_fill(struct tuned_case *c);
/* A small block with three heads over one of keys and values. */
struct tuned_case tuned_case_small(int bits, size_t group);

#endif
