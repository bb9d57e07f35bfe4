#include "tests/lib/tuned_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

struct tuned_case tuned_case_small(int bits, size_t group)
{
	return (struct tuned_case){
		.block = { .name = "small", .shape = { .hidden = 48, .heads = 3, .kv_heads = 1, .head_dim = 16,
						       .intermediate = 80, .rms_eps = 1e-5f },
			   .n_seq = 12, .seq_len = 10 },
		.grid = { .bits = bits, .group = group },
	};
}

static void plan_modules(struct tuned_case *c)
{
	const struct block_shape *d = &c->block.shape;
	const size_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim;
	const size_t shapes[TUNED_MODULES][2] = {
		{ q, d->hidden }, { kv, d->hidden }, { kv, d->hidden }, { d->hidden, q },
		{ d->intermediate, d->hidden }, { d->intermediate, d->hidden }, { d->hidden, d->intermediate },
	};

	c->plan = (struct tuned_plan){ .shape = *d, .train_codes = !c->fixed_codes,
				       .norm = { d->hidden, d->hidden } };
	if (c->block.head_norms)
		c->plan.norm[2] = c->plan.norm[3] = d->head_dim;
	for (int i = 0; i < TUNED_MODULES; i++) {
		struct tuned_module *m = &c->plan.module[i];

		*m = (struct tuned_module){ .quantized = !(c->skip >> i & 1), .bias = c->block.biases,
					    .grid = c->grid, .rows = shapes[i][0], .cols = shapes[i][1] };
		if (m->grid.group == 0)
			m->grid.group = m->cols;
	}
}

static void quantize(struct tuned_case *c, int i)
{
	const struct tuned_module *m = &c->plan.module[i];
	const size_t groups = m->rows * (m->cols / m->grid.group);
	double *ones = calloc(m->cols, sizeof(*ones));
	struct err err = ERR_INIT;

	c->module[i].groups = groups;
	c->module[i].codes = malloc(m->rows * m->cols);
	c->module[i].scales = case_poisoned(groups);
	c->module[i].zeros = case_poisoned(groups);
	assert_true(ones && c->module[i].codes);
	for (size_t j = 0; j < m->cols; j++)
		ones[j] = 1;
	if (c->be->ops->fit_groups(c->be, FIT_MINMAX, &m->grid, c->module[i].w, m->rows, m->cols, ones,
				   c->module[i].scales, c->module[i].zeros, NULL, &err) != 0 ||
	    c->be->ops->round_nearest(c->be, &m->grid, c->module[i].w, m->rows, m->cols, c->module[i].scales,
				      c->module[i].zeros, c->module[i].codes, &err) != 0)
		fail_msg("%s", err.text);
	free(ones);
}

void tuned_case_fill(struct tuned_case *c)
{
	const struct block_weights *w = &c->block.w;
	const float *const bias[TUNED_MODULES] = { w->q_bias, w->k_bias, w->v_bias, w->o_bias, w->gate_bias,
						   w->up_bias, w->down_bias };
	const float *const norm[TUNED_NORMS] = { w->attn_norm, w->mlp_norm, w->q_norm, w->k_norm };

	struct err err = ERR_INIT;

	assert_int_equal(tuned_reset(&c->t, &err), 0);
	for (int i = 0; i < TUNED_MODULES; i++) {
		if (c->plan.module[i].quantized)
			assert_int_equal(tuned_set_module(&c->t, i, c->module[i].codes, c->module[i].scales,
							  c->module[i].zeros, c->module[i].w, &err), 0);
		else
			tuned_set_constant(&c->t, i, c->module[i].w);
		if (c->plan.module[i].bias)
			tuned_set_bias(&c->t, i, bias[i]);
	}
	for (int i = 0; i < TUNED_NORMS; i++)
		if (c->plan.norm[i])
			tuned_set_norm(&c->t, i, norm[i]);
}

void tuned_case_init(struct tuned_case *c, struct backend *be)
{
	const struct block_weights *w = &c->block.w;
	struct err err = ERR_INIT;

	forward_case_init(&c->block);
	c->be = be;
	plan_modules(c);
	for (int i = 0; i < TUNED_MODULES; i++) {
		c->module[i].w = (const float *[]){ w->q, w->k, w->v, w->o, w->gate, w->up, w->down }[i];
		if (c->plan.module[i].quantized)
			quantize(c, i);
	}
	if (tuned_measure(&c->plan, &c->sizes, &err) != 0 ||
	    tuned_scratch_init(&c->scratch, be, &c->sizes, &err) != 0)
		fail_msg("%s", err.text);
	c->state = case_poisoned(c->sizes.state);
	tuned_open(&c->t, &c->plan, be, c->state, &c->scratch);
	tuned_case_fill(c);
}

void tuned_case_deinit(struct tuned_case *c)
{
	for (int i = 0; i < TUNED_MODULES; i++) {
		free(c->module[i].codes);
		free(c->module[i].scales);
		free(c->module[i].zeros);
	}
	free(c->state);
	tuned_scratch_deinit(&c->scratch);
	forward_case_deinit(&c->block);
}
