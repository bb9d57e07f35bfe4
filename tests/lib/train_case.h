/* train_case.h - random blocks with a loss, poisoned gradients and comparisons for tests of training.
 *
 * The loss of a call is sum of a y + b y^2 / 2 over its outputs, a and b fixed random. As forward_case.h:
 * everything ends the test on failure.
 */
#ifndef QUARRY_TESTS_LIB_TRAIN_CASE_H
#define QUARRY_TESTS_LIB_TRAIN_CASE_H

#include "common/model_config.h"
#include "tests/lib/forward_case.h"
#include "worker/backend/ref/block.h"
#include "worker/model/rope.h"

struct train_case {
	struct forward_case block;      /* name, shape, n_seq, seq_len, biases, head_norms set by the test */
	bool llama3_rope;               /* else the table of forward_case.h */
	float *a, *b;                   /* from here on filled by train_case_init(): (rows, hidden) */
	struct rope rope;
};

void train_case_init(struct train_case *c);
void train_case_deinit(struct train_case *c);
/* Elements of the block's input and output: rows * hidden. */
size_t train_case_len(const struct train_case *c);
/* Whether the block has such a tensor. */
bool train_case_has(const struct train_case *c, enum ref_param which);

/* A block_loss over a case: begin with { .c = c, .be = the backend that calls it }. */
struct train_loss {
	const struct train_case *c;
	struct backend *be;
	double total;           /* summed over the call's sequences */
	float *y, *dy;          /* (rows, hidden), NULL: not wanted: what the loss read and wrote */
	size_t calls;           /* so far; the sequence each must be for */
	size_t stop_at;         /* returns 1 in the stop_at-th call; 0: never */
};
int train_loss_call(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy);

/* What block_backward gave. */
struct train_result { float *dx; struct block_grads grads; struct train_loss loss; };

/* Member `which`, to point it elsewhere. */
float **train_grad_member(struct block_grads *grads, enum ref_param which);
/* A poisoned array for every gradient that the block has; the others NULL. */
void train_grads_init(struct block_grads *grads, const struct train_case *c);
void train_grads_deinit(struct block_grads *grads);

/* Every gradient, into poisoned arrays. */
struct train_result train_case_run(const struct train_case *c, struct backend *be);
void train_result_deinit(struct train_result *r);

/* |got - want| <= bound * max|want| for dx and each gradient (a tensor of zeros: exactly). */
void train_assert_close(const struct train_case *c, const struct train_result *got,
			const struct train_result *want, double bound);
void train_assert_same_bytes(const struct train_case *c, const struct train_result *got,
			     const struct train_result *want);

/* ||got - want|| / ||want||; 0 when both are zero everywhere, infinity when only `want` is or one is NaN. */
double train_distance(const double *got, const double *want, size_t n);
double train_distance_float(const float *got, const double *want, size_t n);

#endif
