#include "worker/distill_model.h"

#include <stdio.h>

#include "common/alloc.h"

/* --- life ------------------------------------------------------------------------------------------ */

static int alloc_layer(struct distill_model *m, struct err *err)
{
	struct tuned_sizes most = { .state = 1, .cells = 1 };
	size_t constants = 1;

	for (size_t l = 0; l < m->count; l++) {
		const struct distill_layer *layer = &m->layers[l];

		tuned_sizes_cover(&most, &layer->sizes);
		constants = layer->constants > constants ? layer->constants : constants;
	}
	m->floats = mem_alloc_aligned(most.state, sizeof(float));
	m->constants = mem_alloc_aligned(constants, sizeof(float));
	if (!m->floats || !m->constants)
		return err_set_nomem(err, "the training state of a layer");
	return tuned_scratch_init(&m->scratch, m->be, &most, err);
}

static int alloc_hidden(struct distill_model *m, struct err *err)
{
	size_t states, floats, batch;

	if (!size_mul(m->count + 1, m->batch, &states))
		states = SIZE_MAX;
	if (states < m->probe)
		states = m->probe;
	if (!size_mul(states, m->sequence, &floats) || !size_mul(m->batch, m->sequence, &batch))
		return err_set(err, ERR_TOO_LARGE, "the hidden states of %zu sequences do not fit into memory", states);
	m->hidden = mem_alloc_aligned(floats, sizeof(float));
	m->target = mem_alloc_aligned(batch, sizeof(float));
	m->dy = mem_alloc_aligned(batch, sizeof(float));
	m->dx = mem_alloc_aligned(batch, sizeof(float));
	return m->hidden && m->target && m->dy && m->dx ? 0 : err_set_nomem(err, "hidden states");
}

int distill_model_init(struct distill_model *m, struct backend *be, struct checkpoint *ck,
		       const struct distill_layer *layers, struct distill_feed *feed, struct distill_state *state,
		       const struct distill_sizes *sizes, struct err *err)
{
	*m = (struct distill_model){ .be = be, .ck = ck, .layers = layers, .feed = feed, .state = state,
				     .count = ck->config.layers, .batch = sizes->batch, .probe = sizes->probe,
				     .weight_hidden = sizes->weight_hidden };
	if (!size_mul(feed->seq_len, feed->hidden, &m->sequence))
		return err_set(err, ERR_TOO_LARGE, "a sequence of %zu tokens does not fit into memory", feed->seq_len);
	if (alloc_layer(m, err) == 0 && alloc_hidden(m, err) == 0 &&
	    rope_init(&m->rope, &ck->config, feed->seq_len, err) == 0 &&
	    placed_init(&m->rope_placed, be, m->rope.data, rope_bytes(&m->rope), "rotary tables", err) == 0 &&
	    head_kl_init(&m->head, be, ck, sizes->head_bits, m->batch, feed->seq_len, HEAD_KL_HELD_BYTES, err) == 0)
		return 0;
	distill_model_deinit(m);
	return -1;
}

void distill_model_deinit(struct distill_model *m)
{
	head_kl_deinit(&m->head);
	placed_deinit(&m->rope_placed);
	rope_deinit(&m->rope);
	tuned_scratch_deinit(&m->scratch);
	mem_free(m->floats);
	mem_free(m->constants);
	mem_free(m->hidden);
	mem_free(m->target);
	mem_free(m->dy);
	mem_free(m->dx);
	*m = (struct distill_model){ 0 };
}

static int tick(struct distill_model *m, double part, struct err *err)
{
	return m->tick ? m->tick(m->tick_ctx, part, err) : 0;
}

/* --- one layer at a time ------------------------------------------------------------------------------ */

enum needs { NEEDS_WEIGHTS, NEEDS_ALL };        /* Adam's moments are two thirds of a state */

