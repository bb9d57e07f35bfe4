/* The scanner, the gate, the tree and the printer: what is accepted, what is refused and how. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "common/json_scan.h"
#include "common/utf8.h"

struct text_case { const char *text; size_t len; const char *says; };
#define CASE(text, says) { text, sizeof(text) - 1, says }

/* --- refused ------------------------------------------------------------------ */

static const struct text_case refused_by_scanner[] = {
	CASE("", "byte 0: the text ends where a value is expected"),
	CASE("  ", "byte 2"),
	CASE("\xEF\xBB\xBF{}", "expected a value"),
	CASE("{} x", "something follows"),
	CASE("{}\0", "something follows"),
	CASE("{}{}", "something follows"),
	CASE("[1,]", "byte 3: expected a value"),
	CASE("[1 2]", "expected ',' or ']'"),
	CASE("[", "ends where a value"),
	CASE("]", "expected a value"),
	CASE("[1}", "expected ',' or ']'"),
	CASE("{\"a\":1]", "expected ',' or '}'"),
	CASE("{\"a\":1,}", "expected a key"),
	CASE("{\"a\" 1}", "expected ':'"),
	CASE("{a:1}", "expected a key"),
	CASE("{,}", "expected a key"),
	CASE("{1:2}", "expected a key"),
	CASE("{\"a\":}", "expected a value"),
	CASE("// x\n1", "expected a value"),
	CASE("[1,/* */2]", "expected a value"),
	CASE("nul", "expected a value"),
	CASE("True", "expected a value"),
	CASE("nulll", "something follows"),
	CASE("NaN", "expected a value"),
	CASE("-Infinity", "expected a digit"),
	CASE("01", "leading zero"),
	CASE("-01", "leading zero"),
	CASE("+1", "expected a value"),
	CASE("-", "expected a digit"),
	CASE(".5", "expected a value"),
	CASE("1.", "after the decimal point"),
	CASE("1e", "in the exponent"),
	CASE("1e+", "in the exponent"),
	CASE("0x10", "something follows"),
	CASE("1e999", "range of a double"),
	CASE("-1e309", "range of a double"),
	CASE("\"abc", "byte 0: the string that begins here does not end"),
	CASE("\"a\nb\"", "control character"),
	CASE("\"a\0b\"", "control character"),
	CASE("\"\x1f\"", "control character"),
	CASE("\"\\x41\"", "bad escape"),
	CASE("\"\\u12\"", "bad escape"),
	CASE("\"\\u12G4\"", "bad escape"),
	CASE("\"\\ud800\"", "bad escape"),
	CASE("\"\\ud800x\"", "bad escape"),
	CASE("\"\\ud800\\u0041\"", "bad escape"),
	CASE("\"\\udc00\"", "bad escape"),
	CASE("\"\\", "bad escape"),
	CASE("\"\\\0\"", "bad escape"),
	CASE("\"\xff\"", "not UTF-8"),
	CASE("\"\xc0\x80\"", "not UTF-8"),
	CASE("\"\xc3\"", "not UTF-8"),
	CASE("\"\xe0\x9f\xbf\"", "not UTF-8"),
	CASE("\"\xed\xa0\x80\"", "not UTF-8"),
	CASE("\"\xf0\x8f\xbf\xbf\"", "not UTF-8"),
	CASE("\"\xf4\x90\x80\x80\"", "not UTF-8"),
	CASE("\"\xe2\x82\"", "not UTF-8"),
	CASE("\"\x80\"", "not UTF-8"),
};

static const struct text_case refused_by_gate[] = {
	CASE("{\"a\":1,\"a\":2}", "the key \"a\" appears twice"),
	CASE("{\"a\":1,\"b\":0,\"\\u0061\":2}", "the key \"a\" appears twice"),
	CASE("[{\"x\":{\"\":1,\"\":2}}]", "the key \"\" appears twice"),
	CASE("{\"o\":{\"k\":1},\"p\":[{\"k\":1}],\"o\":3}", "the key \"o\" appears twice"),
	CASE("\"a\\u0000b\"", "holds \\u0000"),
	CASE("{\"a\\u0000\":1}", "holds \\u0000"),
	CASE("1234567890123456789012345678901234567890123456789012345678901234", "more than 63"),
};

