/* block_forward of the cpu backend: the formulas of ref/forward.c as seven passes over tiles.
 *
 * The rows that pass through together are a span: all of them when a tap wants to see whole sites, else
 * as many sequences as fit GROUP_BYTES. Queries, keys and values never exist for more than a group.
 */
#include <stdatomic.h>

#include "common/alloc.h"
#include "worker/backend/cpu/attention.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/linear.h"
#include "worker/backend/cpu/tiles.h"
#include "worker/backend/shape.h"

enum { GROUP_BYTES = 64 << 20, GROUP_ROWS = 4096 };

struct pass {
	struct cpu_backend *cpu;
	const struct block_shape *shape;
	const struct block_weights *w;
	const struct rope_table *rope;
	size_t seq_len, span, group;            /* sequences at a time */
	size_t q_cols, kv_cols;
	float *a;               /* (span rows, hidden) normalized rows: sites attn-in and mlp-in */
	float *q, *k, *v;       /* (group rows, q_cols | kv_cols) */
	float *o;               /* (span rows, q_cols) site o-in */
	float *d;               /* (span rows, intermediate) site down-in */
	float *r;               /* (span rows, hidden) residual stream when there is no y */
	float *scratch;         /* of the workers */
	block_tap tap;
	void *tap_ctx;
	atomic_bool bad;
};

static int show(struct pass *s, int site, const float *x, size_t n_seq, size_t cols)
{
	return s->tap ? s->tap(s->tap_ctx, site, x, n_seq * s->seq_len, cols) : 0;
}

static int finite_so_far(struct pass *s, const char *what, struct err *err)
{
	return atomic_load(&s->bad) ? err_set_not_finite(err, what) : 0;
}

/* a -> o for n_seq sequences, one group after the other. */
static void attend(struct pass *s, size_t n_seq)
{
	const struct block_shape *d = s->shape;
	const struct block_weights *w = s->w;
	const struct linear maps[] = {
		{ .w = w->q, .bias = w->q_bias, .out = s->q, .n = s->q_cols, .rope = s->rope,
		  .norm = w->q_norm, .eps = d->rms_eps, .head_dim = d->head_dim },
		{ .w = w->k, .bias = w->k_bias, .out = s->k, .n = s->kv_cols, .rope = s->rope,
		  .norm = w->k_norm, .eps = d->rms_eps, .head_dim = d->head_dim },
		{ .w = w->v, .bias = w->v_bias, .out = s->v, .n = s->kv_cols },
	};

	for (size_t first = 0; first < n_seq; first += s->group) {
		const size_t count = n_seq - first < s->group ? n_seq - first : s->group;
		const size_t row = first * s->seq_len;
		const struct row_tiles tiles = row_tiles_of(count, s->seq_len, ROW_TILE);
		const struct attention attention = {
			.heads = d->heads, .kv_heads = d->kv_heads, .head_dim = d->head_dim,
			.n_seq = count, .seq_len = s->seq_len, .q = s->q, .k = s->k, .v = s->v,
			.o = s->o + row * s->q_cols, .scratch = s->scratch,
		};

		cpu_linear(s->cpu, &tiles, s->a + row * d->hidden, d->hidden, maps, 3, &s->bad);
		cpu_attention(s->cpu, &attention);
	}
}

/* One span. y NULL: nobody wants what lies behind the last tap. */
static int run_span(struct pass *s, size_t n_seq, const float *x, float *y, struct err *err)
{
	const struct block_shape *d = s->shape;
	const struct block_weights *w = s->w;
	const size_t rows = n_seq * s->seq_len;
	const struct row_tiles tiles = row_tiles_of(n_seq, s->seq_len, ROW_TILE);
	float *r = y ? y : s->r;
	const struct linear o = { .w = w->o, .bias = w->o_bias, .residual = x, .out = r, .n = d->hidden };
	const struct linear down = { .w = w->down, .bias = w->down_bias, .residual = r, .out = r,
				     .n = d->hidden };
	const struct swiglu mlp = { .gate = w->gate, .up = w->up, .gate_bias = w->gate_bias,
				    .up_bias = w->up_bias, .n = d->intermediate };

	if (cpu_rms_norm(&s->cpu->base, x, w->attn_norm, d->rms_eps, rows, d->hidden, s->a, err) != 0 ||
	    show(s, 0, s->a, n_seq, d->hidden) != 0)
		return -1;
	attend(s, n_seq);
	if (finite_so_far(s, "the block's attention", err) != 0 || show(s, 1, s->o, n_seq, s->q_cols) != 0)
		return -1;
	cpu_linear(s->cpu, &tiles, s->o, s->q_cols, &o, 1, &s->bad);
	if (finite_so_far(s, "the block's attention", err) != 0 ||
	    cpu_rms_norm(&s->cpu->base, r, w->mlp_norm, d->rms_eps, rows, d->hidden, s->a, err) != 0 ||
	    show(s, 2, s->a, n_seq, d->hidden) != 0)
		return -1;
	cpu_swiglu(s->cpu, &tiles, s->a, d->hidden, &mlp, s->d, s->scratch, &s->bad);
	if (finite_so_far(s, "the block's MLP", err) != 0 || show(s, 3, s->d, n_seq, d->intermediate) != 0)
		return -1;
	if (!y)
		return 0;
	cpu_linear(s->cpu, &tiles, s->d, d->intermediate, &down, 1, &s->bad);
	return finite_so_far(s, "the block", err);
}

