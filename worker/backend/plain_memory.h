/* plain_memory.h - what ref and cpu share as backends without a device: their memory is ordinary memory. */
#ifndef QUARRY_WORKER_BACKEND_PLAIN_MEMORY_H
#define QUARRY_WORKER_BACKEND_PLAIN_MEMORY_H

#include "worker/backend/backend.h"

/* Tokens of a piece: large enough for the products to run at full speed, small enough to stay out of the way. */
enum { PLAIN_PIECE_TOKENS = 2048 };

/* The memory operations of backend.h; a buffer is such memory too, and a copy is complete when it was begun. */
void *plain_memory_take(struct backend *be, size_t bytes, const char *what, struct err *err);
void plain_memory_give(struct backend *be, void *memory);
int plain_memory_copy(struct backend *be, void *to, const void *from, size_t bytes, struct err *err);
int plain_memory_begin(struct backend *be, void *to, const void *from, size_t bytes, struct err *err);
int plain_memory_wait(struct backend *be, struct err *err);

/* ERR_INVALID when the options ask the backend `name` for a device. */
int plain_options_check(const char *name, const struct backend_options *options, struct err *err);

#endif
