/* Limits that keep later arithmetic on sizes free of overflow; see shape.h. */
#include "worker/backend/shape.h"

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

int err_set_not_finite(struct err *err, const char *what)
{
	return err_set(err, ERR_NUMERIC, "%s gave a value that is not finite", what);
}
