#include "server/percent.h"

#include <string.h>

#include "common/utf8.h"

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int is_text(const char *bytes, size_t len)
{
	for (size_t i = 0; i < len;) {
		size_t n = utf8_sequence(bytes + i, len - i);

		if (n == 0 || (unsigned char)bytes[i] < 0x20 || bytes[i] == 0x7f)
			return 0;
		i += n;
	}
	return 1;
}

int percent_decode(const char *text, size_t len, char *out, size_t cap)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		char c = text[i];

		if (c == '%') {
			int high = len - i > 2 ? hex_digit(text[i + 1]) : -1;
			int low = high >= 0 ? hex_digit(text[i + 2]) : -1;

			if (low < 0)
				return -1;
			c = (char)(high * 16 + low);
			i += 2;
		}
		if (n + 1 >= cap)
			return -1;
		out[n++] = c;
	}
	out[n] = '\0';
	return is_text(out, n) ? 0 : -1;
}
