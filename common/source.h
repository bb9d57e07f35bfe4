/* source.h - where a checkpoint's files come from: a local folder, or a coordinator over HTTP.
 *
 * A source serves ranges of plainly named files (path_is_plain_name). Implementations:
 * source_dir_open() here, worker/source_http.c over HTTP. One thread at a time calls a source, except that several may
 * be in read() at once where `threads` says so.
 */
#ifndef QUARRY_COMMON_SOURCE_H
#define QUARRY_COMMON_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct source {
	/* Size of a file; ERR_NOT_FOUND when absent. */
	int (*size)(struct source *s, const char *file, uint64_t *bytes, struct err *err);
	/* Exactly len bytes at offset. */
	int (*read)(struct source *s, const char *file, uint64_t offset, void *bytes, size_t len,
		    struct err *err);
	void (*close)(struct source *s);
	char *label; /* for messages: the folder or URL; owned */
	bool threads; /* read() may be called from several threads at once, and is the faster for it */
};

/* NULL with err set when the folder cannot be opened. Close with s->close(s). */
struct source *source_dir_open(const char *dir, struct err *err);
/* Whole file of at most `limit` bytes, NUL-terminated; free with mem_free(). */
char *source_read_all(struct source *s, const char *file, size_t limit, size_t *len,
		      struct err *err);
/* The same for a file that need not be there: NULL without err then. */
char *source_read_optional(struct source *s, const char *file, size_t limit, size_t *len, struct err *err);

#endif
