/* The steps of training: weights from the state, gradients of the grid, Adam per kind of parameter. */
#include "worker/quant/tuned.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/grid_snap.h"
#include "worker/quant/tuned_parts.h"

static const float FACTOR_MIN = 0.01f;
static const float BETA1 = 0.9f, BETA2 = 0.95f, EPSILON = 1e-12f;

static void give_weights(const struct tuned *t, const float *const of[TUNED_MODULES], struct block_weights *w)
{
	*w = (struct block_weights){
		.attn_norm = t->norm[0], .mlp_norm = t->norm[1], .q_norm = t->norm[2], .k_norm = t->norm[3],
		.q = of[0], .k = of[1], .v = of[2], .o = of[3], .gate = of[4], .up = of[5], .down = of[6],
		.q_bias = t->module[0].bias, .k_bias = t->module[1].bias, .v_bias = t->module[2].bias,
		.o_bias = t->module[3].bias, .gate_bias = t->module[4].bias,
		.up_bias = t->module[5].bias, .down_bias = t->module[6].bias,
	};
}

/* Where the module's scales and zero-points lie as they would be stored. Training steps the exact ones and computes with
 * these: straight through, as with codes. */
struct stored { float *scales, *zeros; };

static struct stored stored_of(const struct tuned *t, int module)
{
	float *at = t->scratch.stored;

	for (int i = 0; i < module; i++)
		at += 2 * tuned_groups(&t->plan.module[i]);
	return (struct stored){ at, at + tuned_groups(&t->plan.module[module]) };
}

static struct stored store(const struct tuned *t, int module)
{
	const struct tuned_module *m = &t->plan.module[module];
	const struct stored stored = stored_of(t, module);
	const size_t groups = tuned_groups(m);

	memcpy(stored.scales, t->module[module].scales, groups * sizeof(*stored.scales));
	memcpy(stored.zeros, t->module[module].zeros, groups * sizeof(*stored.zeros));
	if (m->grid.half)
		grid_snap_all(&m->grid, stored.scales, stored.zeros, groups);
	return stored;
}

int tuned_weights(struct tuned *t, struct block_weights *w, struct err *err)
{
	const float *of[TUNED_MODULES];
	float *at = t->scratch.values;

	for (int i = 0; i < TUNED_MODULES; i++) {
		const struct tuned_module *m = &t->plan.module[i];
		struct stored stored;

		of[i] = m->quantized ? at : t->constant[i];
		if (!m->quantized)
			continue;
		stored = store(t, i);
		if (t->be->ops->grid_values(t->be, &m->grid, t->module[i].latents, m->rows, m->cols, stored.scales,
					    stored.zeros, at, err) != 0)
			return -1;
		at += tuned_cells_of(m);
	}
	give_weights(t, of, w);
	return 0;
}

void tuned_grads(struct tuned *t, struct block_grads *g)
{
	const struct tuned_runs r = tuned_runs(&t->plan);
	float *weights = t->scratch.weight_grads, *at = t->scratch.grads + r.groups + r.zeros;
	float *of[TUNED_MODULES], *bias[TUNED_MODULES], *norm[TUNED_NORMS];

	for (int i = 0; i < TUNED_MODULES; i++)
		of[i] = t->plan.module[i].quantized ? tuned_take(&weights, tuned_cells_of(&t->plan.module[i])) : NULL;
	for (int i = 0; i < TUNED_MODULES; i++)
		bias[i] = t->plan.module[i].bias ? tuned_take(&at, t->plan.module[i].rows) : NULL;
	for (int i = 0; i < TUNED_NORMS; i++)
		norm[i] = t->plan.norm[i] ? tuned_take(&at, t->plan.norm[i]) : NULL;
	*g = (struct block_grads){
		.attn_norm = norm[0], .mlp_norm = norm[1], .q_norm = norm[2], .k_norm = norm[3],
		.q = of[0], .k = of[1], .v = of[2], .o = of[3], .gate = of[4], .up = of[5], .down = of[6],
		.q_bias = bias[0], .k_bias = bias[1], .v_bias = bias[2], .o_bias = bias[3],
		.gate_bias = bias[4], .up_bias = bias[5], .down_bias = bias[6],
	};
}

