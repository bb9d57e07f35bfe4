/* grid_snap.h - scales and zero-points as checkpoint formats store them.
 *
 * Runtimes read s, and s z or z, as 16-bit numbers. They are chosen so from the start: codes are picked, and
 * losses measured, for the values that will be stored, and every format writes them without rounding.
 * Pure; thread-safe.
 */
#ifndef QUARRY_WORKER_BACKEND_GRID_SNAP_H
#define QUARRY_WORKER_BACKEND_GRID_SNAP_H

#include "worker/backend/backend.h"

/* Whether z is one of finitely many numbers. */
bool grid_binds_zero(const struct grid *grid);
/* The allowed z nearest to `z`. */
double grid_zero(const struct grid *grid, double z);

/* The nearest s and z that the grid can store; s stays > 0. Snapping again changes nothing. A scale or offset
 * beyond the halves stays as it is: formats that need it refuse the module by name. */
void grid_snap(const struct grid *grid, float *s, float *z);
void grid_snap_all(const struct grid *grid, float *s, float *z, size_t n);

#endif
