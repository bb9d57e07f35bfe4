#include "tests/lib/forward_case.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/tested_backend.h"

static void *must_alloc(size_t count, size_t size)
{
	void *p = calloc(count ? count : 1, size);

	assert_non_null(p);
	return p;
}

static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

float *case_random(size_t n, float scale, uint64_t seed)
{
	float *x = must_alloc(n, sizeof(*x));

	for (size_t i = 0; i < n; i++)
		x[i] = scale * ((float)(next(&seed) >> 40) / (float)(1 << 23) - 1.0f);
	return x;
}

int32_t *case_random_ids(size_t n, int32_t vocab, uint64_t seed)
{
	int32_t *ids = must_alloc(n, sizeof(*ids));

	for (size_t i = 0; i < n; i++)
		ids[i] = (int32_t)(next(&seed) % (uint64_t)vocab);
	return ids;
}

float *case_poisoned(size_t n)
{
	float *x = must_alloc(n, sizeof(*x));

	for (size_t i = 0; i < n; i++)
		x[i] = NAN;
	return x;
}

void *case_copy(const void *bytes, size_t len)
{
	void *copy = must_alloc(len, 1);

	memcpy(copy, bytes, len);
	return copy;
}

struct backend *case_open(const char *name, int threads)
{
	const struct backend_options options = { .threads = threads };
	struct err err = ERR_INIT;
	struct backend *be = tested_find(name)->open(&options, &err);

	if (!be)
		fail_msg("%s with %d threads: %s", name, threads, err.text);
	return be;
}

void case_close(struct backend *be)
{
	be->ops->close(be);
}

double case_max_abs(const float *x, size_t n)
{
	double max = 0;

	for (size_t i = 0; i < n; i++)
		max = fmax(max, fabs((double)x[i]));
	return max;
}

void case_hand(struct backend *be, float *to, const float *from, size_t n)
{
	struct err err = ERR_INIT;

	if (be->ops->memory_copy(be, to, from, n * sizeof(*to), &err) != 0)
		fail_msg("%s: %s", be->ops->name, err.text);
}

float *case_fetch(struct backend *be, const float *from, size_t n)
{
	float *x = must_alloc(n, sizeof(*x));

	case_hand(be, x, from, n);
	return x;
}

void case_assert_close(const char *what, const float *got, const float *want, size_t n, double bound)
{
	for (size_t i = 0; i < n; i++)
		if (!(fabs((double)got[i] - want[i]) <= bound))
			fail_msg("%s: element %zu of %zu is %.9g, not %.9g within %.3g", what, i, n,
				 (double)got[i], (double)want[i], bound);
}

static float *own(struct forward_case *c, float *data)
{
	assert_true(c->owned_count < sizeof(c->owned) / sizeof(c->owned[0]));
	c->owned[c->owned_count++] = data;
	return data;
}

/* Weights about as large as a trained model's: outputs keep the size of inputs. */
static float *weights(struct forward_case *c, size_t rows, size_t cols)
{
	return own(c, case_random(rows * cols, sqrtf(3.0f / (float)cols), c->owned_count + 100 * rows));
}

static float *vector(struct forward_case *c, size_t n, float middle, bool wanted)
{
	float *x;

	if (!wanted)
		return NULL;
	x = own(c, case_random(n, 0.5f, c->owned_count + 7 * n));
	for (size_t i = 0; i < n; i++)
		x[i] += middle;
	return x;
}

static void make_rope(struct forward_case *c)
{
	const size_t half = c->shape.head_dim / 2, n = c->seq_len * half;
	float *table = own(c, case_random(2 * n, 0, 1));

	for (size_t i = 0; i < n; i++) {
		const double angle = (double)(i / half) *
				     pow(10000, -(double)(i % half) / (double)half);

		table[i] = (float)cos(angle);
		table[n + i] = (float)sin(angle);
	}
	c->rope = (struct rope_table){ table, table + n };
}

void forward_case_init(struct forward_case *c)
{
	const struct block_shape *d = &c->shape;
	const size_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim;

	c->owned_count = 0;
	c->w = (struct block_weights){
		.attn_norm = vector(c, d->hidden, 1, true), .mlp_norm = vector(c, d->hidden, 1, true),
		.q = weights(c, q, d->hidden), .k = weights(c, kv, d->hidden),
		.v = weights(c, kv, d->hidden), .o = weights(c, d->hidden, q),
		.gate = weights(c, d->intermediate, d->hidden), .up = weights(c, d->intermediate, d->hidden),
		.down = weights(c, d->hidden, d->intermediate),
		.q_bias = vector(c, q, 0, c->biases), .k_bias = vector(c, kv, 0, c->biases),
		.v_bias = vector(c, kv, 0, c->biases), .o_bias = vector(c, d->hidden, 0, c->biases),
		.gate_bias = vector(c, d->intermediate, 0, c->biases),
		.up_bias = vector(c, d->intermediate, 0, c->biases),
		.down_bias = vector(c, d->hidden, 0, c->biases),
		.q_norm = vector(c, d->head_dim, 1, c->head_norms),
		.k_norm = vector(c, d->head_dim, 1, c->head_norms),
	};
	make_rope(c);
	c->x = own(c, case_random(forward_case_rows(c) * d->hidden, 2, c->seq_len));
}

void forward_case_deinit(struct forward_case *c)
{
	for (size_t i = 0; i < c->owned_count; i++)
		free(c->owned[i]);
	c->owned_count = 0;
}

size_t forward_case_rows(const struct forward_case *c)
{
	return c->n_seq * c->seq_len;
}

struct site_keeper { struct backend *be; struct forward_result *result; };

static int keep_site(void *ctx, int site, const float *x, size_t rows, size_t cols)
{
	const struct site_keeper *k = ctx;
	struct forward_result *r = k->result;

	assert_int_equal(site, r->sites);
	r->site[site] = case_poisoned(rows * cols);
	assert_int_equal(k->be->ops->memory_copy(k->be, r->site[site], x, rows * cols * sizeof(*x), NULL), 0);
	r->site_len[site] = rows * cols;
	r->sites++;
	return 0;
}

struct forward_result forward_case_run(const struct forward_case *c, struct backend *be, bool with_y,
				       bool with_taps)
{
	struct forward_result r = { .y_len = with_y ? forward_case_rows(c) * c->shape.hidden : 0 };
	struct site_keeper keeper = { be, &r };
	struct err err = ERR_INIT;

	r.y = with_y ? case_poisoned(r.y_len) : NULL;
	if (be->ops->block_forward(be, &c->shape, &c->w, &c->rope, c->x, c->n_seq, c->seq_len, r.y,
				   with_taps ? keep_site : NULL, &keeper, &err) != 0)
		fail_msg("%s: %s", c->name, err.text);
	assert_int_equal(r.sites, with_taps ? 4 : 0);
	return r;
}

void forward_result_deinit(struct forward_result *r)
{
	free(r->y);
	for (int i = 0; i < 4; i++)
		free(r->site[i]);
}