/* Gradients of weights become those of latents, factors and zero-points. */
static int grid_step(struct tuned *t, const struct tuned_runs *r, struct err *err)
{
	float *dw = t->scratch.weight_grads, *df = t->scratch.grads, *dz = df + r->groups;

	for (int i = 0; i < TUNED_MODULES; i++) {
		const struct tuned_module *m = &t->plan.module[i];
		const size_t groups = tuned_groups(m);
		const bool zeros = tuned_trains_zeros(m);
		struct stored stored;

		if (!m->quantized)
			continue;
		stored = stored_of(t, i);
		if (t->be->ops->grid_gradients(t->be, &m->grid, t->module[i].latents, m->rows, m->cols,
					       stored.scales, stored.zeros, dw, df, zeros ? dz : NULL,
					       t->plan.train_codes ? dw : NULL, err) != 0)
			return -1;
		for (size_t g = 0; g < groups; g++)
			df[g] *= t->module[i].base[g];
		dw += tuned_cells_of(m);
		df += groups;
		dz += zeros ? groups : 0;
	}
	return 0;
}

void tuned_follow(struct tuned *t)
{
	for (int i = 0; i < TUNED_MODULES; i++) {
		const size_t groups = tuned_groups(&t->plan.module[i]);

		for (size_t g = 0; g < groups; g++) {
			float *f = &t->module[i].factors[g];

			*f = fmaxf(*f, FACTOR_MIN);
			t->module[i].scales[g] = t->module[i].base[g] * *f;
		}
	}
}

static int adam_cells(struct tuned *t, const struct adam *adam, struct err *err)
{
	const struct tuned_cells *c = &t->cells;

	if (!t->plan.train_codes || c->n == 0)
		return 0;
	return t->be->ops->adam_step(t->be, adam, c->n, c->latents, t->scratch.weight_grads, c->moments1, c->moments2,
				     err);
}

int tuned_step(struct tuned *t, const struct tuned_rates *rates, float schedule, int64_t step,
	       struct err *err)
{
	const struct tuned_runs r = tuned_runs(&t->plan);
	const struct { size_t n; float rate; } run[] = {
		{ r.groups, rates->scale }, { r.zeros, rates->zero }, { r.dense, rates->norm },
	};
	struct adam adam = { rates->code * schedule, BETA1, BETA2, EPSILON, step };
	size_t at = 0;

	if (grid_step(t, &r, err) != 0 || adam_cells(t, &adam, err) != 0)
		return -1;
	for (size_t i = 0; i < sizeof(run) / sizeof(*run); at += run[i++].n) {
		adam.rate = run[i].rate * schedule;
		if (run[i].n > 0 &&
		    t->be->ops->adam_step(t->be, &adam, run[i].n, t->rest.params + at, t->scratch.grads + at,
					  t->rest.moments1 + at, t->rest.moments2 + at, err) != 0)
			return -1;
	}
	tuned_follow(t);
	return 0;
}

/* The code of a latent is the nearest one of a weight where s = 1 and z = 0. */
static int read_codes(const struct tuned *t, int module, uint8_t *codes, struct err *err)
{
	const struct tuned_module *m = &t->plan.module[module];
	const struct grid grid = { .bits = m->grid.bits, .group = m->cols };
	float *ones = mem_alloc_aligned(2 * m->rows, sizeof(*ones)), *zeros;
	int rc;

	if (!ones)
		return err_set_nomem(err, "the codes of a module");
	zeros = ones + m->rows;
	for (size_t r = 0; r < m->rows; r++) {
		ones[r] = 1;
		zeros[r] = 0;
	}
	rc = t->be->ops->round_nearest(t->be, &grid, t->module[module].latents, m->rows, m->cols, ones, zeros, codes, err);
	mem_free(ones);
	return rc;
}

int tuned_result(const struct tuned *t, int module, uint8_t *codes, float *scales, float *zeros, struct err *err)
{
	const struct tuned_module *m = &t->plan.module[module];

	memcpy(scales, t->module[module].scales, tuned_groups(m) * sizeof(*scales));
	memcpy(zeros, t->module[module].zeros, tuned_groups(m) * sizeof(*zeros));
	if (m->grid.half)
		grid_snap_all(&m->grid, scales, zeros, tuned_groups(m));
	return read_codes(t, module, codes, err);
}

float tuned_schedule(int64_t step, int64_t steps)
{
	const int64_t warm = (steps + 9) / 10;
	const double pi = 3.14159265358979323846;

	if (step <= warm)
		return (float)step / (float)warm;
	return (float)(0.5 + 0.5 * cos(pi * (double)(step - warm) / (double)(steps - warm + 1)));
}
