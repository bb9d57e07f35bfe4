/* fleet_options.h - which workers a private fleet has: --workers, --backend, --devices, --gpu-memory,
 * --memory, checked. */
#ifndef QUARRY_CLI_FLEET_OPTIONS_H
#define QUARRY_CLI_FLEET_OPTIONS_H

#include "cli/args.h"
#include "cli/local.h"
#include "common/err.h"

/* Sets all of *config but the folders. Texts are borrowed from args. Whether this program's workers have
 * the backend, and this machine the devices, the workers say when they start. */
int fleet_options(struct local_config *config, const struct args *args, struct err *err);

#endif
