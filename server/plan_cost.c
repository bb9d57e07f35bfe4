/* Estimates: work per task, disk for hidden states and results, memory of the largest task. They steer progress,
 * refusals for lack of disk and warnings; no result depends on them. */
#include <stdint.h>

#include "common/alloc.h"
#include "server/plan_parts.h"

enum {
	LIVE_LAYERS = 4,        /* hidden states of so many layers may exist at once */
	MEGA = 1000000,
	FIT_OPS = 400,          /* operations per weight of the initialization search */
	PIECE_SEQUENCES = 4,    /* sequences that pass through a block at once, at most */
	TRAIN_OPS = 100,        /* operations per trained weight and step: gradient of the grid, Adam, new values */
	BLOCK_BATCH = 4, BLOCK_PROBE = 8, /* sequences; see plan_distill.c and the worker's tasks */
	MODEL_BATCH = 2, MODEL_PROBE = 16,
	STATE_FLOATS = 3,       /* per weight whose code is trained: the latent code and two moments */
	SCRATCH_FLOATS = 2,     /* per weight of the block at work: its value and its gradient */
};
static const uint64_t process_bytes = 64u << 20; /* what a worker needs before any task */

static double layer_params(const struct model_config *mc)
{
	double sum = 0;

	for (int l = 0; l < LIN_COUNT; l++) {
		struct linear_shape s = model_linear(mc, (enum block_linear)l);

		sum += (double)s.rows * (double)s.cols;
	}
	return sum;
}

static int64_t as_work(double ops)
{
	double mega = ops / MEGA;

	return mega < 1 ? 1 : mega > 1e15 ? (int64_t)1e15 : (int64_t)mega;
}

static double block_ops(const struct plan_request *r, double tokens)
{
	const struct model_config *mc = r->config;

	return tokens * (2 * layer_params(mc) +
			 2 * (double)r->recipe->seq_len * (double)(mc->heads * mc->head_dim));
}

int64_t plan_work_tokenize(uint64_t bytes)
{
	return as_work(500.0 * (double)bytes);
}

int64_t plan_work_verify(uint64_t bytes)
{
	return as_work(20.0 * (double)bytes);
}

int64_t plan_work_embed(const struct plan_request *r, int64_t sequences)
{
	return as_work(50.0 * (double)sequences * (double)r->recipe->seq_len * (double)r->config->hidden);
}

int64_t plan_work_capture(const struct plan_request *r, int64_t sequences)
{
	return as_work(block_ops(r, (double)sequences * (double)r->recipe->seq_len));
}

/* One pass over the vocabulary. */
static double head_ops(const struct plan_request *r, double tokens)
{
	return tokens * 2 * (double)r->config->vocab * (double)r->config->hidden;
}

static double least(double a, double b)
{
	return a < b ? a : b;
}

/* The targets once, then per epoch forward and backward: three times the operations of a forward pass. */
static double distill_block_ops(const struct plan_request *r)
{
	double n = (double)recipe_distill_sequences(r->recipe), epochs = (double)r->recipe->block_epochs;
	double sequence = block_ops(r, (double)r->recipe->seq_len);
	double probe = least(n, BLOCK_PROBE) * (epochs + 1);

	return sequence * (n + probe + 3 * epochs * n) +
	       epochs * n / BLOCK_BATCH * layer_params(r->config) * TRAIN_OPS;
}

/* Per epoch forward, forward again layer by layer, and backward; the head of both models twice and its gradient. */
int64_t plan_work_distill(const struct plan_request *r)
{
	double n = (double)recipe_distill_sequences(r->recipe), epochs = (double)r->recipe->epochs;
	double seq_len = (double)r->recipe->seq_len, layers = (double)r->config->layers;
	double sequence = block_ops(r, seq_len) * layers, head = head_ops(r, seq_len);
	double probe = least(n, MODEL_PROBE) * (epochs + 1);

	return as_work(epochs * n * (4 * sequence + 5 * head) + probe * (sequence + 4 * head) +
		       epochs * n / MODEL_BATCH * layers * layer_params(r->config) * TRAIN_OPS);
}

