/* Speed of the cpu backend's quantization half.
 *
 * bench_quant
 * Initialization is compared with min-max of the same run (a few passes over the weights: the floor) and with
 * ref on some of the rows (one thread); rounding, the factor and the loss with plain cblas_sgemm on
 * as many threads (the factor works in double, whose limit is half of that). Operations count what
 * the mathematics needs: N K^2 for LDLQ, n^3 / 3 for the factor, 2 N K^2 for loss and energy.
 * A round of refinement is compared with the LDLQ step it follows as quant_module does it: four passes and the loss
 * of what they leave.
 * The best of several runs is printed.
 */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/alloc.h"
#include "worker/backend/backend.h"
#include "worker/backend/pool.h"
#include "worker/quant/quantize.h"

enum {
	REPEATS = 3, SQUARE = 1024, ROWS = 256, COLS = 4096, REF_ROWS = 4, LDLQ_PASSES = 4,
	REFINE_REPEATS = 5
};

struct sizes { size_t rows, cols; };

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "bench_quant: %s\n", what);
	exit(1);
}

static void *need(size_t count, size_t size)
{
	void *p = mem_alloc_aligned(count, size);

	if (!p)
		fail("out of memory");
	return p;
}

/* Bell-shaped: the sum of eight uniform numbers. */
static float *noise(size_t n, uint64_t seed)
{
	float *x = need(n, sizeof(*x));

	for (size_t i = 0; i < n; i++) {
		float sum = 0;

		for (int k = 0; k < 8; k++) {
			seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
			sum += (float)(seed >> 40) / (float)(1 << 24) - 0.5f;
		}
		x[i] = 0.02f * sum;
	}
	return x;
}

static struct backend *open_backend(const char *name, int threads)
{
	const struct backend_options options = { .threads = threads };
	struct err err = ERR_INIT;
	const struct backend_ops *ops = backend_find(name, &err);
	struct backend *be = ops ? ops->open(&options, &err) : NULL;

	if (!be)
		fail(err.text);
	return be;
}

/* --- initialization ------------------------------------------------------------------------ */

struct fit_case { struct grid grid; const float *w; const double *h; float *s, *z; };

static double fit_seconds(struct backend *be, const struct fit_case *c, enum fit_method method, size_t rows,
			  int repeats)
{
	struct err err = ERR_INIT;
	double best = INFINITY;

	for (int i = 0; i < repeats; i++) {
		const double start = now_s();

		if (be->ops->fit_groups(be, method, &c->grid, c->w, rows, COLS, c->h, c->s, c->z, NULL,
					&err) != 0)
			fail(err.text);
		best = fmin(best, now_s() - start);
	}
	return best;
}

static void measure_fit(struct backend *cpu, struct backend *ref, struct fit_case *c, int threads)
{
	const double seconds = fit_seconds(cpu, c, FIT_NEUQI, ROWS, REPEATS);
	const double floor_s = fit_seconds(cpu, c, FIT_MINMAX, ROWS, REPEATS);
	const double ref_s = fit_seconds(ref, c, FIT_NEUQI, REF_ROWS, 1) * ROWS / REF_ROWS;

	printf("init %dx%d, %d bits, %s: %.4f s on %d threads, %.1f ns/weight, %.0f x min-max, "
	       "ref / %.0f\n", ROWS, COLS, c->grid.bits, c->grid.group == COLS ? "channel" : "groups of 64", seconds, threads,
	       1e9 * seconds / (ROWS * COLS), seconds / floor_s, ref_s / seconds);
}

static void measure_fits(struct backend *cpu, struct backend *ref, int threads)
{
	static const size_t groups[] = { COLS, 64 };
	struct fit_case c = { .w = noise(ROWS * COLS, 88172645463325252u) };
	double *h = need(COLS, sizeof(*h));
	float *spread = noise(COLS, 7);

	for (size_t i = 0; i < COLS; i++)
		h[i] = exp(50 * (double)spread[i]);
	c.h = h;
	c.s = need(ROWS * COLS / 64, sizeof(*c.s));
	c.z = need(ROWS * COLS / 64, sizeof(*c.z));
	for (int bits = 2; bits <= 4; bits++) {
		for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++) {
			c.grid = (struct grid){ .bits = bits, .group = groups[g] };
			measure_fit(cpu, ref, &c, threads);
		}
	}
	mem_free((void *)c.w);
	mem_free(h);
	mem_free(spread);
	mem_free(c.s);
	mem_free(c.z);
}

