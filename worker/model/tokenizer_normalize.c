/* uni_normalize(): NFC, NFD, NFKC and NFKD on top of utf8proc.
 *
 * The text is cut where normalization cannot reach across: before every ASCII character (a starter
 * that never composes with what precedes it) and around code points that the reference does not
 * know (uni_norm_unknown), which are copied. Each section is decomposed, put into canonical order
 * by a counting sort (a long run of marks costs linear time) and, if asked, composed.
 */
#include <string.h>
#include <utf8proc.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "worker/model/tokenizer_unicode.h"

enum { CLASSES = 256, DECOMPOSED_MAX = 32 };

struct section {
	utf8proc_int32_t *cps, *sorted; /* cap elements each */
	size_t count, cap;
	utf8proc_option_t options;
};

static int reserve(struct section *s, size_t more)
{
	size_t cap = s->cap ? s->cap : 256;
	void *grown;

	while (cap - s->count < more) {
		if (cap > SIZE_MAX / 2)
			return -1;
		cap *= 2;
	}
	if (cap == s->cap)
		return 0;
	grown = mem_realloc(s->cps, cap, sizeof(*s->cps));
	if (!grown)
		return -1;
	s->cps = grown;
	grown = mem_realloc(s->sorted, cap, sizeof(*s->sorted));
	if (!grown)
		return -1;
	s->sorted = grown;
	s->cap = cap;
	return 0;
}

static size_t class_of(utf8proc_int32_t cp)
{
	return (size_t)utf8proc_get_property(cp)->combining_class & (CLASSES - 1);
}

/* Stable sort of cps[begin..end) by combining class. */
static void order_run(struct section *s, size_t begin, size_t end)
{
	size_t start[CLASSES + 1] = { 0 };

	for (size_t i = begin; i < end; i++)
		start[class_of(s->cps[i]) + 1]++;
	for (size_t c = 0; c < CLASSES; c++)
		start[c + 1] += start[c];
	for (size_t i = begin; i < end; i++)
		s->sorted[start[class_of(s->cps[i])]++] = s->cps[i];
	memcpy(s->cps + begin, s->sorted, (end - begin) * sizeof(*s->cps));
}

static void order(struct section *s)
{
	size_t i = 0;

	while (i < s->count) {
		size_t begin = i;

		while (i < s->count && class_of(s->cps[i]) != 0)
			i++;
		if (i - begin > 1)
			order_run(s, begin, i);
		else if (i == begin)
			i++;
	}
}

static int decompose(struct section *s, const char *text, size_t len)
{
	s->count = 0;
	for (size_t at = 0; at < len;) {
		size_t n;
		uint32_t cp = uni_decode(text + at, &n);
		utf8proc_ssize_t wrote;
		int boundary = 0;

		if (reserve(s, DECOMPOSED_MAX) != 0)
			return -1;
		wrote = utf8proc_decompose_char((utf8proc_int32_t)cp, s->cps + s->count,
						DECOMPOSED_MAX, s->options, &boundary);
		if (wrote < 0 || wrote > DECOMPOSED_MAX)
			return -1;
		s->count += (size_t)wrote;
		at += n;
	}
	return 0;
}

/* Normalizes one section and appends it. */
static int put_section(struct section *s, const char *text, size_t len, struct buf *out)
{
	utf8proc_ssize_t count;

	if (len == 1)
		return buf_append(out, text, 1);
	if (decompose(s, text, len) != 0)
		return -1;
	order(s);
	count = (utf8proc_ssize_t)s->count;
	if (s->options & UTF8PROC_COMPOSE)
		count = utf8proc_normalize_utf32(s->cps, count, s->options);
	for (utf8proc_ssize_t i = 0; i < count; i++) {
		char bytes[4];

		if (buf_append(out, bytes, utf8_encode((uint32_t)s->cps[i], bytes)) != 0)
			return -1;
	}
	return count < 0 ? -1 : 0;
}

static bool unknown(uint32_t cp)
{
	size_t low = 0, high = uni_norm_unknown_count;

	if (cp < uni_norm_unknown[0].first)
		return false;
	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (cp > uni_norm_unknown[mid].last)
			low = mid + 1;
		else if (cp < uni_norm_unknown[mid].first)
			high = mid;
		else
			return true;
	}
	return false;
}

/* The end of the section that begins at `at`; *copy = nothing in it changes. */
static size_t section_end(const char *text, size_t len, size_t at, bool *copy)
{
	size_t end = at, n;

	while (end < len && (unsigned char)text[end] < 0x80)
		end++;
	*copy = true;
	if (end == len)
		return end;
	if (end > at + 1)
		return end - 1;
	if (unknown(uni_decode(text + at, &n)))
		return at + n;
	*copy = false;
	for (end = at + n; end < len && (unsigned char)text[end] >= 0x80; end += n) {
		if (unknown(uni_decode(text + end, &n)))
			break;
	}
	return end;
}

int uni_normalize(struct uni_form form, const char *text, size_t len, struct buf *out,
		  struct err *err)
{
	struct section s = { .options = UTF8PROC_STABLE };
	int rc = 0;

	s.options |= form.compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
	if (form.compat)
		s.options |= UTF8PROC_COMPAT;
	for (size_t at = 0; at < len && rc == 0;) {
		bool copy;
		size_t end = section_end(text, len, at, &copy);

		rc = copy ? buf_append(out, text + at, end - at) :
			    put_section(&s, text + at, end - at, out);
		at = end;
	}
	mem_free(s.cps);
	mem_free(s.sorted);
	return rc == 0 ? 0 : err_set_nomem(err, "normalized text");
}
