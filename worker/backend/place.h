/* place.h - arrays of the program's as memory of a backend, so that an accelerator is not sent the same one twice.
 *
 * What many operations read is placed once: on a backend with memory of its own that is a copy, on any other it is the
 * array itself and costs nothing. The array must stay as it is, and where it is, for as long as it is placed.
 * Used by the thread that calls the backend.
 */
#ifndef QUARRY_WORKER_BACKEND_PLACE_H
#define QUARRY_WORKER_BACKEND_PLACE_H

#include "worker/backend/backend.h"

/* All zero: nothing placed. */
struct placed {
	struct backend *be;
	const char *from;       /* the program's array, `bytes` long */
	size_t bytes;
	char *copy;             /* memory of the backend, NULL: `from` serves itself */
};

int placed_init(struct placed *p, struct backend *be, const void *array, size_t bytes, const char *what,
		struct err *err);
void placed_deinit(struct placed *p);

/* Where an element of the array is for operations; an address that is not within the array stays what it is. */
const void *placed_at(const struct placed *p, const void *element);
struct rope_table placed_rope(const struct placed *p, const struct rope_table *rope);

/* Memory of the backend filled with zero bytes. */
void *place_zeros(struct backend *be, size_t bytes, const char *what, struct err *err);
int place_clear(struct backend *be, void *memory, size_t bytes, struct err *err);

#endif
