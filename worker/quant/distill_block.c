#include "worker/quant/distill_block.h"

#include <string.h>

#include "common/alloc.h"
#include "worker/quant/order.h"
#include "worker/quant/tuned_parts.h"

struct training {
	struct tuned *t;
	const struct distill_settings *settings;
	const struct distill_data *data;
	struct distill_result *out;
	struct distill_progress progress;
	size_t sequence;        /* floats of one sequence */
	uint32_t *order;        /* (sequences) of this epoch */
	float *x;               /* (batch) sequences; memory of the backend, as the next two */
	float *target, *y;      /* one sequence each */
	struct tuned_copy best; /* parameters, best so far */
	float *dense;           /* biases and norms while their stored form is tried */
	double energy;          /* mean of (y - x)^2 of the original block over the probe */
	int64_t step, steps;
	size_t done, work;      /* sequences of all epochs */
	double curve_sum;
	int64_t curve_from;
	/* of the batch under way */
	const uint32_t *members;
	size_t count;
	double squares;
	struct err *err;
};

static int check(const struct distill_settings *s, const struct distill_data *d, struct err *err)
{
	size_t work;

	if (s->sequences == 0 || s->sequences > UINT32_MAX || s->epochs == 0 || s->batch == 0 ||
	    d->seq_len == 0 || !size_mul(s->sequences, s->epochs, &work))
		return err_set(err, ERR_INVALID, "distillation needs at least one sequence, epoch and batch; "
			       "%zu, %zu and %zu were given", s->sequences, s->epochs, s->batch);
	return 0;
}

static void training_deinit(struct training *k)
{
	struct backend *be = k->t->be;

	mem_free(k->order);
	be->ops->memory_give(be, k->x);
	be->ops->memory_give(be, k->target);
	be->ops->memory_give(be, k->y);
	tuned_copy_deinit(&k->best, be);
	mem_free(k->dense);
}

static float *take(struct training *k, size_t bytes, struct err *err)
{
	return k->t->be->ops->memory_take(k->t->be, bytes, "the sequences of a batch", err);
}

/* What is held on failure belongs to training_deinit(). */
static int training_init(struct training *k, struct err *err)
{
	const struct distill_settings *s = k->settings;
	const size_t batch = s->batch < s->sequences ? s->batch : s->sequences;
	const size_t steps = (s->sequences + s->batch - 1) / s->batch * s->epochs;
	size_t all, bytes;

	if (!size_mul(k->data->seq_len, k->t->plan.shape.hidden, &k->sequence) ||
	    !size_mul(k->sequence, batch, &all) || !size_mul(all, sizeof(float), &bytes))
		return err_set(err, ERR_TOO_LARGE, "%zu sequences of %zu tokens do not fit into memory", batch,
			       k->data->seq_len);
	k->steps = (int64_t)steps;
	k->work = s->sequences * s->epochs;
	k->progress = (struct distill_progress){ .epochs = s->epochs, .loss = -1 };
	k->order = mem_alloc(s->sequences, sizeof(*k->order));
	k->dense = mem_alloc_aligned(tuned_runs(&k->t->plan).dense, sizeof(*k->dense));
	if (!k->order || !k->dense)
		return err_set_nomem(err, "the training of a block");
	if (!(k->x = take(k, bytes, err)) || !(k->target = take(k, bytes / batch, err)) ||
	    !(k->y = take(k, bytes / batch, err)))
		return -1;
	return tuned_copy_init(&k->best, k->t, err);
}

static int tell(struct training *k, struct err *err)
{
	k->progress.fraction = (double)k->done / (double)k->work;
	return k->data->progress ? k->data->progress(k->data->ctx, &k->progress, err) : 0;
}

/* --- the probe ------------------------------------------------------------------------------------ */

static int add_squares(struct training *k, const float *a, const float *b, double *sum, struct err *err)
{
	struct backend *be = k->t->be;
	double one;

	if (be->ops->squared_error(be, a, b, k->sequence, 0, NULL, &one, err) != 0)
		return -1;
	*sum += one;
	return 0;
}

/* Mean squared difference over the probe; with `energy`, that of the original block's output to its input
 * too. */
static int probe(struct training *k, double *loss, double *energy, struct err *err)
{
	const size_t n = k->settings->sequences < DISTILL_PROBE ? k->settings->sequences : DISTILL_PROBE;
	const struct distill_data *d = k->data;
	struct backend *be = k->t->be;
	struct block_weights w;
	double sum = 0, change = 0;

	if (tuned_weights(k->t, &w, err) != 0)
		return -1;
	for (size_t i = 0; i < n; i++) {
		const float *x, *target;

		if (tell(k, err) != 0 || !(x = d->input(d->ctx, i, k->x, err)) ||
		    !(target = d->target(d->ctx, i, k->target, err)) ||
		    be->ops->block_forward(be, &k->t->plan.shape, &w, d->rope, x, 1, d->seq_len, k->y, NULL, NULL,
					   err) != 0 ||
		    add_squares(k, k->y, target, &sum, err) != 0 ||
		    (energy && add_squares(k, target, x, &change, err) != 0))
			return -1;
	}
	*loss = sum / ((double)n * (double)k->sequence);
	if (energy)
		*energy = change / ((double)n * (double)k->sequence);
	return 0;
}

static void round_dense(struct training *k)
{
	const struct distill_data *d = k->data;
	struct tuned *t = k->t;

	for (int i = 0; d->stored_bias && i < TUNED_MODULES; i++)
		if (t->module[i].bias)
			d->stored_bias(d->ctx, i, t->module[i].bias, t->plan.module[i].rows);
	for (int i = 0; d->stored_norm && i < TUNED_NORMS; i++)
		if (t->norm[i])
			d->stored_norm(d->ctx, i, t->norm[i], t->plan.norm[i]);
}

