/* cache.h - blobs on the worker's disk, named by their SHA-256, within a size limit.
 *
 * WORK/cache/<sha256> whole blobs, WORK/cache/<sha256>.part downloads under way or cut off, WORK/cache/<sha256>.link a
 * file of the coordinator's store that is being looked at.
 * Invariants:
 *  1. A whole blob's name is its digest: it got that name after its bytes were verified. What an earlier process
 *     left is CACHE_UNPROVEN until its digest was checked again (disks and people change files). A file linked from the
 *     coordinator's store counts as proven: it has its name there only since the coordinator verified and flushed it.
 *  2. Pinned blobs are never evicted; others go least recently used first when room is needed.
 *     The limit is soft only for pinned blobs: one task's inputs may be larger than the cache.
 *     A blob counts with all its bytes even where other names (in the coordinator's store, in the spool) share them: the
 *     limit is on what is kept here, and an evicted name frees its bytes once the last of the others is gone.
 *  3. The order of use survives restarts (file times). The time of a file is that of all its names: where others use it too
 *     it tells their last use as well. Times are only ever set to the present.
 *  4. Nobody writes into a whole blob: it may be the coordinator's file, or the spool's.
 * Only the loop's thread uses a cache. Hashing is the caller's (it takes long).
 */
#ifndef QUARRY_WORKER_CACHE_H
#define QUARRY_WORKER_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/digest.h"
#include "common/err.h"

struct cache;

enum cache_state {
	CACHE_ABSENT,
	CACHE_UNPROVEN,         /* here since before this process; verify before use */
	CACHE_READY,
};

/* Makes the folder, takes over what is there (files with other names are left alone). */
struct cache *cache_open(const char *dir, uint64_t limit_bytes, struct err *err);
void cache_close(struct cache *c);

/* Counts as a use when present. */
enum cache_state cache_find(struct cache *c, const char *sha256, uint64_t *bytes);
/* dir/<sha256>; free with mem_free(). NULL when out of memory. */
char *cache_path(const struct cache *c, const char *sha256);
char *cache_part_path(const struct cache *c, const char *sha256);

/* Keeps a blob, or a download under way, until as many unpins. -1 when out of memory. */
int cache_pin(struct cache *c, const char *sha256);
void cache_unpin(struct cache *c, const char *sha256);

/* Outcome of verifying: an unproven blob becomes ready, or is deleted. */
void cache_verified(struct cache *c, const char *sha256, bool right);
/* A verified download: <sha256>.part becomes <sha256>. */
int cache_finish_part(struct cache *c, const char *sha256, struct err *err);
/* A blob made here: `path`, whose digest is known, gets a second name in the cache (a hard link; the
 * caller's file stays). */
int cache_add(struct cache *c, const char *sha256, const char *path, struct err *err);
/* A blob that the coordinator stores in a file this process sees: `path`, absolute, gets a second name in the cache (a hard
 * link). -1 and no change: another file system, not allowed, not there, no regular file of exactly `bytes` bytes that
 * can be read. The file's bytes are not read. */
int cache_link(struct cache *c, const char *sha256, const char *path, uint64_t bytes, struct err *err);
/* Evicts until `bytes` more fit below the limit; does what it can. */
void cache_make_room(struct cache *c, uint64_t bytes);

/* The most recently used ready or unproven blobs, at most `max`; *count of them. Strings are the cache's, valid
 * until it changes. */
void cache_recent(const struct cache *c, const char **sha256, size_t max, size_t *count);
/* Bytes of all whole blobs. */
uint64_t cache_bytes(const struct cache *c);

#endif
