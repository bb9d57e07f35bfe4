/* Rounds of refinement: how many, and that the module's loss never rises.
 *
 * A round is the backend's. Its losses decide whether another is worth it; what is reported is measured
 * afterwards like every other loss of a module, and a result that measures worse is not kept.
 */
#include "worker/quant/refine.h"

#include <string.h>

#include "common/alloc.h"

/* A round that wins less than this share is the last. */
static const double worth = 1e-6;

/* State of a module, to go back to. */
struct saved { uint8_t *codes; float *scales, *zeros; size_t cells, groups; };

static int save(struct saved *s, const struct quant_result *r, size_t cells, size_t groups,
		struct err *err)
{
	*s = (struct saved){ mem_alloc(cells, 1), mem_alloc(groups, sizeof(*s->scales)),
			     mem_alloc(groups, sizeof(*s->zeros)), cells, groups };
	if (!s->codes || !s->scales || !s->zeros)
		return err_set_nomem(err, "codes of a module");
	memcpy(s->codes, r->codes, cells);
	memcpy(s->scales, r->scales, groups * sizeof(*s->scales));
	memcpy(s->zeros, r->zeros, groups * sizeof(*s->zeros));
	return 0;
}

static void restore(const struct saved *s, struct quant_result *r)
{
	memcpy(r->codes, s->codes, s->cells);
	memcpy(r->scales, s->scales, s->groups * sizeof(*s->scales));
	memcpy(r->zeros, s->zeros, s->groups * sizeof(*s->zeros));
}

static void saved_deinit(struct saved *s)
{
	mem_free(s->codes);
	mem_free(s->scales);
	mem_free(s->zeros);
}

static int run_rounds(struct quant_result *out, struct backend *be, const struct quant_site *site,
		      const struct quant_options *options, const struct quant_weights *w, double *row_loss,
		      struct err *err)
{
	double before = out->loss_rounded;

	while (out->refine_rounds < options->refine) {
		double after = 0;

		if (be->ops->refine(be, &options->grid, w->placed, w->rows, site->cols, site->h, site->damp,
				    quant_site_perm(site), out->codes, out->scales, out->zeros, row_loss, err) != 0)
			return -1;
		out->refine_rounds++;
		for (size_t r = 0; r < w->rows; r++)
			after += row_loss[r];
		if (!(after < (1 - worth) * before))
			break;
		before = after;
	}
	return 0;
}

int refine_module(struct quant_result *out, struct backend *be, const struct quant_site *site,
		  const struct quant_options *options, const struct quant_weights *w, struct err *err)
{
	const size_t groups = w->rows * (site->cols / options->grid.group);
	double *row_loss = mem_alloc(w->rows, sizeof(*row_loss)), loss;
	struct saved rounded = { 0 };
	int rc = row_loss ? 0 : err_set_nomem(err, "the loss of each row");

	if (rc == 0)
		rc = save(&rounded, out, w->rows * site->cols, groups, err);
	if (rc == 0)
		rc = run_rounds(out, be, site, options, w, row_loss, err);
	if (rc == 0)
		rc = be->ops->proxy_loss(be, &options->grid, w->placed, w->rows, site->cols, site->h, site->damp,
					 out->codes, out->scales, out->zeros, &loss, NULL, err);
	if (rc == 0 && loss < out->loss_rounded)
		out->loss = loss;
	else if (rc == 0)
		restore(&rounded, out);
	saved_deinit(&rounded);
	mem_free(row_loss);
	return rc;
}
