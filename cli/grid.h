/* grid.h - a job as a grid of layers x modules for a terminal: one cell per module with its relative loss. */
#ifndef QUARRY_CLI_GRID_H
#define QUARRY_CLI_GRID_H

#include "common/json.h"

/* On stdout; -1 when out of memory. A job without layers prints nothing. */
int grid_print(const struct json *job);

#endif