int64_t plan_work_quantize(const struct plan *plan, const struct plan_request *r, int64_t layer)
{
	double tokens = (double)r->recipe->samples * (double)r->recipe->seq_len;
	double ops = block_ops(r, tokens);
	bool site_done[SITE_COUNT] = { false }, any = false;

	for (size_t i = (size_t)layer * LIN_COUNT; i < (size_t)(layer + 1) * LIN_COUNT; i++) {
		const struct plan_module *m = &plan->modules[i];
		double rows = (double)m->rows, cols = (double)m->cols;
		enum block_site site = model_linear(r->config, m->linear).site;

		if (m->settings.skip)
			continue;
		if (!site_done[site])
			ops += tokens * cols * cols + cols * cols * cols;
		site_done[site] = true;
		ops += rows * cols * FIT_OPS + (2 + 2 * (double)r->recipe->refine) * rows * cols * cols;
		any = true;
	}
	if (any && recipe_distills_blocks(r->recipe))
		ops += distill_block_ops(r);
	return as_work(ops);
}

/* Comparing: the head of both models twice, for the normalization and for the divergence. */
int64_t plan_work_evaluate(const struct plan_request *r, int64_t windows, bool compared)
{
	double tokens = (double)windows * (double)r->recipe->seq_len;

	return as_work(block_ops(r, tokens) * (double)r->config->layers + head_ops(r, tokens) * (compared ? 4 : 1));
}

int64_t plan_windows(const struct plan_request *r, const struct plan_text *text)
{
	int64_t windows = (int64_t)(text->bytes / (4 * (uint64_t)r->recipe->seq_len)) + 1;

	return text->max_windows > 0 && text->max_windows < windows ? text->max_windows : windows;
}

/* --- bytes -------------------------------------------------------------------- */

static uint64_t sat_mul(uint64_t a, uint64_t b)
{
	uint64_t product;

	return u64_mul(a, b, &product) ? product : UINT64_MAX;
}

static uint64_t sat_add(uint64_t a, uint64_t b)
{
	uint64_t sum;

	return u64_add(a, b, &sum) ? sum : UINT64_MAX;
}