static int scan_all(const char *text, size_t len, unsigned depth, struct err *err)
{
	struct json_scan s;
	enum json_token token;

	json_scan_init(&s, text, len, depth);
	do {
		if (json_scan_next(&s, &token, err) != 0) {
			struct err again = ERR_INIT;

			assert_int_equal(json_scan_next(&s, &token, &again), -1); /* it stays failed */
			return -1;
		}
	} while (token != JT_END);
	return json_scan_next(&s, &token, err) == 0 && token == JT_END ? 0 : -1;
}

/* The bytes in a block of exactly their size, so that a sanitizer sees a read past the end. */
static char *exact(const char *text, size_t len)
{
	char *copy = malloc(len ? len : 1);

	assert_non_null(copy);
	memcpy(copy, text, len);
	return copy;
}

static void assert_says(const struct err *err, const char *says)
{
	if (!strstr(err->text, says))
		fail_msg("\"%s\" does not say \"%s\"", err->text, says);
}

static void test_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refused_by_scanner) / sizeof(refused_by_scanner[0]); i++) {
		const struct text_case *c = &refused_by_scanner[i];
		char *text = exact(c->text, c->len);
		struct err err = ERR_INIT;

		if (scan_all(text, c->len, 64, &err) == 0)
			fail_msg("the scanner accepts %s", c->text);
		assert_says(&err, c->says);
		assert_null(json_parse(text, c->len, &err));
		assert_int_equal(err.code, ERR_INVALID);
		assert_says(&err, c->says);
		free(text);
	}
}

static void test_refused_by_gate(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refused_by_gate) / sizeof(refused_by_gate[0]); i++) {
		const struct text_case *c = &refused_by_gate[i];
		struct err err = ERR_INIT;

		assert_int_equal(scan_all(c->text, c->len, 64, &err), 0);
		assert_null(json_parse(c->text, c->len, &err));
		assert_int_equal(err.code, ERR_INVALID);
		assert_says(&err, c->says);
	}
}

static void test_depth(void **state)
{
	char text[400];
	struct err err = ERR_INIT;

	(void)state;
	for (int depth = 60; depth <= 130; depth++) {
		struct json *value;

		memset(text, '[', (size_t)depth);
		memset(text + depth, ']', (size_t)depth);
		value = json_parse(text, 2 * (size_t)depth, &err);
		assert_int_equal(value != NULL, depth <= 64);
		json_free(value);
		assert_int_equal(scan_all(text, 2 * (size_t)depth, 1000, &err) == 0, depth <= 128);
	}
	assert_says(&err, "nested too deeply");
}

static void test_long_number(void **state)
{
	char text[3000];
	struct err err = ERR_INIT;

	(void)state;
	memset(text, '0', sizeof(text));
	memcpy(text, "0.", 2);
	assert_int_equal(scan_all(text, 1023, 4, &err), 0);
	assert_int_equal(scan_all(text, 1024, 4, &err), -1);
	assert_says(&err, "1023 characters");
}

/* --- accepted ----------------------------------------------------------------- */

static void assert_prints(const char *text, const char *expected)
{
	struct err err = ERR_INIT;
	struct json *value = json_parse(text, strlen(text), &err);
	char *printed;

	if (!value)
		fail_msg("%s: %s", text, err.text);
	printed = json_print(value, false);
	assert_string_equal(printed, expected);
	mem_free(printed);
	json_free(value);
}

static void test_accepted(void **state)
{
	(void)state;
	assert_prints(" \t\r\n{ } ", "{}");
	assert_prints("[]", "[]");
	assert_prints("null", "null");
	assert_prints("[true,false,null]", "[true,false,null]");
	assert_prints("{\"b\":1,\"a\":[{}],\"\":\"\"}", "{\"b\":1,\"a\":[{}],\"\":\"\"}");
	assert_prints("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"\\\\/\\u0008\\u000c\\n\\u000d\\t\"");
	assert_prints("\"\\u00e9\\u20AC\\ud83d\\ude00\\u007f\"",
		      "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\\u007f\"");
	assert_prints("\"\xef\xbf\xbf\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80\"",
		      "\"\xef\xbf\xbf\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80\"");
	assert_prints("{\"a\":{\"k\":1},\"b\":{\"k\":1}}", "{\"a\":{\"k\":1},\"b\":{\"k\":1}}");
	assert_prints("[\"\\\\u0000\"]", "[\"\\\\u0000\"]");
}

