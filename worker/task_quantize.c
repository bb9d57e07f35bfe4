/* task_quantize.c - one layer: activation statistics, every linear to codes, scales and zero-points, then the
 * block as a whole trained to the output of the original one.
 *
 * One site's H is factored at a time. What distillation needs later, the block's outputs and H, waits in a scratch file; on
 * a backend with memory of its own H stays there, and so do inputs and outputs where there is room.
 */
#include <stdio.h>

#include "common/alloc.h"
#include "worker/layer_training.h"
#include "worker/layer_gram.h"
#include "worker/layer_plan.h"
#include "worker/layer_store.h"
#include "worker/quant/quantize.h"
#include "worker/task_kinds.h"

/* Where a part of the task ends, as a share of its time. */
struct shares { double gram, modules; };

struct layer_job {
	struct layer_plan plan;
	struct layer_forward forward;
	struct hidden_shards shards;
	struct layer_gram gram;
	struct quant_result results[LIN_COUNT];
	struct { double damp; int retries; uint64_t h_offset; } site[SITE_COUNT];
	double loss_distilled[LIN_COUNT];
	struct layer_training distill;
	struct layer_sequences sequences;
	struct scratch_file scratch;    /* the block's outputs, then H of each site */
	struct shares shares;
	struct task_env *env;
	size_t done;
};

static struct quant_options options_of(const struct layer_plan *p, int lin)
{
	const struct module_settings *s = &p->settings[lin];

	return (struct quant_options){
		.grid = layer_plan_grid(p, lin),
		.method = s->method == METHOD_NEUQI ? FIT_NEUQI : FIT_MINMAX,
		.ldlq = s->rounding == ROUND_LDLQ,
		.refine = p->refine,
	};
}

static int add_numbers(const struct layer_job *job, int lin, struct json *row)
{
	const struct layer_plan *p = &job->plan;
	const struct quant_result *r = &job->results[lin];
	const enum block_site site = p->shape[lin].site;

	if (json_set_int(row, "rows", (int64_t)p->shape[lin].rows) != 0 ||
	    json_set_int(row, "cols", (int64_t)p->shape[lin].cols) != 0 ||
	    json_set_int(row, "bits", p->settings[lin].bits) != 0 ||
	    json_set_int(row, "group_size", p->settings[lin].group_size) != 0 ||
	    json_set_number(row, "init_objective", r->init_objective) != 0 ||
	    json_set_number(row, "loss_exact", r->loss_exact) != 0 ||
	    json_set_number(row, "loss_nearest", r->loss_nearest) != 0 ||
	    json_set_number(row, "loss_rounded", r->loss_rounded) != 0 ||
	    json_set_int(row, "refine_rounds", r->refine_rounds) != 0 ||
	    json_set_number(row, "loss", r->loss) != 0 ||
	    (p->distill && json_set_number(row, "loss_distilled", job->loss_distilled[lin]) != 0) ||
	    json_set_number(row, "energy", r->energy) != 0 ||
	    json_set_number(row, "damp", job->site[site].damp) != 0 ||
	    json_set_int(row, "damp_retries", job->site[site].retries) != 0)
		return -1;
	return json_set_number(row, "bits_per_weight", layer_plan_bits_per_weight(p, lin));
}

static struct json *module_json(const struct layer_job *job, int lin)
{
	struct json *row = json_new_object();

	if (json_set_string(row, "name", job->plan.name[lin]) == 0 &&
	    (job->plan.settings[lin].skip ? json_set_bool(row, "skip", true)
					  : add_numbers(job, lin, row)) == 0)
		return row;
	json_free(row);
	return NULL;
}

static int make_result(const struct layer_job *job, struct json **result, struct err *err)
{
	struct json *modules = json_new_array();
	int rc = 0;

	*result = json_new_object();
	for (int lin = 0; rc == 0 && lin < LIN_COUNT; lin++)
		rc = json_push(modules, module_json(job, lin));
	if (rc == 0)
		rc = json_set_int(*result, "tokens", (int64_t)job->gram.rows[SITE_ATTN_IN]);
	if (rc != 0)
		json_free(modules);
	else
		rc = json_set(*result, "modules", modules);
	if (rc == 0 && job->plan.distill)
		rc = json_set(*result, "distill", layer_training_json(&job->distill));
	return rc == 0 ? 0 : err_set_nomem(err, "a result");
}

/* --- one module after the other -------------------------------------------------------------------- */

static struct quant_weights weights_of(struct layer_job *job, int lin)
{
	struct layer_forward *f = &job->forward;

	return (struct quant_weights){ *block_linear_slot(&f->block.w, (enum block_linear)lin),
				       *block_linear_slot(&f->weights, (enum block_linear)lin),
				       job->plan.shape[lin].rows };
}

