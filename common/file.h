/* file.h - whole-file and durable file operations on POSIX.
 *
 * Durable order everywhere: write a temp file in the target's folder, fsync it,
 * rename over the target, fsync the folder. Thread-safe.
 * Fault injection for tests: QUARRY_FAIL_IO=OP:N (OP one of open, read, write,
 * fsync, rename; file_fail_after() in-process) makes the N-th such call through
 * this module fail once: with ENOSPC for write, EIO for the others.
 */
#ifndef QUARRY_COMMON_FILE_H
#define QUARRY_COMMON_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

/* Whole file of at most `limit` bytes, NUL-terminated after *len bytes; free with mem_free(). */
char *file_read_all(const char *path, size_t limit, size_t *len, struct err *err);
/* Replaces `path` durably with these bytes (order above), mode 0644. */
int file_write_atomic(const char *path, const void *bytes, size_t len, struct err *err);
/* The same with the given permission bits (0600 for secrets). */
int file_write_atomic_mode(const char *path, const void *bytes, size_t len, mode_t mode,
			   struct err *err);

/* Replaces `path` in one step but not durably: for files that only tell another process something. Once the
 * name is there nothing can fail any more. */
int file_write_signal(const char *path, const void *bytes, size_t len, struct err *err);

/* open(2) with O_CLOEXEC; -1 with err set. `mode` is used with O_CREAT. */
int file_open(const char *path, int flags, mode_t mode, struct err *err);
/* All `len` bytes or -1; short reads before end of file are continued, EOF early is ERR_CORRUPT. */
int file_pread(int fd, void *bytes, size_t len, uint64_t offset, const char *path, struct err *err);
int file_pwrite(int fd, const void *bytes, size_t len, uint64_t offset, const char *path,
		struct err *err);
int file_sync(int fd, const char *path, struct err *err);
/* fsync of the folder that holds `path`. */
int file_sync_parent(const char *path, struct err *err);
/* rename(2) then file_sync_parent(to). */
int file_rename_durable(const char *from, const char *to, struct err *err);

int dir_make(const char *path, struct err *err);        /* mkdir -p */
int dir_remove(const char *path, struct err *err);      /* rm -r, does not follow links */
bool dir_is_empty(const char *path);                    /* true also when it does not exist */
bool file_exists(const char *path);
/* Size of a regular file. */
int file_size(const char *path, uint64_t *bytes, struct err *err);
/* Bytes an unprivileged process may still write below `path`. */
int disk_free(const char *path, uint64_t *bytes, struct err *err);

/* dir + "/" + name; caller frees; NULL when out of memory. */
char *path_join(const char *dir, const char *name);
/* One safe path component: [A-Za-z0-9._-], not starting with '.', at most 255 bytes. */
bool path_is_plain_name(const char *name);

enum file_op { FILE_OPEN, FILE_READ, FILE_WRITE, FILE_FSYNC, FILE_RENAME };
/* The nth (1-based) such operation from now fails once; 0 = none. */
void file_fail_after(enum file_op op, uint64_t nth);

#endif
