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

int64_t plan_work_quantize(const struct plan *plan, const struct plan_request *r, int64_t layer)
{
	double tokens = (double)r->recipe->samples * (double)r->recipe->seq_len;
	double ops = block_ops(r, tokens);
	bool site_done[SITE_COUNT] = { false };

	for (size_t i = (size_t)layer * LIN_COUNT; i < (size_t)(layer + 1) * LIN_COUNT; i++) {
		const struct plan_module *m = &plan->modules[i];
		double rows = (double)m->rows, cols = (double)m->cols;
		enum block_site site = model_linear(r->config, m->linear).site;

		if (m->settings.skip)
			continue;
		if (!site_done[site])
			ops += tokens * cols * cols + cols * cols * cols;
		site_done[site] = true;
		ops += rows * cols * FIT_OPS + 2 * rows * cols * cols;
	}
	return as_work(ops);
}

int64_t plan_work_evaluate(const struct plan_request *r, int64_t windows)
{
	double tokens = (double)windows * (double)r->recipe->seq_len;

	return as_work(block_ops(r, tokens) * (double)r->config->layers +
		       tokens * 2 * (double)r->config->vocab * (double)r->config->hidden);
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

static uint64_t memory_bytes(const struct plan *plan, const struct plan_request *r)
{
	uint64_t layer = sat_mul(sizeof(float), (uint64_t)layer_params(r->config));
	uint64_t forward = sat_add(layer, activation_bytes(r));
	uint64_t head = sat_mul(sat_mul(r->config->vocab, r->config->hidden), sizeof(float));
	uint64_t quantize = sat_add(forward, quantize_bytes(plan, r));
	uint64_t evaluate = r->recipe->eval_count > 0 ? sat_add(forward, head) : 0;

	return sat_add(process_bytes, max_u64(max_u64(forward, quantize), evaluate));
}

void plan_estimate(struct plan *plan, const struct plan_request *r)
{
	uint64_t results = 0, hidden = 0;

	if (r->recipe->kind == RECIPE_QUANTIZE) {
		uint64_t live = r->config->layers < LIVE_LAYERS ? r->config->layers : LIVE_LAYERS;

		hidden = sat_mul(live, plan_hidden_shard_bytes(r, r->recipe->samples));
	}
	for (size_t i = 0; i < plan->output_count; i++)
		results = sat_add(results, plan->outputs[i].bytes);
	/* The layer outputs are as large as the first (packed) format and live until the last is written. */
	if (plan->output_count > 0)
		results = sat_add(results, plan->outputs[0].bytes);
	plan->disk_bytes = sat_add(hidden, results);
	plan->memory_bytes = memory_bytes(plan, r);
}