/* --- rounding and losses ------------------------------------------------------------------- */

static void square_item(void *ctx, size_t item, int worker)
{
	float *data = (float *)ctx + 3 * item * SQUARE * SQUARE;

	(void)worker;
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SQUARE, SQUARE, SQUARE, 1, data, SQUARE,
		    data + SQUARE * SQUARE, SQUARE, 0, data + 2 * SQUARE * SQUARE, SQUARE);
}

static double sgemm_rate(int threads)
{
	float *data = noise((size_t)threads * 3 * SQUARE * SQUARE, 3);
	struct pool *pool = pool_new(threads, NULL);
	double best = INFINITY;

	if (!pool)
		fail("cannot start threads");
	openblas_set_num_threads(1);
	for (int i = 0; i < 2 * REPEATS; i++) {
		const double start = now_s();

		pool_run(pool, (size_t)threads, square_item, data);
		best = fmin(best, now_s() - start);
	}
	pool_free(pool);
	mem_free(data);
	return 2e-9 * threads * SQUARE * (double)SQUARE * SQUARE / best;
}

struct module {
	struct sizes size;
	struct grid grid;
	float *w, *u, *s, *z;
	double *h, *d;
	int32_t *perm;
	uint8_t *codes;
};

static void module_init(struct module *m, struct sizes size)
{
	const size_t n = size.cols, groups = size.rows * n / 64;
	float *x = noise(n * n, 11), *product = need(n * n, sizeof(*product));

	*m = (struct module){ .size = size, .grid = { .bits = 2, .group = 64 }, .w = noise(size.rows * n, 5),
			      .u = need(n * n, sizeof(float)), .s = need(groups, sizeof(float)),
			      .z = need(groups, sizeof(float)), .h = need(n * n, sizeof(double)),
			      .d = need(n, sizeof(double)), .perm = need(n, sizeof(int32_t)),
			      .codes = need(size.rows * n, 1) };
	cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (int)n, (int)n, 1.0f / (float)n, x, (int)n, 0,
		    product, (int)n);
	for (size_t i = 0; i < n; i++) {
		for (size_t j = 0; j <= i; j++)
			m->h[i * n + j] = m->h[j * n + i] = product[i * n + j];
		m->perm[i] = (int32_t)i;
		m->d[i] = m->h[i * n + i];
	}
	for (size_t i = 0; i < groups; i++) {
		m->s[i] = 0.018f;
		m->z[i] = 1.5f;
	}
	mem_free(x);
	mem_free(product);
}

static void module_deinit(struct module *m)
{
	mem_free(m->w);
	mem_free(m->u);
	mem_free(m->s);
	mem_free(m->z);
	mem_free(m->h);
	mem_free(m->d);
	mem_free(m->perm);
	mem_free(m->codes);
}

enum step { STEP_FACTOR, STEP_LDLQ, STEP_LOSS, STEPS };

static int run_step(struct backend *be, struct module *m, enum step step, struct err *err)
{
	const size_t rows = m->size.rows, cols = m->size.cols;
	double loss, energy;

	switch (step) {
	case STEP_FACTOR:
		return be->ops->factor(be, m->h, m->perm, cols, 0.01 * m->h[0], m->u, NULL, err);
	case STEP_LDLQ:
		return be->ops->round_ldlq(be, &m->grid, m->w, rows, cols, m->perm, m->u, NULL, m->s, m->z,
					   m->codes, NULL, err);
	case STEP_LOSS:
		return be->ops->proxy_loss(be, &m->grid, m->w, rows, cols, m->h, 0, m->codes, m->s, m->z,
					   &loss, &energy, err);
	case STEPS:
		break;
	}
	return -1;
}

static void measure_rounding(struct backend *be, struct sizes size, double sgemm, int threads)
{
	static const char *const names[STEPS] = { "factor", "ldlq", "loss and energy" };
	const double n = (double)size.rows, k = (double)size.cols;
	const double operations[STEPS] = { k * k * k / 3, n * k * k, 2 * n * k * k };
	struct err err = ERR_INIT;
	struct module m;

	module_init(&m, size);
	for (int step = 0; step < STEPS; step++) {
		double best = INFINITY;

		for (int i = 0; i < REPEATS; i++) {
			const double start = now_s();

			if (run_step(be, &m, (enum step)step, &err) != 0)
				fail(err.text);
			best = fmin(best, now_s() - start);
		}
		printf("%s %zux%zu: %.4f s on %d threads, %.1f GFLOP/s, %.2f of sgemm\n", names[step],
		       size.rows, size.cols, best, threads, 1e-9 * operations[step] / best,
		       1e-9 * operations[step] / best / sgemm);
	}
	module_deinit(&m);
}