/* Keeps the state when its stored form is the best so far. Training goes on with exact biases and norms. */
static int try_state(struct training *k, struct err *err)
{
	const size_t n = tuned_runs(&k->t->plan).dense;
	float *dense = k->t->rest.params + (k->t->rest.n - n); /* the last run of the parameters */
	double loss;
	int rc = 0;

	memcpy(k->dense, dense, n * sizeof(*dense));
	round_dense(k);
	if (probe(k, &loss, NULL, err) != 0)
		return -1;
	loss /= k->energy;
	if (loss < k->out->after) {
		k->out->after = loss;
		k->out->kept = true;
		rc = tuned_keep(k->t, &k->best, err);
	}
	memcpy(dense, k->dense, n * sizeof(*dense));
	return rc;
}

static int measure_start(struct training *k, struct err *err)
{
	round_dense(k);
	if (probe(k, &k->out->before, &k->energy, err) != 0)
		return -1;
	if (!(k->energy > 0))
		k->energy = 1;
	k->out->before /= k->energy;
	k->out->after = k->progress.loss = k->out->before;
	return tuned_keep(k->t, &k->best, err);
}

/* --- steps ----------------------------------------------------------------------------------------- */

/* block_loss: dy = 2 (y - target) / elements of the batch. */
static int output_loss(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols, float *dy)
{
	struct training *k = ctx;
	const double scale = 2 / ((double)k->count * (double)k->sequence);
	struct backend *be = k->t->be;
	const float *target;
	double sum;

	if (tell(k, k->err) != 0 ||
	    !(target = k->data->target(k->data->ctx, k->members[sequence], k->target, k->err)) ||
	    be->ops->squared_error(be, y, target, rows * cols, scale, dy, &sum, k->err) != 0)
		return -1;
	k->squares += sum;
	k->done++;
	return 0;
}

static void add_point(struct training *k, double loss)
{
	const int64_t interval = (k->steps + DISTILL_CURVE - 1) / DISTILL_CURVE;
	struct distill_result *out = k->out;

	k->curve_sum += loss;
	if (k->step % interval != 0 && k->step != k->steps)
		return;
	out->curve[out->points].step = k->step;
	out->curve[out->points++].loss = k->curve_sum / (double)(k->step - k->curve_from);
	k->curve_from = k->step;
	k->curve_sum = 0;
}

/* The inputs of the batch, one behind the other; NULL with err set on failure. */
static const float *gather(struct training *k, struct err *err)
{
	const struct distill_data *d = k->data;
	struct backend *be = k->t->be;

	for (size_t i = 0; i < k->count; i++) {
		float *room = k->x + i * k->sequence;
		const float *x = d->input(d->ctx, k->members[i], room, err);

		if (!x || k->count == 1)
			return x;
		if (x != room && be->ops->memory_copy(be, room, x, k->sequence * sizeof(*x), err) != 0)
			return NULL;
	}
	return k->x;
}

/* One batch: sequences k->members[0 .. count). */
static int take_step(struct training *k, struct err *err)
{
	const struct distill_data *d = k->data;
	const float *x = gather(k, err);
	struct backend *be = k->t->be;
	struct block_weights w;
	struct block_grads g;

	if (!x)
		return -1;
	k->squares = 0;
	k->err = err;
	tuned_grads(k->t, &g);
	if (tuned_weights(k->t, &w, err) != 0 ||
	    be->ops->block_backward(be, &k->t->plan.shape, &w, d->rope, x, k->count, d->seq_len,
				    output_loss, k, NULL, &g, err) != 0)
		return -1;
	k->step++;
	if (tuned_step(k->t, &k->settings->rates, tuned_schedule(k->step, k->steps), k->step, err) != 0)
		return -1;
	k->progress.loss = k->squares / ((double)k->count * (double)k->sequence) / k->energy;
	add_point(k, k->progress.loss);
	return 0;
}

static int run_epoch(struct training *k, size_t epoch, struct err *err)
{
	const struct distill_settings *s = k->settings;

	k->progress.epoch = epoch;
	training_order(s->seed, epoch, s->sequences, k->order);
	for (size_t first = 0; first < s->sequences; first += k->count) {
		k->members = k->order + first;
		k->count = s->sequences - first < s->batch ? s->sequences - first : s->batch;
		if (take_step(k, err) != 0)
			return -1;
	}
	return try_state(k, err);
}

static int train(struct training *k, struct err *err)
{
	struct err failure = ERR_INIT;

	for (size_t epoch = 0; epoch < k->settings->epochs; epoch++) {
		if (run_epoch(k, epoch, &failure) == 0)
			continue;
		if (failure.code != ERR_NUMERIC)
			return err_set(err, failure.code, "%s", failure.text);
		break;
	}
	return 0;
}

int distill_block(struct tuned *t, const struct distill_settings *settings, const struct distill_data *data,
		  struct distill_result *out, struct err *err)
{
	struct training k = { .t = t, .settings = settings, .data = data, .out = out };
	int rc;

	*out = (struct distill_result){ 0 };
	if (check(settings, data, err) != 0)
		return -1;
	rc = training_init(&k, err);
	if (rc == 0)
		rc = measure_start(&k, err);
	if (rc == 0)
		rc = train(&k, err);
	if (rc == 0)
		rc = tuned_return(t, &k.best, err);
	if (rc == 0)
		out->steps = k.step;
	training_deinit(&k);
	return rc;
}
