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

static void must_begin(struct backend *be, void *to, const void *from, size_t bytes)
{
	struct err err = ERR_INIT;

	if (be->ops->memory_begin(be, to, from, bytes, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
}

static void must_wait(struct backend *be)
{
	struct err err = ERR_INIT;

	if (be->ops->memory_wait(be, &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
}

static char *must_take_buffer(struct backend *be, size_t bytes)
{
	struct err err = ERR_INIT;
	char *buffer = be->ops->buffer_take(be, bytes, "a test", &err);

	if (!buffer)
		fail_msg("%s: %s", be->ops->name, err.text);
	assert_int_equal((uintptr_t)buffer % 64, 0);
	return buffer;
}

/* While the device adds up, one array comes in and another goes out; each in two parts. */
static void copy_beside(struct backend *be, const float *ones, size_t rows, size_t cols)
{
	const size_t floats = rows * cols, bytes = floats * sizeof(float), part = bytes / 3;
	char *in = must_take_buffer(be, bytes), *out = must_take_buffer(be, bytes);
	char *a = must_take(be, bytes), *b = must_take(be, bytes);
	double *h = calloc(cols * cols, sizeof(*h));
	float *x = case_random(floats, 1, floats), *y = case_random(floats, 1, floats + 1);

	assert_non_null(h);
	memcpy(in, x, bytes);
	must_copy(be, b, y, bytes);
	must_begin(be, a, in, part);
	must_begin(be, a + part, in + part, bytes - part);
	must_begin(be, out, b, part);
	must_begin(be, out + part, b + part, bytes - part);
	must_begin(be, NULL, NULL, 0);
	assert_int_equal(be->ops->gram_add(be, ones, rows, cols, h, NULL), 0);
	must_wait(be);
	must_wait(be);
	assert_memory_equal(out, y, bytes);
	memset(in, 0, bytes);
	must_copy(be, in, a, bytes);
	assert_memory_equal(in, x, bytes);
	for (size_t i = 0; i < cols * cols; i++)
		assert_true(h[i] == (double)rows);
	be->ops->memory_give(be, a);
	be->ops->memory_give(be, b);
	be->ops->buffer_give(be, in);
	be->ops->buffer_give(be, out);
	free(h);
	free(x);
	free(y);
}

static void test_copies_beside(void **state)
{
	static const struct { size_t rows, cols; } shapes[] = { { 1, 1 }, { 3, 21 }, { 1000, 256 }, { 37, 5 } };

	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		struct backend *be = case_open(tested_name(i), 2);

		for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
			const size_t floats = shapes[k].rows * shapes[k].cols;
			float *ones = malloc(floats * sizeof(*ones));

			assert_non_null(ones);
			for (size_t n = 0; n < floats; n++)
				ones[n] = 1;
			copy_beside(be, ones, shapes[k].rows, shapes[k].cols);
			free(ones);
		}
		must_wait(be);
		case_close(be);
	}
}

/* Buffers that are there at once stay apart, whatever was given back before; copies may also leave from other memory. */
static void test_buffers(void **state)
{
	static const size_t bytes[] = { 1, 5000, 64, 100000, 3 };
	enum { BUFFERS = sizeof(bytes) / sizeof(bytes[0]) };

	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		struct backend *be = case_open(tested_name(i), 2);

		for (int round = 0; round < 3; round++) {
			char *buffer[BUFFERS], *memory = must_take(be, 100000), plain[64], back[64];

			for (int k = 0; k < BUFFERS; k++)
				memset(buffer[k] = must_take_buffer(be, bytes[k]), round * 10 + k, bytes[k]);
			for (int k = 0; k < BUFFERS; k++)
				for (size_t n = 0; n < bytes[k]; n++)
					assert_int_equal(buffer[k][n], round * 10 + k);
			memset(plain, 7, sizeof(plain));
			must_begin(be, memory, plain, sizeof(plain));
			must_wait(be);
			must_begin(be, buffer[1], memory, sizeof(plain));
			must_wait(be);
			must_begin(be, back, buffer[1], sizeof(back));
			must_wait(be);
			assert_memory_equal(back, plain, sizeof(plain));
			for (int k = 0; k < BUFFERS; k++)
				be->ops->buffer_give(be, buffer[k]);
			be->ops->memory_give(be, memory);
		}
		be->ops->buffer_give(be, NULL);
		case_close(be);
	}
}

static void test_too_large_a_buffer(void **state)
{
	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		struct backend *be = case_open(tested_name(i), 1);
		const size_t bytes = be->ops->own_memory ? (size_t)1 << 45 : SIZE_MAX - 32;
		struct err err = ERR_INIT;

		assert_null(be->ops->buffer_take(be, bytes, "hidden states", &err));
		assert_int_equal(err.code, ERR_NOMEM);
		if (!strstr(err.text, "hidden states"))
			fail_msg("%s: \"%s\" does not say what for", be->ops->name, err.text);
		be->ops->buffer_give(be, must_take_buffer(be, 1000));
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
		cmocka_unit_test(test_copies_beside),
		cmocka_unit_test(test_buffers),
		cmocka_unit_test(test_too_large_a_buffer),
		cmocka_unit_test(test_too_much),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
