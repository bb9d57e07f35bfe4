/* quantize.h - one linear module from weights and H to codes, scales and zero-points.
 *
 * The order of steps (initialize, round, measure, refine) and their safeguards live here; the arithmetic
 * is the backend's. Pure: no I/O, clock, threads or logging. Caller frees with *_deinit.
 */
#ifndef QUARRY_WORKER_QUANT_QUANTIZE_H
#define QUARRY_WORKER_QUANT_QUANTIZE_H

#include "worker/backend/backend.h"
#include "worker/backend/place.h"

/* What the modules of one input site share. */
struct quant_site {
	struct backend *be;
	size_t cols;            /* K */
	const double *h;        /* (K,K) mean of x x^T, borrowed; may be memory of the backend */
	double *diag;           /* (K) damped diagonal */
	int32_t *perm;          /* (K) columns by decreasing damped diagonal, ties by index */
	struct placed diag_placed, perm_placed;
	float *u;               /* (K,K) factor, NULL unless a module needs LDLQ; memory of the backend */
	double *pivots;         /* (K) its D, in the order of perm; with u, memory of the backend */
	double damp;            /* what was added to the diagonal in the end */
	int damp_retries;       /* times it was raised ten-fold (kept for the report) */
};

/* diagonal (K): what stands on the diagonal of h, in ordinary memory; not kept. damp_fraction (0.01) of its mean is
 * added; when need_factor, factorization failures raise it ten-fold up to 5 times. A zero H (no activation) is
 * ERR_NUMERIC. */
int quant_site_init(struct quant_site *site, struct backend *be, const double *h, const double *diagonal,
		    size_t cols, double damp_fraction, bool need_factor, struct err *err);
void quant_site_deinit(struct quant_site *site);
/* perm and diag where operations best read them. */
const int32_t *quant_site_perm(const struct quant_site *site);
const double *quant_site_diag(const struct quant_site *site);

/* The weights of one module (N,K), in ordinary memory and where operations best read them (place.h): the same address
 * on a backend without memory of its own. */
struct quant_weights { const float *w, *placed; size_t rows; };

struct quant_options {
	struct grid grid;
	enum fit_method method;
	bool ldlq;              /* false: nearest */
	int refine;             /* rounds of refinement after rounding, at most; 0: none */
};

struct quant_result {
	uint8_t *codes;         /* (N,K) */
	float *scales, *zeros;  /* (N,G) */
	double init_objective;  /* sum over groups after initialization, before rounding tries others */
	double loss_exact;      /* proxy loss with nearest codes and (s, z) not yet snapped to what the grid stores */
	double loss_nearest;    /* the same with (s, z) as stored: what storing them costs before anything makes up for it */
	double loss_rounded;    /* proxy loss after rounding, before refinement */
	double loss;            /* proxy loss trace(E H E^T) of the result; never above loss_rounded */
	int refine_rounds;      /* rounds done: fewer than asked for when one won next to nothing */
	double energy;          /* trace(W H W^T): loss / energy is the relative error */
};

/* With LDLQ after NeUQI, each row is also rounded with its scales a little smaller and larger, and keeps
 * what loses least: the objective of the initialization sees only the diagonal of H. */
int quant_module(struct quant_result *out, struct backend *be, const struct quant_site *site,
		 const struct quant_options *options, const struct quant_weights *w, struct err *err);
void quant_result_deinit(struct quant_result *r);

#endif
