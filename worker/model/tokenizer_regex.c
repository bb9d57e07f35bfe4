/* Oniguruma syntax to PCRE2 syntax: everything but character classes (tokenizer_regex_class.c).
 *
 * Where the two differ, and what is done:
 *  1. ^ and $ are anchors of lines, a line ends with \n only: written as (?m:^) and (?m:$); the
 *     pattern is compiled with \n as the only newline.
 *  2. X{2,3}+ repeats X{2,3}; it is not possessive. X{2}? makes X{2} optional. Both get a group.
 *  3. {,n} means {0,n}; a brace that starts no such interval is a literal.
 *  4. \s, \p{..}, \d, \w follow the tables of the reference, not of the installed PCRE2.
 *  5. (?i:..): a string such as "ss" also matches "ß" there. Only ASCII is allowed in it, without the
 *     pairs that are folds of one character.
 *  6. What a tokenizer has no use for is refused by name: options other than i, back-references,
 *     named groups, \b \G \K \R \X and so on.
 */
#include "worker/model/tokenizer_regex.h"

#include <stdio.h>
#include <string.h>

#include "common/utf8.h"
#include "worker/model/tokenizer_unicode.h"

enum { INTERVAL_MAX = 1000 };

int regex_refuse(struct regex_pass *p, size_t at, const char *what)
{
	return err_set(p->err, ERR_UNSUPPORTED, "regular expression: %s at byte %zu is not supported",
		       what, at);
}

static int put(struct regex_pass *p, const char *text)
{
	return buf_puts(p->out, text) == 0 ? 0 : err_set_nomem(p->err, "a regular expression");
}

static int peek(const struct regex_pass *p)
{
	return p->at < p->len ? (unsigned char)p->text[p->at] : -1;
}

static bool take(struct regex_pass *p, const char *word)
{
	size_t n = strlen(word);

	if (p->len - p->at < n || memcmp(p->text + p->at, word, n) != 0)
		return false;
	p->at += n;
	return true;
}

/* --- literals ------------------------------------------------------------------------------ */

static int hex_digit(int c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Reads 1..most hex digits. */
static int hex_number(struct regex_pass *p, int least, int most, uint32_t *out)
{
	int n = 0;

	*out = 0;
	for (; n < most && hex_digit(peek(p)) >= 0; n++, p->at++)
		*out = *out * 16 + (uint32_t)hex_digit(peek(p));
	return n >= least ? 0 : -1;
}

static int escaped_code(struct regex_pass *p, size_t at, uint32_t *cp)
{
	bool braces = false;
	int rc;

	if (p->text[at] == 'u')
		rc = hex_number(p, 4, 4, cp);
	else if ((braces = take(p, "{")))
		rc = hex_number(p, 1, 6, cp) != 0 || !take(p, "}") ? -1 : 0;
	else
		rc = hex_number(p, 2, 2, cp);
	if (rc != 0 || *cp > 0x10FFFF || (*cp >= 0xD800 && *cp <= 0xDFFF) || *cp == 0)
		return regex_refuse(p, at, "this character code");
	if (p->text[at] == 'x' && !braces && *cp > 0x7F)
		return regex_refuse(p, at, "a byte above 7F");
	return 1;
}

int regex_escaped_char(struct regex_pass *p, uint32_t *cp)
{
	static const char letters[] = "tnrfvae", codes[] = "\t\n\r\f\v\a\x1B";
	size_t at = p->at, n;
	int c = peek(p);
	const char *letter;

	if (c < 0)
		return regex_refuse(p, at, "a backslash that ends the pattern");
	letter = c ? strchr(letters, c) : NULL;
	if (letter) {
		p->at++;
		*cp = (uint32_t)codes[letter - letters];
		return 1;
	}
	if (c == 'x' || c == 'u') {
		p->at++;
		return escaped_code(p, at, cp);
	}
	if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
		return 0;
	*cp = uni_decode(p->text + at, &n);
	p->at += n;
	return 1;
}

/* Two ASCII letters that are the case fold of one ligature: ss ff fi fl st. */
static bool folds_together(int first, int second)
{
	static const char pairs[] = "ssfffiflst";

	for (size_t i = 0; i + 1 < sizeof(pairs) - 1; i += 2) {
		if ((first | 0x20) == pairs[i] && (second | 0x20) == pairs[i + 1])
			return true;
	}
	return false;
}

static int put_literal(struct regex_pass *p, size_t at, uint32_t cp)
{
	int before = p->last;

	if (p->caseless && cp > 0x7F)
		return regex_refuse(p, at, "a character beyond ASCII inside (?i:...)");
	if (p->caseless && before >= 0 && folds_together(before, (int)cp))
		return regex_refuse(p, at, "a pair of letters that is also one ligature inside (?i:...)");
	p->last = p->caseless ? (int)cp : -1;
	if (buf_printf(p->out, "\\x{%X}", (unsigned)cp) != 0)
		return err_set_nomem(p->err, "a regular expression");
	return 0;
}

static int escape(struct regex_pass *p)
{
	size_t at = p->at - 1;
	uint32_t cp;
	int rc = regex_escaped_char(p, &cp);

	if (rc < 0)
		return -1;
	if (rc > 0)
		return put_literal(p, at, cp);
	p->last = -1;
	if (take(p, "A"))
		return put(p, "\\A");
	if (take(p, "z"))
		return put(p, "\\z");
	if (take(p, "Z"))
		return put(p, "\\Z");
	return regex_class_escape(p);
}

/* --- groups -------------------------------------------------------------------------------- */

static int alternatives(struct regex_pass *p);

static int group(struct regex_pass *p)
{
	static const struct { const char *open; int caseless; } kinds[] = {
		{ "?:", -1 }, { "?i:", 1 }, { "?-i:", 0 }, { "?=", -1 }, { "?!", -1 },
		{ "?<=", -1 }, { "?<!", -1 }, { "?>", -1 },
	};
	size_t at = p->at - 1, i;
	bool outer = p->caseless;
	const char *open = "?:"; /* numbered groups need no number: nothing refers to them */

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && !take(p, kinds[i].open); i++)
		;
	if (i < sizeof(kinds) / sizeof(kinds[0])) {
		open = kinds[i].open;
		p->caseless = kinds[i].caseless < 0 ? outer : kinds[i].caseless > 0;
	} else if (peek(p) == '?') {
		return regex_refuse(p, at, "this kind of group");
	}
	if (++p->depth > REGEX_DEPTH_MAX)
		return regex_refuse(p, at, "nesting this deep");
	if (put(p, "(") != 0 || put(p, open) != 0 || alternatives(p) != 0)
		return -1;
	if (!take(p, ")"))
		return regex_refuse(p, at, "a group without its end");
	p->depth--;
	p->caseless = outer;
	return put(p, ")");
}

