/* The thread pool, the list of backends, opening them, and the instruction-set levels. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/levels.h"
#include "worker/backend/pool.h"

CPU_LEVEL_DECLARE(struct forward_kernels, forward_kernels);
static const struct forward_kernels *const tables[] = CPU_LEVEL_TABLE(forward_kernels);

enum { ITEMS = 1000 };

struct count {
	atomic_int times[ITEMS];
	atomic_int bad_worker;
	int workers;
};

static void count_item(void *ctx, size_t item, int worker)
{
	struct count *c = ctx;

	atomic_fetch_add(&c->times[item], 1);
	if (worker < 0 || worker >= c->workers)
		atomic_store(&c->bad_worker, 1);
}

static void test_pool_runs_each_item_once(void **state)
{
	static struct count c;

	(void)state;
	for (int threads = 1; threads <= 7; threads += 2) {
		struct pool *pool = pool_new(threads, NULL);

		assert_non_null(pool);
		assert_int_equal(pool_workers(pool), threads);
		memset(&c, 0, sizeof(c));
		c.workers = threads;
		for (int run = 0; run < 200; run++)
			pool_run(pool, (size_t)(run % 5 == 0 ? ITEMS : run % 5 - 1), count_item, &c);
		/* 40 runs each of ITEMS, 0, 1, 2 and 3 items */
		assert_int_equal(atomic_load(&c.times[0]), 160);
		assert_int_equal(atomic_load(&c.times[1]), 120);
		assert_int_equal(atomic_load(&c.times[2]), 80);
		assert_int_equal(atomic_load(&c.times[3]), 40);
		assert_int_equal(atomic_load(&c.times[ITEMS - 1]), 40);
		assert_int_equal(atomic_load(&c.bad_worker), 0);
		pool_free(pool);
	}
	pool_free(NULL);
}

static void test_pool_refuses(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	assert_null(pool_new(0, &err));
	assert_string_equal(err.text, "threads is 0; it must be 1 to 1024");
	assert_null(pool_new(POOL_THREADS_MAX + 1, &err));
	for (uint64_t nth = 1; nth <= 2; nth++) {
		mem_fail_after(nth);
		assert_null(pool_new(3, &err));
		assert_int_equal(err.code, ERR_NOMEM);
	}
	mem_fail_after(0);
}

static void test_find(void **state)
{
	struct err err = ERR_INIT;
	char text[256] = "no backend named \"abacus\"; this program has: ";

	(void)state;
	for (size_t i = 0; backend_list[i]; i++) {
		assert_ptr_equal(backend_find(backend_list[i]->name, &err), backend_list[i]);
		strcat(strcat(text, i ? ", " : ""), backend_list[i]->name);
	}
	assert_string_equal(backend_list[0]->name, "cpu");
	assert_null(backend_find("abacus", &err));
	assert_int_equal(err.code, ERR_INVALID);
	assert_string_equal(err.text, strcat(text, backend_list_note));
}

static void test_open(void **state)
{
	const struct backend_options none = { .threads = 0 }, two = { .threads = 2 };

	(void)state;
	for (int i = 0; i < TESTED_BOTH; i++) {
		const struct backend_ops *ops = tested_find(tested_name(i));
		struct backend *be = NULL;
		struct err err = ERR_INIT;
		int failures = 0;

		assert_null(ops->open(&none, &err));
		assert_int_equal(err.code, ERR_INVALID);
		for (uint64_t nth = 1; !be; nth++) {
			mem_fail_after(nth);
			be = ops->open(&two, &err);
			mem_fail_after(0);
			if (!be)
				assert_int_equal(err.code, ERR_NOMEM);
			failures += !be;
		}
		assert_true(failures >= 1);
		assert_true(strncmp(ops->identity(be), ops->name, strlen(ops->name)) == 0);
		ops->close(be);
		ops->close(NULL);
	}
}

/* Backends that run on the processor know no other device and no memory but the machine's. */
static void test_no_device(void **state)
{
	static const char *const names[] = { "cpu", "ref" };
	const struct backend_options second = { .threads = 1, .device = 1 }, before = { .threads = 1, .device = -1 };
	const struct backend_options bounded = { .threads = 1, .device_memory = 1 << 30 };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		const struct backend_ops *ops = backend_find(names[i], NULL);
		struct err err = ERR_INIT;
		char text[128];

		assert_null(ops->open(&second, &err));
		assert_int_equal(err.code, ERR_INVALID);
		snprintf(text, sizeof(text), "device is 1; the %s backend has only device 0, this machine", names[i]);
		assert_string_equal(err.text, text);
		assert_null(ops->open(&before, &err));
		assert_int_equal(err.code, ERR_INVALID);
		assert_null(ops->open(&bounded, &err));
		assert_int_equal(err.code, ERR_INVALID);
		assert_non_null(strstr(err.text, "1073741824 bytes of device memory"));
	}
}

static void test_levels(void **state)
{
	const struct backend_options one = { .threads = 1 };
	enum cpu_level level;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(cpu_level_choose(NULL, &level, &err), 0);
	assert_int_equal(level, cpu_level_best());
	assert_int_equal(cpu_level_choose("", &level, &err), 0);
	assert_int_equal(level, cpu_level_best());
	assert_int_equal(cpu_level_choose("base", &level, &err), 0);
	assert_int_equal(level, CPU_BASE);
	assert_int_equal(cpu_level_choose("v9", &level, &err), -1);
	assert_non_null(strstr(err.text, "must be base, v3 or v4"));
	setenv("QUARRY_CPU_LEVEL", "fast", 1);
	assert_null(backend_find("cpu", &err)->open(&one, &err));
	unsetenv("QUARRY_CPU_LEVEL");
	assert_non_null(strstr(err.text, "\"fast\""));
}

/* exp over the whole range of a softmax, to 2 ulp, at every level. */
static void exp_near_libm(const struct forward_kernels *k)
{
	enum { N = 20001 };
	float *x = case_poisoned(N), *in = case_poisoned(N);
	double sum = 0;

	for (int i = 0; i < N; i++)
		in[i] = x[i] = (float)(-87.0 * i / (N - 1));
	sum = k->softmax(x, N);
	for (int i = 0; i < N; i++) {
		const double want = exp((double)in[i]);

		if (!(fabs(x[i] - want) <= 2.5e-7 * want))
			fail_msg("exp(%.9g) = %.9g, not %.9g", (double)in[i], (double)x[i], want);
		sum -= want;
	}
	assert_true(fabs(sum) < 1e-2);
	free(x);
	free(in);
}

static void test_exp(void **state)
{
	(void)state;
	for (enum cpu_level level = CPU_BASE; level <= cpu_level_best(); level++) {
		const struct forward_kernels *k = tables[level];
		float gate[3] = { -200, 0, 200 }, up[3] = { 1, 1, 1 };
		float odd[40];

		exp_near_libm(k);
		k->swiglu(gate, up, 3);
		assert_true(fabsf(up[0]) < 1e-30f && up[1] == 0 && up[2] == 200);
		for (int i = 0; i < 40; i++)
			odd[i] = (float)i;
		assert_true(k->max(odd, 40) == 39 && k->max(odd, 1) == 0);
		assert_true(k->finite(odd, 40));
		odd[39] = NAN;
		assert_false(k->finite(odd, 40));
		odd[39] = -INFINITY;
		assert_false(k->finite(odd, 40));
		odd[0] = NAN;
		(void)k->softmax(odd, 7);
		assert_true(isnan(odd[0]));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pool_runs_each_item_once),
		cmocka_unit_test(test_pool_refuses),
		cmocka_unit_test(test_find),
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_no_device),
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_exp),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
