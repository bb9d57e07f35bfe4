/* pivots.h - the D that belongs to a factor U as it was written, in float32, shared by the backends. */
#ifndef QUARRY_WORKER_BACKEND_PIVOTS_H
#define QUARRY_WORKER_BACKEND_PIVOTS_H

#include <stddef.h>
#include <stdint.h>

/* pivots (n) from h (n,n), perm (n), damp and u (n,n) as in factor() of backend.h. */
void factor_pivots(const double *h, const int32_t *perm, size_t n, double damp, const float *u, double *pivots);

#endif
