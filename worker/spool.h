/* spool.h - results that the coordinator has not acknowledged yet, on disk.
 *
 * WORK/run/<task>-<epoch>/out/            outputs of a task being computed
 * WORK/done/<task>-<epoch>/out/           outputs of a finished one, and
 * WORK/done/<task>-<epoch>/complete.json  {"task","epoch","outputs":[{"name","sha256","bytes"}],
 *                                          "result":{},"stats":{}}
 * Invariants:
 *  1. A folder gets into done/ by one rename, after everything in it was written: what is there is whole, also
 *     after SIGKILL. (After a power cut the digests tell: spool_load() checks them.)
 *  2. It leaves only by spool_drop(): acknowledged, or refused for good.
 *  3. What lies in run/ when a process starts belongs to a task that was interrupted.
 * Names come from the coordinator: only plain ones become paths. Not thread-safe per entry; different
 * entries may be used from different threads.
 */
#ifndef QUARRY_WORKER_SPOOL_H
#define QUARRY_WORKER_SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/digest.h"
#include "common/err.h"
#include "common/json.h"

enum { SPOOL_TASK_MAX = 100, SPOOL_OUTPUTS_MAX = 1024 };

struct spool_output {
	char *name;
	char *path;
	char sha256[DIGEST_HEX];
	uint64_t bytes;
};

struct spool_entry {
	char task[SPOOL_TASK_MAX + 1];
	int64_t epoch;
	char *dir;                      /* the folder in run/ or done/ */
	struct spool_output *outputs;   /* sorted by name */
	size_t count;
	struct json *complete;          /* the content of complete.json */
};

/* Makes run/ and done/ below `work`. */
int spool_prepare(const char *work, struct err *err);

/* Starts WORK/run/<task>-<epoch>/ (emptied if it is there). The entry is the caller's:
 * spool_entry_free(), which leaves the disk alone. */
struct spool_entry *spool_begin(const char *work, const char *task, int64_t epoch, struct err *err);
void spool_entry_free(struct spool_entry *entry);
/* dir/out: where the task writes. Free with mem_free(); NULL when out of memory. */
char *spool_out_dir(const struct spool_entry *entry);
/* Hashes the outputs, writes complete.json and moves the folder into done/. Takes nothing: result and
 * stats are copied (either may be NULL = {}). Slow: every byte is read again. May be called from any thread, as long as
 * nobody else uses the entry meanwhile. */
int spool_seal(struct spool_entry *entry, const char *work, const struct json *result,
	       const struct json *stats, struct err *err);
/* Removes the folder from disk (run/ or done/). Failures are logged: nothing depends on it. */
void spool_drop(struct spool_entry *entry);

/* Calls found() with each entry of done/ whose digests are right (owned by the callee), and broken() with
 * each (task, epoch) that was interrupted or damaged, after removing its folder. */
int spool_load(const char *work, void (*found)(void *ctx, struct spool_entry *entry),
	       void (*broken)(void *ctx, const char *task, int64_t epoch, const char *why), void *ctx,
	       struct err *err);

#endif
