#include "server/range.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

/* Digits up to another character. false when there are none or they overflow. */
static bool number(const char **text, uint64_t *out)
{
	const char *p = *text;
	uint64_t n = 0;

	if (*p < '0' || *p > '9')
		return false;
	for (; *p >= '0' && *p <= '9'; p++) {
		if (n > (UINT64_MAX - 9) / 10)
			return false;
		n = n * 10 + (uint64_t)(*p - '0');
	}
	*text = p;
	*out = n;
	return true;
}

static enum range_kind suffix(const char *p, uint64_t size, uint64_t *first, uint64_t *last)
{
	uint64_t n;

	if (!number(&p, &n) || *p)
		return RANGE_ALL;
	if (n == 0 || size == 0)
		return RANGE_NONE;
	*first = n >= size ? 0 : size - n;
	*last = size - 1;
	return RANGE_PART;
}

enum range_kind range_parse(const char *header, uint64_t size, uint64_t *first, uint64_t *last)
{
	const char *p = header;
	uint64_t from, to = UINT64_MAX;

	if (!p || strncasecmp(p, "bytes=", 6) != 0)
		return RANGE_ALL;
	p += 6;
	if (*p == '-')
		return suffix(p + 1, size, first, last);
	if (!number(&p, &from) || *p++ != '-')
		return RANGE_ALL;
	if (*p && (!number(&p, &to) || *p || to < from))
		return RANGE_ALL;
	if (from >= size)
		return RANGE_NONE;
	*first = from;
	*last = to < size ? to : size - 1;
	return RANGE_PART;
}
