/* See head_kl.h. Two passes over the vocabulary: the log-sum-exp of both models, then KL and gradient. */
#include "worker/model/head_kl.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"

enum { TILE_BYTES = 8 << 20, STATE_DOUBLES = 4 };

static int read_table(struct head_kl *h, int bits, size_t held_bytes, struct err *err)
{
	const size_t row_bytes = h->hidden * sizeof(float), fit = TILE_BYTES / row_bytes;
	size_t bytes;

	h->tile_rows = fit > h->vocab ? h->vocab : fit > 0 ? fit : 1;
	h->held = size_mul(h->vocab, (bits == TABLE_UNTOUCHED ? 1 : 2) * row_bytes, &bytes) && bytes <= held_bytes;
	if (head_rows_init(&h->table, h->ck, bits, h->held ? h->vocab : h->tile_rows, err) != 0)
		return -1;
	return h->held ? head_rows_read(&h->table, 0, h->vocab, err) : 0;
}

static struct head_state state_at(double *numbers, int32_t *ids, size_t rows)
{
	return (struct head_state){ .max = numbers, .sum = numbers + rows, .target = numbers + 2 * rows,
				    .top_logit = numbers + 3 * rows, .top_id = ids };
}

static int alloc_rows(struct head_kl *h, struct err *err)
{
	size_t rows, floats;

	if (!size_mul(h->sequences, h->seq_len, &rows) || !size_mul(rows, h->hidden, &floats))
		return err_set(err, ERR_TOO_LARGE, "%zu sequences of %zu tokens do not fit into memory", h->sequences,
			       h->seq_len);
	h->norm = mem_alloc_aligned(h->hidden, sizeof(float));
	h->x = mem_alloc_aligned(floats, sizeof(float));
	h->ref = mem_alloc_aligned(floats, sizeof(float));
	h->dx = mem_alloc_aligned(floats, sizeof(float));
	h->numbers = mem_alloc(rows, (2 * STATE_DOUBLES + 1) * sizeof(double));
	h->targets = mem_alloc(rows, 3 * sizeof(int32_t));
	if (!h->norm || !h->x || !h->ref || !h->dx || !h->numbers || !h->targets)
		return err_set_nomem(err, "the loss of each token");
	h->state = state_at(h->numbers, h->targets + rows, rows);
	h->ref_state = state_at(h->numbers + STATE_DOUBLES * rows, h->targets + 2 * rows, rows);
	h->kl = h->numbers + 2 * STATE_DOUBLES * rows;
	for (size_t i = 0; i < rows; i++)
		h->targets[i] = -1;
	return 0;
}

int head_kl_init(struct head_kl *h, struct backend *be, struct checkpoint *ck, int bits, size_t sequences, size_t seq_len,
		 size_t held_bytes, struct err *err)
{
	*h = (struct head_kl){ .be = be, .ck = ck, .hidden = ck->config.hidden, .vocab = ck->config.vocab,
			       .seq_len = seq_len, .sequences = sequences };
	if (alloc_rows(h, err) == 0 && read_table(h, bits, held_bytes, err) == 0 &&
	    checkpoint_read_f32(ck, MODEL_FINAL_NORM_NAME, 0, h->hidden, h->norm, err) == 0)
		return 0;
	head_kl_deinit(h);
	return -1;
}

void head_kl_deinit(struct head_kl *h)
{
	mem_free(h->norm);
	head_rows_deinit(&h->table);
	mem_free(h->x);
	mem_free(h->ref);
	mem_free(h->dx);
	mem_free(h->numbers);
	mem_free(h->targets);
	*h = (struct head_kl){ 0 };
}

/* --- one call ---------------------------------------------------------------------------------- */

struct pass { struct head_kl *h; size_t n; bool wants_gradient; };

static struct head_state from_row(const struct head_state *s, size_t row)
{
	return (struct head_state){ .max = s->max + row, .sum = s->sum + row, .target = s->target + row,
				    .top_logit = s->top_logit + row, .top_id = s->top_id + row };
}

/* Rows of both output embeddings, of ids from first_id on. */
struct tile { const float *stored, *source; size_t rows, first_id; };

/* One tile for both models' log-sum-exp. */
static int fold_tile(struct pass *p, const struct tile *t, struct err *err)
{
	struct head_kl *h = p->h;
	const struct backend_ops *ops = h->be->ops;

	for (size_t s = 0; s < p->n; s++) {
		const size_t row = s * h->seq_len, at = row * h->hidden;
		struct head_state state = from_row(&h->state, row), ref = from_row(&h->ref_state, row);

		if (ops->head_tile(h->be, h->x + at, h->seq_len, h->hidden, t->stored, t->rows, (int32_t)t->first_id,
				   h->targets, &state, err) != 0 ||
		    ops->head_tile(h->be, h->ref + at, h->seq_len, h->hidden, t->source, t->rows, (int32_t)t->first_id,
				   h->targets, &ref, err) != 0)
			return -1;
	}
	return 0;
}