static void test_numbers(void **state)
{
	(void)state;
	assert_prints("[0,-0,1e3,1.5,-2.50,1E+2,1e-2]", "[0,0,1000,1.5,-2.5,100,0.01]");
	assert_prints("[9007199254740992,-9007199254740992]", "[9007199254740992,-9007199254740992]");
	assert_prints("[0.1,0.30000000000000004,1e22,1e300]", "[0.1,0.30000000000000004,1e+22,1e+300]");
	assert_prints("[5e-324,1e-320,2.2250738585072014e-308]", "[5e-324,1e-320,2.2250738585072014e-308]");
	assert_prints("[1.7976931348623157e308,1e-999]", "[1.7976931348623157e+308,0]");
}

/* Every double reads back to the same bits. */
static void test_number_round_trip(void **state)
{
	uint64_t x = 88172645463325252u;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		struct json *value, *back;
		double number, other;
		char *text;

		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		memcpy(&number, &x, sizeof(number));
		if (!isfinite(number))
			continue;
		value = json_new_number(number);
		text = json_print(value, false);
		back = json_parse(text, strlen(text), NULL);
		other = json_number(back, 0);
		if (number != other)
			fail_msg("%a printed as %s reads back as %a", number, text, other);
		json_free(value);
		json_free(back);
		mem_free(text);
	}
}

static void test_not_finite_prints_null(void **state)
{
	struct json *array = json_new_array();
	char *text;

	(void)state;
	assert_int_equal(json_push(array, json_new_number((double)NAN)), 0);
	assert_int_equal(json_push(array, json_new_number(-(double)INFINITY)), 0);
	text = json_print(array, false);
	assert_string_equal(text, "[null,null]");
	mem_free(text);
	json_free(array);
}

static void test_pretty(void **state)
{
	static const char text[] = "{\"a\":[1,2],\"b\":{},\"c\":{\"d\":null}}";
	struct json *value = json_parse(text, strlen(text), NULL);
	char *printed = json_print(value, true);

	(void)state;
	assert_string_equal(printed, "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {},\n  \"c\": {\n    "
			    "\"d\": null\n  }\n}");
	mem_free(printed);
	json_free(value);
}

/* --- getters ------------------------------------------------------------------ */

static void test_getters(void **state)
{
	static const char text[] = "{\"s\":\"x\",\"n\":2.5,\"i\":-7,\"t\":true,\"z\":null,\"a\":[10,20],"
				   "\"big\":9007199254740993.5e3,\"S\":\"other\"}";
	struct json *o = json_parse(text, strlen(text), NULL);
	int64_t number = 0;

	(void)state;
	assert_int_equal(json_type(o), JSON_OBJECT);
	assert_int_equal(json_size(o), 8);
	assert_string_equal(json_get_string(o, "s", "?"), "x");
	assert_string_equal(json_get_string(o, "S", "?"), "other");
	assert_string_equal(json_get_string(o, "n", "?"), "?");
	assert_string_equal(json_get_string(o, "none", "?"), "?");
	assert_true(json_get_number(o, "n", 0) == 2.5);
	assert_true(json_get_number(o, "s", 4) == 4);
	assert_int_equal(json_get_int(o, "i", 0), -7);
	assert_int_equal(json_get_int(o, "n", 3), 3);
	assert_int_equal(json_get_int(o, "big", 3), 3);
	assert_true(json_get_bool(o, "t", false));
	assert_true(json_get_bool(o, "s", true));
	assert_int_equal(json_type(json_get(o, "z")), JSON_NULL);
	assert_non_null(json_get(o, "z"));
	assert_int_equal(json_get_int(json_get(o, "a"), "x", 9), 9);
	assert_true(json_int(json_at(json_get(o, "a"), 1), &number));
	assert_int_equal(number, 20);
	assert_null(json_at(json_get(o, "a"), 2));
	assert_null(json_at(json_get(o, "s"), 0));
	assert_null(json_at(json_get(o, "a"), (size_t)-1));
	assert_string_equal(json_key(json_first(o)), "s");
	assert_string_equal(json_key(json_next(json_first(o))), "n");
	assert_null(json_key(json_first(json_get(o, "a"))));
	json_free(o);
}

