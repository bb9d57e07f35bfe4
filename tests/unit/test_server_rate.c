/* The request rate of an address, in virtual time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "common/alloc.h"
#include "server/rate.h"

static const unsigned char *address(unsigned n)
{
	static unsigned char bytes[16];

	memset(bytes, 0, sizeof(bytes));
	memcpy(bytes + 12, &n, sizeof(n));
	return bytes;
}

/* Requests granted of `tries` at one moment. */
static int granted(struct rate *r, unsigned who, int tries, int64_t now_ms)
{
	int n = 0;

	for (int i = 0; i < tries; i++)
		n += rate_take(r, address(who), now_ms);
	return n;
}

static void test_burst_and_refill(void **state)
{
	struct rate *r = rate_new(10);

	(void)state;
	assert_int_equal(granted(r, 1, 50, 1000), 20);
	assert_int_equal(granted(r, 1, 50, 1050), 0);
	assert_int_equal(granted(r, 1, 50, 1100), 1);
	assert_int_equal(granted(r, 1, 50, 2100), 10);
	assert_int_equal(granted(r, 1, 50, 3600000), 20);
	rate_free(r);
}

static void test_addresses_apart(void **state)
{
	struct rate *r = rate_new(10);

	(void)state;
	assert_int_equal(granted(r, 1, 50, 1000), 20);
	assert_int_equal(granted(r, 2, 50, 1000), 20);
	assert_int_equal(granted(r, 1, 1, 1000), 0);
	rate_free(r);
}

/* Ten times as many addresses as places: the one that keeps talking keeps its (empty) bucket. */
static void test_flood_of_addresses(void **state)
{
	struct rate *r = rate_new(10);
	int64_t now_ms = 1000;
	int extra = 0;

	(void)state;
	assert_int_equal(granted(r, 1, 50, now_ms), 20);
	for (unsigned n = 2; n < 10 * RATE_ADDRESSES; n++) {
		assert_int_equal(granted(r, n, 1, now_ms), 1);
		extra += granted(r, 1, 1, now_ms);
	}
	assert_int_equal(extra, 0);
	rate_free(r);
}

static void test_no_limit_and_no_memory(void **state)
{
	struct rate *r = rate_new(0);

	(void)state;
	assert_int_equal(granted(r, 1, 100000, 1000), 100000);
	rate_free(r);
	mem_fail_after(1);
	assert_null(rate_new(10));
	mem_fail_after(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_burst_and_refill),
		cmocka_unit_test(test_addresses_apart),
		cmocka_unit_test(test_flood_of_addresses),
		cmocka_unit_test(test_no_limit_and_no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
