/* The state tables; see docs/protocol.md for the picture. Nothing else writes a state column. */
#include "server/states.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "server/store.h"

#define BIT(state) (1u << (state))

static const struct { const char *name; unsigned moves; } job_states[JOB_STATES] = {
	[JOB_PLANNING]   = { "PLANNING", BIT(JOB_RUNNING) },
	[JOB_RUNNING]    = { "RUNNING", BIT(JOB_ASSEMBLING) | BIT(JOB_FAILED) | BIT(JOB_CANCELLED) },
	[JOB_ASSEMBLING] = { "ASSEMBLING", BIT(JOB_DONE) | BIT(JOB_FAILED) | BIT(JOB_CANCELLED) },
	[JOB_DONE]       = { "DONE", 0 },
	[JOB_FAILED]     = { "FAILED", BIT(JOB_RUNNING) },
	[JOB_CANCELLED]  = { "CANCELLED", 0 },
};

static const struct { const char *name; unsigned moves; } task_states[TASK_STATES] = {
	[TASK_BLOCKED]   = { "BLOCKED", BIT(TASK_READY) | BIT(TASK_CANCELLED) },
	[TASK_READY]     = { "READY", BIT(TASK_LEASED) | BIT(TASK_CANCELLED) },
	[TASK_LEASED]    = { "LEASED", BIT(TASK_DONE) | BIT(TASK_READY) | BIT(TASK_FAILED) | BIT(TASK_CANCELLED) },
	[TASK_DONE]      = { "DONE", 0 },
	[TASK_FAILED]    = { "FAILED", BIT(TASK_READY) | BIT(TASK_BLOCKED) },
	[TASK_CANCELLED] = { "CANCELLED", BIT(TASK_READY) | BIT(TASK_BLOCKED) },
};

static const struct { const char *name, *output; } task_kinds[KIND_COUNT] = {
	[KIND_VERIFY]   = { "verify", NULL },
	[KIND_TOKENIZE] = { "tokenize", "tokens" },
	[KIND_EMBED]    = { "embed", "hidden" },
	[KIND_CAPTURE]  = { "capture", "hidden" },
	[KIND_QUANTIZE] = { "quantize", "layer" },
	[KIND_EVALUATE] = { "evaluate", NULL },
	[KIND_ASSEMBLE] = { "assemble", "file" },
	[KIND_DISTILL]  = { "distill", NULL },
};

const enum task_kind task_kinds_in_order[KIND_COUNT - 1] = {
	KIND_VERIFY, KIND_TOKENIZE, KIND_EMBED, KIND_CAPTURE, KIND_QUANTIZE, KIND_DISTILL, KIND_EVALUATE,
	KIND_ASSEMBLE,
};

const char *job_state_name(int64_t state)
{
	return state > 0 && state < JOB_STATES ? job_states[state].name : "?";
}

const char *task_state_name(int64_t state)
{
	return state > 0 && state < TASK_STATES ? task_states[state].name : "?";
}

const char *task_kind_name(int64_t kind)
{
	return kind > 0 && kind < KIND_COUNT ? task_kinds[kind].name : "?";
}

const char *task_kind_output(int64_t kind)
{
	return kind > 0 && kind < KIND_COUNT ? task_kinds[kind].output : NULL;
}

enum job_state job_state_from_name(const char *name)
{
	for (int s = 1; s < JOB_STATES; s++)
		if (strcmp(job_states[s].name, name) == 0)
			return (enum job_state)s;
	return 0;
}

bool job_state_final(int64_t state)
{
	return state == JOB_DONE || state == JOB_FAILED || state == JOB_CANCELLED;
}

bool job_move_allowed(int64_t from, int64_t to)
{
	return from > 0 && from < JOB_STATES && to > 0 && to < JOB_STATES && (job_states[from].moves & BIT(to));
}

bool task_move_allowed(int64_t from, int64_t to)
{
	return from > 0 && from < TASK_STATES && to > 0 && to < TASK_STATES &&
	       (task_states[from].moves & BIT(to));
}

static int illegal(const char *what, const char *id, const char *from, const char *to, struct err *err)
{
	log_error("%s %s: illegal move %s=>%s", what, id, from, to);
	return err_set(err, ERR_INTERNAL, "%s %s cannot go from %s to %s", what, id, from, to);
}

int job_move(struct store *db, int64_t job, const char *job_id, enum job_state from, enum job_state to,
	     int64_t now_ms, struct err *err)
{
	char text[64];
	int changed;

	if (!job_move_allowed(from, to))
		return illegal("job", job_id, job_state_name(from), job_state_name(to), err);
	changed = store_exec(db, SQL_JOB_MOVE, err, sql_i(job), sql_i(from), sql_i(to),
			     sql_i(to == JOB_RUNNING), sql_i(job_state_final(to)), sql_i(now_ms));
	if (changed < 0)
		return -1;
	if (changed != 1)
		return err_set(err, ERR_CONFLICT, "job %s is not %s", job_id, job_state_name(from));
	snprintf(text, sizeof(text), "%s=>%s", job_state_name(from), job_state_name(to));
	log_info("job %s: %s", job_id, text);
	return store_exec(db, SQL_EVENT_ADD, err, sql_i(job), sql_i(now_ms), sql_t("job"), sql_t(text)) < 0
		? -1 : 0;
}

static int run_task_update(struct store *db, const struct task_ref *t, const struct task_change *c,
			   struct err *err)
{
	switch (c->to) {
	case TASK_LEASED:
		return store_exec(db, SQL_TASK_LEASE, err, sql_i(t->pk), sql_i(t->epoch), sql_i(c->worker),
				  sql_i(c->deadline_ms), sql_i(c->now_ms));
	case TASK_DONE:
		return store_exec(db, SQL_TASK_DONE, err, sql_i(t->pk), sql_i(t->epoch),
				  sql_i(c->now_ms - t->leased_ms));
	case TASK_BLOCKED:
	case TASK_READY:
	case TASK_FAILED:
	case TASK_CANCELLED:
	case TASK_STATES:
		break;
	}
	return store_exec(db, SQL_TASK_MOVE, err, sql_i(t->pk), sql_i(t->state), sql_i(t->epoch), sql_i(c->to),
			  sql_i(c->attempts));
}

int task_move(struct store *db, struct task_ref *t, const struct task_change *c, struct err *err)
{
	int64_t leased = (c->to == TASK_LEASED) - (t->state == TASK_LEASED);
	int64_t done = c->to == TASK_DONE;
	char id[32];
	int changed;

	snprintf(id, sizeof(id), "%" PRId64, t->pk);
	if (!task_move_allowed(t->state, c->to))
		return illegal("task", id, task_state_name(t->state), task_state_name(c->to), err);
	changed = run_task_update(db, t, c, err);
	if (changed < 0)
		return -1;
	if (changed != 1)
		return err_set(err, ERR_CONFLICT, "the task is no longer %s at epoch %" PRId64,
			       task_state_name(t->state), t->epoch);
	log_debug("task %s: %s=>%s epoch %" PRId64, id, task_state_name(t->state), task_state_name(c->to), t->epoch);
	if (store_exec(db, SQL_JOB_COUNT, err, sql_i(t->job), sql_i(leased), sql_i(done),
		       sql_i(done && t->kind != KIND_ASSEMBLE)) < 0)
		return -1;
	t->state = c->to;
	t->attempts = c->attempts;
	if (c->to == TASK_LEASED) {
		t->epoch++;
		t->worker = c->worker;
		t->leased_ms = c->now_ms;
	}
	return 0;
}