static int open_layer(struct distill_model *m, size_t layer, enum needs needs, struct tuned *t, struct err *err)
{
	const struct distill_layer *l = &m->layers[layer];
	size_t begin = 0, end = 0;

	tuned_open(t, &l->plan, m->be, m->floats, &m->scratch);
	if (needs == NEEDS_WEIGHTS)
		tuned_moments(&l->plan, &begin, &end);
	if (distill_state_read(m->state, layer, m->floats, begin, end, err) != 0)
		return -1;
	return distill_layer_constants(l, &m->ck->config, t, m->constants, err);
}

static int layer_failed(size_t layer, struct err *err)
{
	return err_prefix(err, "layer %zu", layer);
}

int distill_model_begin(struct distill_model *m, struct err *err)
{
	struct tuned t;

	distill_state_begin(m->state, true);
	for (size_t l = 0; l < m->count; l++) {
		if (tick(m, (double)l / (double)m->count, err) != 0)
			return -1;
		tuned_open(&t, &m->layers[l].plan, m->be, m->floats, &m->scratch);
		if (distill_layer_begin(&m->layers[l], m->ck, &t, err) != 0 ||
		    distill_state_write(m->state, l, m->floats, err) != 0)
			return layer_failed(l, err);
	}
	distill_state_end(m->state);
	return 0;
}

int distill_model_keep(struct distill_model *m, struct err *err)
{
	for (size_t l = 0; l < m->count; l++) {
		struct tuned t;
		char *path;
		int rc;

		if (open_layer(m, l, NEEDS_WEIGHTS, &t, err) != 0)
			return layer_failed(l, err);
		path = distill_state_best_path(m->state, l, err);
		rc = path ? distill_layer_export(&m->layers[l], &m->ck->config, &t, path, err) : -1;
		mem_free(path);
		if (rc != 0)
			return layer_failed(l, err);
	}
	return distill_state_take_best(m->state, err);
}

/* --- forwards ---------------------------------------------------------------------------------------------- */

static int read_inputs(struct distill_model *m, const uint32_t *sequences, size_t n, struct err *err)
{
	for (size_t i = 0; i < n; i++)
		if (distill_feed_input(m->feed, sequences ? sequences[i] : i, m->hidden + i * m->sequence, err) != 0)
			return -1;
	return 0;
}

static int read_targets(struct distill_model *m, const uint32_t *sequences, size_t first, size_t n, struct err *err)
{
	for (size_t i = 0; i < n; i++)
		if (distill_feed_target(m->feed, sequences ? sequences[i] : first + i, m->target + i * m->sequence,
					err) != 0)
			return -1;
	return 0;
}

static int forward_layer(struct distill_model *m, const struct block_weights *w, const float *x, size_t n, float *y,
			 struct err *err)
{
	const struct rope_table rope = placed_rope(&m->rope_placed, &m->rope.table);

	return m->be->ops->block_forward(m->be, &m->layers[0].plan.shape, w, &rope, x, n, m->feed->seq_len, y, NULL,
					 NULL, err);
}

/* Hidden states of every layer's input, then of the last one's output, stay in m->hidden. */
static int forward_batch(struct distill_model *m, size_t n, struct err *err)
{
	const size_t stride = m->batch * m->sequence;

	for (size_t l = 0; l < m->count; l++) {
		float *x = m->hidden + l * stride;
		struct block_weights w;
		struct tuned t;

		if (tick(m, 0.25 * (double)l / (double)m->count, err) != 0)
			return -1;
		if (open_layer(m, l, NEEDS_WEIGHTS, &t, err) != 0 || tuned_weights(&t, &w, err) != 0 ||
		    forward_layer(m, &w, x, n, x + stride, err) != 0)
			return layer_failed(l, err);
	}
	return 0;
}

static struct distill_loss mean_loss(const struct head_loss *sum, size_t tokens)
{
	return (struct distill_loss){ sum->kl / (double)tokens, sum->hidden / (double)tokens };
}

/* --- backwards --------------------------------------------------------------------------------------------- */

struct handed { struct backend *be; const float *dy; struct err *err; };

/* The gradient at a layer's output is known already. */
static int hand_over(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	const struct handed *h = ctx;
	const size_t n = rows * cols;

	(void)y;
	return h->be->ops->memory_copy(h->be, dy, h->dy + sequence * n, n * sizeof(*dy), h->err);
}

