/* scratch_file.h - bytes that a task puts aside and reads back: a file without a name.
 *
 * The name is removed as soon as the file is open, so nothing is left behind however the task ends, and it is
 * no output. Single-threaded.
 */
#ifndef QUARRY_WORKER_SCRATCH_FILE_H
#define QUARRY_WORKER_SCRATCH_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct scratch_file {
	int fd;                 /* -1 when closed */
	char *path;             /* for messages */
};

#define SCRATCH_FILE_CLOSED { .fd = -1 }

/* In folder `dir`. */
int scratch_file_open(struct scratch_file *f, const char *dir, struct err *err);
/* Closes and gives the space back; harmless on a closed one. */
void scratch_file_close(struct scratch_file *f);
int scratch_file_write(struct scratch_file *f, uint64_t offset, const void *bytes, size_t len, struct err *err);
int scratch_file_read(struct scratch_file *f, uint64_t offset, void *bytes, size_t len, struct err *err);

#endif
