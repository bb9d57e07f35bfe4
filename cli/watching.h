/* watching.h - following a job of a remote coordinator to its end: `watch` and `submit --wait`. */
#ifndef QUARRY_CLI_WATCHING_H
#define QUARRY_CLI_WATCHING_H

#include "cli/client.h"

/* 0 when the job is DONE (its outcome is printed), else the sentence. */
int watch_to_end(struct client *c, const char *job, struct err *err);

#endif
