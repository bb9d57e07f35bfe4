/* task_quantize.c - one layer: activation statistics, then every linear to codes, scales, zero-points. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/packed.h"
#include "common/recipe.h"
#include "worker/layer_gram.h"
#include "worker/quant/quantize.h"
#include "worker/task_kinds.h"

enum { GRAM_SHARE_PERCENT = 60 };

/* The linears of the layer as the spec wants them. */
struct layer_plan {
	struct module_settings settings[LIN_COUNT];
	char name[LIN_COUNT][MODEL_NAME_MAX];
	struct linear_shape shape[LIN_COUNT];
	int64_t layer;
	double damp;
};

struct layer_job {
	struct layer_plan plan;
	struct layer_forward forward;
	struct layer_gram gram;
	struct layer_writer *writer;
	struct json *modules;           /* result rows */
	struct task_env *env;
	size_t done;
};

static int plan_module(struct layer_plan *p, int lin, const struct json *row, struct err *err)
{
	const char *name;

	if (json_require_string(row, "name", &name, err) != 0)
		return -1;
	if (strcmp(name, p->name[lin]) != 0)
		return err_set(err, ERR_INVALID, "the task names module '%s' where '%s' belongs", name,
			       p->name[lin]);
	if (module_settings_from_json(&p->settings[lin], row, err) != 0)
		return err_prefix(err, "%s", name);
	return 0;
}

static int plan_layer(struct layer_plan *p, const struct json *spec, const struct model_config *config,
		      struct err *err)
{
	const struct json *row = json_first(json_get(spec, "modules"));

	if (json_require_int(spec, "layer", 0, (int64_t)config->layers - 1, &p->layer, err) != 0)
		return -1;
	p->damp = json_get_number(spec, "damp", 0.01);
	for (int lin = 0; lin < LIN_COUNT; lin++, row = json_next(row)) {
		p->shape[lin] = model_linear(config, (enum block_linear)lin);
		model_linear_name(p->name[lin], config, (size_t)p->layer, (enum block_linear)lin);
		if (!row)
			return err_set(err, ERR_INVALID, "the task lacks module '%s'", p->name[lin]);
		if (plan_module(p, lin, row, err) != 0)
			return -1;
	}
	return 0;
}

static const float *linear_weights(const struct block_weights *w, int lin)
{
	const float *const of[LIN_COUNT] = {
		[LIN_Q] = w->q, [LIN_K] = w->k, [LIN_V] = w->v, [LIN_O] = w->o,
		[LIN_GATE] = w->gate, [LIN_UP] = w->up, [LIN_DOWN] = w->down,
	};

	return of[lin];
}

static size_t group_columns(const struct layer_plan *p, int lin)
{
	int64_t group = p->settings[lin].group_size;

	return group < 0 ? p->shape[lin].cols : (size_t)group;
}

static struct quant_options options_of(const struct layer_plan *p, int lin)
{
	const struct module_settings *s = &p->settings[lin];

	return (struct quant_options){
		.grid = { .bits = s->bits, .group = group_columns(p, lin),
			  .integer_zero = s->zero_point == ZERO_INTEGER, .symmetric = s->symmetric },
		.method = s->method == METHOD_NEUQI ? FIT_NEUQI : FIT_MINMAX,
		.ldlq = s->rounding == ROUND_LDLQ,
	};
}

static double bits_per_weight(const struct layer_plan *p, int lin)
{
	size_t groups = p->shape[lin].cols / group_columns(p, lin);

	return (32.0 * (double)packed_row_words(p->shape[lin].cols, p->settings[lin].bits) +
		64.0 * (double)groups) / (double)p->shape[lin].cols;
}

