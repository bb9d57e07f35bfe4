#include "common/findings.h"

#include <stdarg.h>
#include <stdio.h>

#include "common/alloc.h"

static int add_line(struct problems *p, const char *text)
{
	char **grown = mem_realloc(p->items, p->count + 1, sizeof(*grown));

	if (!grown)
		return -1;
	p->items = grown;
	p->items[p->count] = mem_strdup(text);
	if (!p->items[p->count])
		return -1;
	p->count++;
	return 0;
}

int problems_add(struct problems *p, const char *fmt, ...)
{
	char text[ERR_TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	return add_line(p, text);
}

void problems_deinit(struct problems *p)
{
	for (size_t i = 0; i < p->count; i++)
		mem_free(p->items[i]);
	mem_free(p->items);
	*p = (struct problems){ 0 };
}

static int fail(struct findings *f, enum err_code code, const char *text)
{
	f->failed = true;
	return err_set(f->err, code, "%s", text);
}

static int note(struct findings *f, enum err_code code, const char *text)
{
	int rc = 0;

	if (f->failed)
		return -1;
	if (f->count == 0)
		err_set(f->err, code, "%s", text);
	if (f->list && f->count < FINDINGS_MAX)
		rc = add_line(f->list, text);
	else if (f->list && f->count == FINDINGS_MAX)
		rc = add_line(f->list, "there are more problems than are listed");
	f->count++;
	return rc == 0 ? -1 : fail(f, ERR_NOMEM, "out of memory for the list of problems");
}

int findings_add(struct findings *f, enum err_code code, const char *fmt, ...)
{
	struct err line = ERR_INIT;
	va_list args;

	va_start(args, fmt);
	vsnprintf(line.text, sizeof(line.text), fmt, args);
	va_end(args);
	if (f->where)
		err_prefix(&line, "%s", f->where);
	return note(f, code, line.text);
}

int findings_add_err(struct findings *f, const struct err *err)
{
	if (f->failed)
		return -1;
	if (err_retryable(err->code))
		return fail(f, err->code, err->text);
	return note(f, err->code, err->text);
}

int findings_result(const struct findings *f)
{
	return f->failed || f->count > 0 ? -1 : 0;
}
