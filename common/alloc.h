/* alloc.h - allocation with checked sizes, and the one place a test can make it fail.
 *
 * Memory from here is freed with mem_free() (or plain free()). Thread-safe.
 * When the environment variable QUARRY_FAIL_ALLOC=N is set, or after
 * mem_fail_after(N), the N-th allocation from then on (1-based) fails once.
 */
#ifndef QUARRY_COMMON_ALLOC_H
#define QUARRY_COMMON_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* count * size bytes, zeroed; NULL when out of memory or when the product overflows.
 * A zero-size request returns a unique pointer, never NULL. */
void *mem_alloc(size_t count, size_t size);
/* As mem_alloc() but not zeroed and 64-byte aligned, for numeric arrays. */
void *mem_alloc_aligned(size_t count, size_t size);
/* Resizes to count * size bytes (new bytes undefined); the old block stays valid on NULL. */
void *mem_realloc(void *ptr, size_t count, size_t size);
char *mem_strdup(const char *text);
char *mem_strndup(const char *text, size_t len);
void mem_free(void *ptr);

/* true and *out = a * b (or a + b), false when that overflows. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);
bool u64_mul(uint64_t a, uint64_t b, uint64_t *out);
bool u64_add(uint64_t a, uint64_t b, uint64_t *out);

/* Fault injection for tests: 0 switches it off. Returns allocations counted so far. */
uint64_t mem_fail_after(uint64_t nth);

#endif
