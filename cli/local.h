/* local.h - a private fleet: the real quarry-server on loopback and real workers as child processes.
 *
 * The programs are those beside this one. Everything they hold lies in one folder: a temporary one that
 * local_stop() removes, or the caller's (--work), which is locked while in use and kept, so that the same
 * command finishes an interrupted job. Its layout: lock, tokens, token.<role>, server/, worker-<n>/, log/.
 * A child that dies is started again, LOCAL_RESTARTS_MAX times at most; the server keeps its port.
 * Children never outlive this process.
 */
#ifndef QUARRY_CLI_LOCAL_H
#define QUARRY_CLI_LOCAL_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/client.h"
#include "common/err.h"

enum { LOCAL_WORKERS_MAX = 64, LOCAL_RESTARTS_MAX = 5 };

struct local_config {
	const char *model_dir;  /* readable to the server: absolute */
	const char *reference_dir; /* likewise; NULL: none */
	const char *work_dir;   /* NULL: a temporary folder */
	int workers;            /* 1..LOCAL_WORKERS_MAX; the cores are split among them */
	const char *backend;    /* NULL: the worker's default */
	const char *memory;     /* per worker; NULL: the worker's default */
	const char *gpu_memory; /* likewise */
	int devices[LOCAL_WORKERS_MAX]; /* worker i computes on devices[i modulo device_count] */
	int device_count;       /* 0: the worker's default */
};

struct local;

/* Starts the server, waits until it is ready, starts the workers. */
struct local *local_start(const struct local_config *config, struct err *err);
struct client *local_client(struct local *l);   /* a submitter; borrowed */
const char *local_folder(const struct local *l);
/* Looks after the children; call at least every few seconds. -1 when one keeps dying. */
int local_tend(struct local *l, struct err *err);
/* Stops everything (workers first, then the server) and removes a temporary folder. */
void local_stop(struct local *l);

#endif
