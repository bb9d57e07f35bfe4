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
		signal(SIGABRT, SIG_DFL);
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

/* What a loss reaches into: other memory, what it is given to read, what it is given to write. */
static int touch_memory(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	(void)sequence, (void)y, (void)rows, (void)cols, (void)dy;
	return *(volatile char *)ctx == 1;
}

static int touch_y(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	(void)ctx, (void)sequence, (void)rows, (void)cols, (void)dy;
	return ((volatile const float *)y)[0] > 1e30f;
}

static int touch_dy(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	(void)ctx, (void)sequence, (void)y;
	((volatile float *)dy)[rows * cols - 1] = 0;
	return 0;
}

struct own { struct backend *be; struct err err; };

/* What a loss may do. */
static int use_operations(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	struct own *own = ctx;
	float *copy = own->be->ops->memory_take(own->be, rows * cols * sizeof(*copy), "a test", &own->err);
	double sum;
	int rc = copy ? 0 : -1;

	(void)sequence;
	if (rc == 0)
		rc = own->be->ops->memory_copy(own->be, copy, y, rows * cols * sizeof(*copy), &own->err);
	if (rc == 0)
		rc = own->be->ops->squared_error(own->be, y, copy, rows * cols, 1, dy, &sum, &own->err);
	own->be->ops->memory_give(own->be, copy);
	return rc != 0 || sum != 0;
}

static int run_loss(struct backend *be, block_loss loss, void *ctx)
{
	struct forward_case c = { .name = "small", .shape = { 8, 2, 1, 4, 12, 1e-5f }, .n_seq = 1, .seq_len = 3 };
	const struct block_grads none = { 0 };
	int rc;

	forward_case_init(&c);
	rc = be->ops->block_backward(be, &c.shape, &c.w, &c.rope, c.x, 1, 3, loss, ctx, NULL, &none, NULL);
	forward_case_deinit(&c);
	return rc;
}

static void touch_memory_in_loss(struct backend *be, volatile char *memory)
{
	run_loss(be, touch_memory, (void *)memory);
}

static void touch_y_in_loss(struct backend *be, volatile char *memory)
{
	run_loss(be, touch_y, (void *)memory);
}

static void touch_dy_in_loss(struct backend *be, volatile char *memory)
{
	run_loss(be, touch_dy, (void *)memory);
}

static void test_a_loss_may_use_operations(void **state)
{
	struct backend *be = sealed_open(case_open("cpu", 2));
	struct own own = { .be = be };

	(void)state;
	if (run_loss(be, use_operations, &own) != 0)
		fail_msg("%s", own.err.text);
	case_close(be);
}

/* What goes wrong between the beginning of a copy and its end. */
static char somewhere[100];

static void give_too_early(struct backend *be, volatile char *memory)
{
	be->ops->memory_begin(be, (char *)memory, somewhere, 100, NULL);
	be->ops->memory_give(be, (char *)memory);
}

static void give_buffer_too_early(struct backend *be, volatile char *memory)
{
	char *buffer = be->ops->buffer_take(be, 100, "a test", NULL);

	be->ops->memory_begin(be, buffer + 50, (char *)memory, 50, NULL);
	be->ops->buffer_give(be, buffer);
}

static void copy_too_early(struct backend *be, volatile char *memory)
{
	be->ops->memory_begin(be, (char *)memory, somewhere, 100, NULL);
	be->ops->memory_copy(be, somewhere, (char *)memory + 99, 1, NULL);
}

static void overwrite_too_early(struct backend *be, volatile char *memory)
{
	be->ops->memory_begin(be, somewhere, (char *)memory, 100, NULL);
	be->ops->memory_begin(be, (char *)memory + 10, somewhere, 1, NULL);
}

static void copy_beside(struct backend *be, volatile char *memory)
{
	be->ops->memory_begin(be, (char *)memory, somewhere, 50, NULL);
	be->ops->memory_begin(be, somewhere + 50, (char *)memory + 50, 50, NULL);
	be->ops->memory_wait(be, NULL);
	be->ops->memory_give(be, (char *)memory);
}

/* A copy is complete when somebody has waited for it, and not before. */
static void test_copies_are_late(void **state)
{
	struct backend *be = sealed_open(case_open("cpu", 1));
	char *memory = be->ops->memory_take(be, 100, "a test", NULL), *buffer = be->ops->buffer_take(be, 100, "a test", NULL);
	char late[100];
	float x[4] = { 1, 2, 3, 4 }, y[4] = { 0 };
	const float weight[4] = { 1, 1, 1, 1 };

	(void)state;
	memset(buffer, 1, 100);
	assert_int_equal(be->ops->memory_begin(be, memory, buffer, 100, NULL), 0);
	buffer[3] = 5;
	assert_int_equal(be->ops->memory_wait(be, NULL), 0);
	assert_int_equal(be->ops->memory_begin(be, late, memory, 100, NULL), 0);
	assert_int_equal((unsigned char)late[0], 0xff);
	assert_int_equal(be->ops->memory_wait(be, NULL), 0);
	assert_int_equal(late[0], 1);
	assert_int_equal(late[3], 5);
	assert_int_equal(be->ops->memory_begin(be, memory, x, sizeof(x), NULL), 0);
	be->ops->rms_norm(be, (float *)memory, weight, 1e-5f, 1, 4, y, NULL);
	assert_true(y[0] != y[0]);
	assert_int_equal(be->ops->memory_wait(be, NULL), 0);
	assert_int_equal(be->ops->rms_norm(be, (float *)memory, weight, 1e-5f, 1, 4, y, NULL), 0);
	assert_true(y[0] > 0.3f && y[3] > y[0]);
	be->ops->memory_give(be, memory);
	be->ops->buffer_give(be, buffer);
	case_close(be);
	assert_int_equal(signal_of(give_too_early), SIGABRT);
	assert_int_equal(signal_of(give_buffer_too_early), SIGABRT);
	assert_int_equal(signal_of(copy_too_early), SIGABRT);
	assert_int_equal(signal_of(overwrite_too_early), SIGABRT);
	assert_int_equal(signal_of(copy_beside), 0);
}

static void test_the_seal_holds(void **state)
{
	(void)state;
	assert_int_not_equal(signal_of(read_it), 0);
	assert_int_not_equal(signal_of(write_it), 0);
	assert_int_not_equal(signal_of(read_in_tap), 0);
	assert_int_not_equal(signal_of(touch_memory_in_loss), 0);
	assert_int_not_equal(signal_of(touch_y_in_loss), 0);
	assert_int_not_equal(signal_of(touch_dy_in_loss), 0);
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
		cmocka_unit_test(test_a_loss_may_use_operations),
		cmocka_unit_test(test_copies_are_late),
		cmocka_unit_test(test_every_task),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