/* --- repetition ---------------------------------------------------------------------------- */

static bool number(struct regex_pass *p, unsigned *out)
{
	size_t begin = p->at;

	*out = 0;
	for (; peek(p) >= '0' && peek(p) <= '9'; p->at++) {
		if (*out <= INTERVAL_MAX)
			*out = *out * 10 + (unsigned)(peek(p) - '0');
	}
	return p->at > begin;
}

/* "{2,3}" and its like at p->at, a '?' behind it included where that makes it lazy: 1 and `out`
 * filled; 0 = an ordinary brace. */
static int interval(struct regex_pass *p, char out[32])
{
	const char *lazy;
	size_t begin = p->at;
	unsigned low, high;
	bool has_low, comma, has_high = false;

	p->at++;
	has_low = number(p, &low);
	comma = take(p, ",");
	if (comma)
		has_high = number(p, &high);
	if ((!has_low && !has_high) || !take(p, "}")) {
		p->at = begin;
		return 0;
	}
	lazy = comma && take(p, "?") ? "?" : "";
	if (low > INTERVAL_MAX || (has_high && (high > INTERVAL_MAX || high < low)))
		return regex_refuse(p, begin, "this repeat count");
	if (has_high)
		snprintf(out, 32, "{%u,%u}%s", low, high, lazy);
	else
		snprintf(out, 32, comma ? "{%u,}%s" : "{%u}%s", low, lazy);
	return 1;
}

/* A repeat operator at p->at, its suffix included: 1, or 0 when there is none. */
static int quantifier(struct regex_pass *p, char out[32])
{
	int c = peek(p);

	if (c == '{')
		return interval(p, out);
	if (c != '*' && c != '+' && c != '?')
		return 0;
	p->at++;
	snprintf(out, 32, "%c%s", c, take(p, "?") ? "?" : take(p, "+") ? "+" : "");
	return 1;
}

/* Puts "(?:" at `begin` and ")" at the end of what was written. */
static int wrap(struct regex_pass *p, size_t begin)
{
	struct buf *out = p->out;

	if (put(p, "(?:)") != 0)
		return -1;
	memmove(out->data + begin + 3, out->data + begin, out->len - 4 - begin);
	memcpy(out->data + begin, "(?:", 3);
	return 0;
}

static int repeats(struct regex_pass *p, size_t begin)
{
	char text[32];

	for (bool again = false;; again = true) {
		int rc = quantifier(p, text);

		if (rc <= 0)
			return rc;
		p->last = -1;
		if ((again && wrap(p, begin) != 0) || put(p, text) != 0)
			return -1;
	}
}

/* --- the whole ----------------------------------------------------------------------------- */

static int atom(struct regex_pass *p)
{
	size_t at = p->at, n;
	uint32_t cp = uni_decode(p->text + at, &n);

	p->at += n;
	switch (cp) {
	case '\\':
		return escape(p);
	case '(':
		return group(p);
	case '[':
		p->last = -1;
		return regex_class(p);
	case '.':
		p->last = -1;
		return put(p, "[^\\n]");
	case '^':
		p->last = -1;
		return put(p, "(?m:^)");
	case '$':
		p->last = -1;
		return put(p, "(?m:$)");
	case '*':
	case '+':
	case '?':
		return regex_refuse(p, at, "a repeat of nothing");
	case '{':
		p->at = at;
		if (interval(p, (char[32]){ 0 }) != 0)
			return regex_refuse(p, at, "a repeat of nothing");
		p->at = at + 1;
		return put_literal(p, at, cp);
	}
	return put_literal(p, at, cp);
}

static int alternatives(struct regex_pass *p)
{
	while (p->at < p->len && peek(p) != ')') {
		size_t begin = p->out->len;

		if (take(p, "|")) {
			p->last = -1;
			if (put(p, "|") != 0)
				return -1;
			continue;
		}
		if (atom(p) != 0 || repeats(p, begin) != 0)
			return -1;
	}
	return 0;
}

int regex_translate(const char *text, struct buf *out, struct err *err)
{
	struct regex_pass p = { .text = text, .len = strlen(text), .out = out, .err = err, .last = -1 };

	if (p.len > REGEX_LEN_MAX)
		return err_set(err, ERR_UNSUPPORTED, "regular expression: more than %d bytes",
			       REGEX_LEN_MAX);
	if (alternatives(&p) != 0)
		return -1;
	if (p.at < p.len)
		return regex_refuse(&p, p.at, "a closing parenthesis without its group");
	return 0;
}
