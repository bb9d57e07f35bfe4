#include "worker/agent_state.h"

#include <stdlib.h>

#include "common/log.h"

static const char *const agent_names[AGENT_STATES] = {
	[AGENT_REGISTERING] = "REGISTERING", [AGENT_SERVING] = "SERVING",
	[AGENT_DRAINING] = "DRAINING", [AGENT_STOPPED] = "STOPPED",
};

static const bool agent_moves[AGENT_STATES][AGENT_STATES] = {
	[AGENT_REGISTERING] = { [AGENT_SERVING] = true, [AGENT_DRAINING] = true, [AGENT_STOPPED] = true },
	[AGENT_SERVING] = { [AGENT_REGISTERING] = true, [AGENT_DRAINING] = true },
	[AGENT_DRAINING] = { [AGENT_STOPPED] = true },
};

static const char *const hold_names[HOLD_STATES] = {
	[HOLD_ACCEPTING] = "ACCEPTING", [HOLD_FETCHING] = "FETCHING", [HOLD_COMPUTING] = "COMPUTING",
	[HOLD_SEALING] = "SEALING", [HOLD_UPLOADING] = "UPLOADING", [HOLD_COMPLETING] = "COMPLETING",
	[HOLD_FAILING] = "FAILING",
	[HOLD_RELEASING] = "RELEASING", [HOLD_STOPPING] = "STOPPING", [HOLD_GONE] = "GONE",
};

static const bool hold_moves[HOLD_STATES][HOLD_STATES] = {
	[HOLD_ACCEPTING] = { [HOLD_FETCHING] = true, [HOLD_FAILING] = true, [HOLD_RELEASING] = true,
			     [HOLD_GONE] = true },
	[HOLD_FETCHING] = { [HOLD_COMPUTING] = true, [HOLD_FAILING] = true, [HOLD_RELEASING] = true,
			    [HOLD_GONE] = true },
	[HOLD_COMPUTING] = { [HOLD_SEALING] = true, [HOLD_FAILING] = true, [HOLD_RELEASING] = true,
			     [HOLD_STOPPING] = true },
	[HOLD_SEALING] = { [HOLD_UPLOADING] = true, [HOLD_FAILING] = true, [HOLD_RELEASING] = true,
			   [HOLD_GONE] = true },
	[HOLD_UPLOADING] = { [HOLD_COMPLETING] = true, [HOLD_FAILING] = true, [HOLD_RELEASING] = true,
			     [HOLD_GONE] = true },
	[HOLD_COMPLETING] = { [HOLD_UPLOADING] = true, [HOLD_FAILING] = true, [HOLD_GONE] = true },
	[HOLD_FAILING] = { [HOLD_GONE] = true },
	[HOLD_RELEASING] = { [HOLD_STOPPING] = true, [HOLD_GONE] = true },
	[HOLD_STOPPING] = { [HOLD_GONE] = true },
};

const char *agent_state_name(enum agent_state state)
{
	return (unsigned)state < AGENT_STATES ? agent_names[state] : "?";
}

const char *hold_state_name(enum hold_state state)
{
	return (unsigned)state < HOLD_STATES ? hold_names[state] : "?";
}

bool agent_move_allowed(enum agent_state from, enum agent_state to)
{
	return (unsigned)from < AGENT_STATES && (unsigned)to < AGENT_STATES && agent_moves[from][to];
}

bool hold_move_allowed(enum hold_state from, enum hold_state to)
{
	return (unsigned)from < HOLD_STATES && (unsigned)to < HOLD_STATES && hold_moves[from][to];
}

void agent_move(enum agent_state *state, enum agent_state to)
{
	if (!agent_move_allowed(*state, to)) {
		log_error("no move %s=>%s", agent_state_name(*state), agent_state_name(to));
		abort();
	}
	log_info("%s=>%s", agent_state_name(*state), agent_state_name(to));
	*state = to;
}

void hold_move(enum hold_state *state, enum hold_state to, const char *task, int64_t epoch)
{
	if (!hold_move_allowed(*state, to)) {
		log_error("task %s epoch %lld: no move %s=>%s", task, (long long)epoch, hold_state_name(*state),
			  hold_state_name(to));
		abort();
	}
	log_info("task %s epoch %lld: %s=>%s", task, (long long)epoch, hold_state_name(*state),
		 hold_state_name(to));
	*state = to;
}
