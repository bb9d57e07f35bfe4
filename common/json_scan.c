/* json_scan.c - the scanner is a small state machine: what may come next, and a bit per open
 * container (object or array). It never looks behind `len`, needs no memory of its own, and after
 * the first error every further call fails again. */
#include "common/json_scan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"

enum state {
	WANT_VALUE,         /* at the start, after a key, after ',' in an array */
	WANT_FIRST_ELEMENT, /* after '[': a value or ']' */
	WANT_FIRST_KEY,     /* after '{': a key or '}' */
	AFTER_VALUE,        /* ',' or the end of the container, or of the text */
	FAILED,
};

enum { IN_OBJECT, IN_ARRAY };
enum { NUMBER_CHARS_MAX = 1024 };

void json_scan_init(struct json_scan *s, const char *text, size_t len, unsigned depth_limit)
{
	*s = (struct json_scan){ .text = text, .len = len, .state = WANT_VALUE };
	s->depth_limit = depth_limit < JSON_SCAN_DEPTH_MAX ? depth_limit : JSON_SCAN_DEPTH_MAX;
}

static int fail_at(struct json_scan *s, size_t pos, struct err *err, const char *what)
{
	s->state = FAILED;
	return err_set(err, ERR_INVALID, "not valid JSON at byte %zu: %s", pos, what);
}

static int fail(struct json_scan *s, struct err *err, const char *what)
{
	return fail_at(s, s->pos, err, what);
}

/* The byte `ahead` places on, or -1 at the end of the text. */
static int peek(const struct json_scan *s, size_t ahead)
{
	return ahead < s->len - s->pos ? (unsigned char)s->text[s->pos + ahead] : -1;
}

static bool is_digit(int c)
{
	return c >= '0' && c <= '9';
}

static void skip_space(struct json_scan *s)
{
	int c;

	while ((c = peek(s, 0)) == ' ' || c == '\t' || c == '\n' || c == '\r')
		s->pos++;
}

/* --- strings ------------------------------------------------------------------ */

static int hex_digit(int c)
{
	if (is_digit(c))
		return c - '0';
	c |= 32; /* lower case */
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Four hex digits at `p`, or -1. */
static long hex4(const char *p)
{
	long value = 0;

	for (int i = 0; i < 4; i++) {
		int digit = hex_digit((unsigned char)p[i]);

		if (digit < 0)
			return -1;
		value = value * 16 + digit;
	}
	return value;
}

/* Reads a \u escape (or a pair of them) at `p`, which points at the backslash. Returns the bytes
 * used and the code point, or 0 when it is malformed or a lone surrogate. */
static size_t unicode_escape(const char *p, size_t left, uint32_t *cp)
{
	long high = left >= 6 ? hex4(p + 2) : -1;
	long low;

	if (high < 0 || (high >= 0xDC00 && high <= 0xDFFF))
		return 0;
	*cp = (uint32_t)high;
	if (high < 0xD800 || high > 0xDBFF)
		return 6;
	low = left >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8) : -1;
	if (low < 0xDC00 || low > 0xDFFF)
		return 0;
	*cp = 0x10000 + (((uint32_t)high - 0xD800) << 10) + ((uint32_t)low - 0xDC00);
	return 12;
}

static int scan_escape(struct json_scan *s, struct err *err)
{
	int kind = peek(s, 1);
	uint32_t cp;
	size_t used = 2;

	s->token_escaped = true;
	if (kind == 'u')
		used = unicode_escape(s->text + s->pos, s->len - s->pos, &cp);
	else if (kind <= 0 || !strchr("\"\\/bfnrt", kind))
		used = 0;
	if (used == 0)
		return fail(s, err, "bad escape in a string (a lone surrogate counts as one)");
	s->pos += used;
	return 0;
}

