/* head_tile and head_kl_tile of the cuda backend: rows in pieces, whose logits go through memory.
 *
 * The output embedding is split once a call and the rows once; a piece has so many rows that its logits, of both sides
 * where there are two, take at most logits_bytes.
 */
#include "worker/backend/cuda/kernels_head.h"
#include "worker/backend/cuda/product.h"
#include "worker/backend/shape.h"

enum { PIECE_ROWS_MAX = 1 << 20 };

static const size_t logits_bytes = (size_t)512 << 20;

static size_t piece_rows(size_t tile_rows, size_t sides)
{
	const size_t fit = logits_bytes / (sides * tile_rows * sizeof(float));

	return fit < 1 ? 1 : fit < PIECE_ROWS_MAX ? fit : PIECE_ROWS_MAX;
}

static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

static struct cuda_operand matrix_in(struct cuda_frame *f, const float *x, size_t rows, size_t cols)
{
	const float *x_d = cuda_in(f, x, rows * cols * sizeof(*x));

	return cuda_ok(f) ? cuda_split(f, x_d, rows * cols) : (struct cuda_operand){ 0 };
}

static void *rows_inout(struct cuda_frame *f, double *array, size_t rows)
{
	return cuda_inout(f, array, rows * sizeof(*array));
}

/* out (rows, tile_rows) = the rows of x from `first` on, times w'. */
static void multiply_logits(struct cuda_frame *f, struct cuda_operand x, struct cuda_operand w, size_t first, size_t rows,
			    size_t hidden, size_t tile_rows, float *out)
{
	const struct cuda_product p = {
		.form = CUDA_NT, .m = rows, .n = tile_rows, .k = hidden, .a = cuda_operand_at(x, first * hidden), .b = w,
		.c = out, .alpha = 1,
	};

	if (cuda_ok(f))
		cuda_multiply(f, &p);
}

static struct head_fold fold_at(const struct head_fold *all, size_t first, size_t rows)
{
	struct head_fold h = *all;

	h.rows = rows;
	h.targets += first;
	h.max += first;
	h.sum += first;
	h.target += first;
	h.top_logit += first;
	h.top_id += first;
	return h;
}

int cuda_head_tile(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w, size_t tile_rows,
		   int32_t first_id, const int32_t *targets, struct head_state *state, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "head_tile", err);
	struct cuda_operand x_s, w_s;
	struct head_fold all;
	float *logits;
	size_t step;

	if (matrix_shape_check("head_tile", rows, hidden, err) != 0 ||
	    matrix_shape_check("head_tile", tile_rows, hidden, err) != 0)
		return -1;
	if (rows == 0 || tile_rows == 0)
		return 0;
	step = smaller(piece_rows(tile_rows, 1), rows);
	x_s = matrix_in(&f, x, rows, hidden);
	w_s = matrix_in(&f, w, tile_rows, hidden);
	logits = cuda_take(&f, step * tile_rows * sizeof(*logits));
	all = (struct head_fold){
		.logits = logits, .n = tile_rows, .first_id = first_id,
		.targets = cuda_in(&f, targets, rows * sizeof(*targets)),
		.max = rows_inout(&f, state->max, rows), .sum = rows_inout(&f, state->sum, rows),
		.target = rows_inout(&f, state->target, rows), .top_logit = rows_inout(&f, state->top_logit, rows),
		.top_id = cuda_inout(&f, state->top_id, rows * sizeof(*state->top_id)), .bad = cuda_bad(&f),
	};
	for (size_t first = 0; first < rows && cuda_ok(&f); first += step) {
		const size_t n = smaller(step, rows - first);
		const struct head_fold piece = fold_at(&all, first, n);

		multiply_logits(&f, x_s, w_s, first, n, hidden, tile_rows, logits);
		if (cuda_ok(&f))
			cuda_try(&f, cuda_head_fold_launch(f.cuda->stream, &piece));
	}
	return cuda_end(&f);
}

/* --- head_kl_tile ------------------------------------------------------------------------------ */

