/* The memory operations: what backend.h promises of every backend. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"

static void *must_take(struct backend *be, size_t bytes)
{
	struct err err = ERR_INIT;
	void *memory = be->ops->memory_take(be, bytes, "a test", &err);

	if (!memory)
		fail_msg("%s: %s", be->ops->name, err.text);
	assert_int_equal((uintptr_t)memory % 64, 0);
	return memory;
}

static void must_copy(struct backend *be, void *to, const void *from, size_t bytes)
{
	struct err err = ERR_INIT;

	if (be->ops->memory_copy(be, to, from, bytes, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
}

/* In, across and out again, whole and in part; one byte beside what is copied stays as it was. */
static void copy_around(struct backend *be, size_t bytes)
{
	char *from = malloc(bytes + 1), *back = malloc(bytes + 1);
	char *a = must_take(be, bytes + 1), *b = must_take(be, bytes + 1);

	assert_true(from && back);
	for (size_t i = 0; i <= bytes; i++)
		from[i] = (char)(i * 37 + i / 251 + 1);
	memset(back, 0, bytes + 1);
	must_copy(be, a, from, bytes + 1);
	must_copy(be, b, back, bytes + 1);
	must_copy(be, b, a, bytes);
	must_copy(be, back, b, bytes + 1);
	assert_memory_equal(back, from, bytes);
	assert_int_equal(back[bytes], 0);
	must_copy(be, b + bytes / 2, from, bytes - bytes / 2);
	must_copy(be, back, b, bytes);
	assert_memory_equal(back, from, bytes / 2);
	assert_memory_equal(back + bytes / 2, from, bytes - bytes / 2);
	memset(back, 0, bytes + 1);
	must_copy(be, back, from, bytes);
	assert_memory_equal(back, from, bytes);
	be->ops->memory_give(be, a);
	be->ops->memory_give(be, b);
	free(from);
	free(back);
}

static void test_copies(void **state)
{
	static const size_t bytes[] = { 0, 1, 63, 64, 65, 4096, 1000003, (48 << 20) + 5 };

	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		struct backend *be = case_open(tested_name(i), 2);

		for (size_t k = 0; k < sizeof(bytes) / sizeof(bytes[0]); k++)
			copy_around(be, bytes[k]);
		must_copy(be, NULL, NULL, 0);
		be->ops->memory_give(be, NULL);
		case_close(be);
	}
}

/* Many at once stay apart; what was given back can be taken again. */
static void test_pieces(void **state)
{
	enum { PIECES = 50 };

	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		struct backend *be = case_open(tested_name(i), 2);

		for (int round = 0; round < 3; round++) {
			int32_t *piece[PIECES], value;

			for (int32_t k = 0; k < PIECES; k++) {
				piece[k] = must_take(be, sizeof(k));
				must_copy(be, piece[k], &k, sizeof(k));
			}
			for (int32_t k = 0; k < PIECES; k++) {
				must_copy(be, &value, piece[k], sizeof(value));
				assert_int_equal(value, k);
				be->ops->memory_give(be, piece[k]);
			}
		}
		case_close(be);
	}
}

static void test_too_much(void **state)
{
	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		struct backend *be = case_open(tested_name(i), 1);
		const size_t bytes = be->ops->own_memory ? (size_t)1 << 45 : SIZE_MAX - 32;
		struct err err = ERR_INIT;

		assert_null(be->ops->memory_take(be, bytes, "the weights of one block", &err));
		assert_int_equal(err.code, ERR_NOMEM);
		if (!strstr(err.text, "the weights of one block"))
			fail_msg("%s: \"%s\" does not say what for", be->ops->name, err.text);
		be->ops->memory_give(be, must_take(be, 1000));
		case_close(be);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copies),
		cmocka_unit_test(test_pieces),
		cmocka_unit_test(test_too_much),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