/* s->pos is at the opening quote. */
static int scan_string(struct json_scan *s, struct err *err)
{
	size_t open = s->pos++;

	s->token = s->text + s->pos;
	s->token_escaped = false;
	for (;;) {
		int c = peek(s, 0);
		size_t used;

		if (c < 0)
			return fail_at(s, open, err, "the string that begins here does not end");
		if (c == '"')
			break;
		if (c == '\\') {
			if (scan_escape(s, err) != 0)
				return -1;
			continue;
		}
		if (c < 0x20)
			return fail(s, err, "raw control character in a string");
		used = utf8_sequence(s->text + s->pos, s->len - s->pos);
		if (used == 0)
			return fail(s, err, "a string is not UTF-8");
		s->pos += used;
	}
	s->token_len = (size_t)(s->text + s->pos - s->token);
	s->pos++;
	return 0;
}

static size_t resolve_escape(const char *p, size_t left, char *out, size_t *used)
{
	static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
	uint32_t cp = 0;

	if (p[1] == 'u') {
		*used = unicode_escape(p, left, &cp);
		return utf8_encode(cp, out);
	}
	*used = 2;
	*out = values[strchr(names, p[1]) - names];
	return 1;
}

char *json_scan_text(const struct json_scan *s, size_t *len)
{
	char *text = mem_alloc(s->token_len + 1, 1); /* no escape is shorter than what it stands for */
	size_t in = 0, out = 0;

	if (!text)
		return NULL;
	while (in < s->token_len) {
		size_t used = 1;

		if (s->token[in] == '\\')
			out += resolve_escape(s->token + in, s->token_len - in, text + out, &used);
		else
			text[out++] = s->token[in];
		in += used;
	}
	text[out] = '\0';
	*len = out;
	return text;
}

/* --- numbers and words -------------------------------------------------------- */

static size_t skip_digits(struct json_scan *s)
{
	size_t start = s->pos;

	while (is_digit(peek(s, 0)))
		s->pos++;
	return s->pos - start;
}

static int check_number_range(struct json_scan *s, struct err *err)
{
	char copy[NUMBER_CHARS_MAX];

	if (s->token_len >= sizeof(copy))
		return fail(s, err, "a number of more than 1023 characters");
	memcpy(copy, s->token, s->token_len);
	copy[s->token_len] = '\0';
	if (!isfinite(strtod(copy, NULL)))
		return fail(s, err, "a number beyond the range of a double");
	return 0;
}

static int scan_number(struct json_scan *s, struct err *err)
{
	s->token = s->text + s->pos;
	if (peek(s, 0) == '-')
		s->pos++;
	if (peek(s, 0) == '0') {
		s->pos++;
		if (is_digit(peek(s, 0)))
			return fail(s, err, "a number with a leading zero");
	} else if (skip_digits(s) == 0) {
		return fail(s, err, "expected a digit");
	}
	if (peek(s, 0) == '.') {
		s->pos++;
		if (skip_digits(s) == 0)
			return fail(s, err, "expected a digit after the decimal point");
	}
	if (peek(s, 0) == 'e' || peek(s, 0) == 'E') {
		s->pos++;
		if (peek(s, 0) == '+' || peek(s, 0) == '-')
			s->pos++;
		if (skip_digits(s) == 0)
			return fail(s, err, "expected a digit in the exponent");
	}
	s->token_len = (size_t)(s->text + s->pos - s->token);
	return check_number_range(s, err);
}

bool json_scan_u64(const struct json_scan *s, uint64_t *out)
{
	uint64_t value = 0;

	for (size_t i = 0; i < s->token_len; i++)
		if (!is_digit((unsigned char)s->token[i]) || !u64_mul(value, 10, &value) ||
		    !u64_add(value, (uint64_t)(s->token[i] - '0'), &value))
			return false;
	*out = value;
	return s->token_len > 0;
}

static int scan_word(struct json_scan *s, const char *word, struct err *err)
{
	size_t len = strlen(word);

	if (s->len - s->pos < len || memcmp(s->text + s->pos, word, len) != 0)
		return fail(s, err, "expected a value");
	s->pos += len;
	return 0;
}

