/* The state of a block under training, as one array of floats:
 *
 *   params    latents (train_codes) | factors | float zero-points | biases, norms
 *   moments1, moments2              each as params
 *   base, scales | zero-points that are not trained | latents that are not trained
 *
 * In two parts it is the same without everything about latents, which are the cells. Within a run modules follow each
 * other in their order, so each kind of parameter, with its own rate, is one call of Adam. The gradients in the scratch
 * lie in the order of params.
 */
#include "worker/quant/tuned_parts.h"

#include <string.h>

#include "common/alloc.h"
#include "worker/backend/grid_snap.h"
#include "worker/backend/place.h"

static const float LATENT_PULL = 0.5f, LATENT_REACH = 0.49f;

bool tuned_trains_zeros(const struct tuned_module *m)
{
	return m->quantized && !grid_binds_zero(&m->grid);
}

size_t tuned_cells_of(const struct tuned_module *m)
{
	return m->quantized ? m->rows * m->cols : 0;
}

size_t tuned_groups(const struct tuned_module *m)
{
	return m->quantized ? m->rows * (m->cols / m->grid.group) : 0;
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

		r.cells += tuned_cells_of(m);
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

/* Trained parameters that are no latents. */
static size_t rest_of(const struct tuned_runs *r)
{
	return r->groups + r->zeros + r->dense;
}

static size_t small_of(const struct tuned_runs *r)
{
	return 3 * rest_of(r) + 2 * r->groups + r->fixed_zeros;
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

int tuned_measure(const struct tuned_plan *plan, struct tuned_sizes *sizes, struct err *err)
{
	struct tuned_runs r;

	for (int i = 0; i < TUNED_MODULES; i++)
		if (check_grid(&plan->module[i], err) != 0)
			return -1;
	if (!fits(plan))
		return err_set(err, ERR_TOO_LARGE, "the training state of one block does not fit into memory");
	r = tuned_runs(plan);
	*sizes = (struct tuned_sizes){
		.state = small_of(&r) + (plan->train_codes ? 3 : 1) * r.cells,
		.cells = r.cells, .small = small_of(&r), .stored = 2 * r.groups, .grads = rest_of(&r),
	};
	return 0;
}

static void cover(size_t *a, size_t b)
{
	if (b > *a)
		*a = b;
}

void tuned_sizes_cover(struct tuned_sizes *a, const struct tuned_sizes *b)
{
	cover(&a->state, b->state);
	cover(&a->cells, b->cells);
	cover(&a->small, b->small);
	cover(&a->stored, b->stored);
	cover(&a->grads, b->grads);
}

/* Floats of params in a state that is one array. */
static size_t trained_of(const struct tuned_plan *plan, const struct tuned_runs *r)
{
	return (plan->train_codes ? r->cells : 0) + rest_of(r);
}

void tuned_moments(const struct tuned_plan *plan, size_t *begin, size_t *end)
{
	const struct tuned_runs r = tuned_runs(plan);

	*begin = trained_of(plan, &r);
	*end = 3 * *begin;
}

/* --- views ------------------------------------------------------------------------------------ */

static void open_latents(struct tuned *t)
{
	float *at = t->cells.latents;

	for (int i = 0; i < TUNED_MODULES; i++)
		t->module[i].latents = tuned_take(&at, tuned_cells_of(&t->plan.module[i]));
}

/* The views into params behind the latents, in the order given at the top. */
static void open_params(struct tuned *t)
{
	const struct tuned_plan *plan = &t->plan;
	float *at = t->rest.params;

	for (int i = 0; i < TUNED_MODULES; i++)
		t->module[i].factors = tuned_take(&at, tuned_groups(&plan->module[i]));
	for (int i = 0; i < TUNED_MODULES; i++)
		if (tuned_trains_zeros(&plan->module[i]))
			t->module[i].zeros = tuned_take(&at, tuned_groups(&plan->module[i]));
	for (int i = 0; i < TUNED_MODULES; i++)
		t->module[i].bias = plan->module[i].bias ? tuned_take(&at, plan->module[i].rows) : NULL;
	for (int i = 0; i < TUNED_NORMS; i++)
		t->norm[i] = plan->norm[i] ? tuned_take(&at, plan->norm[i]) : NULL;
}

/* What is not trained, latents excepted. */
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
}

void tuned_open(struct tuned *t, const struct tuned_plan *plan, struct backend *be, float *state,
		const struct tuned_scratch *scratch)
{
	const struct tuned_runs r = tuned_runs(plan);
	const size_t trained = trained_of(plan, &r), latents = plan->train_codes ? r.cells : 0;
	float *constants = state + 3 * trained;

	*t = (struct tuned){ .plan = *plan, .be = be, .scratch = *scratch };
	t->cells.n = r.cells;
	t->cells.latents = plan->train_codes ? state : constants + 2 * r.groups + r.fixed_zeros;
	t->cells.moments1 = plan->train_codes ? state + trained : NULL;
	t->cells.moments2 = plan->train_codes ? state + 2 * trained : NULL;
	t->rest.n = trained - latents;
	t->rest.params = state + latents;
	t->rest.moments1 = t->rest.params + trained;
	t->rest.moments2 = t->rest.moments1 + trained;
	open_latents(t);
	open_params(t);
	open_constants(t, constants);
}

void tuned_open_apart(struct tuned *t, const struct tuned_plan *plan, struct backend *be,
		      const struct tuned_cells *cells, float *small, const struct tuned_scratch *scratch)
{
	const struct tuned_runs r = tuned_runs(plan);

	*t = (struct tuned){ .plan = *plan, .be = be, .scratch = *scratch, .cells = *cells };
	t->rest.n = rest_of(&r);
	t->rest.params = tuned_take(&small, t->rest.n);
	t->rest.moments1 = tuned_take(&small, t->rest.n);
	t->rest.moments2 = tuned_take(&small, t->rest.n);
	open_latents(t);
	open_params(t);
	open_constants(t, small);
}

/* --- filling ---------------------------------------------------------------------------------- */

static int clear(struct tuned *t, float *cells, struct err *err)
{
	return cells ? place_clear(t->be, cells, t->cells.n * sizeof(*cells), err) : 0;
}

int tuned_reset(struct tuned *t, struct err *err)
{
	const size_t bytes = t->rest.n * sizeof(float);

	memset(t->rest.params, 0, bytes);
	memset(t->rest.moments1, 0, bytes);
	memset(t->rest.moments2, 0, bytes);
	if (clear(t, t->cells.moments1, err) != 0 || clear(t, t->cells.moments2, err) != 0)
		return -1;
	return clear(t, t->cells.latents, err);
}

/* A latent that rounds to `code` and leans towards `exact`, the weight in code units. */
static float lean(float code, float exact)
{
	const float pull = LATENT_PULL * (exact - code);

	return code + (pull > LATENT_REACH ? LATENT_REACH : pull < -LATENT_REACH ? -LATENT_REACH : pull);
}

/* One module on its way into the state. */
struct filling { const uint8_t *codes; const float *scales, *zeros, *w; size_t group; bool train; };

/* n latents of one group, the first of them at `at` in the module. */
static void make_of_group(const struct filling *f, size_t at, size_t n, float *latents)
{
	const float s = f->scales[at / f->group], z = f->zeros[at / f->group];

	for (size_t i = 0; i < n; i++)
		latents[i] = f->train ? lean(f->codes[at + i], f->w[at + i] / s + z) : f->codes[at + i];
}

/* Latents [first, first + n) of the module. */
static void make_latents(const struct filling *f, size_t first, size_t n, float *latents)
{
	for (size_t i = 0, now; i < n; i += now) {
		now = f->group - (first + i) % f->group;
		if (now > n - i)
			now = n - i;
		make_of_group(f, first + i, now, latents + i);
	}
}

static int set_latents(struct tuned *t, int module, const struct filling *f, struct err *err)
{
	const size_t cells = tuned_cells_of(&t->plan.module[module]);
	float *piece = mem_alloc(TUNED_PIECE, sizeof(*piece));
	int rc = 0;

	if (!piece)
		return err_set_nomem(err, "latent codes");
	for (size_t first = 0, n; rc == 0 && first < cells; first += n) {
		n = cells - first < TUNED_PIECE ? cells - first : TUNED_PIECE;
		make_latents(f, first, n, piece);
		rc = tuned_move(t, t->module[module].latents + first, piece, n, err);
	}
	mem_free(piece);
	return rc;
}

int tuned_set_module(struct tuned *t, int module, const uint8_t *codes, const float *scales,
		     const float *zeros, const float *w, struct err *err)
{
	const struct tuned_module *m = &t->plan.module[module];
	const struct filling f = { codes, scales, zeros, w, m->grid.group, t->plan.train_codes };
	const size_t groups = tuned_groups(m);

	for (size_t g = 0; g < groups; g++) {
		t->module[module].base[g] = t->module[module].scales[g] = scales[g];
		t->module[module].factors[g] = 1;
		t->module[module].zeros[g] = zeros[g];
	}
	return set_latents(t, module, &f, err);
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
