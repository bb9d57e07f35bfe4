#include "tests/lib/sealed_backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"

enum { REGIONS = 256, BUFFERS = 32, COPIES = 256 };

/* A copy that was begun: it is done when the program waits for it, as late as an accelerator may be. */
struct begun { void *to; const void *from; size_t bytes; };

struct sealed {
	struct backend base;            /* ops points to `ops` */
	struct backend_ops ops;
	struct backend *inner;
	/* The pages of a region and one behind them that stays closed; data ends where they end. */
	struct { char *pages; size_t len; void *data; } region[REGIONS];
	size_t count, page;
	struct { void *data; size_t bytes; } buffer[BUFFERS];
	size_t buffers;
	struct begun begun[COPIES];
	size_t under_way;
};

static struct sealed *sealed_of(struct backend *be)
{
	return (struct sealed *)be;
}

/* --- memory ------------------------------------------------------------------------------------------ */

static void protect(struct sealed *s, int how)
{
	for (size_t i = 0; i < s->count; i++)
		if (mprotect(s->region[i].pages, s->region[i].len, how) != 0)
			fail_msg("mprotect");
}

static struct backend *unseal(struct backend *be)
{
	protect(sealed_of(be), PROT_READ | PROT_WRITE);
	return sealed_of(be)->inner;
}

static int seal(struct backend *be, int rc)
{
	protect(sealed_of(be), PROT_NONE);
	return rc;
}

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
	const char *p = a, *q = b;

	return p < q + b_bytes && q < p + a_bytes;
}

/* Nobody writes what is being copied, and nobody touches where it goes. */
static void check_still(const struct sealed *s, const void *to, const void *from, size_t bytes)
{
	for (size_t i = 0; i < s->under_way; i++) {
		const struct begun *c = &s->begun[i];

		if (overlap(to, bytes, c->to, c->bytes) || overlap(to, bytes, c->from, c->bytes) ||
		    overlap(from, bytes, c->to, c->bytes)) {
			print_error("memory that is still being copied is used: nobody has waited\n");
			abort();
		}
	}
}

