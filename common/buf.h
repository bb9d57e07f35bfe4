/* buf.h - a growing byte buffer with a limit fixed at creation.
 *
 * Caller embeds the struct; buf_init() / buf_deinit(). The first failure
 * (out of memory, limit exceeded) sticks: later appends do nothing and
 * buf_failed() tells, so that a writer may check once at the end.
 * Data is always NUL-terminated. Not thread-safe.
 */
#ifndef QUARRY_COMMON_BUF_H
#define QUARRY_COMMON_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

struct buf {
	char *data;     /* owned; NULL until the first append */
	size_t len;     /* bytes used, without the NUL */
	size_t cap;     /* bytes allocated */
	size_t limit;   /* most bytes that may ever be held */
	bool failed;
};

void buf_init(struct buf *b, size_t limit);
void buf_deinit(struct buf *b);
/* Empties; keeps the memory and clears a failure. */
void buf_reset(struct buf *b);
/* 0, or -1 when the buffer failed now or before. */
int buf_append(struct buf *b, const void *bytes, size_t len);
int buf_puts(struct buf *b, const char *text);
int buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int buf_vprintf(struct buf *b, const char *fmt, va_list args);
bool buf_failed(const struct buf *b);
/* Never NULL; "" when empty. Valid until the next change. */
const char *buf_text(const struct buf *b);
/* Hands the NUL-terminated bytes to the caller (free with mem_free); NULL if failed or empty. */
char *buf_take(struct buf *b);

#endif
