#include "cli/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/utf8.h"

/* --- safe text ------------------------------------------------------------------------------ */

/* Two- and three-byte sequences that move the cursor or reorder the line. */
static bool is_hidden(const char *seq, size_t len)
{
	const unsigned char *p = (const unsigned char *)seq;

	if (len == 2)
		return p[0] == 0xC2 && p[1] < 0xA0;                             /* C1 */
	if (len == 3 && p[0] == 0xE2 && p[1] == 0x80)
		return (p[2] >= 0x8B && p[2] <= 0x8F) || (p[2] >= 0xA8 && p[2] <= 0xAE);
	if (len == 3 && p[0] == 0xE2 && p[1] == 0x81)
		return p[2] >= 0xA0 && p[2] <= 0xAF;
	return len == 3 && p[0] == 0xEF && p[1] == 0xBB && p[2] == 0xBF;        /* byte-order mark */
}

const char *text_safe(const char *text, char *out, size_t cap)
{
	size_t used = 0, left = strlen(text);

	while (left > 0) {
		size_t len = utf8_sequence(text, left);
		bool bad = len == 0 || (unsigned char)*text < 0x20 || *text == 0x7f || is_hidden(text, len);
		size_t eat = len ? len : 1;

		if (used + (bad ? 4 * eat : eat) + 1 > cap)
			break;
		for (size_t i = 0; bad && i < eat; i++)
			used += (size_t)snprintf(out + used, cap - used, "\\x%02x", (unsigned char)text[i]);
		if (!bad) {
			memcpy(out + used, text, eat);
			used += eat;
		}
		text += eat;
		left -= eat;
	}
	out[used] = '\0';
	return out;
}

static void print_safe_line(const char *before, const char *fmt, va_list args)
{
	char text[4096], safe[8192];

	vsnprintf(text, sizeof(text), fmt, args);
	status_end();
	fflush(stdout);
	fprintf(stderr, "%s%s\n", before, text_safe(text, safe, sizeof(safe)));
}

void print_error(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	print_safe_line("quarry: ", fmt, args);
	va_end(args);
}

void print_note(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	print_safe_line("", fmt, args);
	va_end(args);
}

/* --- numbers -------------------------------------------------------------------------------- */

const char *text_bytes(double bytes, char out[TEXT_SHORT])
{
	static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
	size_t unit = 0;

	while (bytes >= 999.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
		bytes /= 1000;
		unit++;
	}
	snprintf(out, TEXT_SHORT, unit == 0 || bytes >= 99.95 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
	return out;
}

const char *text_duration(double seconds, char out[TEXT_SHORT])
{
	long long whole = (long long)(seconds + 0.5);

	if (seconds < 9.95)
		snprintf(out, TEXT_SHORT, "%.1f s", seconds < 0 ? 0.0 : seconds);
	else if (whole < 60)
		snprintf(out, TEXT_SHORT, "%lld s", whole);
	else if (whole < 3600)
		snprintf(out, TEXT_SHORT, "%lld min %02lld s", whole / 60, whole % 60);
	else
		snprintf(out, TEXT_SHORT, "%lld h %02lld min", whole / 3600, whole / 60 % 60);
	return out;
}

void print_json(const struct json *value)
{
	char *text = json_print(value, true);

	printf("%s\n", text ? text : "null");
	mem_free(text);
}

/* --- tables --------------------------------------------------------------------------------- */

enum { TABLE_COLUMNS_MAX = 16 };

struct table {
	char **cells;
	size_t count, cap, columns;
	bool failed;
};

/* Characters as a terminal counts them, near enough: one per code point. */
static size_t shown_width(const char *text)
{
	size_t width = 0;

	for (; *text; text++)
		width += ((unsigned char)*text & 0xC0) != 0x80;
	return width;
}

struct table *table_new(const char *const *titles, size_t columns)
{
	struct table *t = mem_alloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->columns = columns < TABLE_COLUMNS_MAX ? columns : TABLE_COLUMNS_MAX;
	for (size_t i = 0; i < t->columns; i++)
		table_cell(t, titles[i]);
	return t;
}

static bool table_grow(struct table *t)
{
	size_t cap = t->cap ? t->cap * 2 : 64;
	char **grown = t->count < t->cap ? t->cells : mem_realloc(t->cells, cap, sizeof(*grown));

	if (!grown)
		return false;
	t->cap = t->count < t->cap ? t->cap : cap;
	t->cells = grown;
	return true;
}

void table_cell(struct table *t, const char *text)
{
	char safe[512];

	if (t->failed)
		return;
	if (!table_grow(t) || !(t->cells[t->count] = mem_strdup(text_safe(text, safe, sizeof(safe)))))
		t->failed = true;
	else
		t->count++;
}

int table_print(const struct table *t)
{
	size_t width[TABLE_COLUMNS_MAX] = { 0 };

	if (t->failed)
		return -1;
	for (size_t i = 0; i < t->count; i++) {
		size_t w = shown_width(t->cells[i]);

		if (w > width[i % t->columns])
			width[i % t->columns] = w;
	}
	for (size_t i = 0; i < t->count; i++) {
		size_t column = i % t->columns;
		bool last = column + 1 == t->columns;
		int pad = last ? 0 : (int)(width[column] - shown_width(t->cells[i])) + 2;

		printf("%s%*s%s", t->cells[i], pad, "", last ? "\n" : "");
	}
	return 0;
}

void table_free(struct table *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->count; i++)
		mem_free(t->cells[i]);
	mem_free(t->cells);
	mem_free(t);
}

/* --- the status line ------------------------------------------------------------------------ */

enum { STATUS_PAUSE_MS = 100 };

static bool status_open; /* a line without its newline stands on the terminal */

bool status_is_live(void)
{
	return isatty(STDERR_FILENO) == 1;
}

static size_t terminal_width(void)
{
	struct winsize size;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20)
		return 80;
	return size.ws_col;
}

void status_draw(const char *line)
{
	size_t room = terminal_width() - 1, bytes = 0, shown = 0;

	if (!status_is_live())
		return;
	while (line[bytes] && (shown < room || ((unsigned char)line[bytes] & 0xC0) == 0x80))
		shown += ((unsigned char)line[bytes++] & 0xC0) != 0x80;
	fprintf(stderr, "\r%.*s\033[K", (int)bytes, line);
	fflush(stderr);
	status_open = true;
}

void status_draw_often(const char *line)
{
	static int64_t drawn_ms;
	int64_t now_ms = clock_system.mono_ms(clock_system.ctx);

	if (now_ms - drawn_ms < STATUS_PAUSE_MS)
		return;
	drawn_ms = now_ms;
	status_draw(line);
}

void status_end(void)
{
	if (status_open)
		fputc('\n', stderr);
	status_open = false;
}

void status_clear(void)
{
	if (status_open)
		fprintf(stderr, "\r\033[K");
	status_open = false;
}