static int add_row(struct layer_job *job, int lin, const struct quant_site *site,
		   const struct quant_result *r, struct err *err)
{
	const struct layer_plan *p = &job->plan;
	struct json *row = json_new_object();

	if (json_set_string(row, "name", p->name[lin]) != 0 ||
	    json_set_int(row, "rows", (int64_t)p->shape[lin].rows) != 0 ||
	    json_set_int(row, "cols", (int64_t)p->shape[lin].cols) != 0 ||
	    json_set_int(row, "bits", p->settings[lin].bits) != 0 ||
	    json_set_int(row, "group_size", p->settings[lin].group_size) != 0 ||
	    json_set_number(row, "init_objective", r->init_objective) != 0 ||
	    json_set_number(row, "loss_nearest", r->loss_nearest) != 0 ||
	    json_set_number(row, "loss", r->loss) != 0 ||
	    json_set_number(row, "energy", r->energy) != 0 ||
	    json_set_number(row, "damp", site->damp) != 0 ||
	    json_set_int(row, "damp_retries", site->damp_retries) != 0 ||
	    json_set_number(row, "bits_per_weight", bits_per_weight(p, lin)) != 0) {
		json_free(row);
		return err_set_nomem(err, "a result");
	}
	return json_push(job->modules, row) == 0 ? 0 : err_set_nomem(err, "a result");
}

static int add_skipped_row(struct layer_job *job, int lin, struct err *err)
{
	struct json *row = json_new_object();

	if (json_set_string(row, "name", job->plan.name[lin]) != 0 || json_set_bool(row, "skip", true) != 0) {
		json_free(row);
		return err_set_nomem(err, "a result");
	}
	return json_push(job->modules, row) == 0 ? 0 : err_set_nomem(err, "a result");
}

/* Settings as metadata of the layer file, with the column count that the bit stream alone does not give. */
static char *settings_text(const struct layer_plan *p, int lin)
{
	struct json *object = json_new_object();
	char *text = NULL;

	if (object && module_settings_to_json(&p->settings[lin], object) == 0 &&
	    json_set_int(object, "cols", (int64_t)p->shape[lin].cols) == 0)
		text = json_print(object, false);
	json_free(object);
	return text;
}

static int store_module(struct layer_job *job, int lin, const struct quant_result *r, struct err *err)
{
	const struct layer_plan *p = &job->plan;
	char *text = settings_text(p, lin);
	int rc;

	if (!text)
		return err_set_nomem(err, "module settings");
	rc = layer_writer_add_module(job->writer, p->name[lin], p->settings[lin].bits, p->shape[lin].rows,
				     p->shape[lin].cols, group_columns(p, lin), r->codes, r->scales, r->zeros,
				     text, err);
	mem_free(text);
	return rc;
}

static int quantize_linear(struct layer_job *job, int lin, const struct quant_site *site, struct err *err)
{
	const struct layer_plan *p = &job->plan;
	struct quant_options options = options_of(p, lin);
	struct quant_result result = { 0 };
	char what[MODEL_NAME_MAX + 16];
	double share = GRAM_SHARE_PERCENT / 100.0;
	int rc;

	snprintf(what, sizeof(what), "quantizing %s", p->shape[lin].suffix);
	if (task_step(job->env, share + (1 - share) * (double)job->done++ / LIN_COUNT, what, err) != 0)
		return -1;
	rc = quant_module(&result, job->forward.backend, site, &options,
			  linear_weights(&job->forward.block.w, lin), p->shape[lin].rows, err);
	if (rc != 0)
		err_prefix(err, "%s", p->name[lin]);
	if (rc == 0)
		rc = store_module(job, lin, &result, err);
	if (rc == 0)
		rc = add_row(job, lin, site, &result, err);
	quant_result_deinit(&result);
	return rc;
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
	    quant_site_init(&site, job->forward.backend, job->gram.h[which], job->gram.cols[which], p->damp,
			    ldlq, err) != 0)
		return err_prefix(err, "layer %lld, input of %s", (long long)p->layer,
				  which == SITE_ATTN_IN ? "self_attn" : which == SITE_O_IN ? "o_proj" :
				  which == SITE_MLP_IN ? "mlp" : "down_proj");
	for (int lin = 0; rc == 0 && lin < LIN_COUNT; lin++) {
		if (p->shape[lin].site != which)
			continue;
		rc = p->settings[lin].skip ? add_skipped_row(job, lin, err)
					   : quantize_linear(job, lin, &site, err);
	}
	quant_site_deinit(&site);
	layer_gram_drop(&job->gram, which);
	return rc;
}

/* --- what stays as it was ---------------------------------------------------------------------- */