static int quantize_linear(struct layer_job *job, int lin, const struct quant_site *site, struct err *err)
{
	const struct layer_plan *p = &job->plan;
	const struct quant_options options = options_of(p, lin);
	const struct quant_weights w = weights_of(job, lin);
	char what[MODEL_NAME_MAX + 16];

	snprintf(what, sizeof(what), "quantizing %s", p->shape[lin].suffix);
	if (task_step(job->env, job->shares.gram + (job->shares.modules - job->shares.gram) *
		      (double)job->done++ / LIN_COUNT, what, err) != 0)
		return -1;
	if (quant_module(&job->results[lin], job->forward.backend, site, &options, &w, err) != 0)
		return err_prefix(err, "%s", p->name[lin]);
	return 0;
}

static size_t h_bytes(const struct layer_job *job, enum block_site site)
{
	return job->gram.cols[site] * job->gram.cols[site] * sizeof(double);
}

/* H is wanted again after distillation. On a device it waits where it is; in ordinary memory, where it can be the largest
 * thing there is, it goes to the scratch file. */
static bool keeps_h(const struct layer_job *job)
{
	return job->plan.distill && job->forward.backend->ops->own_memory;
}

static int put_h_aside(struct layer_job *job, enum block_site site, struct err *err)
{
	if (!job->plan.distill || !job->gram.h[site])
		return 0;
	return scratch_file_write(&job->scratch, job->site[site].h_offset, job->gram.h[site],
				  h_bytes(job, site), err);
}

static int quantize_site(struct layer_job *job, enum block_site which, struct err *err)
{
	const struct layer_plan *p = &job->plan;
	struct quant_site site = { 0 };
	bool ldlq = false;
	int rc = 0;

	for (int lin = 0; lin < LIN_COUNT; lin++)
		ldlq |= p->shape[lin].site == which && !p->settings[lin].skip && p->settings[lin].rounding == ROUND_LDLQ;
	if (job->gram.h[which] &&
	    quant_site_init(&site, job->forward.backend, job->gram.h[which], job->gram.diagonal[which],
			    job->gram.cols[which], p->damp, ldlq, err) != 0)
		return err_prefix(err, "layer %lld, input of %s", (long long)p->layer,
				  which == SITE_ATTN_IN ? "self_attn" : which == SITE_O_IN ? "o_proj" :
				  which == SITE_MLP_IN ? "mlp" : "down_proj");
	job->site[which].damp = site.damp;
	job->site[which].retries = site.damp_retries;
	for (int lin = 0; rc == 0 && lin < LIN_COUNT; lin++)
		if (p->shape[lin].site == which && !p->settings[lin].skip)
			rc = quantize_linear(job, lin, &site, err);
	quant_site_deinit(&site);
	if (keeps_h(job))
		return rc;
	if (rc == 0)
		rc = put_h_aside(job, which, err);
	layer_gram_drop(&job->gram, which);
	return rc;
}

/* --- distillation ------------------------------------------------------------------------------------- */

/* Proxy losses of one site's modules as they are now. */
static int measure_modules(struct layer_job *job, enum block_site which, const double *h, struct err *err)
{
	const struct layer_plan *p = &job->plan;
	struct backend *be = job->forward.backend;

	for (int lin = 0; lin < LIN_COUNT; lin++) {
		const struct quant_result *r = &job->results[lin];
		const struct quant_weights w = weights_of(job, lin);
		const struct grid grid = layer_plan_grid(p, lin);

		if (p->shape[lin].site == which && !p->settings[lin].skip &&
		    be->ops->proxy_loss(be, &grid, w.placed, w.rows, job->gram.cols[which], h, job->site[which].damp,
					r->codes, r->scales, r->zeros, &job->loss_distilled[lin], NULL, err) != 0)
			return -1;
	}
	return 0;
}

static int measure_site(struct layer_job *job, enum block_site which, struct err *err)
{
	const size_t cols = job->gram.cols[which];
	double *h;
	int rc;

	if (!cols)
		return 0;
	if (job->gram.h[which])
		return measure_modules(job, which, job->gram.h[which], err);
	h = mem_alloc(cols, cols * sizeof(*h));
	if (!h)
		return err_set_nomem(err, "the H matrix of a layer");
	rc = scratch_file_read(&job->scratch, job->site[which].h_offset, h, h_bytes(job, which), err);
	if (rc == 0)
		rc = measure_modules(job, which, h, err);
	mem_free(h);
	return rc;
}

static int distill(struct layer_job *job, struct err *err)
{
	if (!job->plan.distill)
		return 0;
	if (layer_training_run(&job->distill, &job->plan, &job->forward, &job->sequences, job->results,
			       job->shares.modules, 1, err) != 0)
		return -1;
	layer_sequences_deinit(&job->sequences);
	for (int site = 0; site < SITE_COUNT; site++)
		if (measure_site(job, (enum block_site)site, err) != 0)
			return -1;
	return 0;
}