static void *sealed_take(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	struct sealed *s = sealed_of(be);
	const size_t room = (bytes + 63) / 64 * 64, len = (room + s->page - 1) / s->page * s->page;
	char *pages = MAP_FAILED, *counted = mem_alloc(1, 1); /* so that tests can make it fail */

	assert_true(s->count < REGIONS);
	if (counted && bytes <= room && room <= len && len <= len + s->page)
		pages = mmap(NULL, len + s->page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mem_free(counted);
	if (pages != MAP_FAILED && mprotect(pages, len, PROT_READ | PROT_WRITE) != 0) {
		munmap(pages, len + s->page);
		pages = MAP_FAILED;
	}
	if (pages == MAP_FAILED) {
		err_set_nomem(err, what);
		return NULL;
	}
	memset(pages, 0xff, len); /* nobody may count on zeros */
	s->region[s->count].pages = pages;
	s->region[s->count].len = len;
	s->region[s->count].data = pages + (len - room);
	s->count++;
	seal(be, 0);
	return s->region[s->count - 1].data;
}

static void sealed_give(struct backend *be, void *memory)
{
	struct sealed *s = sealed_of(be);

	if (!memory)
		return;
	for (size_t i = 0; i < s->count; i++) {
		if (s->region[i].data != memory)
			continue;
		check_still(s, s->region[i].pages, s->region[i].pages, s->region[i].len);
		munmap(s->region[i].pages, s->region[i].len + s->page);
		s->region[i] = s->region[--s->count];
		return;
	}
	fail_msg("%p was not taken from this backend", memory);
}

static int sealed_copy(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	(void)err;
	check_still(sealed_of(be), to, from, bytes);
	unseal(be);
	if (bytes > 0)
		memcpy(to, from, bytes);
	return seal(be, 0);
}

static void *sealed_buffer_take(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	struct sealed *s = sealed_of(be);
	void *buffer = s->inner->ops->buffer_take(s->inner, bytes, what, err);

	if (!buffer)
		return NULL;
	assert_true(s->buffers < BUFFERS);
	memset(buffer, 0xff, bytes); /* nobody may count on zeros */
	s->buffer[s->buffers].data = buffer;
	s->buffer[s->buffers++].bytes = bytes;
	return buffer;
}

static void sealed_buffer_give(struct backend *be, void *buffer)
{
	struct sealed *s = sealed_of(be);

	if (!buffer)
		return;
	for (size_t i = 0; i < s->buffers; i++) {
		if (s->buffer[i].data != buffer)
			continue;
		check_still(s, buffer, buffer, s->buffer[i].bytes);
		s->buffer[i] = s->buffer[--s->buffers];
		s->inner->ops->buffer_give(s->inner, buffer);
		return;
	}
	fail_msg("%p is no buffer of this backend", buffer);
}

/* Whoever looks before the copy is complete finds NaN, and whoever changes what is copied changes the copy. */
static int sealed_begin(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	struct sealed *s = sealed_of(be);

	(void)err;
	check_still(s, to, from, bytes);
	assert_true(s->under_way < COPIES);
	if (bytes == 0)
		return 0;
	s->begun[s->under_way++] = (struct begun){ to, from, bytes };
	unseal(be);
	memset(to, 0xff, bytes);
	return seal(be, 0);
}

static int sealed_wait(struct backend *be, struct err *err)
{
	struct sealed *s = sealed_of(be);

	(void)err;
	unseal(be);
	for (size_t i = 0; i < s->under_way; i++)
		memcpy(s->begun[i].to, s->begun[i].from, s->begun[i].bytes);
	s->under_way = 0;
	return seal(be, 0);
}

size_t sealed_bytes(struct backend *be)
{
	const struct sealed *s = sealed_of(be);
	size_t bytes = 0;

	for (size_t i = 0; i < s->count; i++)
		bytes += s->region[i].len;
	return bytes;
}

/* --- callbacks: the memory is closed while the program has the word ------------------------------------- */

struct tapping { struct backend *be; block_tap tap; void *ctx; struct err *err; };

static int tap_sealed(void *ctx, int site, const float *x, size_t rows, size_t cols)
{
	struct tapping *t = ctx;
	const size_t bytes = rows * cols * sizeof(*x);
	float *copy = sealed_take(t->be, bytes, "the input of a site", t->err);
	int rc = -1;

	if (copy) {
		sealed_copy(t->be, copy, x, bytes, t->err);
		rc = t->tap(t->ctx, site, copy, rows, cols);
		sealed_give(t->be, copy);
	}
	unseal(t->be);
	return rc;
}

struct losing { struct backend *be; block_loss loss; void *ctx; struct err *err; };

static int loss_sealed(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	struct losing *l = ctx;
	const size_t bytes = rows * cols * sizeof(*y);
	float *y_copy = sealed_take(l->be, bytes, "the output of a block", l->err);
	float *dy_copy = y_copy ? sealed_take(l->be, bytes, "the gradient of an output", l->err) : NULL;
	int rc = -1;

	if (dy_copy) {
		sealed_copy(l->be, y_copy, y, bytes, l->err);
		rc = l->loss(l->ctx, sequence, y_copy, rows, cols, dy_copy);
		sealed_copy(l->be, dy, dy_copy, bytes, l->err);
	}
	sealed_give(l->be, y_copy);
	sealed_give(l->be, dy_copy);
	unseal(l->be);
	return rc;
}

/* --- operations -------------------------------------------------------------------------------------------- */

/* Runs the operation of the wrapped backend, named `inner` in the arguments, with the memory open. */
#define INNER(name, ...) \
	struct backend *inner = unseal(be); \
	return seal(be, inner->ops->name(inner, __VA_ARGS__))

static const char *sealed_identity(struct backend *be)
{
	struct backend *inner = sealed_of(be)->inner;

	return inner->ops->identity(inner);
}

static int sealed_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows, size_t cols,
			   float *y, struct err *err)
{
	INNER(rms_norm, x, weight, eps, rows, cols, y, err);
}

static int sealed_block_forward(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
				const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len, float *y,
				block_tap tap, void *tap_ctx, struct err *err)
{
	struct tapping t = { be, tap, tap_ctx, err };
	INNER(block_forward, shape, w, rope, x, n_seq, seq_len, y, tap ? tap_sealed : NULL, &t, err);
}

static int sealed_head_tile(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w,
			    size_t tile_rows, int32_t first_id, const int32_t *targets, struct head_state *state,
			    struct err *err)
{
	INNER(head_tile, x, rows, hidden, w, tile_rows, first_id, targets, state, err);
}

static int sealed_head_kl_tile(struct backend *be, const float *x, const float *x_ref, size_t rows, size_t hidden,
			       const float *w, const float *w_ref, size_t tile_rows, const struct head_state *state,
			       const struct head_state *ref_state, double *kl, float *dx, struct err *err)
{
	INNER(head_kl_tile, x, x_ref, rows, hidden, w, w_ref, tile_rows, state, ref_state, kl, dx, err);
}

static int sealed_gram_add(struct backend *be, const float *x, size_t rows, size_t cols, double *h, struct err *err)
{
	INNER(gram_add, x, rows, cols, h, err);
}

static int sealed_gram_mean(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal, struct err *err)
{
	INNER(gram_mean, h, cols, rows, diagonal, err);
}

static int sealed_rms_norm_backward(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
				    size_t cols, const float *dy, float *dx, struct err *err)
{
	INNER(rms_norm_backward, x, weight, eps, rows, cols, dy, dx, err);
}

static int sealed_block_backward(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
				 const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len,
				 block_loss loss, void *loss_ctx, float *dx, const struct block_grads *grads, struct err *err)
{
	struct losing l = { be, loss, loss_ctx, err };
	INNER(block_backward, shape, w, rope, x, n_seq, seq_len, loss_sealed, &l, dx, grads, err);
}

static int sealed_squared_error(struct backend *be, const float *y, const float *target, size_t n, double scale, float *dy,
				double *sum, struct err *err)
{
	INNER(squared_error, y, target, n, scale, dy, sum, err);
}

