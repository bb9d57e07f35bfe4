#include "cli/advance.h"

#include <stdio.h>
#include <string.h>

#include "cli/interrupt.h"
#include "cli/text.h"
#include "common/clock.h"

enum { PLAIN_EVERY_MS = 5000, BAR_CELLS = 24 };

static int64_t now_ms(void)
{
	return clock_system.mono_ms(clock_system.ctx);
}

void advance_begin(struct advance *a, const char *what)
{
	*a = (struct advance){ .began_ms = now_ms(), .said_ms = now_ms(), .span = 1 };
	text_safe(what, a->what, sizeof(a->what));
}

void advance_part(struct advance *a, double from, double span)
{
	a->from = from;
	a->span = span;
}

static void make_line(const struct advance *a, double done, int64_t now, char *out, size_t cap)
{
	const double seconds = (double)(now - a->began_ms) / 1000;
	const int full = (int)(done * BAR_CELLS + 0.5);
	char cells[BAR_CELLS + 1], left[TEXT_SHORT];
	int used;

	for (int i = 0; i < BAR_CELLS; i++)
		cells[i] = i < full ? '#' : '.';
	cells[BAR_CELLS] = '\0';
	used = snprintf(out, cap, "%-9s [%s] %3.0f %%", a->what, cells, done * 100);
	if (done > 0.01 && used > 0 && (size_t)used < cap)
		snprintf(out + used, cap - (size_t)used, "  %s left", text_duration(seconds / done * (1 - done), left));
}

int advance_to(void *ctx, double share, struct err *err)
{
	struct advance *a = ctx;
	const double clipped = share < 0 ? 0 : share > 1 ? 1 : share, done = a->from + a->span * clipped;
	const int64_t now = now_ms();
	char line[256];

	if (status_is_live()) {
		make_line(a, done, now, line, sizeof(line));
		status_draw_often(line);
	} else if (now - a->said_ms >= PLAIN_EVERY_MS) {
		make_line(a, done, now, line, sizeof(line));
		print_note("%s", line);
		a->said_ms = now;
	}
	return interrupt_check(err);
}

void advance_end(struct advance *a)
{
	char took[TEXT_SHORT];

	status_clear();
	print_note("%s done in %s", a->what, text_duration((double)(now_ms() - a->began_ms) / 1000, took));
}