/* --- structure ---------------------------------------------------------------- */

static int open_container(struct json_scan *s, unsigned char kind, enum json_token *token,
			  struct err *err)
{
	if (s->depth >= s->depth_limit)
		return fail(s, err, "nested too deeply");
	s->stack[s->depth++] = kind;
	s->pos++;
	s->state = kind == IN_OBJECT ? WANT_FIRST_KEY : WANT_FIRST_ELEMENT;
	*token = kind == IN_OBJECT ? JT_OBJECT_BEGIN : JT_ARRAY_BEGIN;
	return 0;
}

static int close_container(struct json_scan *s, enum json_token *token)
{
	s->depth--;
	s->pos++;
	s->state = AFTER_VALUE;
	*token = s->stack[s->depth] == IN_OBJECT ? JT_OBJECT_END : JT_ARRAY_END;
	return 0;
}

static int scan_value(struct json_scan *s, enum json_token *token, struct err *err)
{
	int c = peek(s, 0);

	if (c == '{')
		return open_container(s, IN_OBJECT, token, err);
	if (c == '[')
		return open_container(s, IN_ARRAY, token, err);
	s->state = AFTER_VALUE;
	switch (c) {
	case '"':
		*token = JT_STRING;
		return scan_string(s, err);
	case 't':
		*token = JT_TRUE;
		return scan_word(s, "true", err);
	case 'f':
		*token = JT_FALSE;
		return scan_word(s, "false", err);
	case 'n':
		*token = JT_NULL;
		return scan_word(s, "null", err);
	}
	if (c != '-' && !is_digit(c))
		return fail(s, err, c < 0 ? "the text ends where a value is expected" : "expected a value");
	*token = JT_NUMBER;
	return scan_number(s, err);
}

static int scan_key(struct json_scan *s, enum json_token *token, struct err *err)
{
	if (peek(s, 0) != '"')
		return fail(s, err, "expected a key in double quotes");
	if (scan_string(s, err) != 0)
		return -1;
	skip_space(s);
	if (peek(s, 0) != ':')
		return fail(s, err, "expected ':' after a key");
	s->pos++;
	s->state = WANT_VALUE;
	*token = JT_KEY;
	return 0;
}

/* After a value: the end of its container, or ',' and what follows. */
static int scan_after(struct json_scan *s, enum json_token *token, struct err *err)
{
	bool object = s->depth > 0 && s->stack[s->depth - 1] == IN_OBJECT;
	int c = peek(s, 0);

	if (s->depth == 0) {
		if (c >= 0)
			return fail(s, err, "something follows the value");
		*token = JT_END;
		return 0;
	}
	if (c == (object ? '}' : ']'))
		return close_container(s, token);
	if (c != ',')
		return fail(s, err, object ? "expected ',' or '}'" : "expected ',' or ']'");
	s->pos++;
	skip_space(s);
	return object ? scan_key(s, token, err) : scan_value(s, token, err);
}

int json_scan_next(struct json_scan *s, enum json_token *token, struct err *err)
{
	skip_space(s);
	switch ((enum state)s->state) {
	case WANT_VALUE:
		return scan_value(s, token, err);
	case WANT_FIRST_ELEMENT:
		return peek(s, 0) == ']' ? close_container(s, token) : scan_value(s, token, err);
	case WANT_FIRST_KEY:
		return peek(s, 0) == '}' ? close_container(s, token) : scan_key(s, token, err);
	case AFTER_VALUE:
		return scan_after(s, token, err);
	case FAILED:
		break;
	}
	return fail(s, err, "the text was already found to be wrong");
}

int json_scan_skip(struct json_scan *s, struct err *err)
{
	unsigned depth = s->depth;
	enum json_token token;

	do {
		if (json_scan_next(s, &token, err) != 0)
			return -1;
	} while (s->depth > depth || token == JT_KEY);
	return 0;
}
