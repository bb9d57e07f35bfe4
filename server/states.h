/* states.h - the states of jobs and tasks, which moves exist, and the functions that move.
 *
 * The numbers below are stored in databases and the names travel over the wire: never change one,
 * never reuse one. To add a state or kind: a new number at the end, its name and its row of moves in states.c,
 * docs/protocol.md, and a migration when a partial index names the number.
 *
 * A move is one guarded UPDATE that must change exactly one row, logged "A=>B". A move that the table does not
 * know is a programming error: ERR_INTERNAL and a log line. A guard that finds another state or epoch
 * is ERR_CONFLICT.
 */
#ifndef QUARRY_SERVER_STATES_H
#define QUARRY_SERVER_STATES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

struct store;

enum job_state {
	JOB_PLANNING = 1, JOB_RUNNING = 2, JOB_ASSEMBLING = 3, JOB_DONE = 4, JOB_FAILED = 5,
	JOB_CANCELLED = 6, JOB_STATES = 7
};

enum task_state {
	TASK_BLOCKED = 1, TASK_READY = 2, TASK_LEASED = 3, TASK_DONE = 4, TASK_FAILED = 5,
	TASK_CANCELLED = 6, TASK_STATES = 7
};

enum task_kind {
	KIND_VERIFY = 1, KIND_TOKENIZE = 2, KIND_EMBED = 3, KIND_CAPTURE = 4, KIND_QUANTIZE = 5,
	KIND_EVALUATE = 6, KIND_ASSEMBLE = 7, KIND_DISTILL = 8, KIND_COUNT = 9
};

/* "RUNNING"; "?" for a number outside the enum. */
const char *job_state_name(int64_t state);
const char *task_state_name(int64_t state);
const char *task_kind_name(int64_t kind);
/* 0 when unknown. */
enum job_state job_state_from_name(const char *name);
/* Name of the one blob that every task of this kind makes, or NULL: none, or what their readers' inputs name. */
const char *task_kind_output(int64_t kind);
/* All kinds in the order in which a job passes through them, which is not that of their numbers. */
extern const enum task_kind task_kinds_in_order[KIND_COUNT - 1];

bool job_state_final(int64_t state); /* DONE, FAILED, CANCELLED */
bool job_move_allowed(int64_t from, int64_t to);
bool task_move_allowed(int64_t from, int64_t to);

/* PLANNING..: sets started_ms when RUNNING is entered first, finished_ms in a final state (cleared
 * when a retry leaves it), and writes an event. */
int job_move(struct store *db, int64_t job, const char *job_id, enum job_state from, enum job_state to,
	     int64_t now_ms, struct err *err);

/* What a move needs to know of a task. */
struct task_ref {
	int64_t pk, job, kind, state, epoch, attempts, leased_ms, worker;
};

/* What a move changes besides the state. */
struct task_change {
	enum task_state to;
	int64_t worker;         /* LEASED: the holder */
	int64_t deadline_ms;    /* LEASED */
	int64_t now_ms;
	int64_t attempts;       /* new value */
};

/* Moves the task, keeps its job's counters, and brings `t` up to date. LEASED raises the epoch. */
int task_move(struct store *db, struct task_ref *t, const struct task_change *change, struct err *err);

#endif
