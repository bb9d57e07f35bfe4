/* spool_parts.h - what spool.c and spool_load.c share; nobody else includes it. */
#ifndef QUARRY_WORKER_SPOOL_PARTS_H
#define QUARRY_WORKER_SPOOL_PARTS_H

#include "worker/spool.h"

/* An entry for work/folder/<task>-<epoch>; nothing on disk is touched. */
struct spool_entry *spool_entry_new(const char *work, const char *folder, const char *task, int64_t epoch,
				    struct err *err);
/* Appends out/<name>, digest and size still to be filled. */
int spool_add_output(struct spool_entry *entry, const char *name, struct err *err);

#endif
