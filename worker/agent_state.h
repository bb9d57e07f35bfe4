/* agent_state.h - the two state machines of a worker: the agent itself, and each task it holds.
 *
 * The agent:
 *
 *   REGISTERING ──201──► SERVING ──SIGTERM, drain──► DRAINING ──nothing held──► STOPPED
 *        │  ▲               │                            ▲
 *        │  └──404 on lease─┘                            │
 *        └───────────────────────SIGTERM─────────────────┘
 *
 * A lost device drains too: what was computed is given back, and then the program is started anew (restart.h).
 *
 * A task it holds (a hold), from the lease to the acknowledgement:
 *
 *                                                              (results found on disk at start)
 *                                                                             │
 *   ACCEPTING ─200─► FETCHING ─inputs─► COMPUTING ─result─► SEALING ─on disk──┴► UPLOADING ─stored─► COMPLETING ─200─┐
 *       │                │                  │                  │                  ▲    │              │    │         │
 *       │                │                  │                  │                  └────┼─422 corrupt──┘    │         │
 *       ├──error─────────┴──────error───────┴──────error───────┴─────────error─────────┴───► FAILING ◄─────┤         ▼
 *       ├──drain─────────┴──────drain───────┴──────hurry───────┴─────────hurry─────────────► RELEASING ────┼──────► GONE
 *       │                                                                                                  │         ▲
 *       └──lost (409, 404) in any state: GONE, or STOPPING while the compute thread runs ──────────────────┴─────────┘
 *
 * hold_move() and agent_move() are the only writers of a state; both log "A=>B", and a move that
 * the table does not have ends the program at its cause.
 * To add a state: the enum, the name, the table's row and column, the picture, tests/unit/test_worker_states.c.
 */
#ifndef QUARRY_WORKER_AGENT_STATE_H
#define QUARRY_WORKER_AGENT_STATE_H

#include <stdbool.h>
#include <stdint.h>

enum agent_state { AGENT_REGISTERING, AGENT_SERVING, AGENT_DRAINING, AGENT_STOPPED, AGENT_STATES };

enum hold_state {
	HOLD_ACCEPTING,         /* leased; the first heartbeat is under way */
	HOLD_FETCHING,          /* inputs come into the cache */
	HOLD_COMPUTING,         /* the compute thread has it */
	HOLD_SEALING,           /* computed; a background thread hashes the result and moves it into the spool */
	HOLD_UPLOADING,         /* the result is in the spool; its blobs go up */
	HOLD_COMPLETING,        /* blobs stored; waiting for the acknowledgement */
	HOLD_FAILING,           /* telling the coordinator that it went wrong */
	HOLD_RELEASING,         /* giving it back */
	HOLD_STOPPING,          /* not ours any more; the compute thread has yet to notice */
	HOLD_GONE,              /* nothing is under way: may be freed */
	HOLD_STATES
};

const char *agent_state_name(enum agent_state state);
const char *hold_state_name(enum hold_state state);
bool agent_move_allowed(enum agent_state from, enum agent_state to);
bool hold_move_allowed(enum hold_state from, enum hold_state to);

/* Moves *state; abort()s when the table has no such move. */
void agent_move(enum agent_state *state, enum agent_state to);
void hold_move(enum hold_state *state, enum hold_state to, const char *task, int64_t epoch);

#endif
