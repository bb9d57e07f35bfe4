#include "common/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct err_row {
	const char *name;
	int http_status;
	bool retryable;
} err_rows[] = {
#define ERR_ROW(code, name, http, retry) [code] = { name, http, retry },
	ERR_LIST(ERR_ROW)
#undef ERR_ROW
};

enum { ERR_COUNT = sizeof(err_rows) / sizeof(err_rows[0]) };

static void err_vset(struct err *err, enum err_code code, const char *fmt, va_list args)
{
	if (!err)
		return;
	err->code = code;
	vsnprintf(err->text, sizeof(err->text), fmt, args);
}

int err_set(struct err *err, enum err_code code, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	err_vset(err, code, fmt, args);
	va_end(args);
	return -1;
}

static enum err_code err_code_of_errno(int errnum)
{
	switch (errnum) {
	case ENOSPC:
	case EDQUOT:
		return ERR_NOSPC;
	case ENOMEM:
		return ERR_NOMEM;
	case ENOENT:
	case ENOTDIR:
		return ERR_NOT_FOUND;
	default:
		return ERR_IO;
	}
}

int err_set_errno(struct err *err, int errnum, const char *fmt, ...)
{
	va_list args;
	char reason[128] = "";
	size_t used;

	if (!err)
		return -1;
	va_start(args, fmt);
	err_vset(err, err_code_of_errno(errnum), fmt, args);
	va_end(args);
	used = strlen(err->text);
	snprintf(err->text + used, sizeof(err->text) - used, ": %s",
		 strerror_r(errnum, reason, sizeof(reason))); /* the GNU kind: returns the text */
	return -1;
}

int err_set_nomem(struct err *err, const char *what)
{
	return err_set(err, ERR_NOMEM, "out of memory for %s", what);
}

int err_prefix(struct err *err, const char *fmt, ...)
{
	va_list args;
	char old[ERR_TEXT_MAX];
	size_t used;

	if (!err)
		return -1;
	memcpy(old, err->text, sizeof(old));
	va_start(args, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, args);
	va_end(args);
	used = strlen(err->text);
	snprintf(err->text + used, sizeof(err->text) - used, ": %.*s",
		 (int)(sizeof(old) - 1), old);
	return -1;
}

void err_clear(struct err *err)
{
	if (!err)
		return;
	err->code = ERR_NONE;
	err->text[0] = '\0';
}

const char *err_name(enum err_code code)
{
	return (unsigned)code < ERR_COUNT ? err_rows[code].name : "internal";
}

int err_http_status(enum err_code code)
{
	return (unsigned)code < ERR_COUNT ? err_rows[code].http_status : 500;
}

bool err_retryable(enum err_code code)
{
	return (unsigned)code < ERR_COUNT && err_rows[code].retryable;
}

enum err_code err_from_name(const char *name)
{
	for (int i = 0; i < ERR_COUNT; i++)
		if (strcmp(err_rows[i].name, name) == 0)
			return (enum err_code)i;
	return ERR_INTERNAL;
}
