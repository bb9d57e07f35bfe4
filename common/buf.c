#include "common/buf.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"

void buf_init(struct buf *b, size_t limit)
{
	*b = (struct buf){ .limit = limit };
}

void buf_deinit(struct buf *b)
{
	mem_free(b->data);
	*b = (struct buf){ 0 };
}

void buf_reset(struct buf *b)
{
	b->len = 0;
	b->failed = false;
	if (b->data)
		b->data[0] = '\0';
}

static int buf_fail(struct buf *b)
{
	b->failed = true;
	return -1;
}

/* Makes room for `more` bytes and the NUL. */
static int buf_reserve(struct buf *b, size_t more)
{
	size_t need, cap;
	char *grown;

	if (b->failed)
		return -1;
	if (more > b->limit - b->len)
		return buf_fail(b);
	need = b->len + more + 1;
	if (need <= b->cap)
		return 0;
	cap = b->cap ? b->cap : 256;
	while (cap < need)
		cap = cap > (size_t)-1 / 2 ? need : cap * 2;
	grown = mem_realloc(b->data, cap, 1);
	if (!grown)
		return buf_fail(b);
	b->data = grown;
	b->cap = cap;
	return 0;
}

int buf_append(struct buf *b, const void *bytes, size_t len)
{
	if (buf_reserve(b, len) != 0)
		return -1;
	if (len)
		memcpy(b->data + b->len, bytes, len);
	b->len += len;
	b->data[b->len] = '\0';
	return 0;
}

int buf_puts(struct buf *b, const char *text)
{
	return buf_append(b, text, strlen(text));
}

int buf_vprintf(struct buf *b, const char *fmt, va_list args)
{
	va_list again;
	int need;

	va_copy(again, args);
	need = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	if (need < 0)
		return buf_fail(b);
	if (buf_reserve(b, (size_t)need) != 0)
		return -1;
	vsnprintf(b->data + b->len, (size_t)need + 1, fmt, args);
	b->len += (size_t)need;
	return 0;
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list args;
	int rc;

	va_start(args, fmt);
	rc = buf_vprintf(b, fmt, args);
	va_end(args);
	return rc;
}

bool buf_failed(const struct buf *b)
{
	return b->failed;
}

const char *buf_text(const struct buf *b)
{
	return b->data ? b->data : "";
}

char *buf_take(struct buf *b)
{
	char *data = b->failed ? NULL : b->data;

	if (!data)
		return NULL;
	b->data = NULL;
	b->len = b->cap = 0;
	return data;
}
