/* connect.h - a client from --server/QUARRY_SERVER and --token-file/QUARRY_TOKEN_FILE. */
#ifndef QUARRY_CLI_CONNECT_H
#define QUARRY_CLI_CONNECT_H

#include "cli/args.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/upload.h"

/* NULL with the sentence in err and the exit status in *status. */
struct client *connect_from_args(const struct args *args, enum exit_status *status, struct err *err);
/* The command's first argument as a job id. */
int job_argument(const struct args *args, char id[SERVER_ID], struct err *err);

/* The exit status of an error: interrupted, or failed. */
enum exit_status failed_status(const struct err *err);

#endif