/* --- the task -------------------------------------------------------------------------------------- */

/* Statistics of all sites from one pass, with the block's own weights; what the training reads on the way. */
static int collect(struct layer_job *job, struct err *err)
{
	const struct layer_plan *p = &job->plan;
	struct layer_pass pass = { .samples = p->samples, .share = job->shares.gram };

	for (int lin = 0; lin < LIN_COUNT; lin++)
		pass.wanted[p->shape[lin].site] |= !p->settings[lin].skip;
	if (p->distill) {
		pass.outputs = p->training.sequences;
		pass.output = layer_sequences_put;
		pass.ctx = &job->sequences;
	}
	return layer_gram_collect(&job->gram, &job->forward, &job->shards, &pass, err);
}

/* Scratch file: the block's outputs first, H of each site behind them. */
static int prepare_distill(struct layer_job *job, struct err *err)
{
	struct layer_plan *p = &job->plan;
	uint64_t at;

	if (!p->distill)
		return 0;
	if (p->training.sequences > hidden_shards_total(&job->shards))
		p->training.sequences = hidden_shards_total(&job->shards);
	if (layer_sequences_init(&job->sequences, job->forward.backend, &job->shards, &job->scratch, p->training.sequences,
				 layer_training_bytes(p, &job->forward), err) != 0)
		return -1;
	at = layer_sequences_bytes(&job->sequences, p->training.sequences);
	for (int lin = 0; lin < LIN_COUNT; lin++)
		if (job->site[p->shape[lin].site].h_offset == 0) {
			job->site[p->shape[lin].site].h_offset = at;
			at += (uint64_t)p->shape[lin].cols * p->shape[lin].cols * sizeof(double);
		}
	return scratch_file_open(&job->scratch, job->env->out_dir, err);
}

static int quantize_layer(struct layer_job *job, struct json **result, struct err *err)
{
	char *path;
	int rc;

	if (layer_forward_load(&job->forward, (size_t)job->plan.layer, NULL, err) != 0 ||
	    prepare_distill(job, err) != 0 || collect(job, err) != 0)
		return -1;
	for (int site = 0; site < SITE_COUNT; site++)
		if (quantize_site(job, (enum block_site)site, err) != 0)
			return -1;
	if (distill(job, err) != 0 || make_result(job, result, err) != 0)
		return -1;
	path = task_output_path(job->env, "layer", err);
	rc = path ? layer_store(&job->plan, &job->forward.ck, job->results,
				job->plan.distill ? &job->distill.tuned : NULL, path, err) : -1;
	mem_free(path);
	return rc;
}

static int plan_task(struct layer_job *job, const struct json *spec, struct err *err)
{
	struct layer_plan *p = &job->plan;
	bool quantizes = false;

	if (layer_plan_parse(p, spec, &job->forward.ck.config, err) != 0)
		return -1;
	for (int lin = 0; lin < LIN_COUNT; lin++)
		quantizes |= !p->settings[lin].skip;
	p->distill = p->distill && quantizes; /* else the block is the original */
	job->shares = p->distill ? (struct shares){ 0.2, 0.3 } : (struct shares){ 0.6, 1 };
	return 0;
}

static void job_deinit(struct layer_job *job)
{
	layer_training_deinit(&job->distill);
	layer_sequences_deinit(&job->sequences);
	scratch_file_close(&job->scratch);
	for (int lin = 0; lin < LIN_COUNT; lin++)
		quant_result_deinit(&job->results[lin]);
	layer_gram_deinit(&job->gram);
	layer_forward_deinit(&job->forward);
	hidden_shards_close(&job->shards);
}

static size_t largest_shard(const struct hidden_shards *s)
{
	size_t most = 0;

	for (size_t i = 0; i < s->count; i++)
		if (s->first[i + 1] - s->first[i] > most)
			most = s->first[i + 1] - s->first[i];
	return most;
}

int task_quantize(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct layer_job job = { .env = env, .scratch = SCRATCH_FILE_CLOSED };
	int rc = -1;

	if (hidden_shards_open(&job.shards, env, err) != 0)
		return -1;
	if (layer_forward_init(&job.forward, env, job.shards.seq_len, err) != 0) {
		hidden_shards_close(&job.shards);
		return -1;
	}
	layer_forward_most(&job.forward, env, largest_shard(&job.shards));
	if (plan_task(&job, spec, err) == 0)
		rc = quantize_layer(&job, result, err);
	if (rc != 0) {
		json_free(*result);
		*result = NULL;
	}
	job_deinit(&job);
	return rc;
}
