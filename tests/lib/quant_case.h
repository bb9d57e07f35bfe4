/* quant_case.h - weights, Hessians and whole modules for the tests of the quantization half. */
#ifndef QUARRY_TESTS_LIB_QUANT_CASE_H
#define QUARRY_TESTS_LIB_QUANT_CASE_H

#include "worker/backend/backend.h"
#include "worker/quant/quantize.h"

/* Deterministic random numbers. */
struct rng { uint64_t state; };
double rng_uniform(struct rng *r);      /* [0, 1) */
double rng_normal(struct rng *r);

enum weight_kind {
	W_NORMAL, W_HEAVY, W_UNIFORM, W_SHIFTED, W_OUTLIER, W_FEW_VALUES, W_TINY, W_HUGE, W_CONSTANT,
	W_ZERO, W_KINDS
};
const char *weight_kind_name(enum weight_kind kind);
void fill_weights(struct rng *r, enum weight_kind kind, float *w, size_t n);

/* H = mean of x x^T of `samples` rows x with correlated entries of different sizes; (n,n). */
void fill_hessian(struct rng *r, double *h, size_t n, size_t samples);

/* Opens "ref" or "cpu"; fails the test otherwise. */
struct backend *open_backend(const char *name, int threads);

/* sum h (w - s (q - z))^2 with nearest codes, straight from the definition. */
double objective_of(const float *w, const double *h, size_t n, int bits, float s, float z);

/* One module's data; every array is allocated and outputs are poisoned. */
struct quant_case {
	struct grid grid;
	size_t rows, cols, groups;
	float *w;
	double *h, *diag;       /* (K,K), its damped diagonal (K) */
	double damp;
	int32_t *perm;          /* by decreasing diagonal */
	float *u;               /* (K,K) */
	float *scales, *zeros;  /* (N,G) */
	double *objective;      /* (N,G) */
	uint8_t *codes;         /* (N,K) */
};
void quant_case_init(struct quant_case *q, struct rng *r, enum weight_kind kind, size_t rows,
		     size_t cols, struct grid grid);
void quant_case_poison(struct quant_case *q);
void quant_case_deinit(struct quant_case *q);
double sum_of(const double *x, size_t n);

/* quant_site_init() with h (cols, cols) in ordinary memory, whose diagonal it looks up. */
int site_of(struct quant_site *site, struct backend *be, const double *h, size_t cols, double damp, bool factor,
	    struct err *err);

#endif
