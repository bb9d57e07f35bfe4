/* The state of a block under training, as one array of floats:
 *
 *   params    latents (train_codes) | factors | float zero-points | biases, norms
 *   moments1, moments2              each as params
 *   base, scales | zero-points that are not trained | latents that are not trained
 *
 * Within a run modules follow each other in their order, so each kind of parameter, with its own rate, is one
 * call of Adam. The gradients in the scratch lie in the order of params, weights first in any case.
 */
#include "worker/quant/tuned_parts.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/grid_snap.h"

static const float LATENT_PULL = 0.5f, LATENT_REACH = 0.49f;

bool tuned_trains_zeros(const struct tuned_module *m)
{
	return m->quantized && !grid_binds_zero(&m->grid);
}

size_t tuned_cells(const struct tuned_module *m)
{
	return m->quantized ? m->rows * m->cols : 0;
}

size_t tuned_groups(const struct tuned_module *m)
{
	return m->quantized ? m->rows * (m->cols / m->grid.group) : 0;
}

size_t tuned_groups_most(const struct tuned_plan *plan)
{
	size_t most = 0;

	for (int i = 0; i < TUNED_MODULES; i++)
		if (tuned_groups(&plan->module[i]) > most)
			most = tuned_groups(&plan->module[i]);
	return most;
}

float *tuned_take(float **at, size_t n)
{
	float *taken = *at;

	*at += n;
	return taken;
}

struct tuned_runs tuned_runs(const struct tuned_plan *plan)
{
	struct tuned_runs r = { 0 };

	for (int i = 0; i < TUNED_MODULES; i++) {
		const struct tuned_module *m = &plan->module[i];

		r.cells += tuned_cells(m);
		r.groups += tuned_groups(m);
		if (tuned_trains_zeros(m))
			r.zeros += tuned_groups(m);
		r.dense += m->bias ? m->rows : 0;
	}
	for (int i = 0; i < TUNED_NORMS; i++)
		r.dense += plan->norm[i];
	r.fixed_zeros = r.groups - r.zeros;
	return r;
}

static size_t trained_of(const struct tuned_plan *plan, const struct tuned_runs *r)
{
	return (plan->train_codes ? r->cells : 0) + r->groups + r->zeros + r->dense;
}

static size_t state_of(const struct tuned_plan *plan, const struct tuned_runs *r)
{
	return 3 * trained_of(plan, r) + 2 * r->groups + r->fixed_zeros + (plan->train_codes ? 0 : r->cells);
}

static int check_grid(const struct tuned_module *m, struct err *err)
{
	if (!m->quantized || (m->grid.bits >= 1 && m->grid.bits <= 8 && m->grid.group > 0 &&
			      m->cols % m->grid.group == 0))
		return 0;
	return err_set(err, ERR_INVALID, "a module of %zu columns cannot be trained with %d bits in groups "
		       "of %zu", m->cols, m->grid.bits, m->grid.group);
}

/* The state has less than 16 floats for each weight, bias and norm element: no run overflows when that
 * does not. */
static bool fits(const struct tuned_plan *plan)
{
	size_t sum = 0, n, all;

	for (int i = 0; i < TUNED_MODULES; i++) {
		const struct tuned_module *m = &plan->module[i];

		if (!size_mul(m->rows, m->cols, &n) || !size_add(sum, n, &sum) ||
		    !size_add(sum, m->rows, &sum))
			return false;
	}
	for (int i = 0; i < TUNED_NORMS; i++)
		if (!size_add(sum, plan->norm[i], &sum))
			return false;
	return size_mul(sum, 16 * sizeof(float), &all);
}

int tuned_sizes(const struct tuned_plan *plan, size_t *state, size_t *values, size_t *grads,
		struct err *err)
{
	struct tuned_runs r;

	for (int i = 0; i < TUNED_MODULES; i++)
		if (check_grid(&plan->module[i], err) != 0)
			return -1;
	if (!fits(plan))
		return err_set(err, ERR_TOO_LARGE, "the training state of one block does not fit into memory");
	r = tuned_runs(plan);
	*state = state_of(plan, &r);
	*values = r.cells + 2 * tuned_groups_most(plan);
	*grads = r.cells + r.groups + r.zeros + r.dense;
	return 0;
}

int tuned_scratch_init(struct tuned_scratch *s, size_t values, size_t grads, struct err *err)
{
	s->values = mem_alloc_aligned(values, sizeof(*s->values));
	s->grads = mem_alloc_aligned(grads, sizeof(*s->grads));
	if (s->values && s->grads)
		return 0;
	tuned_scratch_deinit(s);
	return err_set_nomem(err, "the weights and gradients of a block");
}

