/* Every compute task through a backend whose memory the program cannot touch: the same bytes as without. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/chain_case.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/sealed_backend.h"

/* --- the seal holds ---------------------------------------------------------------------------------- */

/* The signal that ends a child which runs `reach`. */
static int signal_of(void (*reach)(struct backend *be, volatile char *memory))
{
	struct backend *be = sealed_open(case_open("cpu", 1));
	char *memory = be->ops->memory_take(be, 100, "a test", NULL);
	pid_t child = fork();
	int status;

	assert_true(memory && child >= 0);
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		reach(be, memory);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	be->ops->memory_give(be, memory);
	case_close(be);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void read_it(struct backend *be, volatile char *memory)
{
	(void)be;
	(void)memory[0];
}

static void write_it(struct backend *be, volatile char *memory)
{
	(void)be;
	memory[99] = 1;
}

static void copy_it(struct backend *be, volatile char *memory)
{
	char byte;

	if (be->ops->memory_copy(be, &byte, (const char *)memory, 1, NULL) != 0)
		abort();
}

static int read_x(void *ctx, int site, const float *x, size_t rows, size_t cols)
{
	(void)ctx, (void)site, (void)rows, (void)cols;
	return ((volatile const float *)x)[0] > 1e30f;
}

static void read_in_tap(struct backend *be, volatile char *memory)
{
	struct forward_case c = { .name = "small", .shape = { 8, 2, 1, 4, 12, 1e-5f }, .n_seq = 1, .seq_len = 3 };

	(void)memory;
	forward_case_init(&c);
	be->ops->block_forward(be, &c.shape, &c.w, &c.rope, c.x, 1, 3, NULL, read_x, NULL, NULL);
}

static int read_memory(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	(void)sequence;
	memset(dy, 0, rows * cols * sizeof(*dy));
	return y[0] > 1e30f || *(volatile char *)ctx == 1;
}

static void read_in_loss(struct backend *be, volatile char *memory)
{
	struct forward_case c = { .name = "small", .shape = { 8, 2, 1, 4, 12, 1e-5f }, .n_seq = 1, .seq_len = 3 };
	const struct block_grads none = { 0 };

	forward_case_init(&c);
	be->ops->block_backward(be, &c.shape, &c.w, &c.rope, c.x, 1, 3, read_memory, (void *)memory, NULL, &none, NULL);
}

static void test_the_seal_holds(void **state)
{
	(void)state;
	assert_int_not_equal(signal_of(read_it), 0);
	assert_int_not_equal(signal_of(write_it), 0);
	assert_int_not_equal(signal_of(read_in_tap), 0);
	assert_int_not_equal(signal_of(read_in_loss), 0);
	assert_int_equal(signal_of(copy_it), 0);
}

/* --- the tasks ------------------------------------------------------------------------------------------ */

/* The first line that differs. */
static void same_text(const char *a, const char *b)
{
	while (*a || *b) {
		const size_t n = strcspn(a, "\n"), m = strcspn(b, "\n");

		if (n != m || memcmp(a, b, n) != 0)
			fail_msg("without the seal: %.*s\nwith it: %.*s", (int)n, a, (int)m, b);
		a += n + (a[n] != 0);
		b += m + (b[m] != 0);
	}
}

static void test_every_task(void **state)
{
	struct backend *plain = case_open("cpu", 2), *sealed = sealed_open(case_open("cpu", 2));
	char *want = chain_case_run(plain, "plain"), *got = chain_case_run(sealed, "sealed");

	(void)state;
	same_text(want, got);
	assert_true(strlen(want) > 5000);
	assert_int_equal(sealed_bytes(sealed), 0);
	free(want);
	free(got);
	case_close(plain);
	case_close(sealed);
}


int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_seal_holds),
		cmocka_unit_test(test_every_task),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
