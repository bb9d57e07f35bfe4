/* task_distill.c - end-to-end distillation: every layer's parameters against the original model's last hidden states.
 *
 * Here: what comes in, whose state the scratch folder holds, what goes out. distill_run.h is the course of training,
 * distill_model.h the arithmetic, distill_state.h what survives the process.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/distill_run.h"
#include "worker/task_kinds.h"

enum { PROBE_SEQUENCES = 16 };

struct distill_job {
	struct distill_plan plan;
	struct task_env *env;
	struct checkpoint ck;
	struct distill_layer *layers;
	size_t *floats;                 /* of each layer's state */
	struct distill_owner owner;
	struct distill_feed feed;
	struct distill_state state;
	struct distill_model model;
	struct distill_run run;
	int64_t resumed_at;
	char *scratch;
};

/* --- who we are --------------------------------------------------------------------------------------- */

static void add_text(struct digest *d, const char *text)
{
	digest_add(d, text, strlen(text) + 1);
}

static int add_input(struct digest *d, const struct task_input *input, struct err *err)
{
	char hex[DIGEST_HEX];

	if (!input->sha256 && digest_file(input->path, hex, NULL, err) != 0)
		return -1;
	add_text(d, input->name);
	add_text(d, input->sha256 ? input->sha256 : hex);
	return 0;
}

/* The digest of everything that the result depends on, beside the backend. */
static int make_identity(struct distill_job *job, const struct json *spec, struct err *err)
{
	struct digest *d = digest_new();
	char *text = json_print(spec, false);
	int rc = 0;

	if (d && text) {
		add_text(d, text);
		digest_add(d, job->ck.config_text, job->ck.config_len);
	} else {
		rc = err_set_nomem(err, "a digest");
	}
	for (size_t i = 0; rc == 0 && i < job->env->input_count; i++)
		if (strcmp(job->env->inputs[i].name, "checkpoint") != 0)
			rc = add_input(d, &job->env->inputs[i], err);
	if (rc == 0)
		digest_finish(d, job->owner.identity);
	digest_free(d);
	mem_free(text);
	return rc;
}

static int set_owner(struct distill_job *job, const struct json *spec, struct err *err)
{
	struct backend *be = job->env->backend;

	job->owner = (struct distill_owner){ .backend = be->ops->name, .exact = be->ops->identity(be),
					     .layers = job->ck.config.layers, .floats = job->floats };
	return make_identity(job, spec, err);
}

/* --- opening ---------------------------------------------------------------------------------------------- */

static int plan_layers(struct distill_job *job, struct err *err)
{
	const size_t layers = job->ck.config.layers;
	char name[32];

	job->layers = mem_alloc(layers, sizeof(*job->layers));
	job->floats = mem_alloc(layers, sizeof(*job->floats));
	if (!job->layers || !job->floats)
		return err_set_nomem(err, "the layers of a model");
	for (size_t l = 0; l < layers; l++) {
		const struct task_input *input;

		snprintf(name, sizeof(name), "layer-%zu", l);
		input = task_input_find(job->env, name, err);
		if (!input || distill_layer_plan(&job->layers[l], &job->ck.config, l, input->path,
						 job->plan.train_codes, err) != 0)
			return -1;
		job->floats[l] = job->layers[l].sizes.state;
	}
	return 0;
}

/* The caller's folder, or one among the outputs, which is removed in the end. */
static int choose_scratch(struct distill_job *job, struct err *err)
{
	job->scratch = job->env->scratch_dir ? mem_strdup(job->env->scratch_dir)
					     : path_join(job->env->out_dir, "scratch");
	if (!job->scratch)
		return err_set_nomem(err, "a path");
	return dir_make(job->scratch, err);
}

/* The last state that was committed, here or by the worker that left a checkpoint. */
static int open_state(struct distill_job *job, struct err *err)
{
	const char *packed = task_input_path(job->env, "checkpoint");
	bool found = false, taken = false;

	if (distill_state_open(&job->state, job->scratch, &job->owner, &found, err) != 0)
		return -1;
	if (packed && distill_state_unpack(&job->state, packed, &taken, err) != 0)
		return -1;
	job->resumed_at = job->state.progress.step;
	if (found || taken)
		log_info("distillation goes on after step %lld of %lld%s", (long long)job->resumed_at,
			 (long long)job->plan.steps, taken ? ", from a checkpoint" : "");
	return 0;
}

