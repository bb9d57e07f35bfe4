/* Character classes of the regular expressions, written out so that the installed PCRE2's Unicode
 * version does not matter: a property stands for itself plus the code points assigned since
 * (uni_recent); white space is written as the list that the reference uses.
 */
#include "worker/model/tokenizer_regex.h"

#include <string.h>

#include "worker/model/tokenizer_unicode.h"

static const char *const categories[] = {
	"L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd",
	"Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "Cc", "Cf",
};

static int done(const struct regex_pass *p)
{
	return buf_failed(p->out) ? err_set_nomem(p->err, "a regular expression") : 0;
}

static void put_range(struct regex_pass *p, uint32_t first, uint32_t last)
{
	if (first == last)
		buf_printf(p->out, "\\x{%X}", (unsigned)first);
	else
		buf_printf(p->out, "\\x{%X}-\\x{%X}", (unsigned)first, (unsigned)last);
}

static void put_ranges(struct regex_pass *p, const struct uni_range *ranges, size_t count)
{
	for (size_t i = 0; i < count; i++)
		put_range(p, ranges[i].first, ranges[i].last);
}

static void put_not_space(struct regex_pass *p)
{
	uint32_t next = 0;

	for (size_t i = 0; i < uni_space_count; i++) {
		put_range(p, next, uni_space[i].first - 1);
		next = uni_space[i].last + 1;
	}
	put_range(p, next, 0x10FFFF);
}

static void put_property(struct regex_pass *p, const char *category)
{
	size_t n = strlen(category);

	buf_printf(p->out, "\\p{%s}", category);
	for (size_t i = 0; i < uni_recent_count; i++) {
		if (memcmp(uni_recent[i].category, category, n) == 0)
			put_range(p, uni_recent[i].first, uni_recent[i].last);
	}
}

/* Word characters as Oniguruma has them: superscript digits and fractions of Latin-1 included,
 * joiners not. */
static void put_word(struct regex_pass *p)
{
	static const char *const parts[] = { "L", "M", "Nd", "Nl", "Pc" };

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		put_property(p, parts[i]);
	put_ranges(p, uni_word_symbol + 1, uni_word_symbol_count - 1);
	buf_puts(p->out, "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}");
}

/* "{Lu}" or "{^Lu}" at p->at: the category, and *negated flipped by '^'. */
static const char *property(struct regex_pass *p, bool *negated)
{
	size_t at = p->at, n = 0;

	if (at >= p->len || p->text[at++] != '{')
		return NULL;
	if (at < p->len && p->text[at] == '^') {
		*negated = !*negated;
		at++;
	}
	while (at + n < p->len && p->text[at + n] != '}')
		n++;
	for (size_t i = 0; at + n < p->len && i < sizeof(categories) / sizeof(categories[0]); i++) {
		if (strlen(categories[i]) == n && memcmp(categories[i], p->text + at, n) == 0) {
			p->at = at + n + 1;
			return categories[i];
		}
	}
	return NULL;
}

/* Members of the set that the escape at p->at names, without brackets. *negated: it names their
 * complement. */
static int put_set(struct regex_pass *p, bool *negated)
{
	size_t at = p->at;
	char letter = p->text[p->at++];
	const char *category;

	if (p->caseless)
		return regex_refuse(p, at, "a set of characters inside (?i:...)");
	*negated = letter >= 'A' && letter <= 'Z';
	switch (letter | 0x20) {
	case 's':
		put_ranges(p, uni_space, uni_space_count);
		return done(p);
	case 'd':
		put_property(p, "Nd");
		return done(p);
	case 'w':
		put_word(p);
		return done(p);
	case 'h':
		buf_puts(p->out, "0-9A-Fa-f");
		return done(p);
	case 'p':
		category = property(p, negated);
		if (!category)
			return regex_refuse(p, at, "this property (only general categories such as "
					    "\\p{L} or \\p{Nd} are)");
		put_property(p, category);
		return done(p);
	}
	return regex_refuse(p, at, "this escape");
}

int regex_class_escape(struct regex_pass *p)
{
	struct buf *out = p->out;
	size_t begin = out->len;
	bool negated;

	buf_puts(out, "[^");
	if (put_set(p, &negated) != 0)
		return -1;
	if (!negated && !buf_failed(out)) {
		memmove(out->data + begin + 1, out->data + begin + 2, out->len - begin - 1);
		out->len--;
	}
	buf_puts(out, "]");
	return done(p);
}

/* A set inside a class. Only \S has a complement that can be written as members. */
static int class_set(struct regex_pass *p)
{
	size_t at = p->at;
	bool negated;

	if (p->text[at] == 'S' && !p->caseless) {
		p->at++;
		put_not_space(p);
		return done(p);
	}
	if (put_set(p, &negated) != 0)
		return -1;
	return negated ? regex_refuse(p, at, "a negated set inside a class") : 0;
}

/* One character of a class: 1 and *cp, 0 = a set was written instead. */
static int class_char(struct regex_pass *p, uint32_t *cp)
{
	size_t at = p->at, n;
	int rc;

	*cp = uni_decode(p->text + at, &n);
	p->at += n;
	if (*cp == '[')
		return regex_refuse(p, at, "a class inside a class");
	if (*cp == '&' && p->at < p->len && p->text[p->at] == '&')
		return regex_refuse(p, at, "an intersection of classes");
	if (*cp == '\\') {
		rc = regex_escaped_char(p, cp);
		if (rc == 0)
			return class_set(p) == 0 ? 0 : -1;
		if (rc < 0)
			return -1;
	}
	if (p->caseless && *cp > 0x7F)
		return regex_refuse(p, at, "a character beyond ASCII inside (?i:...)");
	return 1;
}

/* A character, a range or a set. */
static int class_item(struct regex_pass *p, bool first)
{
	uint32_t low, high;
	size_t at = p->at;
	int rc = class_char(p, &low);

	if (rc < 0)
		return -1;
	if (p->at + 1 >= p->len || p->text[p->at] != '-' || p->text[p->at + 1] == ']') {
		if (rc > 0)
			put_range(p, low, low);
		return done(p);
	}
	if (rc == 0 || (low == '-' && !first))
		return regex_refuse(p, at, "a range that begins with a set or a hyphen");
	p->at++;
	rc = class_char(p, &high);
	if (rc < 0)
		return -1;
	if (rc == 0 || high < low)
		return regex_refuse(p, at, "this range of characters");
	put_range(p, low, high);
	return done(p);
}

int regex_class(struct regex_pass *p)
{
	size_t open = p->at - 1;
	bool negated = p->at < p->len && p->text[p->at] == '^';

	if (negated && p->caseless)
		return regex_refuse(p, open, "a negated class inside (?i:...)");
	p->at += negated;
	buf_puts(p->out, negated ? "[^" : "[");
	if (p->at < p->len && p->text[p->at] == ']')
		return regex_refuse(p, open, "a class that begins with ]");
	for (bool first = true; p->at < p->len && p->text[p->at] != ']'; first = false) {
		if (class_item(p, first) != 0)
			return -1;
	}
	if (p->at >= p->len)
		return regex_refuse(p, open, "a class without its end");
	p->at++;
	buf_puts(p->out, "]");
	return done(p);
}
