/* advance.h - how far a piece of work on this machine is: a living line with bar and time left on a terminal, a plain line every
 * few seconds elsewhere, a standing line at its end. Also where such work is interrupted.
 */
#ifndef QUARRY_CLI_ADVANCE_H
#define QUARRY_CLI_ADVANCE_H

#include <stdint.h>

#include "common/err.h"

struct advance {
	char what[96];          /* "writing mlx" */
	int64_t began_ms, said_ms;
	double from, span;      /* the part of the whole that advance_to() speaks of */
};

void advance_begin(struct advance *a, const char *what);
/* What comes next is the part [from, from + span] of the whole. */
void advance_part(struct advance *a, double from, double span);
/* `ctx` is a struct advance; share 0..1 of the part. -1 with ERR_CANCELLED when a signal asks to stop. */
int advance_to(void *ctx, double share, struct err *err);
/* Says that it is done. */
void advance_end(struct advance *a);

#endif
