/* blobs.h - content-addressed files on disk, and resumable uploads. No SQL, no HTTP.
 *
 * DATA/blobs/ab/<sha256>; DATA/uploads/<sha256>.part with <sha256>.parts (one byte a part: done or not), and
 * <sha256>.placed where a process on this host put a hard link to the bytes instead of sending them.
 * Storing: parts are written at their offsets; completing verifies the digest, fsyncs the file, renames it
 * and fsyncs the folder; only then may the caller add the row (VERB_BLOB_ADD). A crash in between leaves a
 * file without a row, which a later upload of the same digest finds and uses.
 * Thread-safe: one lock per upload.
 */
#ifndef QUARRY_SERVER_BLOBS_H
#define QUARRY_SERVER_BLOBS_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/digest.h"
#include "common/err.h"

enum { BLOB_PART_BYTES = 8 * 1024 * 1024 };

struct blobs;

struct blobs *blobs_open(const char *data_dir, struct err *err); /* makes the folders */
void blobs_close(struct blobs *b);

bool blobs_has(struct blobs *b, const char *sha256, uint64_t *bytes);
/* Open descriptor for reading, or -1. */
int blobs_open_fd(struct blobs *b, const char *sha256, uint64_t *bytes, struct err *err);
/* Stores bytes held in memory or a file (small: reports, shipped texts). */
int blobs_put(struct blobs *b, const void *bytes, size_t len, char sha256[DIGEST_HEX], struct err *err);
int blobs_delete(struct blobs *b, const char *sha256, struct err *err);

/* parts_done: one byte per part, *parts of them; free with mem_free(). Checks free space (ERR_NOSPC). */
int blobs_upload_begin(struct blobs *b, const char *sha256, uint64_t bytes, unsigned char **parts_done,
		       size_t *parts, struct err *err);
/* Streams bytes of a part: call with growing `offset` within the part; blobs_upload_part_done marks it. */
int blobs_upload_write(struct blobs *b, const char *sha256, size_t part, uint64_t offset,
		       const void *bytes, size_t len, struct err *err);
int blobs_upload_part_done(struct blobs *b, const char *sha256, size_t part, uint64_t got, struct err *err);
int blobs_upload_complete(struct blobs *b, const char *sha256, uint64_t *bytes, struct err *err);

/* For those who see the data folder. Both are absolute paths of names below the real data folder; false: too long to be
 * told, or no digest. Nothing that a client says is ever opened: it links to, or takes, what these say. */
/* The file of a stored blob, to be linked and read, never written. */
bool blobs_seen_path(const struct blobs *b, const char *sha256, char out[PATH_MAX]);
/* Where a file with these bytes may be put for blobs_place_complete(). */
bool blobs_place_path(const struct blobs *b, const char *sha256, char out[PATH_MAX]);
/* Completes a begun upload with the placed file instead of its parts (blobs_place.c has the rules). Whatever is wrong with it
 * (ERR_CONFLICT: not there, another size, not a file of ours alone; ERR_CORRUPT: another digest), it is removed, and
 * the upload and its parts stay as they were. */
int blobs_place_complete(struct blobs *b, const char *sha256, uint64_t *bytes, struct err *err);

/* Removes uploads untouched for `age_ms` and blob files for which keep() says false. */
int blobs_sweep(struct blobs *b, int64_t age_ms, bool (*keep)(void *ctx, const char *sha256), void *ctx,
		struct err *err);

#endif
