#include "common/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_uint_fast64_t alloc_count;
static atomic_uint_fast64_t alloc_fail_at;

__attribute__((constructor)) static void alloc_read_environment(void)
{
	const char *text = getenv("QUARRY_FAIL_ALLOC");

	if (text)
		mem_fail_after(strtoull(text, NULL, 10));
}

uint64_t mem_fail_after(uint64_t nth)
{
	uint64_t seen = atomic_load(&alloc_count);

	atomic_store(&alloc_fail_at, nth == 0 ? 0 : seen + nth);
	return seen;
}

static bool alloc_must_fail(void)
{
	uint64_t now = atomic_fetch_add(&alloc_count, 1) + 1;

	return now == atomic_load(&alloc_fail_at);
}

bool size_mul(size_t a, size_t b, size_t *out)
{
	return !__builtin_mul_overflow(a, b, out);
}

bool size_add(size_t a, size_t b, size_t *out)
{
	return !__builtin_add_overflow(a, b, out);
}

bool u64_mul(uint64_t a, uint64_t b, uint64_t *out)
{
	return !__builtin_mul_overflow(a, b, out);
}

bool u64_add(uint64_t a, uint64_t b, uint64_t *out)
{
	return !__builtin_add_overflow(a, b, out);
}

void *mem_alloc(size_t count, size_t size)
{
	size_t bytes;

	if (!size_mul(count, size, &bytes) || alloc_must_fail())
		return NULL;
	return calloc(1, bytes ? bytes : 1);
}

void *mem_alloc_aligned(size_t count, size_t size)
{
	size_t bytes;

	if (!size_mul(count, size, &bytes) || !size_add(bytes, 64, &bytes) || alloc_must_fail())
		return NULL;
	return aligned_alloc(64, bytes & ~(size_t)63);
}

void *mem_realloc(void *ptr, size_t count, size_t size)
{
	size_t bytes;

	if (!size_mul(count, size, &bytes) || alloc_must_fail())
		return NULL;
	return realloc(ptr, bytes ? bytes : 1);
}

char *mem_strndup(const char *text, size_t len)
{
	char *copy = mem_alloc(len + 1, 1);

	if (copy)
		memcpy(copy, text, len);
	return copy;
}

char *mem_strdup(const char *text)
{
	return mem_strndup(text, strlen(text));
}

void mem_free(void *ptr)
{
	free(ptr);
}
