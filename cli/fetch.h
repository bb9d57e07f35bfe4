/* fetch.h - a job's results as a folder: all of it or nothing.
 *
 * Files are downloaded into a staging folder, each checked against its SHA-256, flushed, and only then the
 * staging folder takes the place of OUT_DIR by one rename (OUT_DIR.partial-<job>); when OUT_DIR is an empty folder
 * that exists already it may be a mount point, so staging happens inside (.partial-<job>) and its entries are
 * moved up, report.json last. Paths from the server are checked: plain components only, at most
 * FETCH_DEPTH_MAX of them.
 */
#ifndef QUARRY_CLI_FETCH_H
#define QUARRY_CLI_FETCH_H

#include <stdbool.h>

#include "cli/client.h"
#include "common/err.h"

enum { FETCH_DEPTH_MAX = 4 };

/* OUT_DIR must not exist or be empty (but for the staging of `job`, which may be NULL), its parent writable. */
int fetch_check_target(const char *out_dir, const char *job, struct err *err);
/* After a failure the staging folder stays, and the same call continues it. */
int fetch_job(struct client *c, const char *job, const char *out_dir, struct err *err);
/* Only the files of one format; out_dir then holds what OUT_DIR/<format>/ of the whole result does. */
int fetch_format(struct client *c, const char *job, const char *format, const char *out_dir, struct err *err);
/* Removes what a failed fetch_job() has left. */
int fetch_discard(const char *job, const char *out_dir, struct err *err);
/* Whether a path from the server may be written below a folder. */
bool fetch_path_is_safe(const char *path);

#endif