static int copy_tensor(struct layer_job *job, const char *name, struct err *err)
{
	struct checkpoint *ck = &job->forward.ck;
	const struct st_tensor *t = checkpoint_find(ck, name, NULL);
	void *bytes;
	int rc;

	if (!t)
		return err_set(err, ERR_CORRUPT, "the checkpoint has no tensor %s", name);
	bytes = mem_alloc((size_t)(t->end - t->begin), 1);
	if (!bytes)
		return err_set_nomem(err, name);
	rc = checkpoint_read_raw(ck, name, 0, t->shape[0], bytes, err);
	if (rc == 0)
		rc = layer_writer_add(job->writer, t, bytes, err);
	mem_free(bytes);
	return rc;
}

struct kept_call { struct layer_job *job; struct err *err; };

/* Tensors of the layer that no quantized module replaces. */
static int copy_if_kept(void *ctx, const struct model_tensor *t)
{
	struct kept_call *call = ctx;
	const struct layer_plan *p = &call->job->plan;

	if (t->layer != p->layer)
		return 0;
	for (int lin = 0; lin < LIN_COUNT; lin++) {
		size_t len = strlen(p->name[lin]);

		if (!p->settings[lin].skip && strncmp(t->name, p->name[lin], len) == 0 &&
		    strcmp(t->name + len, ".weight") == 0)
			return 0;
	}
	return copy_tensor(call->job, t->name, call->err);
}

static int copy_kept(struct layer_job *job, struct err *err)
{
	struct kept_call call = { job, err };

	return model_each_tensor(&job->forward.ck.config, copy_if_kept, &call);
}

/* --- the task ----------------------------------------------------------------------------------- */

/* Statistics of all sites from one pass, with the block's own weights. */
static int quantize_sites(struct layer_job *job, const bool wanted[SITE_COUNT], struct err *err)
{
	if (layer_gram_collect(&job->gram, &job->forward, wanted, job->env, GRAM_SHARE_PERCENT / 100.0, err) != 0)
		return -1;
	for (int site = 0; site < SITE_COUNT; site++)
		if (quantize_site(job, (enum block_site)site, err) != 0)
			return -1;
	return 0;
}

static int quantize_layer(struct layer_job *job, struct json **result, struct err *err)
{
	bool wanted[SITE_COUNT] = { false };
	char *path;
	int rc;

	for (int lin = 0; lin < LIN_COUNT; lin++)
		wanted[job->plan.shape[lin].site] |= !job->plan.settings[lin].skip;
	if (layer_forward_load(&job->forward, (size_t)job->plan.layer, NULL, err) != 0)
		return -1;
	if (quantize_sites(job, wanted, err) != 0 || copy_kept(job, err) != 0)
		return -1;
	path = task_output_path(job->env, "layer", err);
	rc = path ? layer_writer_write(job->writer, path, err) : -1;
	mem_free(path);
	if (rc != 0)
		return -1;
	*result = json_new_object();
	rc = json_set_int(*result, "tokens", (int64_t)job->gram.rows[SITE_ATTN_IN]);
	if (rc == 0) {
		rc = json_set(*result, "modules", job->modules);
		job->modules = NULL;
	}
	return rc == 0 ? 0 : err_set_nomem(err, "a result");
}

static int first_seq_len(const struct task_env *env, size_t *seq_len, struct err *err)
{
	const struct task_input *input = task_input_find(env, "hidden-0", err);
	struct tensor_file f;

	if (!input || hidden_file_open(&f, input->path, err) != 0)
		return -1;
	*seq_len = f.seq_len;
	tensor_file_close(&f);
	return 0;
}

int task_quantize(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct layer_job job = { .env = env };
	size_t seq_len;
	int rc = -1;

	if (first_seq_len(env, &seq_len, err) != 0 ||
	    layer_forward_init(&job.forward, env, seq_len, err) != 0)
		return -1;
	job.writer = layer_writer_new();
	job.modules = json_new_array();
	if (!job.writer || !job.modules)
		err_set_nomem(err, "a layer");
	else if (plan_layer(&job.plan, spec, &job.forward.ck.config, err) == 0)
		rc = quantize_layer(&job, result, err);
	if (rc != 0) {
		json_free(*result);
		*result = NULL;
	}
	json_free(job.modules);
	layer_writer_free(job.writer);
	layer_gram_deinit(&job.gram);
	layer_forward_deinit(&job.forward);
	return rc;
}
