#include "worker/distill_run.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/quant/order.h"

static struct distill_course *progress_of(const struct distill_run *r)
{
	return &r->model->state->progress;
}

/* --- how far it is ------------------------------------------------------------------------------------ */

/* In forward passes of one sequence: a step is two forwards and a backward, which costs about two. */
static double cost_of_step(const struct distill_run *r)
{
	return 4.0 * (double)r->plan->batch;
}

static double cost_of_probe(const struct distill_run *r)
{
	return (double)r->model->probe;
}

static void begin_unit(struct distill_run *r, double cost)
{
	const struct distill_course *p = progress_of(r);
	const double all = (double)(r->plan->epochs + 1) * cost_of_probe(r) + (double)r->plan->steps * cost_of_step(r);

	r->done = ((double)p->probes * cost_of_probe(r) + (double)p->step * cost_of_step(r)) / all;
	r->unit = cost / all;
}

static int tick(void *ctx, double part, struct err *err)
{
	struct distill_run *r = ctx;

	return task_step(r->env, r->done + r->unit * part, r->note, err);
}

/* --- commits and checkpoints ---------------------------------------------------------------------------- */

static bool checkpoint_is_wanted(const struct distill_run *r)
{
	const struct task_env *env = r->env;

	return env->checkpoint && env->checkpoint(env->checkpoint_ctx, NULL) > 0;
}

/* Something was trained since the last one, or since the start. */
static bool is_news(const struct distill_run *r)
{
	return progress_of(r)->step > r->left_step;
}

/* What was committed. That it cannot be left is no reason to fail. */
static void leave_checkpoint(struct distill_run *r)
{
	struct err why = ERR_INIT;
	char *path = path_join(r->scratch, "checkpoint.safetensors");

	if (!path || distill_state_pack(r->model->state, path, &why) != 0)
		log_warn("no checkpoint is left: %s", path ? why.text : "out of memory");
	else if (r->env->checkpoint(r->env->checkpoint_ctx, path) != 0)
		unlink(path);
	else
		r->left_step = progress_of(r)->step;
	mem_free(path);
}

static int commit(struct distill_run *r, struct err *err)
{
	if (distill_state_commit(r->model->state, err) != 0)
		return -1;
	if (is_news(r) && checkpoint_is_wanted(r))
		leave_checkpoint(r);
	return 0;
}

void distill_run_leave(struct distill_run *r)
{
	struct distill_state *s = r->model->state;
	const struct distill_owner owner = s->owner;
	struct err why = ERR_INIT;
	bool found = false;

	if (!checkpoint_is_wanted(r))
		return;
	/* the state at hand may be in the middle of a step */
	distill_state_close(s);
	if (distill_state_open(s, r->scratch, &owner, &found, &why) == 0 && found &&
	    is_news(r))
		leave_checkpoint(r);
}

/* --- probes --------------------------------------------------------------------------------------------- */

static double total(const struct distill_run *r, struct distill_loss loss)
{
	return loss.kl + r->plan->weight_hidden * loss.hidden;
}

static int judge(struct distill_run *r, struct distill_loss loss, struct err *err)
{
	struct distill_course *p = progress_of(r);

	if (p->probes == 0) {
		p->before = p->best = loss;
	} else if (total(r, loss) < total(r, p->best)) {
		if (distill_model_keep(r->model, err) != 0)
			return -1;
		p->best = loss;
		p->best_probe = p->probes;
	}
	return 0;
}

static int probe(struct distill_run *r, struct err *err)
{
	struct distill_course *p = progress_of(r);
	struct distill_loss loss;
	struct err why = ERR_INIT;
	int rc = 0;

	snprintf(r->note, sizeof(r->note), "distilling: probe %lld of %lld", (long long)p->probes + 1,
		 (long long)r->plan->epochs + 1);
	begin_unit(r, cost_of_probe(r));
	if (distill_model_probe(r->model, &loss, &why) == 0) {
		rc = judge(r, loss, err);
	} else if (why.code != ERR_NUMERIC || p->probes == 0) { /* otherwise: no better than before */
		*err = why;
		rc = -1;
	}
	if (rc != 0)
		return -1;
	p->probes++;
	return commit(r, err);
}

/* --- steps ----------------------------------------------------------------------------------------------- */

/* A multiple of the interval; at the end of an epoch the probe commits. */
static bool commit_is_due(const struct distill_run *r, int64_t step)
{
	const int64_t every = r->plan->steps * r->plan->percent / 100;

	return every <= 1 || step % every == 0 || step % r->plan->per_epoch == 0;
}

