/* forward_case.h - random inputs, poisoned outputs and comparisons for tests of compute backends.
 *
 * Everything ends the test on failure (cmocka), so nothing here returns an error.
 */
#ifndef QUARRY_TESTS_LIB_FORWARD_CASE_H
#define QUARRY_TESTS_LIB_FORWARD_CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/backend/backend.h"

/* Uniform in [-scale, scale], the same sequence for the same seed. */
float *case_random(size_t n, float scale, uint64_t seed);
int32_t *case_random_ids(size_t n, int32_t vocab, uint64_t seed);
/* n floats, each a NaN. */
float *case_poisoned(size_t n);
void *case_copy(const void *bytes, size_t len);

/* An open backend; ends the test when that fails. */
struct backend *case_open(const char *name, int threads);
void case_close(struct backend *be);

/* n floats of memory of the backend as ordinary memory, and the other way. */
float *case_fetch(struct backend *be, const float *from, size_t n);
void case_hand(struct backend *be, float *to, const float *from, size_t n);

/* |got - want| <= bound for every element; says where and what otherwise. NaN fails. */
void case_assert_close(const char *what, const float *got, const float *want, size_t n, double bound);
double case_max_abs(const float *x, size_t n);

/* One random block with its input. */
struct forward_case {
	const char *name;
	struct block_shape shape;
	size_t n_seq, seq_len;
	bool biases, head_norms;
	struct block_weights w;         /* from here on filled by forward_case_init() */
	struct rope_table rope;
	float *x;
	float *owned[24]; size_t owned_count;
};

void forward_case_init(struct forward_case *c);
void forward_case_deinit(struct forward_case *c);
size_t forward_case_rows(const struct forward_case *c);

/* What a forward pass gave: y and the rows of the four sites. */
struct forward_result { float *y, *site[4]; size_t y_len, site_len[4]; int sites; };

/* Runs the block into poisoned arrays; with_y false passes y = NULL, with_taps false no tap. */
struct forward_result forward_case_run(const struct forward_case *c, struct backend *be, bool with_y,
				       bool with_taps);
void forward_result_deinit(struct forward_result *r);

#endif
