#include "tests/lib/train_case.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Of the four pairs of head_dim 8 one is left as it is, one blended, two scaled. */
static void make_llama3_rope(struct train_case *c)
{
	struct err err = ERR_INIT;
	struct model_config mc = { .head_dim = c->block.shape.head_dim,
		.rope = { .type = ROPE_LLAMA3, .theta = 500, .factor = 8, .low_freq_factor = 1,
			  .high_freq_factor = 4, .original_max_position = 64 } };

	if (rope_init(&c->rope, &mc, c->block.seq_len, &err) != 0)
		fail_msg("%s: %s", c->block.name, err.text);
	c->block.rope = c->rope.table;
}

void train_case_init(struct train_case *c)
{
	const size_t n = train_case_len(c);

	forward_case_init(&c->block);
	c->rope = (struct rope){ 0 };
	if (c->llama3_rope)
		make_llama3_rope(c);
	c->a = case_random(n, 1, n + 11);
	c->b = case_random(n, 1, n + 12);
}

void train_case_deinit(struct train_case *c)
{
	forward_case_deinit(&c->block);
	rope_deinit(&c->rope);
	free(c->a);
	free(c->b);
}

size_t train_case_len(const struct train_case *c)
{
	return forward_case_rows(&c->block) * c->block.shape.hidden;
}

bool train_case_has(const struct train_case *c, enum ref_param which)
{
	return ref_param_weight(&c->block.w, which) != NULL;
}

/* y and dy (n) in ordinary memory, from element `at` of the case on. */
static void compute_loss(struct train_loss *loss, size_t at, size_t n, const float *y, float *dy)
{
	for (size_t i = 0; i < n; i++) {
		const double a = loss->c->a[at + i], b = loss->c->b[at + i];

		loss->total += a * y[i] + b * y[i] * y[i] / 2;
		dy[i] = (float)(a + b * y[i]);
	}
	if (loss->y)
		memcpy(loss->y + at, y, n * sizeof(*y));
	if (loss->dy)
		memcpy(loss->dy + at, dy, n * sizeof(*dy));
}

int train_loss_call(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	struct train_loss *loss = ctx;
	const size_t n = rows * cols;
	float *y_here, *dy_here;

	assert_int_equal(sequence, loss->calls);
	assert_int_equal(rows, loss->c->block.seq_len);
	assert_int_equal(cols, loss->c->block.shape.hidden);
	if (++loss->calls == loss->stop_at)
		return 1;
	y_here = case_fetch(loss->be, y, n);
	dy_here = case_poisoned(n);
	compute_loss(loss, sequence * n, n, y_here, dy_here);
	case_hand(loss->be, dy, dy_here, n);
	free(y_here);
	free(dy_here);
	return 0;
}

float **train_grad_member(struct block_grads *g, enum ref_param which)
{
	switch (which) {
	case REF_ATTN_NORM: return &g->attn_norm;
	case REF_MLP_NORM: return &g->mlp_norm;
	case REF_Q: return &g->q;
	case REF_K: return &g->k;
	case REF_V: return &g->v;
	case REF_O: return &g->o;
	case REF_GATE: return &g->gate;
	case REF_UP: return &g->up;
	case REF_DOWN: return &g->down;
	case REF_Q_BIAS: return &g->q_bias;
	case REF_K_BIAS: return &g->k_bias;
	case REF_V_BIAS: return &g->v_bias;
	case REF_O_BIAS: return &g->o_bias;
	case REF_GATE_BIAS: return &g->gate_bias;
	case REF_UP_BIAS: return &g->up_bias;
	case REF_DOWN_BIAS: return &g->down_bias;
	case REF_Q_NORM: return &g->q_norm;
	case REF_K_NORM: return &g->k_norm;
	case REF_PARAMS: break;
	}
	fail_msg("no parameter %d", (int)which);
	return NULL;
}

void train_grads_init(struct block_grads *grads, const struct train_case *c)
{
	*grads = (struct block_grads){ 0 };
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		if (train_case_has(c, i))
			*train_grad_member(grads, i) = case_poisoned(ref_param_size(&c->block.shape, i));
}

void train_grads_deinit(struct block_grads *grads)
{
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		free(*train_grad_member(grads, i));
	*grads = (struct block_grads){ 0 };
}

struct train_result train_case_run(const struct train_case *c, struct backend *be)
{
	const struct forward_case *f = &c->block;
	const size_t n = train_case_len(c);
	struct train_result r = { .dx = case_poisoned(n) };
	struct err err = ERR_INIT;

	r.loss = (struct train_loss){ .c = c, .be = be, .y = case_poisoned(n), .dy = case_poisoned(n) };
	train_grads_init(&r.grads, c);
	if (be->ops->block_backward(be, &f->shape, &f->w, &f->rope, f->x, f->n_seq, f->seq_len,
				    train_loss_call, &r.loss, r.dx, &r.grads, &err) != 0)
		fail_msg("%s: %s", f->name, err.text);
	assert_int_equal(r.loss.calls, f->n_seq);
	return r;
}

void train_result_deinit(struct train_result *r)
{
	free(r->dx);
	free(r->loss.y);
	free(r->loss.dy);
	train_grads_deinit(&r->grads);
}

static void assert_near(const struct train_case *c, const char *what, const float *got, const float *want,
			size_t n, double bound)
{
	char label[160];

	snprintf(label, sizeof(label), "%s: d_%s", c->block.name, what);
	case_assert_close(label, got, want, n, bound * case_max_abs(want, n));
}

void train_assert_close(const struct train_case *c, const struct train_result *got,
			const struct train_result *want, double bound)
{
	assert_near(c, "x", got->dx, want->dx, train_case_len(c), bound);
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		if (train_case_has(c, i))
			assert_near(c, ref_param_name(i), ref_param_grad(&got->grads, i),
				    ref_param_grad(&want->grads, i), ref_param_size(&c->block.shape, i),
				    bound);
}

static void assert_bytes(const struct train_case *c, const char *what, const float *got, const float *want,
			 size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (memcmp(got + i, want + i, sizeof(*got)) != 0)
			fail_msg("%s: d_%s: element %zu of %zu is %.9g, not %.9g to the bit", c->block.name,
				 what, i, n, (double)got[i], (double)want[i]);
}

void train_assert_same_bytes(const struct train_case *c, const struct train_result *got,
			     const struct train_result *want)
{
	assert_bytes(c, "x", got->dx, want->dx, train_case_len(c));
	for (enum ref_param i = 0; i < REF_PARAMS; i++)
		if (train_case_has(c, i))
			assert_bytes(c, ref_param_name(i), ref_param_grad(&got->grads, i),
				     ref_param_grad(&want->grads, i), ref_param_size(&c->block.shape, i));
}

double train_distance(const double *got, const double *want, size_t n)
{
	double miss = 0, size = 0;

	for (size_t i = 0; i < n; i++) {
		miss += (got[i] - want[i]) * (got[i] - want[i]);
		size += want[i] * want[i];
	}
	if (miss == 0)
		return 0;
	return size > 0 && isfinite(miss) ? sqrt(miss / size) : INFINITY;
}

double train_distance_float(const float *got, const double *want, size_t n)
{
	double *wide = calloc(n, sizeof(*wide)), distance;

	assert_non_null(wide);
	for (size_t i = 0; i < n; i++)
		wide[i] = got[i];
	distance = train_distance(wide, want, n);
	free(wide);
	return distance;
}