static void add_to_curve(struct distill_run *r, struct distill_loss loss)
{
	struct distill_course *p = progress_of(r);
	const int64_t every = (r->plan->steps + DISTILL_CURVE_MAX - 1) / DISTILL_CURVE_MAX;

	p->sum.kl += loss.kl;
	p->sum.hidden += loss.hidden;
	p->summed++;
	if ((p->step % every != 0 && p->step != r->plan->steps) || p->curve_count == DISTILL_CURVE_MAX)
		return;
	p->curve[p->curve_count++] = (struct distill_point){
		p->step, { p->sum.kl / (double)p->summed, p->sum.hidden / (double)p->summed } };
	p->sum = (struct distill_loss){ 0 };
	p->summed = 0;
}

static struct distill_step next_step(struct distill_run *r)
{
	const struct distill_plan *plan = r->plan;
	const int64_t done = progress_of(r)->step, epoch = done / plan->per_epoch;
	const int64_t first = done % plan->per_epoch * plan->batch, left = plan->sequences - first;

	if (r->ordered != epoch)
		training_order((uint64_t)plan->seed, (uint64_t)epoch, (size_t)plan->sequences, r->order);
	r->ordered = epoch;
	return (struct distill_step){
		.sequences = r->order + first, .n = (size_t)(left < plan->batch ? left : plan->batch),
		.rates = plan->rates, .schedule = tuned_schedule(done + 1, plan->steps), .step = done + 1,
		.commit_follows = commit_is_due(r, done + 1),
	};
}

/* With what the step before gave, if this process did it. */
static void describe_step(struct distill_run *r, int64_t step)
{
	int used = snprintf(r->note, sizeof(r->note), "distilling: step %lld of %lld", (long long)step,
			    (long long)r->plan->steps);

	if (r->kl >= 0)
		snprintf(r->note + used, sizeof(r->note) - (size_t)used, ", KL %.4g", r->kl);
}

static int train(struct distill_run *r, struct err *err)
{
	struct distill_course *p = progress_of(r);
	const struct distill_step step = next_step(r);
	struct distill_loss loss;

	describe_step(r, step.step);
	begin_unit(r, cost_of_step(r));
	if (distill_model_step(r->model, &step, &loss, err) != 0)
		return -1;
	p->step++;
	add_to_curve(r, loss);
	r->kl = loss.kl;
	return step.commit_follows && p->step % r->plan->per_epoch != 0 ? commit(r, err) : 0;
}

/* --- the course -------------------------------------------------------------------------------------------- */

static bool probe_is_due(const struct distill_run *r)
{
	const struct distill_course *p = progress_of(r);

	return p->step % r->plan->per_epoch == 0 && p->probes <= p->step / r->plan->per_epoch;
}

static int go_on(struct distill_run *r, struct err *err)
{
	const struct distill_course *p = progress_of(r);
	struct err why = ERR_INIT;

	for (;;) {
		if (probe_is_due(r)) {
			if (probe(r, err) != 0)
				return -1;
		} else if (p->step >= r->plan->steps) {
			return 0;
		} else if (train(r, &why) != 0) {
			if (why.code != ERR_NUMERIC) {
				*err = why;
				return -1;
			}
			r->diverged_at = p->step + 1;
			log_warn("distillation ends before step %lld: %s", (long long)r->diverged_at, why.text);
			return 0;
		}
	}
}

int distill_run_go(struct distill_run *r, struct err *err)
{
	snprintf(r->note, sizeof(r->note), "preparing distillation");
	r->model->tick = tick;
	r->model->tick_ctx = r;
	if (!r->model->state->committed && distill_model_begin(r->model, err) != 0)
		return -1;
	return go_on(r, err);
}

int distill_run_init(struct distill_run *r, const struct distill_plan *plan, const struct task_env *env,
		     struct distill_model *model, const char *scratch, struct err *err)
{
	*r = (struct distill_run){ .plan = plan, .env = env, .model = model, .scratch = scratch, .ordered = -1,
				   .kl = -1 };
	r->order = mem_alloc((size_t)plan->sequences, sizeof(*r->order));
	return r->order ? 0 : err_set_nomem(err, "the order of sequences");
}

void distill_run_deinit(struct distill_run *r)
{
	mem_free(r->order);
	r->order = NULL;
}
