/* Text for terminals: what may come from a hostile server never reaches one unescaped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cli/scores.h"
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

/* --- scores ------------------------------------------------------------------- */

typedef bool (*phrase)(const struct json *, char out[SCORE_MAX]);

/* want NULL: nothing is told. */
static void expect_phrase(phrase phrase, const char *text, const char *want)
{
	struct err err = ERR_INIT;
	struct json *value = json_parse(text, strlen(text), &err);
	char out[SCORE_MAX] = "";
	bool told = phrase(value, out);

	json_free(value);
	assert_string_equal(err.text, "");
	assert_int_equal(told, want != NULL);
	assert_string_equal(out, want ? want : "");
}

static void comparisons(void **state)
{
	(void)state;
	expect_phrase(score_comparison, "{\"kl\":0.23114,\"top1\":0.813}", "KL divergence 0.2311, top-1 agreement 81.30 %");
	expect_phrase(score_comparison, "{\"kl\":0,\"top1\":1}", "KL divergence 0.0000, top-1 agreement 100.00 %");
	expect_phrase(score_comparison, "{\"kl\":null,\"top1\":null}", NULL);
	expect_phrase(score_comparison, "{\"kl\":0.1}", NULL);
	expect_phrase(score_comparison, "{}", NULL);
}

static void distillations(void **state)
{
	(void)state;
	expect_phrase(score_blocks, "{\"layers\":[{\"distill\":{\"before\":0.5,\"after\":0.25}},{\"distill\":null},"
		      "{\"distill\":{\"before\":0.25,\"after\":0.125}}]}", "2 blocks, relative loss 0.3750 -> 0.1875 on average");
	expect_phrase(score_blocks, "{\"layers\":[{\"distill\":{\"before\":1,\"after\":0.5}}]}",
		      "1 block, relative loss 1.0000 -> 0.5000 on average");
	expect_phrase(score_blocks, "{\"layers\":[{\"distill\":null},{}]}", NULL);
	expect_phrase(score_blocks, "{}", NULL);
	expect_phrase(score_end_to_end, "{\"distillation\":{\"before\":{\"kl\":0.5},\"after\":{\"kl\":0.375}}}",
		      "end to end, KL divergence 0.5000 -> 0.3750 on calibration text");
	expect_phrase(score_end_to_end, "{\"distillation\":null}", NULL);
	expect_phrase(score_end_to_end, "{\"distillation\":{\"before\":{\"kl\":0.5}}}", NULL);
}

static void steps(void **state)
{
	(void)state;
	expect_phrase(score_steps, "{\"summary\":{\"relative_loss_rounded\":0.0321,\"relative_loss\":0.0285}}",
		      "3.21 % of the output energy after rounding, 2.85 % after refinement");
	expect_phrase(score_steps, "{\"summary\":{\"relative_loss_rounded\":null,\"relative_loss\":0.0285}}", NULL);
	expect_phrase(score_steps, "{}", NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(safe_text),
		cmocka_unit_test(safe_text_is_cut_whole),
		cmocka_unit_test(sizes_and_times),
		cmocka_unit_test(comparisons),
		cmocka_unit_test(distillations),
		cmocka_unit_test(steps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
