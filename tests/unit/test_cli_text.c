/* Text for terminals: what may come from a hostile server never reaches one unescaped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cli/text.h"

static void expect_safe(const char *text, const char *want)
{
	char out[128];

	assert_string_equal(text_safe(text, out, sizeof(out)), want);
}

static void safe_text(void **state)
{
	(void)state;
	expect_safe("plain text", "plain text");
	expect_safe("gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0 \xf0\x9f\x98\x80", "gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0 \xf0\x9f\x98\x80");
	expect_safe("a\033[2Jb", "a\\x1b[2Jb");
	expect_safe("line\nnext\r\t\x7f", "line\\x0anext\\x0d\\x09\\x7f");
	expect_safe("c1 \xc2\x9b" "31m", "c1 \\xc2\\x9b31m");
	expect_safe("rtl \xe2\x80\xae" "x", "rtl \\xe2\\x80\\xaex");
	expect_safe("sep \xe2\x80\xa8", "sep \\xe2\\x80\\xa8");
	expect_safe("iso \xe2\x81\xa6", "iso \\xe2\\x81\\xa6");
	expect_safe("bom \xef\xbb\xbf", "bom \\xef\\xbb\\xbf");
	expect_safe("bad \xff\xc3", "bad \\xff\\xc3");
	expect_safe("overlong \xc0\x9b", "overlong \\xc0\\x9b");
}

static void safe_text_is_cut_whole(void **state)
{
	char out[8];

	(void)state;
	assert_string_equal(text_safe("123456789", out, sizeof(out)), "1234567");
	assert_string_equal(text_safe("12345\033", out, sizeof(out)), "12345");
	assert_string_equal(text_safe("123456\xc3\xbc", out, sizeof(out)), "123456");
}

static void sizes_and_times(void **state)
{
	char out[TEXT_SHORT];

	(void)state;
	assert_string_equal(text_bytes(0, out), "0 B");
	assert_string_equal(text_bytes(999, out), "999 B");
	assert_string_equal(text_bytes(1500, out), "1.5 kB");
	assert_string_equal(text_bytes(999600, out), "1.0 MB");
	assert_string_equal(text_bytes(123456789, out), "123 MB");
	assert_string_equal(text_bytes(5e15, out), "5000 TB");
	assert_string_equal(text_duration(-1, out), "0.0 s");
	assert_string_equal(text_duration(3.14, out), "3.1 s");
	assert_string_equal(text_duration(9.96, out), "10 s");
	assert_string_equal(text_duration(59.6, out), "1 min 00 s");
	assert_string_equal(text_duration(185, out), "3 min 05 s");
	assert_string_equal(text_duration(3600 + 120, out), "1 h 02 min");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(safe_text),
		cmocka_unit_test(safe_text_is_cut_whole),
		cmocka_unit_test(sizes_and_times),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
