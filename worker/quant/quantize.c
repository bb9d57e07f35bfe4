/* Order and safeguards of quantizing one module: initialize, round, measure, refine.
 *
 * Error feedback moves the weights before they are rounded, so the scale that was best for the weights
 * is only about the best for a row after it, and what a row loses is partly luck. Rows are
 * independent: trying a few scales near the fitted ones and keeping the best per row lowers the
 * loss by about 3 %. Rounding with error feedback is kept only when it does not raise the proxy
 * loss above that of nearest codes.
 */
#include "worker/quant/quantize.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/grid_snap.h"
#include "worker/quant/refine.h"
#include "worker/quant/start.h"

/* Scales tried, relative to the fitted ones. */
static const float trials[] = { 1, 0.98f, 1.02f, 1.04f };

static int check_options(const struct quant_site *site, const struct quant_options *options,
			 struct err *err)
{
	const struct grid *grid = &options->grid;

	if (grid->bits < 1 || grid->bits > 8)
		return err_set(err, ERR_INVALID, "bits is %d; it must be 1 to 8", grid->bits);
	if (grid->group == 0 || site->cols % grid->group != 0)
		return err_set(err, ERR_INVALID, "group size %zu does not divide %zu columns",
			       grid->group, site->cols);
	if (options->ldlq && !site->u)
		return err_set(err, ERR_INTERNAL, "LDLQ needs the factor of H, which was not asked for");
	if (options->refine < 0)
		return err_set(err, ERR_INVALID, "refine is %d rounds; it must be at least 0", options->refine);
	return 0;
}

static int allocate(struct quant_result *out, size_t rows, size_t cols, size_t groups,
		    struct err *err)
{
	size_t cells;

	if (size_mul(rows, cols, &cells)) {
		out->codes = mem_alloc(cells, 1);
		out->scales = mem_alloc(rows * groups, sizeof(*out->scales));
		out->zeros = mem_alloc(rows * groups, sizeof(*out->zeros));
	}
	if (!out->codes || !out->scales || !out->zeros)
		return err_set_nomem(err, "codes and scales of a module");
	return 0;
}

/* One way to round every row: scales, codes and the loss of each row. */
struct attempt {
	float *scales, *zeros;  /* (N,G) */
	uint8_t *codes;         /* (N,K) */
	double *loss;           /* (N) */
};

static void attempt_deinit(struct attempt *a)
{
	mem_free(a->scales);
	mem_free(a->zeros);
	mem_free(a->codes);
	mem_free(a->loss);
}

static int attempt_init(struct attempt *a, size_t rows, size_t cols, size_t groups, struct err *err)
{
	a->scales = mem_alloc(rows * groups, sizeof(*a->scales));
	a->zeros = mem_alloc(rows * groups, sizeof(*a->zeros));
	a->codes = mem_alloc(rows * cols, sizeof(*a->codes));
	a->loss = mem_alloc(rows, sizeof(*a->loss));
	if (a->scales && a->zeros && a->codes && a->loss)
		return 0;
	return err_set_nomem(err, "codes of a module");
}

/* The fitted grid of each group, stretched about its middle (about zero where z is bound). */
static void stretch(struct attempt *a, const struct quant_result *fitted, const struct grid *grid,
		    size_t count, float factor)
{
	const float middle = (float)((1 << grid->bits) - 1) / 2;

	for (size_t i = 0; i < count; i++) {
		const float z = fitted->zeros[i];

		a->scales[i] = fminf(fitted->scales[i] * factor, FLT_MAX);
		a->zeros[i] = grid_binds_zero(grid) || factor == 1 ? z : middle - (middle - z) / factor;
		grid_snap(grid, &a->scales[i], &a->zeros[i]);
	}
}

/* Rows of `from` that lose less replace those of `best`. */
static void keep_better_rows(struct attempt *best, const struct attempt *from, size_t rows,
			     size_t cols, size_t groups)
{
	for (size_t r = 0; r < rows; r++) {
		if (!(from->loss[r] < best->loss[r]))
			continue;
		memcpy(best->scales + r * groups, from->scales + r * groups, groups * sizeof(float));
		memcpy(best->zeros + r * groups, from->zeros + r * groups, groups * sizeof(float));
		memcpy(best->codes + r * cols, from->codes + r * cols, cols);
		best->loss[r] = from->loss[r];
	}
}

static int try_scales(struct attempt *best, const struct quant_result *fitted, struct backend *be,
		      const struct quant_site *site, const struct quant_options *options,
		      const struct quant_weights *w, struct err *err)
{
	const size_t rows = w->rows, cols = site->cols, groups = cols / options->grid.group;
	const size_t count = options->method == FIT_NEUQI ? sizeof(trials) / sizeof(*trials) : 1;
	struct attempt next = { 0 };
	int rc = count > 1 ? attempt_init(&next, rows, cols, groups, err) : 0;

	for (size_t t = 0; t < count && rc == 0; t++) {
		struct attempt *a = t == 0 ? best : &next;

		stretch(a, fitted, &options->grid, rows * groups, trials[t]);
		rc = be->ops->round_ldlq(be, &options->grid, w->placed, rows, cols, quant_site_perm(site), site->u,
					 site->pivots, a->scales, a->zeros, a->codes, a->loss, err);
		if (rc == 0 && t > 0)
			keep_better_rows(best, &next, rows, cols, groups);
	}
	attempt_deinit(&next);
	return rc;
}

/* Replaces the nearest codes when that does not raise the loss. */
static int round_with_feedback(struct quant_result *out, struct backend *be,
			       const struct quant_site *site, const struct quant_options *options,
			       const struct quant_weights *w, struct err *err)
{
	struct attempt best = { 0 };
	double loss;
	int rc = attempt_init(&best, w->rows, site->cols, site->cols / options->grid.group, err);

	if (rc == 0)
		rc = try_scales(&best, out, be, site, options, w, err);
	if (rc == 0)
		rc = be->ops->proxy_loss(be, &options->grid, w->placed, w->rows, site->cols, site->h, site->damp,
					 best.codes, best.scales, best.zeros, &loss, NULL, err);
	if (rc == 0 && loss <= out->loss_nearest) {
		const struct attempt nearest = { out->scales, out->zeros, out->codes, best.loss };

		out->scales = best.scales;
		out->zeros = best.zeros;
		out->codes = best.codes;
		out->loss = loss;
		best = nearest;
	}
	attempt_deinit(&best);
	return rc;
}

int quant_module(struct quant_result *out, struct backend *be, const struct quant_site *site,
		 const struct quant_options *options, const struct quant_weights *w, struct err *err)
{
	const struct grid *grid = &options->grid;

	*out = (struct quant_result){ 0 };
	if (check_options(site, options, err) != 0)
		return -1;
	if (allocate(out, w->rows, site->cols, site->cols / grid->group, err) != 0 ||
	    quant_start(out, be, site, options, w, err) != 0)
		goto fail;
	out->loss = out->loss_nearest;
	if (options->ldlq && round_with_feedback(out, be, site, options, w, err) != 0)
		goto fail;
	out->loss_rounded = out->loss;
	if (options->refine > 0 && refine_module(out, be, site, options, w, err) != 0)
		goto fail;
	return 0;
fail:
	quant_result_deinit(out);
	return -1;
}

void quant_result_deinit(struct quant_result *r)
{
	mem_free(r->codes);
	mem_free(r->scales);
	mem_free(r->zeros);
	*r = (struct quant_result){ 0 };
}
