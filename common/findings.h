/* findings.h - collects every problem of an input while keeping the first as the error.
 *
 * A checker makes one, calls findings_add() for each problem and ends with
 * `return findings_result(&f)`. Plain data on the stack, no destructor; `list` and `err` are
 * borrowed and may be NULL. After FINDINGS_MAX problems the list says that there are more.
 */
#ifndef QUARRY_COMMON_FINDINGS_H
#define QUARRY_COMMON_FINDINGS_H

#include <stdbool.h>

#include "common/err.h"
#include "common/model_config.h"

enum { FINDINGS_MAX = 200 };

struct findings {
	struct problems *list;
	struct err *err;
	const char *where;      /* put before each sentence as "where: "; NULL = nothing */
	unsigned count;
	bool failed;            /* out of memory or I/O: err holds that, nothing more is noted */
};

/* Notes a problem: the first sets err. Always returns -1. */
int findings_add(struct findings *f, enum err_code code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Notes an error that a called function returned: a problem of the input is added to the list; one
 * of the machine (I/O, memory) becomes the error and ends the search. Always returns -1. */
int findings_add_err(struct findings *f, const struct err *err);
/* -1 when anything was noted, else 0. */
int findings_result(const struct findings *f);

#endif