static int embed(struct distill_job *job, struct err *err)
{
	char *path = path_join(job->scratch, "embedded");
	int rc = path ? distill_feed_embed(&job->feed, job->env, &job->ck, job->plan.tables.embeddings, path, err)
		      : err_set_nomem(err, "a path");

	if (path)
		unlink(path); /* its descriptor stays; nobody needs to tidy up */
	mem_free(path);
	return rc;
}

static int open_model(struct distill_job *job, struct err *err)
{
	const size_t sequences = (size_t)job->plan.sequences;
	const struct distill_sizes sizes = {
		.head_bits = job->plan.tables.lm_head,
		.batch = (size_t)job->plan.batch, .weight_hidden = job->plan.weight_hidden,
		.probe = sequences < PROBE_SEQUENCES ? sequences : PROBE_SEQUENCES,
	};

	if (distill_model_init(&job->model, job->env->backend, &job->ck, job->layers, &job->feed, &job->state, &sizes,
			       err) != 0)
		return -1;
	return distill_run_init(&job->run, &job->plan, job->env, &job->model, job->scratch, err);
}

static int open_parts(struct distill_job *job, const struct json *spec, struct err *err)
{
	if (distill_plan_read(&job->plan, spec, err) != 0 ||
	    checkpoint_open(&job->ck, job->env->model, NULL, err) != 0)
		return -1;
	if (plan_layers(job, err) != 0 || choose_scratch(job, err) != 0 ||
	    distill_feed_open(&job->feed, job->env, &job->ck.config, (size_t)job->plan.sequences, err) != 0)
		return -1;
	if (set_owner(job, spec, err) != 0 || open_state(job, err) != 0 || embed(job, err) != 0)
		return -1;
	return open_model(job, err);
}

static void close_parts(struct distill_job *job)
{
	distill_run_deinit(&job->run);
	distill_model_deinit(&job->model);
	distill_state_close(&job->state);
	distill_feed_close(&job->feed);
	checkpoint_close(&job->ck);
	mem_free(job->layers);
	mem_free(job->floats);
	mem_free(job->scratch);
}

/* --- the end ----------------------------------------------------------------------------------------------- */

/* The best: what the last better probe left, or the inputs. */
static int write_outputs(struct distill_job *job, struct err *err)
{
	for (size_t l = 0; l < job->ck.config.layers; l++) {
		char name[32], *path;
		int rc = -1;

		snprintf(name, sizeof(name), "layer-%zu", l);
		path = task_output_path(job->env, name, err);
		if (path)
			rc = job->state.progress.best_probe > 0 ? distill_state_copy_best(&job->state, l, path, err)
								: distill_file_copy(job->layers[l].path, path, NULL, err);
		mem_free(path);
		if (rc != 0)
			return -1;
	}
	return job->env->scratch_dir ? 0 : dir_remove(job->scratch, err);
}

static struct json *loss_json(struct distill_loss loss)
{
	struct json *o = json_new_object();

	if (o && json_set_number(o, "kl", loss.kl) == 0 && json_set_number(o, "hidden", loss.hidden) == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *make_result(const struct distill_job *job)
{
	const struct distill_course *p = &job->state.progress;
	struct json *o = json_new_object();

	if (o && json_set(o, "before", loss_json(p->before)) == 0 && json_set(o, "after", loss_json(p->best)) == 0 &&
	    json_set_bool(o, "kept", p->best_probe > 0) == 0 && json_set_int(o, "steps", job->plan.steps) == 0 &&
	    json_set_int(o, "resumed_at", job->resumed_at) == 0 && json_set(o, "curve", distill_curve_json(p)) == 0 &&
	    (job->run.diverged_at == 0 || json_set_int(o, "diverged_at", job->run.diverged_at) == 0))
		return o;
	json_free(o);
	return NULL;
}

static int run(struct distill_job *job, const struct json *spec, struct json **result, struct err *err)
{
	if (open_parts(job, spec, err) != 0)
		return -1;
	if (distill_run_go(&job->run, err) != 0) {
		if (err->code == ERR_CANCELLED)
			distill_run_leave(&job->run);
		return -1;
	}
	if (write_outputs(job, err) != 0)
		return -1;
	*result = make_result(job);
	return *result ? 0 : err_set_nomem(err, "a result");
}

int task_distill(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct distill_job job = { .env = env, .feed = { .embedded = TENSOR_FILE_CLOSED } };
	struct err why = ERR_INIT;
	int rc = run(&job, spec, result, &why);

	if (rc != 0 && err)
		*err = why;
	close_parts(&job);
	return rc;
}