/* Sequences of a group: by shape alone. */
static size_t group_size(const struct pass *s, size_t n_seq)
{
	const struct block_shape *d = s->shape;
	const size_t row_bytes = (2 * d->hidden + 2 * s->q_cols + 2 * s->kv_cols + d->intermediate) *
				 sizeof(float);
	size_t rows = GROUP_BYTES / row_bytes, group;

	rows = rows < GROUP_ROWS ? rows : GROUP_ROWS;
	group = rows / s->seq_len > 0 ? rows / s->seq_len : 1;
	return group < n_seq ? group : n_seq;
}

static int take(float **out, size_t rows, size_t cols, struct err *err)
{
	size_t n;

	*out = size_mul(rows, cols, &n) ? mem_alloc_aligned(n, sizeof(float)) : NULL;
	return *out ? 0 : err_set_nomem(err, "a block's activations");
}

static int take_all(struct pass *s, bool with_residual, struct err *err)
{
	const size_t rows = s->span * s->seq_len, group_rows = s->group * s->seq_len;
	const size_t attention = cpu_attention_scratch(s->seq_len), mlp = cpu_swiglu_scratch();

	if (take(&s->a, rows, s->shape->hidden, err) != 0 || take(&s->q, group_rows, s->q_cols, err) != 0 ||
	    take(&s->k, group_rows, s->kv_cols, err) != 0 ||
	    take(&s->v, group_rows, s->kv_cols, err) != 0 || take(&s->o, rows, s->q_cols, err) != 0 ||
	    take(&s->d, rows, s->shape->intermediate, err) != 0 ||
	    take(&s->scratch, (size_t)pool_workers(s->cpu->pool), attention > mlp ? attention : mlp,
		 err) != 0)
		return -1;
	return with_residual ? take(&s->r, rows, s->shape->hidden, err) : 0;
}

static void give_back(struct pass *s)
{
	mem_free(s->a);
	mem_free(s->q);
	mem_free(s->k);
	mem_free(s->v);
	mem_free(s->o);
	mem_free(s->d);
	mem_free(s->r);
	mem_free(s->scratch);
}

int cpu_block_forward(struct backend *be, const struct block_shape *shape,
		      const struct block_weights *w, const struct rope_table *rope, const float *x,
		      size_t n_seq, size_t seq_len, float *y, block_tap tap, void *tap_ctx,
		      struct err *err)
{
	struct pass s = { .cpu = cpu_of(be), .shape = shape, .w = w, .rope = rope, .seq_len = seq_len,
			  .q_cols = shape->heads * shape->head_dim,
			  .kv_cols = shape->kv_heads * shape->head_dim, .tap = tap, .tap_ctx = tap_ctx };
	int rc;

	if (block_shape_check(shape, n_seq, seq_len, err) != 0)
		return -1;
	if (!y && !tap)
		return 0;
	s.group = group_size(&s, n_seq);
	s.span = tap ? n_seq : s.group;
	rc = take_all(&s, y == NULL, err);
	for (size_t first = 0; rc == 0 && first < n_seq; first += s.span) {
		const size_t count = n_seq - first < s.span ? n_seq - first : s.span;
		const size_t at = first * seq_len * shape->hidden;

		rc = run_span(&s, count, x + at, y ? y + at : NULL, err);
	}
	give_back(&s);
	return rc;
}
