/* tested_backend.h - which backend the tests hold to ref.
 *
 * QUARRY_TEST_BACKEND in the environment names it, "cpu" when it is not set: on a machine with an accelerator the same
 * programs are run once more for the accelerator's backend. "sealed" is cpu behind sealed_backend.h, which finds code,
 * and tests, that would reach into the accelerator's memory. Everything ends the test on failure.
 */
#ifndef QUARRY_TESTS_LIB_TESTED_BACKEND_H
#define QUARRY_TESTS_LIB_TESTED_BACKEND_H

#include "worker/backend/backend.h"

const char *tested_backend(void);

/* As backend_find(), which does not know "sealed"; never NULL. */
const struct backend_ops *tested_find(const char *name);

/* ref and the tested one, for what every backend promises: i < TESTED_BOTH. */
enum { TESTED_BOTH = 2 };
const char *tested_name(int i);

/* The variants of its code that this machine can run: the instruction-set levels of cpu, of any other backend one. */
int tested_levels(void);
/* "v3", of cpu; "" of any other. */
const char *tested_level_name(int level);
/* Opens it at a level. */
struct backend *tested_open(int level, int threads);

/* Whether an operation of the backend may do without any allocation of common/alloc.h: it has memory of its own. */
bool tested_may_not_allocate(const struct backend *be);

#endif
