#include "tests/lib/quant_case.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/forward_case.h"

double rng_uniform(struct rng *r)
{
	r->state = r->state * 6364136223846793005u + 1442695040888963407u;
	return (double)(r->state >> 11) * 0x1p-53;
}

double rng_normal(struct rng *r)
{
	const double u = 1 - rng_uniform(r), v = rng_uniform(r);

	return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

const char *weight_kind_name(enum weight_kind kind)
{
	static const char *const names[W_KINDS] = {
		"normal", "heavy-tailed", "uniform", "shifted", "outlier", "few values", "tiny", "huge",
		"constant", "zero",
	};

	return names[kind];
}

static float weight_of(struct rng *r, enum weight_kind kind, size_t i)
{
	const double x = rng_normal(r);

	switch (kind) {
	case W_NORMAL: return (float)(0.02 * x);
	case W_HEAVY: return (float)(0.02 * x * fabs(x) * fabs(x));
	case W_UNIFORM: return (float)rng_uniform(r);
	case W_SHIFTED: return (float)(5 + 0.02 * x);
	case W_OUTLIER: return (float)(i % 50 == 7 ? 900 * x : 0.02 * x);
	case W_FEW_VALUES: return (float)(0.25 * floor(x));
	case W_TINY: return (float)(1e-34 * x);
	case W_HUGE: return (float)(1e34 * x);
	case W_CONSTANT: return -0.3f;
	case W_ZERO: return 0;
	case W_KINDS: break;
	}
	return NAN;
}

void fill_weights(struct rng *r, enum weight_kind kind, float *w, size_t n)
{
	for (size_t i = 0; i < n; i++)
		w[i] = weight_of(r, kind, i);
}

void fill_hessian(struct rng *r, double *h, size_t n, size_t samples)
{
	double *x = malloc(n * sizeof(*x)), *size = malloc(n * sizeof(*size));

	assert_true(x && size);
	for (size_t i = 0; i < n; i++)
		size[i] = exp(0.7 * rng_normal(r));
	memset(h, 0, n * n * sizeof(*h));
	for (size_t s = 0; s < samples; s++) {
		const double common = rng_normal(r);

		for (size_t i = 0; i < n; i++)
			x[i] = size[i] * (rng_normal(r) + common +
					  (i > 0 ? 0.5 * x[i - 1] / size[i - 1] : 0));
		for (size_t i = 0; i < n; i++)
			for (size_t j = 0; j < n; j++)
				h[i * n + j] += x[i] * x[j] / (double)samples;
	}
	free(x);
	free(size);
}

struct backend *open_backend(const char *name, int threads)
{
	return case_open(name, threads);
}

double objective_of(const float *w, const double *h, size_t n, int bits, float s, float z)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++) {
		const double q = fmin(fmax(nearbyint(w[i] / (double)s + z), 0), (1 << bits) - 1);
		const double e = w[i] - (double)s * (q - z);

		sum += h[i] * e * e;
	}
	return sum;
}

double sum_of(const double *x, size_t n)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += x[i];
	return sum;
}

static void order(struct quant_case *q)
{
	for (size_t i = 0; i < q->cols; i++) {
		size_t j = i;

		for (; j > 0 && q->diag[q->perm[j - 1]] < q->diag[i]; j--)
			q->perm[j] = q->perm[j - 1];
		q->perm[j] = (int32_t)i;
	}
}

void quant_case_poison(struct quant_case *q)
{
	memset(q->u, 0xff, q->cols * q->cols * sizeof(*q->u));
	memset(q->scales, 0xff, q->rows * q->groups * sizeof(*q->scales));
	memset(q->zeros, 0xff, q->rows * q->groups * sizeof(*q->zeros));
	memset(q->objective, 0xff, q->rows * q->groups * sizeof(*q->objective));
	memset(q->codes, 0xff, q->rows * q->cols);
}

void quant_case_init(struct quant_case *q, struct rng *r, enum weight_kind kind, size_t rows,
		     size_t cols, struct grid grid)
{
	const size_t groups = cols / grid.group;
	double mean = 0;

	*q = (struct quant_case){ .grid = grid, .rows = rows, .cols = cols, .groups = groups };
	q->w = malloc(rows * cols * sizeof(*q->w));
	q->h = malloc(cols * cols * sizeof(*q->h));
	q->diag = malloc(cols * sizeof(*q->diag));
	q->perm = malloc(cols * sizeof(*q->perm));
	q->u = malloc(cols * cols * sizeof(*q->u));
	q->scales = malloc(rows * groups * sizeof(*q->scales));
	q->zeros = malloc(rows * groups * sizeof(*q->zeros));
	q->objective = malloc(rows * groups * sizeof(*q->objective));
	q->codes = malloc(rows * cols);
	assert_true(q->w && q->h && q->diag && q->perm && q->u && q->scales && q->zeros &&
		    q->objective && q->codes);
	fill_weights(r, kind, q->w, rows * cols);
	fill_hessian(r, q->h, cols, cols < 60 ? cols / 2 + 3 : 33);
	for (size_t i = 0; i < cols; i++)
		mean += q->h[i * cols + i] / (double)cols;
	q->damp = 0.01 * mean;
	for (size_t i = 0; i < cols; i++)
		q->diag[i] = q->h[i * cols + i] + q->damp;
	order(q);
	quant_case_poison(q);
}

void quant_case_deinit(struct quant_case *q)
{
	free(q->w);
	free(q->h);
	free(q->diag);
	free(q->perm);
	free(q->u);
	free(q->scales);
	free(q->zeros);
	free(q->objective);
	free(q->codes);
}

int site_of(struct quant_site *site, struct backend *be, const double *h, size_t cols, double damp, bool factor,
	    struct err *err)
{
	double *diagonal = malloc((cols ? cols : 1) * sizeof(*diagonal));
	int rc;

	assert_non_null(diagonal);
	for (size_t i = 0; i < cols; i++)
		diagonal[i] = h[i * cols + i];
	rc = quant_site_init(site, be, h, diagonal, cols, damp, factor, err);
	free(diagonal);
	return rc;
}
