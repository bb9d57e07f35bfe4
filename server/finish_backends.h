/* finish_backends.h - what the report says of the backends that computed a job: which, how often,
 * where a task went from one to another, and where one ran short of memory. Results of two backends agree within the bounds of
 * worker/backend/backend.h, not bit for bit. */
#ifndef QUARRY_SERVER_FINISH_BACKENDS_H
#define QUARRY_SERVER_FINISH_BACKENDS_H

#include "server/engine_internal.h"

/* Counts one more task in `list`, an array of {"backend","identity","tasks"}; stats: what its worker
 * reported. */
int backends_note(struct json *list, const struct json *stats);
/* An array of sentences, one for each task that was tried on another backend than the one that did it,
 * for each that resumed what another identity of the backend had begun, and for each that went through its
 * device in smaller pieces than usual. NULL with err set, or without memory. */
struct json *backends_warnings(struct store *db, const struct job_ref *job, struct err *err);

#endif
