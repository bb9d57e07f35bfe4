/* Limits that keep later arithmetic on sizes free of overflow; see shape.h. */
#include "worker/backend/shape.h"

#include <math.h>
#include <stdint.h>

static bool in_range(size_t n)
{
	return n >= 1 && n <= BACKEND_DIM_MAX;
}

int matrix_shape_check(const char *what, size_t rows, size_t cols, struct err *err)
{
	if (!in_range(cols) || rows > SIZE_MAX / sizeof(double) / cols)
		return err_set(err, ERR_INVALID, "%s: %zu rows of %zu columns; columns must be 1 to %d",
			       what, rows, cols, BACKEND_DIM_MAX);
	return 0;
}

int gram_mean_check(size_t cols, uint64_t rows, struct err *err)
{
	if (matrix_shape_check("gram_mean", cols, cols, err) != 0)
		return -1;
	return rows > 0 ? 0 : err_set(err, ERR_INVALID, "gram_mean: the mean of no rows; there must be at least 1");
}

int block_shape_check(const struct block_shape *s, size_t n_seq, size_t seq_len, struct err *err)
{
	if (!in_range(s->hidden) || !in_range(s->intermediate) || !in_range(s->heads) ||
	    !in_range(s->kv_heads) || !in_range(s->head_dim) || !in_range(s->heads * s->head_dim))
		return err_set(err, ERR_INVALID, "block shape: hidden %zu, intermediate %zu, %zu heads, "
			       "%zu key-value heads of %zu; each width must be 1 to %d", s->hidden,
			       s->intermediate, s->heads, s->kv_heads, s->head_dim, BACKEND_DIM_MAX);
	if (s->heads % s->kv_heads != 0)
		return err_set(err, ERR_INVALID, "block shape: %zu heads are not a multiple of %zu "
			       "key-value heads", s->heads, s->kv_heads);
	if (s->head_dim % 2 != 0)
		return err_set(err, ERR_INVALID, "block shape: head_dim %zu is odd; rotary embedding "
			       "needs an even one", s->head_dim);
	if (!in_range(seq_len) || !in_range(n_seq))
		return err_set(err, ERR_INVALID, "block forward of %zu sequences of %zu tokens; each must "
			       "be 1 to %d", n_seq, seq_len, BACKEND_DIM_MAX);
	return 0;
}

int block_grads_check(const struct block_weights *w, const struct block_grads *g, struct err *err)
{
	const struct { const char *name; const float *weight, *grad; } optional[] = {
		{ "q_bias", w->q_bias, g->q_bias }, { "k_bias", w->k_bias, g->k_bias },
		{ "v_bias", w->v_bias, g->v_bias }, { "o_bias", w->o_bias, g->o_bias },
		{ "gate_bias", w->gate_bias, g->gate_bias }, { "up_bias", w->up_bias, g->up_bias },
		{ "down_bias", w->down_bias, g->down_bias }, { "q_norm", w->q_norm, g->q_norm },
		{ "k_norm", w->k_norm, g->k_norm },
	};

	for (size_t i = 0; i < sizeof(optional) / sizeof(optional[0]); i++)
		if (optional[i].grad && !optional[i].weight)
			return err_set(err, ERR_INVALID, "the gradient of %s is asked for, but the block has "
				       "no %s", optional[i].name, optional[i].name);
	return 0;
}

int grid_shape_check(const char *what, const struct grid *grid, size_t rows, size_t cols, struct err *err)
{
	if (matrix_shape_check(what, rows, cols, err) != 0)
		return -1;
	if (grid->bits < 1 || grid->bits > 8)
		return err_set(err, ERR_INVALID, "%s: %d bits; bits must be 1 to 8", what, grid->bits);
	if (grid->group < 1 || cols % grid->group != 0)
		return err_set(err, ERR_INVALID, "%s: groups of %zu do not divide %zu columns", what,
			       grid->group, cols);
	return 0;
}

static bool in_unit(double x)
{
	return x >= 0 && x < 1;
}

int adam_check(const struct adam *a, struct err *err)
{
	if (a->step < 1 || !in_unit(a->beta1) || !in_unit(a->beta2) || !isfinite(a->rate) || a->rate < 0 ||
	    !isfinite(a->epsilon) || a->epsilon < 0)
		return err_set(err, ERR_INVALID, "Adam step %lld with rate %g, betas %g and %g, epsilon %g; "
			       "steps count from 1, betas must be in [0, 1), rate and epsilon at least 0",
			       (long long)a->step, (double)a->rate, (double)a->beta1, (double)a->beta2,
			       (double)a->epsilon);
	return 0;
}

int err_set_not_finite(struct err *err, const char *what)
{
	return err_set(err, ERR_NUMERIC, "%s gave a value that is not finite", what);
}
