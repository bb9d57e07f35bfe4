/* distill_run.h - the course of end-to-end distillation: probe, an epoch of steps, probe, …, an epoch of steps, probe.
 *
 * After each probe, and every `percent` of the steps, what there is is committed (distill_state.h), and a checkpoint of
 * it is left where the task's environment wants one. What happens next depends on the committed state and the plan alone,
 * so a run that begins with an earlier run's state ends as that run would have. Single-threaded.
 */
#ifndef QUARRY_WORKER_DISTILL_RUN_H
#define QUARRY_WORKER_DISTILL_RUN_H

#include "worker/distill_model.h"
#include "worker/table_bits.h"
#include "worker/task.h"

/* The spec of the task. */
struct distill_plan {
	int64_t sequences, epochs, batch;
	int64_t percent;                /* of the steps between two commits, at most */
	int64_t seed;
	bool train_codes;
	double weight_hidden;
	struct tuned_rates rates;
	struct table_bits tables;       /* what the student computes with; the targets are the original's */
	int64_t per_epoch, steps;       /* steps */
};
int distill_plan_read(struct distill_plan *p, const struct json *spec, struct err *err);

enum { DISTILL_NOTE_BYTES = 96 };

struct distill_run {
	const struct distill_plan *plan;
	const struct task_env *env;
	struct distill_model *model;    /* with its state */
	const char *scratch;            /* folder for the checkpoint file */
	uint32_t *order;                /* (sequences) of epoch `ordered`; -1 = none yet */
	int64_t ordered;
	int64_t diverged_at;            /* the step whose numbers were not finite any more; 0 = none */
	int64_t left_step;              /* of the last checkpoint that was left; 0 = none */
	double kl;                      /* of the step before; -1 = none in this process */
	double done, unit;              /* shares of the whole: finished, and of what is under way */
	char note[DISTILL_NOTE_BYTES];
};

/* Everything is borrowed. */
int distill_run_init(struct distill_run *r, const struct distill_plan *plan, const struct task_env *env,
		     struct distill_model *model, const char *scratch, struct err *err);
void distill_run_deinit(struct distill_run *r);

/* From where the state is to the end. Training whose numbers are not finite any more ends early, with the best so far.
 * On failure (ERR_CANCELLED among others) the last commit stands. */
int distill_run_go(struct distill_run *r, struct err *err);
/* After ERR_CANCELLED: leaves a last checkpoint if one is wanted. The state is of no use afterwards. */
void distill_run_leave(struct distill_run *r);

#endif
