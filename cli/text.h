/* text.h - how the client writes for people: safe text, sizes, times, tables.
 *
 * Names, notes and sentences that came over the wire are hostile to terminals too: whatever is printed
 * passes text_safe(), which lets only well-formed printable UTF-8 through.
 */
#ifndef QUARRY_CLI_TEXT_H
#define QUARRY_CLI_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/json.h"

/* Copies `text` with control characters (C0, DEL, C1, line and paragraph separators, directional marks)
 * and ill-formed bytes written as \xNN; cut at cap. Returns out. */
const char *text_safe(const char *text, char *out, size_t cap);

/* "quarry: <sentence>" on stderr, safe; ends the progress line first if there is one. */
void print_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A line on stderr, safe, for progress and warnings. */
void print_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* "3.5 MB" (powers of 1000), "1 h 02 min", "3 min 05 s", "4.2 s"; the buffer is the caller's. */
enum { TEXT_SHORT = 32 };
const char *text_bytes(double bytes, char out[TEXT_SHORT]);
const char *text_duration(double seconds, char out[TEXT_SHORT]);

/* Pretty JSON and a newline on stdout. */
void print_json(const struct json *value);

/* A table whose columns grow with their content. Cells are copied and made safe. */
struct table;
struct table *table_new(const char *const *titles, size_t columns); /* NULL when out of memory */
/* The next cell; cells fill rows from left to right. Out of memory shows in table_print(). */
void table_cell(struct table *t, const char *text);
int table_print(const struct table *t);         /* -1 when out of memory earlier */
void table_free(struct table *t);

/* The status line on a terminal: written over in place. Without a terminal nothing is drawn. */
bool status_is_live(void);
void status_draw(const char *line);     /* already safe; cut to the terminal's width */
void status_draw_often(const char *line); /* the same for callers that come many times a second */
void status_end(void);                  /* leaves the last line standing */
void status_clear(void);                /* wipes it */

#endif
