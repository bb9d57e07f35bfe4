/* The release of NVIDIA's driver out of what its kernel module writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "common/file.h"
#include "worker/backend/driver_release.h"

static const struct row { const char *text, *release; } rows[] = {
	{ "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
	  "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n", "550.54.15" },
	{ "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs-builder@U22-I3-AM02-24-3)  "
	  "Wed Aug 27 18:33:25 UTC 2025\n", "580.82.07" },
	{ "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256", "470.256" },
	{ "580.82", "580.82" },
	{ "\t580.82\t", "580.82" },
	{ "", "" },
	{ "\n580.82", "" },                     /* the first line only */
	{ "Kernel Module without a number\ngcc version 12.2.0\n", "" },
	{ "580", "" },
	{ "580. .82 580..82 v580.82 580.82b 12:34.5", "" },
	{ "x86_64 580. 581.1", "581.1" },
	{ "123456.7890123.4", "" },             /* 16 bytes: one more than fits */
	{ "12345.7890123.4", "12345.7890123.4" },
	{ "12345678.90123456 1.2", "1.2" },
};

static void the_first_release_of_the_first_line(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char out[DRIVER_RELEASE_MAX];

		memset(out, 'x', sizeof(out));
		driver_release_parse(rows[i].text, out);
		if (strcmp(out, rows[i].release) != 0)
			fail_msg("\"%s\": \"%.16s\", not \"%s\"", rows[i].text, out, rows[i].release);
	}
}

static void a_file_tells_or_not(void **state)
{
	static char longer[4096];
	char out[DRIVER_RELEASE_MAX] = "x";

	(void)state;
	driver_release_read("no-such-file", out);
	assert_string_equal(out, "");
	assert_int_equal(file_write_signal("version", rows[1].text, strlen(rows[1].text), NULL), 0);
	driver_release_read("version", out);
	assert_string_equal(out, "580.82.07");
	driver_release_read(".", out); /* a folder can be opened, not read */
	assert_string_equal(out, "");
	memset(longer, ' ', sizeof(longer));
	memcpy(longer, "570.1", 5);
	assert_int_equal(file_write_signal("version", longer, sizeof(longer), NULL), 0);
	driver_release_read("version", out);
	assert_string_equal(out, "570.1");
	assert_int_equal(file_write_signal("version", "", 0, NULL), 0);
	driver_release_read("version", out);
	assert_string_equal(out, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_release_of_the_first_line),
		cmocka_unit_test(a_file_tells_or_not),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
