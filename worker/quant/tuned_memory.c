/* What the training of a block needs room for, most of it memory of the backend. */
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/place.h"
#include "worker/quant/tuned_parts.h"

int tuned_move(const struct tuned *t, float *to, const float *from, size_t n, struct err *err)
{
	return t->be->ops->memory_copy(t->be, to, from, n * sizeof(*to), err);
}

static float *take(struct backend *be, size_t floats, const char *what, struct err *err)
{
	size_t bytes;

	if (size_mul(floats, sizeof(float), &bytes))
		return be->ops->memory_take(be, bytes, what, err);
	err_set_nomem(err, what);
	return NULL;
}

static void give(struct backend *be, float *memory)
{
	if (memory)
		be->ops->memory_give(be, memory);
}

/* --- scratch ---------------------------------------------------------------------------------------- */

int tuned_scratch_init(struct tuned_scratch *s, struct backend *be, const struct tuned_sizes *sizes,
		       struct err *err)
{
	static const char what[] = "the weights and gradients of a block";

	*s = (struct tuned_scratch){ .be = be };
	s->stored = mem_alloc_aligned(sizes->stored, sizeof(*s->stored));
	s->grads = mem_alloc_aligned(sizes->grads, sizeof(*s->grads));
	if (!s->stored || !s->grads)
		err_set_nomem(err, what);
	else if ((s->values = take(be, sizes->cells, what, err)) &&
		 (s->weight_grads = take(be, sizes->cells, what, err)))
		return 0;
	tuned_scratch_deinit(s);
	return -1;
}

void tuned_scratch_deinit(struct tuned_scratch *s)
{
	give(s->be, s->values);
	give(s->be, s->weight_grads);
	mem_free(s->stored);
	mem_free(s->grads);
	*s = (struct tuned_scratch){ 0 };
}

/* --- cells -------------------------------------------------------------------------------------------- */

int tuned_cells_init(struct tuned_cells *c, struct backend *be, const struct tuned_plan *plan, struct err *err)
{
	static const char what[] = "the training state of a block";

	*c = (struct tuned_cells){ .n = tuned_runs(plan).cells };
	c->latents = take(be, c->n, what, err);
	if (c->latents && plan->train_codes) {
		c->moments1 = take(be, c->n, what, err);
		c->moments2 = c->moments1 ? take(be, c->n, what, err) : NULL;
	}
	if (c->latents && (c->moments2 || !plan->train_codes))
		return 0;
	tuned_cells_deinit(c, be);
	return -1;
}

void tuned_cells_deinit(struct tuned_cells *c, struct backend *be)
{
	give(be, c->latents);
	give(be, c->moments1);
	give(be, c->moments2);
	*c = (struct tuned_cells){ 0 };
}

/* --- copies ------------------------------------------------------------------------------------------- */

int tuned_copy_init(struct tuned_copy *c, const struct tuned *t, struct err *err)
{
	static const char what[] = "a copy of a block in training";

	*c = (struct tuned_copy){ .rest = mem_alloc_aligned(t->rest.n, sizeof(*c->rest)) };
	if (!c->rest)
		err_set_nomem(err, what);
	else if (!t->plan.train_codes || (c->latents = take(t->be, t->cells.n, what, err)))
		return 0;
	tuned_copy_deinit(c, t->be);
	return -1;
}

void tuned_copy_deinit(struct tuned_copy *c, struct backend *be)
{
	give(be, c->latents);
	mem_free(c->rest);
	*c = (struct tuned_copy){ 0 };
}

int tuned_keep(const struct tuned *t, struct tuned_copy *c, struct err *err)
{
	memcpy(c->rest, t->rest.params, t->rest.n * sizeof(*c->rest));
	return c->latents ? tuned_move(t, c->latents, t->cells.latents, t->cells.n, err) : 0;
}

int tuned_return(struct tuned *t, const struct tuned_copy *c, struct err *err)
{
	memcpy(t->rest.params, c->rest, t->rest.n * sizeof(*c->rest));
	tuned_follow(t);
	return c->latents ? tuned_move(t, t->cells.latents, c->latents, t->cells.n, err) : 0;
}
