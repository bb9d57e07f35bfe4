/* fit_group.h - the search for (s, z) of one group.
 *
 * The method is that of ref/fit.c (starts, descent steps, a finer second round, judged in double by
 * the definition); what differs is that FIT_LANES candidates take a step together, in float32, and that
 * the first round of a big group runs on bins of nearly equal weights instead of the weights.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_FIT_GROUP_H
#define QUARRY_WORKER_BACKEND_CPU_FIT_GROUP_H

#include "worker/backend/backend.h"
#include "worker/backend/cpu/kernels_fit.h"

enum { FIT_KEEP = 16, FIT_BINS_MIN = 512 };

/* Scratch of one thread, for groups of up to n weights; arrays point into one block. */
struct fit_scratch {
	float *t, *h;           /* (n) normalized group */
	float *bin_t, *bin_h;   /* (n) the same, binned */
};

struct fit_result { float s, z; double objective; };

/* One group of n weights; n <= what the scratch was made for. The objective is not finite when no
 * candidate had a finite one. */
struct fit_result fit_group(const struct fit_kernels *k, const struct grid *grid,
			    enum fit_method method, const float *w, const double *h, size_t n,
			    struct fit_scratch *scratch);

#endif