uint64_t plan_hidden_shard_bytes(const struct plan_request *r, int64_t sequences)
{
	return sat_mul(sat_mul((uint64_t)sequences, (uint64_t)r->recipe->seq_len),
		       sat_mul(r->config->hidden, sizeof(float)));
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* One piece of sequences on its way through a block. */
static uint64_t activation_bytes(const struct plan_request *r)
{
	const struct model_config *mc = r->config;
	uint64_t width = 4 * (uint64_t)mc->hidden + 3 * (uint64_t)mc->intermediate +
			 2 * (uint64_t)mc->head_dim * (mc->heads + 2 * mc->kv_heads);

	return sat_mul(sat_mul(PIECE_SEQUENCES * sizeof(float), (uint64_t)r->recipe->seq_len), width);
}

/* Statistics of the layer's four input sites in float64, one factor, one module being rounded. */
static uint64_t quantize_bytes(const struct plan *plan, const struct plan_request *r)
{
	uint64_t sites = 0, largest = 0, module = 0, site_cols[SITE_COUNT] = { 0 };

	for (size_t i = 0; i < plan->module_count; i++) {
		const struct plan_module *m = &plan->modules[i];

		if (m->settings.skip)
			continue;
		site_cols[model_linear(r->config, m->linear).site] = m->cols;
		module = max_u64(module, sat_mul(m->rows, m->cols));
	}
	for (int s = 0; s < SITE_COUNT; s++) {
		sites = sat_add(sites, sat_mul(8, sat_mul(site_cols[s], site_cols[s])));
		largest = max_u64(largest, site_cols[s]);
	}
	return sat_add(sat_add(sites, sat_mul(12, sat_mul(largest, largest))), sat_mul(10, module));
}

static uint64_t state_floats(const struct plan_request *r)
{
	return r->recipe->train_codes ? STATE_FLOATS : 1;
}

/* One block in training: its state, its values and gradients, and `more` floats a weight. */
static uint64_t training_bytes(const struct plan_request *r, uint64_t more)
{
	return sat_mul((state_floats(r) + SCRATCH_FLOATS + more) * sizeof(float), (uint64_t)layer_params(r->config));
}

/* A batch's hidden states behind every layer, what goes back through them, and the head's three. */
static uint64_t distill_bytes(const struct plan_request *r)
{
	uint64_t states = sat_mul((uint64_t)r->config->layers + 7, plan_hidden_shard_bytes(r, MODEL_BATCH));

	states = max_u64(states, plan_hidden_shard_bytes(r, MODEL_PROBE));
	return sat_add(sat_add(training_bytes(r, 0), states), activation_bytes(r));
}

static uint64_t memory_bytes(const struct plan *plan, const struct plan_request *r)
{
	uint64_t layer = sat_mul(sizeof(float), (uint64_t)layer_params(r->config));
	uint64_t forward = sat_add(layer, activation_bytes(r));
	uint64_t head = sat_mul(sat_mul(r->config->vocab, r->config->hidden), sizeof(float));
	uint64_t quantize = quantize_bytes(plan, r);
	uint64_t most = r->recipe->eval_count > 0 ? sat_add(forward, head) : 0;

	if (plan->module_count > 0 && recipe_distills_blocks(r->recipe))
		quantize = max_u64(quantize, sat_add(training_bytes(r, r->recipe->train_codes), /* and the best so far */
						     plan_hidden_shard_bytes(r, 3 * BLOCK_BATCH)));
	most = max_u64(most, sat_add(forward, quantize));
	if (plan->distill >= 0) /* a head in fewer bits stands beside the original's */
		most = max_u64(most, sat_add(distill_bytes(r), sat_mul(head, r->recipe->lm_head == 16 ? 1 : 2)));
	return sat_add(process_bytes, most);
}

/* Hidden states of the layers at work, and of the original model's last layer while they are targets. */
static uint64_t calibration_bytes(const struct plan *plan, const struct plan_request *r)
{
	uint64_t live = r->config->layers < LIVE_LAYERS ? r->config->layers : LIVE_LAYERS;
	uint64_t hidden = sat_mul(live, plan_hidden_shard_bytes(r, recipe_sequences(r->recipe)));
	uint64_t chains = r->recipe->propagate == PROPAGATE_QUANTIZED ? 2 : 1;

	if (plan->distill < 0)
		return hidden;
	return sat_add(hidden, sat_mul(chains, plan_hidden_shard_bytes(r, recipe_distill_sequences(r->recipe))));
}

/* Final hidden states of the model compared with, on the texts: all of them, when other workers are ahead. */
static uint64_t reference_bytes(const struct plan_request *r)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < r->recipe->eval_count; i++)
		sum = sat_add(sum, plan_hidden_shard_bytes(r, plan_windows(r, &r->evals[i])));
	return sum;
}

/* All layers as quantize and distill hand them in: as large as the first (packed) format. */
static uint64_t layer_output_bytes(const struct plan *plan)
{
	return plan->output_count > 0 ? plan->outputs[0].bytes : 0;
}

/* The distill task's newest checkpoint and the one that replaces it: the state, and the best layers so far. */
static uint64_t checkpoint_bytes(const struct plan *plan, const struct plan_request *r)
{
	uint64_t state = sat_mul(sat_mul(state_floats(r) * sizeof(float), (uint64_t)layer_params(r->config)),
				 r->config->layers);

	return plan->distill < 0 ? 0 : sat_mul(2, sat_add(state, layer_output_bytes(plan)));
}

/* What a task of the reference model needs; 0 without one. */
static uint64_t reference_memory(const struct plan *plan, const struct plan_request *r)
{
	struct plan_request other = *r;

	other.config = r->reference.config;
	return other.config ? memory_bytes(plan, &other) : 0;
}

void plan_estimate(struct plan *plan, const struct plan_request *r)
{
	uint64_t results = 0, hidden = r->reference.config ? reference_bytes(r) : 0;

	if (r->recipe->kind == RECIPE_QUANTIZE)
		hidden = sat_add(sat_add(calibration_bytes(plan, r), reference_bytes(r)), checkpoint_bytes(plan, r));
	else if (r->reference.config)
		hidden = reference_bytes(r);
	for (size_t i = 0; i < plan->output_count; i++)
		results = sat_add(results, plan->outputs[i].bytes);
	/* The layer outputs live until the last file is written. Distilled ones replace those before when nothing is
	 * written yet. */
	results = sat_add(results, layer_output_bytes(plan));
	plan->disk_bytes = sat_add(hidden, results);
	plan->memory_bytes = max_u64(memory_bytes(plan, r), reference_memory(plan, r));
}