static void site_init(struct quant_site *site, struct backend *be, const struct module *m)
{
	const size_t cols = m->size.cols;
	double *diagonal = need(cols, sizeof(*diagonal));
	struct err err = ERR_INIT;

	for (size_t i = 0; i < cols; i++)
		diagonal[i] = m->h[i * cols + i];
	if (quant_site_init(site, be, m->h, diagonal, cols, 0.01, true, &err) != 0)
		fail(err.text);
	mem_free(diagonal);
}

static void quantize(struct quant_result *result, struct backend *be, const struct quant_site *site,
		     const struct quant_options *options, const struct module *m)
{
	const struct quant_weights w = { m->w, m->w, m->size.rows };
	struct err err = ERR_INIT;

	if (quant_module(result, be, site, options, &w, &err) != 0)
		fail(err.text);
}

/* Everything one module needs once its H is there. */
static void measure_module(struct backend *be, struct sizes size, int bits, int threads)
{
	const struct quant_options options = { .grid = { .bits = bits, .group = 64 }, .method = FIT_NEUQI,
					       .ldlq = true };
	struct quant_result result;
	struct quant_site site;
	double start, middle;
	struct module m;

	module_init(&m, size);
	start = now_s();
	site_init(&site, be, &m);
	middle = now_s();
	quantize(&result, be, &site, &options, &m);
	printf("quantize %zux%zu, %d bits, groups of 64: site %.3f s, module %.3f s on %d threads; "
	       "loss %.4f of the energy, nearest %.4f\n",
	       size.rows, size.cols, bits, middle - start, now_s() - middle, threads,
	       result.loss / result.energy, result.loss_nearest / result.energy);
	quant_result_deinit(&result);
	quant_site_deinit(&site);
	module_deinit(&m);
}

/* --- refinement ---------------------------------------------------------------------------- */

/* A module as rounding leaves it, and room for a round. */
struct refine_case {
	struct module m;
	struct quant_site site;
	struct quant_result rounded;
	float *scales, *zeros;
	double *row_loss;
};

struct seconds { double refine, ldlq; };

/* H of inputs that are correlated with their neighbours and differ in size, as those of a trained model. */
static void correlate(double *h, size_t n)
{
	const size_t samples = 2 * n;
	float *x = noise(samples * n, 17), *size = noise(n, 19), *product = need(n * n, sizeof(*product));

	for (size_t s = 0; s < samples; s++)
		for (size_t j = 0; j < n; j++)
			x[s * n + j] = expf(30 * size[j]) * x[s * n + j] + (j > 0 ? 0.6f * x[s * n + j - 1] : 0);
	cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (int)n, (int)samples, 1.0f / (float)samples, x,
		    (int)n, 0, product, (int)n);
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j <= i; j++)
			h[i * n + j] = h[j * n + i] = product[i * n + j];
	mem_free(x);
	mem_free(size);
	mem_free(product);
}

static void refine_case_init(struct refine_case *c, struct backend *be, struct sizes size, size_t group)
{
	const struct quant_options options = { .grid = { .bits = 2, .group = group }, .method = FIT_NEUQI,
					       .ldlq = true };
	const size_t sides = size.rows * size.cols / group;

	module_init(&c->m, size);
	correlate(c->m.h, size.cols);
	c->m.grid = options.grid;
	site_init(&c->site, be, &c->m);
	quantize(&c->rounded, be, &c->site, &options, &c->m);
	c->scales = need(sides, sizeof(*c->scales));
	c->zeros = need(sides, sizeof(*c->zeros));
	c->row_loss = need(size.rows, sizeof(*c->row_loss));
}

static void refine_case_deinit(struct refine_case *c)
{
	quant_result_deinit(&c->rounded);
	quant_site_deinit(&c->site);
	module_deinit(&c->m);
	mem_free(c->scales);
	mem_free(c->zeros);
	mem_free(c->row_loss);
}

