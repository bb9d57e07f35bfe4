#include "common/utf8.h"

#include <string.h>

size_t utf8_sequence(const char *bytes, size_t left)
{
	const unsigned char *p = (const unsigned char *)bytes;
	unsigned char low = 0x80, high = 0xBF; /* range of the second byte */
	size_t len;

	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xC2 || p[0] > 0xF4)
		return 0;
	len = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
	if (len > left)
		return 0;
	if (p[0] == 0xE0)
		low = 0xA0; /* shorter forms exist below */
	else if (p[0] == 0xED)
		high = 0x9F; /* surrogates above */
	else if (p[0] == 0xF0)
		low = 0x90;
	else if (p[0] == 0xF4)
		high = 0x8F; /* beyond U+10FFFF above */
	if (p[1] < low || p[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++)
		if ((p[i] & 0xC0) != 0x80)
			return 0;
	return len;
}

size_t utf8_encode(uint32_t cp, char out[4])
{
	if (cp < 0x80) {
		out[0] = (char)cp;
		return 1;
	}
	if (cp < 0x800) {
		out[0] = (char)(0xC0 | cp >> 6);
		out[1] = (char)(0x80 | (cp & 63));
		return 2;
	}
	if (cp < 0x10000) {
		out[0] = (char)(0xE0 | cp >> 12);
		out[1] = (char)(0x80 | (cp >> 6 & 63));
		out[2] = (char)(0x80 | (cp & 63));
		return 3;
	}
	out[0] = (char)(0xF0 | cp >> 18);
	out[1] = (char)(0x80 | (cp >> 12 & 63));
	out[2] = (char)(0x80 | (cp >> 6 & 63));
	out[3] = (char)(0x80 | (cp & 63));
	return 4;
}

size_t utf8_cut(const char *text, size_t len, size_t limit)
{
	if (len <= limit)
		return len;
	while (limit > 0 && ((unsigned char)text[limit] & 0xC0) == 0x80)
		limit--;
	return limit;
}

const char *utf8_show(char out[UTF8_SHOWN_MAX], const char *text)
{
	size_t len = strlen(text), in = 0, used = 0;

	while (in < len) {
		size_t n = utf8_sequence(text + in, len - in);

		if (used + (n ? n : 1) > UTF8_SHOWN_MAX - 8) {
			memcpy(out + used, "...", 3);
			used += 3;
			break;
		}
		if (n == 0 || (unsigned char)text[in] < 0x20 || text[in] == 0x7F) {
			out[used++] = '?';
			in++;
			continue;
		}
		memcpy(out + used, text + in, n);
		used += n;
		in += n;
	}
	out[used] = '\0';
	return out;
}
