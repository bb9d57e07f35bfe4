/* json_print.c - text of a JSON value. Own code rather than cJSON's printer, which compares
 * doubles with a tolerance: here every number reads back to the same bits (-0 aside, which is 0),
 * and equal values print equal bytes. NaN and infinity, which JSON lacks, print as null. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/buf.h"
#include "common/json.h"

static void print_number(struct buf *out, double number)
{
	char text[40];
	int digits = fabs(number) < DBL_MIN ? 1 : 15; /* 15 always survive, but for subnormals */

	if (!isfinite(number)) {
		buf_puts(out, "null");
	} else if (fabs(number) <= 0x1p53 && number == floor(number)) {
		buf_printf(out, "%lld", (long long)number);
	} else {
		do
			snprintf(text, sizeof(text), "%.*g", digits, number);
		while (strtod(text, NULL) != number && ++digits <= 17);
		buf_puts(out, text);
	}
}

void json_append_string(struct buf *out, const char *text)
{
	buf_puts(out, "\"");
	for (const char *p = text; *p; p++) {
		unsigned char c = (unsigned char)*p;

		if (c == '"' || c == '\\')
			buf_printf(out, "\\%c", c);
		else if (c == '\n')
			buf_puts(out, "\\n");
		else if (c == '\t')
			buf_puts(out, "\\t");
		else if (c < 0x20 || c == 0x7F)
			buf_printf(out, "\\u%04x", c);
		else
			buf_append(out, p, 1);
	}
	buf_puts(out, "\"");
}

static void new_line(struct buf *out, bool pretty, unsigned depth)
{
	if (pretty)
		buf_printf(out, "\n%*s", (int)(2 * depth), "");
}

static void print_value(struct buf *out, const struct json *value, bool pretty, unsigned depth);

static void print_members(struct buf *out, const struct json *value, bool pretty, unsigned depth)
{
	bool object = json_type(value) == JSON_OBJECT;
	const struct json *member = json_first(value);
	bool any = member != NULL;

	buf_puts(out, object ? "{" : "[");
	for (; member; member = json_next(member)) {
		new_line(out, pretty, depth + 1);
		if (object) {
			json_append_string(out, json_key(member));
			buf_puts(out, pretty ? ": " : ":");
		}
		print_value(out, member, pretty, depth + 1);
		if (json_next(member))
			buf_puts(out, ",");
	}
	if (any)
		new_line(out, pretty, depth);
	buf_puts(out, object ? "}" : "]");
}

static void print_value(struct buf *out, const struct json *value, bool pretty, unsigned depth)
{
	switch (json_type(value)) {
	case JSON_NULL:
		buf_puts(out, "null");
		break;
	case JSON_BOOL:
		buf_puts(out, json_bool(value, false) ? "true" : "false");
		break;
	case JSON_NUMBER:
		print_number(out, json_number(value, 0));
		break;
	case JSON_STRING:
		json_append_string(out, json_string(value, ""));
		break;
	case JSON_ARRAY:
	case JSON_OBJECT:
		print_members(out, value, pretty, depth);
		break;
	}
}

char *json_print(const struct json *value, bool pretty)
{
	struct buf out;
	char *text;

	buf_init(&out, (size_t)-1 / 4);
	print_value(&out, value, pretty, 0);
	text = buf_take(&out);
	buf_deinit(&out);
	return text;
}
