/* err.h - the one list of errors.
 *
 * A function that can fail returns 0 or -1 (or a pointer or NULL) and fills a
 * caller-owned `struct err` with a code and one sentence for a person. Callers
 * add context on the way up with err_prefix(); nothing below main() prints.
 *
 * The text names the file, tensor, field or option, and what would be right.
 * `struct err` is plain data: no destructor, may live on the stack, not shared
 * between threads. Every function accepts err == NULL.
 *
 * To add a code: add a line to ERR_LIST at the end (the names travel over the
 * wire and are stored; never rename, never reorder), and a row to docs/errors.md.
 */
#ifndef QUARRY_COMMON_ERR_H
#define QUARRY_COMMON_ERR_H

#include <stdbool.h>
#include <stdarg.h>

/*      enum              wire name         HTTP  retryable */
#define ERR_LIST(X)                                             \
	X(ERR_NONE,         "none",             200,  false)    \
	X(ERR_INVALID,      "invalid",          400,  false)    \
	X(ERR_UNAUTHORIZED, "unauthorized",     401,  false)    \
	X(ERR_FORBIDDEN,    "forbidden",        403,  false)    \
	X(ERR_NOT_FOUND,    "not-found",        404,  false)    \
	X(ERR_CONFLICT,     "conflict",         409,  false)    \
	X(ERR_TOO_LARGE,    "too-large",        413,  false)    \
	X(ERR_REFUSED,      "refused",          422,  false)    \
	X(ERR_UNSUPPORTED,  "unsupported",      422,  false)    \
	X(ERR_CORRUPT,      "corrupt",          422,  false)    \
	X(ERR_NUMERIC,      "numeric",          422,  false)    \
	X(ERR_BUSY,         "busy",             429,  true)     \
	X(ERR_INTERNAL,     "internal",         500,  true)     \
	X(ERR_IO,           "io",               500,  true)     \
	X(ERR_NOMEM,        "out-of-memory",    503,  true)     \
	X(ERR_UNAVAILABLE,  "unavailable",      503,  true)     \
	X(ERR_TIMEOUT,      "timeout",          504,  true)     \
	X(ERR_NOSPC,        "no-space",         507,  true)     \
	X(ERR_CANCELLED,    "cancelled",        409,  false)

enum err_code {
#define ERR_ENUM(code, name, http, retry) code,
	ERR_LIST(ERR_ENUM)
#undef ERR_ENUM
};

enum { ERR_TEXT_MAX = 1024 };

struct err {
	enum err_code code;
	char text[ERR_TEXT_MAX];
};

#define ERR_INIT { .code = ERR_NONE, .text = "" }

/* Sets code and text; always returns -1, so that `return err_set(...)` reads well. */
int err_set(struct err *err, enum err_code code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* err_set() with ": <strerror(errnum)>" appended and the code chosen from errnum
 * (ENOSPC/EDQUOT, ENOMEM, ENOENT, otherwise ERR_IO). Returns -1. */
int err_set_errno(struct err *err, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Allocation of `what` failed. Returns -1. */
int err_set_nomem(struct err *err, const char *what);

/* Puts "prefix: " before the text; keeps the code. Returns -1. */
int err_prefix(struct err *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

void err_clear(struct err *err);

/* "not-found" and so on; stable. */
const char *err_name(enum err_code code);
int err_http_status(enum err_code code);
bool err_retryable(enum err_code code);
/* The code of a wire name; ERR_INTERNAL for an unknown one. */
enum err_code err_from_name(const char *name);

#endif