static int kl_tile(struct pass *p, const struct tile *t, struct err *err)
{
	struct head_kl *h = p->h;

	for (size_t s = 0; s < p->n; s++) {
		const size_t row = s * h->seq_len, at = row * h->hidden;
		struct head_state state = from_row(&h->state, row), ref = from_row(&h->ref_state, row);

		if (h->be->ops->head_kl_tile(h->be, h->x + at, h->ref + at, h->seq_len, h->hidden, t->stored,
					     t->source, t->rows, &state, &ref, h->kl + row, p->wants_gradient ? h->dx + at : NULL,
					     err) != 0)
			return -1;
	}
	return 0;
}

static int each_tile(struct pass *p, int (*fn)(struct pass *p, const struct tile *t, struct err *err), struct err *err)
{
	struct head_kl *h = p->h;

	for (size_t id = 0; id < h->vocab; id += h->tile_rows) {
		const size_t rows = h->vocab - id < h->tile_rows ? h->vocab - id : h->tile_rows;
		const size_t at = h->held ? id * h->hidden : 0;
		const struct tile t = { h->table.stored + at, h->table.source + at, rows, id };

		if ((!h->held && head_rows_read(&h->table, id, rows, err) != 0) || fn(p, &t, err) != 0)
			return -1;
	}
	return 0;
}

static void start(struct pass *p)
{
	struct head_kl *h = p->h;
	const size_t rows = p->n * h->seq_len;

	for (size_t r = 0; r < rows; r++) {
		h->state.max[r] = h->state.top_logit[r] = -INFINITY;
		h->ref_state.max[r] = h->ref_state.top_logit[r] = -INFINITY;
		h->state.sum[r] = h->ref_state.sum[r] = h->kl[r] = 0;
	}
	if (p->wants_gradient)
		memset(h->dx, 0, rows * h->hidden * sizeof(float));
}

/* Sums of the loss; rounding may leave a KL just below 0. */
static struct head_loss sum_loss(const struct head_kl *h, size_t rows)
{
	struct head_loss loss = { 0 };

	for (size_t r = 0; r < rows; r++) {
		double squares = 0;

		for (size_t k = 0; k < h->hidden; k++) {
			const double d = (double)h->x[r * h->hidden + k] - h->ref[r * h->hidden + k];

			squares += d * d;
		}
		loss.kl += h->kl[r] > 0 ? h->kl[r] : 0;
		loss.hidden += squares / (double)h->hidden;
	}
	return loss;
}

/* dx: from the gradient of the sum of KL to that of the mean loss, with respect to the normalized states. */
static void mean_gradient(struct head_kl *h, size_t rows, double weight)
{
	const double of_kl = 1 / (double)rows, of_hidden = 2 * weight / ((double)rows * (double)h->hidden);

	for (size_t i = 0; i < rows * h->hidden; i++)
		h->dx[i] = (float)(of_kl * h->dx[i] + of_hidden * ((double)h->x[i] - h->ref[i]));
}

int head_kl_loss(struct head_kl *h, const float *y, const float *target, size_t n, double weight,
		 struct head_loss *loss, float *dy, struct err *err)
{
	struct pass p = { .h = h, .n = n, .wants_gradient = dy != NULL };
	const struct backend_ops *ops = h->be->ops;
	const float eps = (float)h->ck->config.rms_eps;
	const size_t rows = n * h->seq_len;

	start(&p);
	if (ops->rms_norm(h->be, y, h->norm, eps, rows, h->hidden, h->x, err) != 0 ||
	    ops->rms_norm(h->be, target, h->norm, eps, rows, h->hidden, h->ref, err) != 0 ||
	    each_tile(&p, fold_tile, err) != 0 || each_tile(&p, kl_tile, err) != 0)
		return -1;
	*loss = sum_loss(h, rows);
	if (!isfinite(loss->kl) || !isfinite(loss->hidden))
		return err_set(err, ERR_NUMERIC, "the loss at the head is not finite");
	if (!dy)
		return 0;
	mean_gradient(h, rows, weight);
	return ops->rms_norm_backward(h->be, y, h->norm, eps, rows, h->hidden, h->dx, dy, err);
}