static void test_null_is_harmless(void **state)
{
	int64_t number;

	(void)state;
	json_free(NULL);
	assert_int_equal(json_type(NULL), JSON_NULL);
	assert_null(json_get(NULL, "x"));
	assert_null(json_first(NULL));
	assert_null(json_next(NULL));
	assert_null(json_key(NULL));
	assert_null(json_at(NULL, 0));
	assert_int_equal(json_size(NULL), 0);
	assert_null(json_string(NULL, NULL));
	assert_false(json_int(NULL, &number));
	assert_null(json_copy(NULL));
	json_remove(NULL, "x");
	assert_int_equal(json_set_int(NULL, "x", 1), -1);
	assert_int_equal(json_push(NULL, json_new_object()), -1);
}

static void test_require(void **state)
{
	static const char text[] = "{\"s\":\"x\",\"i\":5,\"f\":1.5}";
	struct json *o = json_parse(text, strlen(text), NULL);
	struct err err = ERR_INIT;
	const char *s = NULL;
	int64_t i = 0;

	(void)state;
	assert_int_equal(json_require_string(o, "s", &s, &err), 0);
	assert_string_equal(s, "x");
	assert_int_equal(json_require_string(o, "i", &s, &err), -1);
	assert_string_equal(err.text, "the field \"i\" must be a string");
	assert_int_equal(json_require_string(o, "q", &s, &err), -1);
	assert_string_equal(err.text, "the field \"q\" is missing; it must be a string");
	assert_int_equal(json_require_int(o, "i", 1, 5, &i, &err), 0);
	assert_int_equal(i, 5);
	assert_int_equal(json_require_int(o, "i", 6, 9, &i, &err), -1);
	assert_string_equal(err.text, "the field \"i\" must be an integer from 6 to 9");
	assert_int_equal(json_require_int(o, "f", 0, 9, &i, &err), -1);
	assert_int_equal(json_require_int(o, "q", 0, 9, &i, &err), -1);
	assert_string_equal(err.text, "the field \"q\" is missing; it must be an integer from 0 to 9");
	json_free(o);
}

/* --- building ----------------------------------------------------------------- */

static int build(struct json **out)
{
	struct json *o = json_new_object(), *a = json_new_array();
	int rc = -1;

	*out = NULL;
	if (json_push(a, json_new_string("one\x01")) != 0 || json_push(a, json_new_number(2)) != 0) {
		json_free(a);
		goto out;
	}
	if (json_set(o, "a", a) != 0 || json_set_string(o, "s", "bad \xff utf8 \xe2\x82") != 0 ||
	    json_set_number(o, "n", 0.25) != 0 || json_set_int(o, "i", -3) != 0 ||
	    json_set_bool(o, "b", true) != 0 || json_set_null(o, "z") != 0 ||
	    json_set_string(o, "gone", "x") != 0)
		goto out;
	json_remove(o, "gone");
	json_remove(o, "absent");
	*out = json_copy(o);
	rc = *out ? 0 : -1;
out:
	json_free(o);
	return rc;
}

static void test_build(void **state)
{
	struct json *o;
	char *text;

	(void)state;
	assert_int_equal(build(&o), 0);
	text = json_print(o, false);
	assert_string_equal(text, "{\"a\":[\"one\\u0001\",2],\"s\":\"bad \xef\xbf\xbd utf8 "
			    "\xef\xbf\xbd\xef\xbf\xbd\",\"n\":0.25,\"i\":-3,\"b\":true,\"z\":null}");
	mem_free(text);
	json_free(o);
	o = json_new_array();
	assert_int_equal(json_set_int(o, "x", 1), -1); /* not an object */
	assert_int_equal(json_push(json_at(o, 0), json_new_array()), -1);
	json_free(o);
}