static double ldlq_step_seconds(struct backend *be, struct refine_case *c)
{
	const struct module *m = &c->m;
	struct err err = ERR_INIT;
	const double start = now_s();
	double loss;

	for (int pass = 0; pass < LDLQ_PASSES; pass++)
		if (be->ops->round_ldlq(be, &m->grid, m->w, m->size.rows, m->size.cols, c->site.perm, c->site.u,
					c->site.pivots, c->rounded.scales, c->rounded.zeros, m->codes,
					c->row_loss, &err) != 0)
			fail(err.text);
	if (be->ops->proxy_loss(be, &m->grid, m->w, m->size.rows, m->size.cols, m->h, c->site.damp, m->codes,
				c->rounded.scales, c->rounded.zeros, &loss, NULL, &err) != 0)
		fail(err.text);
	return now_s() - start;
}

static double refine_seconds(struct backend *be, struct refine_case *c)
{
	const struct module *m = &c->m;
	const size_t cells = m->size.rows * m->size.cols, sides = cells / m->grid.group;
	struct err err = ERR_INIT;
	double start;

	memcpy(m->codes, c->rounded.codes, cells);
	memcpy(c->scales, c->rounded.scales, sides * sizeof(*c->scales));
	memcpy(c->zeros, c->rounded.zeros, sides * sizeof(*c->zeros));
	start = now_s();
	if (be->ops->refine(be, &m->grid, m->w, m->size.rows, m->size.cols, m->h, c->site.damp, c->site.perm,
			    m->codes, c->scales, c->zeros, c->row_loss, &err) != 0)
		fail(err.text);
	return now_s() - start;
}

static struct seconds measure_refine(struct backend *be, struct sizes size, size_t group, int threads)
{
	struct seconds best = { INFINITY, INFINITY };
	struct refine_case c;
	double loss = 0;

	refine_case_init(&c, be, size, group);
	for (int i = 0; i < (size.rows < COLS ? REFINE_REPEATS : 2); i++) {
		best.ldlq = fmin(best.ldlq, ldlq_step_seconds(be, &c));
		best.refine = fmin(best.refine, refine_seconds(be, &c));
	}
	for (size_t i = 0; i < size.rows; i++)
		loss += c.row_loss[i];
	printf("refine round %zux%zu by %zu: %.5f s on %d threads, LDLQ step %.5f s, ratio %.2f; loss x %.4f\n",
	       size.rows, size.cols, group, best.refine, threads, best.ldlq, best.refine / best.ldlq,
	       loss / c.rounded.loss);
	refine_case_deinit(&c);
	return best;
}

/* The modules of a layer of fable-llama, each shape as often as it occurs; then a large one. */
static void measure_refinement(struct backend *be, int threads)
{
	static const struct { struct sizes size; int count; } layer[] = {
		{ { 384, 384 }, 2 }, { { 128, 384 }, 2 }, { { 1024, 384 }, 2 }, { { 384, 1024 }, 1 },
	};

	for (int channel = 0; channel < 2; channel++) {
		struct seconds sum = { 0 };

		for (size_t i = 0; i < sizeof(layer) / sizeof(*layer); i++) {
			const struct sizes size = layer[i].size;
			const struct seconds s = measure_refine(be, size, channel ? size.cols : 64, threads);

			sum.refine += layer[i].count * s.refine;
			sum.ldlq += layer[i].count * s.ldlq;
		}
		printf("refine round, a layer of fable-llama, %s: %.4f s, LDLQ step %.4f s, ratio %.2f (bar 1)\n",
		       channel ? "channel" : "groups of 64", sum.refine, sum.ldlq, sum.refine / sum.ldlq);
	}
	measure_refine(be, (struct sizes){ COLS, COLS }, COLS, threads);
}

int main(void)
{
	static const struct sizes sizes[] = { { 384, 1024 }, { 1024, 384 }, { 4096, 4096 } };
	const int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
	struct backend *cpu = open_backend("cpu", cores), *ref = open_backend("ref", 1);
	const double sgemm = sgemm_rate(cores);

	printf("%s, sgemm %.1f GFLOP/s on %d threads\n", cpu->ops->identity(cpu), sgemm, cores);
	measure_fits(cpu, ref, cores);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		measure_rounding(cpu, sizes[i], sgemm, cores);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		measure_module(cpu, sizes[i], 2, cores);
	measure_refinement(cpu, cores);
	cpu->ops->close(cpu);
	ref->ops->close(ref);
	return 0;
}