/* From m->dy, the gradient at the layer's output, to its new parameters and the gradient at its input. */
static int backward_layer(struct distill_model *m, size_t layer, const struct distill_step *step, struct err *err)
{
	struct handed handed = { m->be, m->dy, err };
	const struct rope_table rope = placed_rope(&m->rope_placed, &m->rope.table);
	const float *x = m->hidden + layer * m->batch * m->sequence;
	struct block_weights w;
	struct block_grads g;
	struct tuned t;
	float *swap;

	if (open_layer(m, layer, NEEDS_ALL, &t, err) != 0 || tuned_weights(&t, &w, err) != 0)
		return -1;
	tuned_grads(&t, &g);
	if (m->be->ops->block_backward(m->be, &m->layers[layer].plan.shape, &w, &rope, x, step->n,
				       m->feed->seq_len, hand_over, &handed, layer > 0 ? m->dx : NULL, &g, err) != 0 ||
	    tuned_step(&t, &step->rates, step->schedule, step->step, err) != 0 ||
	    distill_state_write(m->state, layer, m->floats, err) != 0)
		return -1;
	swap = m->dy;
	m->dy = m->dx;
	m->dx = swap;
	return 0;
}

int distill_model_step(struct distill_model *m, const struct distill_step *step, struct distill_loss *loss,
		       struct err *err)
{
	const float *y = m->hidden + m->count * m->batch * m->sequence;
	struct head_loss sum;

	if (read_inputs(m, step->sequences, step->n, err) != 0 || forward_batch(m, step->n, err) != 0 ||
	    read_targets(m, step->sequences, 0, step->n, err) != 0 ||
	    head_kl_loss(&m->head, y, m->target, step->n, m->weight_hidden, &sum, m->dy, err) != 0)
		return -1;
	*loss = mean_loss(&sum, step->n * m->feed->seq_len);
	distill_state_begin(m->state, step->commit_follows);
	for (size_t l = m->count; l-- > 0;) {
		if (tick(m, 1 - 0.7 * (double)(l + 1) / (double)m->count, err) != 0)
			return -1;
		if (backward_layer(m, l, step, err) != 0)
			return layer_failed(l, err);
	}
	distill_state_end(m->state);
	return 0;
}

/* --- probing --------------------------------------------------------------------------------------------------- */

/* Every probe sequence through one layer, in place. */
static int probe_layer(struct distill_model *m, size_t layer, struct err *err)
{
	struct block_weights w;
	struct tuned t;

	if (open_layer(m, layer, NEEDS_WEIGHTS, &t, err) != 0)
		return -1;
	distill_layer_round(&m->layers[layer], &t);
	if (tuned_weights(&t, &w, err) != 0)
		return -1;
	for (size_t first = 0; first < m->probe; first += m->batch) {
		const size_t n = m->probe - first < m->batch ? m->probe - first : m->batch;
		float *x = m->hidden + first * m->sequence;

		if (forward_layer(m, &w, x, n, x, err) != 0)
			return -1;
	}
	return 0;
}

int distill_model_probe(struct distill_model *m, struct distill_loss *loss, struct err *err)
{
	struct head_loss sum = { 0 }, part;

	if (read_inputs(m, NULL, m->probe, err) != 0)
		return -1;
	for (size_t l = 0; l < m->count; l++) {
		if (tick(m, (double)l / (double)m->count, err) != 0)
			return -1;
		if (probe_layer(m, l, err) != 0)
			return layer_failed(l, err);
	}
	for (size_t first = 0; first < m->probe; first += m->batch) {
		const size_t n = m->probe - first < m->batch ? m->probe - first : m->batch;

		if (read_targets(m, NULL, first, n, err) != 0 ||
		    head_kl_loss(&m->head, m->hidden + first * m->sequence, m->target, n, m->weight_hidden, &part, NULL,
				 err) != 0)
			return -1;
		sum.kl += part.kl;
		sum.hidden += part.hidden;
	}
	*loss = mean_loss(&sum, m->probe * m->feed->seq_len);
	return 0;
}