/* --- running out of memory ---------------------------------------------------- */

static void test_out_of_memory(void **state)
{
	static const char text[] = "{\"a\":[1,\"x\",{\"\\u0062\":\"\\n\"}],\"c\":true}";
	uint64_t n;

	(void)state;
	for (n = 1; n < 1000; n++) {
		struct err err = ERR_INIT;
		struct json *value;

		mem_fail_after(n);
		value = json_parse(text, strlen(text), &err);
		mem_fail_after(0);
		json_free(value);
		if (value)
			break;
		assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_in_range(n, 5, 999);
	for (n = 1; n < 1000; n++) {
		struct json *value;
		char *printed = NULL;

		mem_fail_after(n);
		if (build(&value) == 0)
			printed = json_print(value, true);
		mem_fail_after(0);
		json_free(value);
		mem_free(printed);
		if (printed)
			break;
	}
	assert_in_range(n, 10, 999);
}

/* --- scanning ----------------------------------------------------------------- */

static void test_scan_tokens(void **state)
{
	static const char text[] = " {\"a\\u0000\":[1,\"x\\ty\",null,true,false], \"b\" : {\"c\":[[]]} , "
	"\"d\":18446744073709551615}";
	static const enum json_token expected[] = {
		JT_OBJECT_BEGIN, JT_KEY, JT_ARRAY_BEGIN, JT_NUMBER, JT_STRING, JT_NULL, JT_TRUE, JT_FALSE,
		JT_ARRAY_END, JT_KEY, JT_OBJECT_BEGIN, JT_KEY, JT_ARRAY_BEGIN, JT_ARRAY_BEGIN, JT_ARRAY_END,
		JT_ARRAY_END, JT_OBJECT_END, JT_KEY, JT_NUMBER, JT_OBJECT_END, JT_END,
	};
	struct json_scan s;
	enum json_token token;
	uint64_t number;
	size_t len;

	(void)state;
	json_scan_init(&s, text, strlen(text), 8);
	for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		assert_int_equal(json_scan_next(&s, &token, NULL), 0);
		assert_int_equal(token, expected[i]);
		if (i == 1 || i == 4) {
			char *resolved = json_scan_text(&s, &len);

			assert_int_equal(len, i == 1 ? 2 : 3);
			assert_memory_equal(resolved, i == 1 ? "a\0" : "x\ty", len + (i == 1 ? 0 : 1));
			mem_free(resolved);
		}
		if (i == 18) {
			assert_true(json_scan_u64(&s, &number));
			assert_true(number == UINT64_MAX);
		}
	}
}

static void test_scan_u64(void **state)
{
	static const char *const bad[] = { "18446744073709551616", "-0", "-1", "1.0", "1e0",
	"99999999999999999999" };
	struct json_scan s;
	enum json_token token;
	uint64_t number;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		json_scan_init(&s, bad[i], strlen(bad[i]), 1);
		assert_int_equal(json_scan_next(&s, &token, NULL), 0);
		assert_false(json_scan_u64(&s, &number));
	}
}

static void test_scan_skip(void **state)
{
	static const char text[] = "{\"a\":{\"x\":[1,{\"y\":2}]},\"b\":3,\"c\":[]}";
	struct json_scan s;
	enum json_token token;
	int keys = 0;

	(void)state;
	json_scan_init(&s, text, strlen(text), 8);
	assert_int_equal(json_scan_next(&s, &token, NULL), 0);
	while (json_scan_next(&s, &token, NULL) == 0 && token == JT_KEY) {
		keys++;
		assert_int_equal(json_scan_skip(&s, NULL), 0);
	}
	assert_int_equal(keys, 3);
	assert_int_equal(token, JT_OBJECT_END);
	json_scan_init(&s, "[[1,", 4, 8);
	assert_int_equal(json_scan_skip(&s, NULL), -1);
}