struct kl_pass {
	size_t rows, hidden, tile_rows;
	struct cuda_operand x, x_ref, w, w_ref;
	float *logits, *ref_logits;     /* of a piece; logits become p - p_ref */
	struct head_compare all;
	float *dx;
};

static const double *rows_in(struct cuda_frame *f, const double *array, size_t rows)
{
	return cuda_in(f, array, rows * sizeof(*array));
}

/* dx (rows, hidden) of a piece += (p - p_ref) w. */
static void add_gradient(struct cuda_frame *f, const struct kl_pass *k, size_t rows, float *dx)
{
	const size_t mark = cuda_mark(f);
	const struct cuda_product p = {
		.form = CUDA_NN, .m = rows, .n = k->hidden, .k = k->tile_rows,
		.a = cuda_split(f, k->logits, rows * k->tile_rows), .b = k->w, .c = dx, .alpha = 1, .beta = 1,
	};

	if (cuda_ok(f) && cuda_multiply(f, &p))
		cuda_try(f, cuda_head_finite_launch(f->cuda->stream, dx, rows * k->hidden, k->all.bad));
	cuda_drop(f, mark);
}

static void compare_piece(struct cuda_frame *f, const struct kl_pass *k, size_t first, size_t rows)
{
	struct head_compare h = k->all;

	h.rows = rows;
	h.max += first;
	h.sum += first;
	h.ref_max += first;
	h.ref_sum += first;
	h.kl = h.kl ? h.kl + first : NULL;
	multiply_logits(f, k->x, k->w, first, rows, k->hidden, k->tile_rows, k->logits);
	multiply_logits(f, k->x_ref, k->w_ref, first, rows, k->hidden, k->tile_rows, k->ref_logits);
	if (cuda_ok(f))
		cuda_try(f, cuda_head_compare_launch(f->cuda->stream, &h));
	if (cuda_ok(f) && k->dx)
		add_gradient(f, k, rows, k->dx + first * k->hidden);
}

int cuda_head_kl_tile(struct backend *be, const float *x, const float *x_ref, size_t rows, size_t hidden,
		      const float *w, const float *w_ref, size_t tile_rows, const struct head_state *state,
		      const struct head_state *ref_state, double *kl, float *dx, struct err *err)
{
	struct cuda_frame f = cuda_begin(be, "head_kl_tile", err);
	struct kl_pass k = { .rows = rows, .hidden = hidden, .tile_rows = tile_rows };
	size_t step;

	if (matrix_shape_check("head_kl_tile", rows, hidden, err) != 0 ||
	    matrix_shape_check("head_kl_tile", tile_rows, hidden, err) != 0)
		return -1;
	if ((!kl && !dx) || rows == 0 || tile_rows == 0)
		return 0;
	step = smaller(piece_rows(tile_rows, 2), rows);
	k.x = matrix_in(&f, x, rows, hidden);
	k.x_ref = matrix_in(&f, x_ref, rows, hidden);
	k.w = matrix_in(&f, w, tile_rows, hidden);
	k.w_ref = w == w_ref ? k.w : matrix_in(&f, w_ref, tile_rows, hidden);
	k.logits = cuda_take(&f, step * tile_rows * sizeof(*k.logits));
	k.ref_logits = cuda_take(&f, step * tile_rows * sizeof(*k.ref_logits));
	k.dx = cuda_inout(&f, dx, rows * hidden * sizeof(*dx));
	k.all = (struct head_compare){
		.logits = k.logits, .ref_logits = k.ref_logits, .n = tile_rows,
		.max = rows_in(&f, state->max, rows), .sum = rows_in(&f, state->sum, rows),
		.ref_max = rows_in(&f, ref_state->max, rows), .ref_sum = rows_in(&f, ref_state->sum, rows),
		.kl = rows_inout(&f, kl, rows), .difference = dx ? k.logits : NULL, .bad = cuda_bad(&f),
	};
	for (size_t first = 0; first < rows && cuda_ok(&f); first += step)
		compare_piece(&f, &k, first, smaller(step, rows - first));
	return cuda_end(&f);
}