static int sealed_grid_values(struct backend *be, const struct grid *grid, const float *latents, size_t rows, size_t cols,
			      const float *scales, const float *zeros, float *w, struct err *err)
{
	INNER(grid_values, grid, latents, rows, cols, scales, zeros, w, err);
}

static int sealed_grid_gradients(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
				 size_t cols, const float *scales, const float *zeros, const float *dw, float *dscales,
				 float *dzeros, float *dlatents, struct err *err)
{
	INNER(grid_gradients, grid, latents, rows, cols, scales, zeros, dw, dscales, dzeros, dlatents, err);
}

static int sealed_adam_step(struct backend *be, const struct adam *adam, size_t n, float *p, const float *g, float *m,
			    float *v, struct err *err)
{
	INNER(adam_step, adam, n, p, g, m, v, err);
}

static int sealed_factor(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp, float *u,
			 double *pivots, struct err *err)
{
	INNER(factor, h, perm, n, damp, u, pivots, err);
}

static int sealed_fit_groups(struct backend *be, enum fit_method method, const struct grid *grid, const float *w,
			     size_t rows, size_t cols, const double *h, float *scales, float *zeros, double *objective,
			     struct err *err)
{
	INNER(fit_groups, method, grid, w, rows, cols, h, scales, zeros, objective, err);
}

static int sealed_round_nearest(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
				const float *scales, const float *zeros, uint8_t *codes, struct err *err)
{
	INNER(round_nearest, grid, w, rows, cols, scales, zeros, codes, err);
}

static int sealed_round_ldlq(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
			     const int32_t *perm, const float *u, const double *pivots, const float *scales,
			     const float *zeros, uint8_t *codes, double *row_loss, struct err *err)
{
	INNER(round_ldlq, grid, w, rows, cols, perm, u, pivots, scales, zeros, codes, row_loss, err);
}

static int sealed_refine(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
			 const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales, float *zeros,
			 double *row_loss, struct err *err)
{
	INNER(refine, grid, w, rows, cols, h, damp, perm, codes, scales, zeros, row_loss, err);
}

static int sealed_proxy_loss(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
			     const double *h, double damp, const uint8_t *codes, const float *scales, const float *zeros,
			     double *loss, double *energy, struct err *err)
{
	INNER(proxy_loss, grid, w, rows, cols, h, damp, codes, scales, zeros, loss, energy, err);
}

/* --- life ------------------------------------------------------------------------------------------------------ */

static void sealed_close(struct backend *be)
{
	struct sealed *s = sealed_of(be);

	if (!s)
		return;
	if (s->under_way > 0 || s->buffers > 0)
		fail_msg("%zu copies were not waited for, %zu buffers were not given back", s->under_way, s->buffers);
	if (s->count > 0)
		fail_msg("%zu pieces of memory of the backend, %zu bytes, were not given back", s->count, sealed_bytes(be));
	s->inner->ops->close(s->inner);
	free(s);
}

static struct backend *open_around_cpu(const struct backend_options *options, struct err *err)
{
	const struct backend_ops *cpu = backend_find("cpu", err);
	struct backend *inner = cpu ? cpu->open(options, err) : NULL;

	return inner ? sealed_open(inner) : NULL;
}

const struct backend_ops sealed_cpu_ops = { .name = "cpu", .own_memory = true, .open = open_around_cpu,
					    .close = sealed_close, .identity = sealed_identity };

struct backend *sealed_open(struct backend *inner)
{
	struct sealed *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->inner = inner;
	s->page = (size_t)sysconf(_SC_PAGESIZE);
	s->ops = (struct backend_ops){
		.name = inner->ops->name,
		.own_memory = true,
		.open = open_around_cpu,
		.piece_tokens = inner->ops->piece_tokens,
		.close = sealed_close,
		.identity = sealed_identity,
		.memory_take = sealed_take,
		.memory_give = sealed_give,
		.memory_copy = sealed_copy,
		.buffer_take = sealed_buffer_take,
		.buffer_give = sealed_buffer_give,
		.memory_begin = sealed_begin,
		.memory_wait = sealed_wait,
		.rms_norm = sealed_rms_norm,
		.block_forward = sealed_block_forward,
		.head_tile = sealed_head_tile,
		.head_kl_tile = sealed_head_kl_tile,
		.gram_add = sealed_gram_add,
		.gram_mean = sealed_gram_mean,
		.rms_norm_backward = sealed_rms_norm_backward,
		.block_backward = sealed_block_backward,
		.squared_error = sealed_squared_error,
		.grid_values = sealed_grid_values,
		.grid_gradients = sealed_grid_gradients,
		.adam_step = sealed_adam_step,
		.factor = sealed_factor,
		.fit_groups = sealed_fit_groups,
		.round_nearest = sealed_round_nearest,
		.round_ldlq = sealed_round_ldlq,
		.refine = sealed_refine,
		.proxy_loss = sealed_proxy_loss,
	};
	s->base.ops = &s->ops;
	return &s->base;
}
