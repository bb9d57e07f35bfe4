/* chain_case.h - every compute task once, on the sample model with one backend: what they give, as text to compare.
 *
 * tokenize, embed, quantize (fitted and rounded in several ways, with and without block distillation), capture,
 * evaluate of the original and of the quantized model, end-to-end distillation. Everything ends the test on failure.
 */
#ifndef QUARRY_TESTS_LIB_CHAIN_CASE_H
#define QUARRY_TESTS_LIB_CHAIN_CASE_H

#include "worker/backend/backend.h"

/* Runs it in folder `dir`, which is made. The text names every task with its result, every output with its digest; free
 * with free(). */
char *chain_case_run(struct backend *be, const char *dir);

#endif