void tuned_scratch_deinit(struct tuned_scratch *s)
{
	mem_free(s->values);
	mem_free(s->grads);
	*s = (struct tuned_scratch){ 0 };
}

/* The views into params, in the order given at the top; returns what follows. */
static float *open_params(struct tuned *t, float *at)
{
	const struct tuned_plan *plan = &t->plan;

	for (int i = 0; plan->train_codes && i < TUNED_MODULES; i++)
		t->module[i].latents = tuned_take(&at, tuned_cells(&plan->module[i]));
	for (int i = 0; i < TUNED_MODULES; i++)
		t->module[i].factors = tuned_take(&at, tuned_groups(&plan->module[i]));
	for (int i = 0; i < TUNED_MODULES; i++)
		if (tuned_trains_zeros(&plan->module[i]))
			t->module[i].zeros = tuned_take(&at, tuned_groups(&plan->module[i]));
	for (int i = 0; i < TUNED_MODULES; i++)
		t->module[i].bias = plan->module[i].bias ? tuned_take(&at, plan->module[i].rows) : NULL;
	for (int i = 0; i < TUNED_NORMS; i++)
		t->norm[i] = plan->norm[i] ? tuned_take(&at, plan->norm[i]) : NULL;
	return at;
}

static void open_constants(struct tuned *t, float *at)
{
	const struct tuned_plan *plan = &t->plan;

	for (int i = 0; i < TUNED_MODULES; i++)
		t->module[i].base = tuned_take(&at, tuned_groups(&plan->module[i]));
	for (int i = 0; i < TUNED_MODULES; i++)
		t->module[i].scales = tuned_take(&at, tuned_groups(&plan->module[i]));
	for (int i = 0; i < TUNED_MODULES; i++)
		if (!tuned_trains_zeros(&plan->module[i]))
			t->module[i].zeros = tuned_take(&at, tuned_groups(&plan->module[i]));
	for (int i = 0; !plan->train_codes && i < TUNED_MODULES; i++)
		t->module[i].latents = tuned_take(&at, tuned_cells(&plan->module[i]));
}

void tuned_open(struct tuned *t, const struct tuned_plan *plan, struct backend *be, float *state,
		const struct tuned_scratch *scratch)
{
	const struct tuned_runs r = tuned_runs(plan);
	float *at;

	*t = (struct tuned){ .plan = *plan, .be = be, .scratch = *scratch, .params = state };
	t->trained = trained_of(plan, &r);
	at = open_params(t, state);
	t->moments1 = tuned_take(&at, t->trained);
	t->moments2 = tuned_take(&at, t->trained);
	open_constants(t, at);
}

/* --- filling ---------------------------------------------------------------------------------- */

void tuned_reset(struct tuned *t)
{
	const struct tuned_runs r = tuned_runs(&t->plan);

	memset(t->params, 0, state_of(&t->plan, &r) * sizeof(*t->params));
}

/* A latent that rounds to `code` and leans towards `exact`, the weight in code units. */
static float lean(float code, float exact)
{
	return code + fminf(fmaxf(LATENT_PULL * (exact - code), -LATENT_REACH), LATENT_REACH);
}

void tuned_set_module(struct tuned *t, int module, const uint8_t *codes, const float *scales,
		      const float *zeros, const float *w)
{
	const struct tuned_module *m = &t->plan.module[module];
	const size_t cells = tuned_cells(m), groups = tuned_groups(m);
	float *latents = t->module[module].latents;

	for (size_t g = 0; g < groups; g++) {
		t->module[module].base[g] = t->module[module].scales[g] = scales[g];
		t->module[module].factors[g] = 1;
		t->module[module].zeros[g] = zeros[g];
	}
	for (size_t i = 0; i < cells; i++) {
		const size_t g = i / m->grid.group;

		latents[i] = t->plan.train_codes ? lean(codes[i], w[i] / scales[g] + zeros[g]) : codes[i];
	}
}

void tuned_set_constant(struct tuned *t, int module, const float *w)
{
	t->constant[module] = w;
}

void tuned_set_bias(struct tuned *t, int module, const float *bias)
{
	memcpy(t->module[module].bias, bias, t->plan.module[module].rows * sizeof(*bias));
}

void tuned_set_norm(struct tuned *t, int norm, const float *weight)
{
	memcpy(t->norm[norm], weight, t->plan.norm[norm] * sizeof(*weight));
}