/* Many keys, in an order that sorts badly, and one of them twice. */
static void test_many_keys(void **state)
{
	struct buf text;
	struct err err = ERR_INIT;

	(void)state;
	buf_init(&text, 1 << 26);
	buf_puts(&text, "{\"\":0");
	for (unsigned i = 0; i < 200000; i++)
		buf_printf(&text, ",\"%u%s\":%u", i * 2654435761u, i % 3 ? "" : "\\u00e9", i);
	buf_puts(&text, "}");
	assert_false(buf_failed(&text));
	assert_int_equal(json_check(text.data, text.len, 64, &err), 0);
	text.len--;
	buf_puts(&text, ",\"0\\u00E9\":1}");
	assert_int_equal(json_check(text.data, text.len, 64, &err), -1);
	assert_says(&err, "appears twice");
	buf_deinit(&text);
}

/* Deterministic mutations: whatever the bytes, the scanner ends, and what it accepts the tree accepts
 * and prints in a form that both accept again. */
static void test_mutations(void **state)
{
	static const char seed[] = "{\"a\":[1,-2.5e3,\"x\\u00e9\\n\xc3\xa9\"],\"b\":{\"c\":null,\"d\":true},\"\\ud83d\\ude00\":0}";
	static const char alphabet[] = "{}[]\",:\\u0e9.-+tfn \x80\xc3\xed\xff\x01";
	uint64_t x = 0x9E3779B97F4A7C15u;
	int accepted = 0;

	(void)state;
	for (int round = 0; round < 60000; round++) {
		size_t len = sizeof(seed) - 1;
		char work[sizeof(seed)];
		char *text;
		struct json *value;

		memcpy(work, seed, len);
		for (unsigned k = 0, edits = 1 + round % 4; k < edits; k++) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			work[x % len] = (x >> 40) % 4 ? alphabet[(x >> 20) % (sizeof(alphabet) - 1)]
						      : (char)(x >> 32);
		}
		if (round % 5 == 0)
			len = (x >> 11) % len;
		text = exact(work, len);
		value = json_parse(text, len, NULL);
		if (value) {
			char *printed = json_print(value, false);
			struct json *again = json_parse(printed, strlen(printed), NULL);

			accepted++;
			assert_int_equal(scan_all(text, len, 64, NULL), 0);
			assert_non_null(again);
			json_free(again);
			mem_free(printed);
		}
		json_free(value);
		free(text);
	}
	assert_in_range(accepted, 1000, 59000);
}

static void test_utf8_helpers(void **state)
{
	char out[UTF8_SHOWN_MAX], long_name[300];

	(void)state;
	assert_string_equal(utf8_show(out, "a\nb\x1b[31m\xff\xc3\xa9"), "a?b?[31m?\xc3\xa9");
	memset(long_name, 'x', sizeof(long_name));
	long_name[299] = '\0';
	assert_int_equal(strlen(utf8_show(out, long_name)), 123);
	for (int i = 0; i < 298; i += 2)
		memcpy(long_name + i, "\xc3\xa9", 2);
	assert_int_equal(strlen(utf8_show(out, long_name)), 123);
	assert_int_equal(utf8_cut("a\xc3\xa9", 3, 2), 1);
	assert_int_equal(utf8_cut("a\xc3\xa9", 3, 3), 3);
	assert_int_equal(utf8_cut("\xf0\x9f\x98\x80", 4, 3), 0);
	for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
		char bytes[4];
		size_t len;

		if (cp == 0xD800)
			cp = 0xE000;
		len = utf8_encode(cp, bytes);
		if (utf8_sequence(bytes, len) != len || (len > 1 && utf8_sequence(bytes, len - 1) != 0))
			fail_msg("U+%04X", cp);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_refused_by_gate),
		cmocka_unit_test(test_depth),
		cmocka_unit_test(test_long_number),
		cmocka_unit_test(test_accepted),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_number_round_trip),
		cmocka_unit_test(test_not_finite_prints_null),
		cmocka_unit_test(test_pretty),
		cmocka_unit_test(test_getters),
		cmocka_unit_test(test_null_is_harmless),
		cmocka_unit_test(test_require),
		cmocka_unit_test(test_build),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_scan_tokens),
		cmocka_unit_test(test_scan_u64),
		cmocka_unit_test(test_scan_skip),
		cmocka_unit_test(test_many_keys),
		cmocka_unit_test(test_mutations),
		cmocka_unit_test(test_utf8_helpers),
	};

	return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
