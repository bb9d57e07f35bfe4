/* SQL about tasks, their inputs and outputs, and leases. Parameters and columns: store_sql.h. */
#include "server/store_sql.h"

#include <stddef.h>

const struct sql_text store_sql_tasks[] = {
	{ SQL_TASK_NEXT_PK,
	  "SELECT coalesce(max(pk), 0) + 1 FROM tasks" },
	{ SQL_TASK_ADD,
	  "INSERT INTO tasks (pk, job, kind, state, rank, layer, shard, epoch, attempts, deps_left, "
	  "work, accepted, progress) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, ?8, ?9, 0, 0)" },
	{ SQL_TASK_SPEC_ADD,
	  "INSERT INTO task_specs (task, spec) VALUES (?1, ?2)" },
	{ SQL_TASK_INPUT_ADD,
	  "INSERT INTO task_inputs (task, ord, name, from_task, output, sha256, bytes) VALUES (?1, ?2, "
	  "?3, ?4, ?5, ?6, ?7)" },
	{ SQL_TASK_GET,
	  "SELECT job, kind, state, epoch, attempts, leased_ms, worker FROM tasks WHERE pk = ?1" },
	{ SQL_TASK_LAYER,
	  "SELECT layer FROM tasks WHERE pk = ?1" },
	{ SQL_TASK_SPEC,
	  "SELECT spec FROM task_specs WHERE task = ?1" },
	{ SQL_TASK_INPUTS,
	  "SELECT i.name, coalesce(i.sha256, o.sha256), coalesce(i.bytes, o.bytes) FROM task_inputs i "
	  "LEFT JOIN task_outputs o ON o.task = i.from_task AND o.name = i.output WHERE i.task = ?1 "
	  "ORDER BY i.ord" },
	{ SQL_TASK_LEASE,
	  "UPDATE tasks SET state = 3, epoch = epoch + 1, worker = ?3, deadline_ms = ?4, leased_ms = "
	  "?5, accepted = 0, progress = 0, note = NULL, computes = (SELECT w.computes FROM workers w WHERE "
	  "w.pk = ?3) WHERE pk = ?1 AND state = 2 AND epoch = ?2" },
	{ SQL_TASK_DONE,
	  "UPDATE tasks SET state = 4, deadline_ms = NULL, progress = 1, wall_ms = ?3, note = NULL "
	  "WHERE pk = ?1 AND state = 3 AND epoch = ?2" },
	{ SQL_TASK_MOVE,
	  "UPDATE tasks SET state = ?4, attempts = ?5, worker = NULL, deadline_ms = NULL, accepted = 0, "
	  "progress = 0, note = NULL WHERE pk = ?1 AND state = ?2 AND epoch = ?3" },
	{ SQL_TASK_HEARTBEAT,
	  "UPDATE tasks SET deadline_ms = ?3, accepted = 1, progress = ?4, note = ?5 WHERE pk = ?1 AND "
	  "state = 3 AND epoch = ?2" },
	{ SQL_TASKS_OPEN,
	  "SELECT pk, kind, state, epoch, attempts FROM tasks WHERE pk BETWEEN ?1 AND ?2 AND state IN "
	  "(1, 2, 3)" },
	{ SQL_TASKS_STOPPED,
	  "SELECT pk, kind, state, epoch, deps_left FROM tasks WHERE pk BETWEEN ?1 AND ?2 AND state IN "
	  "(5, 6)" },
	{ SQL_TASKS_REMOVE,
	  "DELETE FROM tasks WHERE pk BETWEEN ?1 AND ?2" },
	{ SQL_TASK_COUNTS,
	  "SELECT state, count(*) FROM tasks GROUP BY state" },
	{ SQL_KIND_SPEEDS,
	  "SELECT t.kind, sum(t.work), sum(t.wall_ms) FROM tasks t JOIN workers w ON w.pk = t.worker WHERE "
	  "t.pk > (SELECT coalesce(max(pk), 0) FROM tasks) - ?2 AND t.state = 4 AND t.work >= ?3 AND "
	  "t.wall_ms > 0 AND w.draining = 0 AND w.last_seen_ms >= ?1 GROUP BY t.kind" },
	{ SQL_TASK_STATS,
	  "SELECT t.kind, t.wall_ms, r.stats, r.worker FROM tasks t JOIN task_results r ON r.task = "
	  "t.pk WHERE t.pk BETWEEN ?1 AND ?2 ORDER BY t.pk" },
	{ SQL_SPECS_OF_KIND,
	  "SELECT s.spec FROM tasks t JOIN task_specs s ON s.task = t.pk WHERE t.pk BETWEEN ?1 AND ?2 "
	  "AND t.kind = ?3 ORDER BY t.pk" },
	{ SQL_RESULTS_OF_KIND,
	  "SELECT s.spec, r.result, (SELECT sum(bytes) FROM task_outputs o WHERE o.task = t.pk) FROM "
	  "tasks t JOIN task_specs s ON s.task = t.pk JOIN task_results r ON r.task = t.pk WHERE t.pk "
	  "BETWEEN ?1 AND ?2 AND t.kind = ?3 ORDER BY t.pk" },
	{ SQL_TASK_RESULTS,
	  "SELECT s.spec, r.result FROM tasks t JOIN task_specs s ON s.task = t.pk LEFT JOIN "
	  "task_results r ON r.task = t.pk WHERE t.pk BETWEEN ?1 AND ?2 AND t.kind = ?3 ORDER BY t.pk" },
	{ SQL_DISTILL_LAYERS,
	  "SELECT t.layer, r.result -> '$.distill' FROM tasks t JOIN task_results r ON r.task = t.pk "
	  "WHERE t.pk BETWEEN ?1 AND ?2 AND t.kind = 5 AND r.result -> '$.distill.before' IS NOT NULL "
	  "ORDER BY t.layer" },
	{ SQL_RESULT_ADD,
	  "INSERT INTO task_results (task, digest, result, stats, worker) VALUES (?1, ?2, ?3, ?4, ?5)" },
	{ SQL_RESULT_DIGEST,
	  "SELECT digest FROM task_results WHERE task = ?1" },
	{ SQL_CONSUMERS,
	  "SELECT DISTINCT task FROM task_inputs WHERE from_task = ?1 AND task > ?2 ORDER BY task LIMIT "
	  "?3" },
	{ SQL_DEP_DONE,
	  "UPDATE tasks SET deps_left = deps_left - 1 WHERE pk = ?1 AND deps_left > 0" },
	{ SQL_DEPS_LEFT,
	  "SELECT deps_left FROM tasks WHERE pk = ?1" },
	{ SQL_INPUTS_FROM,
	  "SELECT ord, from_task, output FROM task_inputs WHERE task = ?1 AND ord > ?2 AND from_task IS "
	  "NOT NULL ORDER BY ord LIMIT ?3" },
	{ SQL_OUTPUTS_WANTED,
	  "SELECT output, count(*) FROM task_inputs WHERE from_task = ?1 GROUP BY output ORDER BY output" },
	{ SQL_OUTPUT_ADD,
	  "INSERT INTO task_outputs (task, name, sha256, bytes, readers) VALUES (?1, ?2, ?3, ?4, ?5)" },
	{ SQL_OUTPUT_READ,
	  "UPDATE task_outputs SET readers = readers - 1 WHERE task = ?1 AND name = ?2" },
	{ SQL_OUTPUT_UNREAD,
	  "SELECT sha256 FROM task_outputs WHERE task = ?1 AND name = ?2 AND readers <= 0" },
	{ SQL_OUTPUT_REMOVE,
	  "DELETE FROM task_outputs WHERE task = ?1 AND name = ?2" },
	{ SQL_OUTPUTS_OF,
	  "SELECT sha256 FROM task_outputs WHERE task BETWEEN ?1 AND ?2" },
	{ SQL_OUTPUTS_REMOVE,
	  "DELETE FROM task_outputs WHERE task BETWEEN ?1 AND ?2" },
	{ SQL_CHECKPOINT_SET,
	  "INSERT INTO task_checkpoints (task, sha256, bytes) VALUES (?1, ?2, ?3) ON CONFLICT (task) DO "
	  "UPDATE SET sha256 = ?2, bytes = ?3" },
	{ SQL_CHECKPOINT_REMOVE,
	  "DELETE FROM task_checkpoints WHERE task = ?1" },
	{ SQL_CHECKPOINTS,
	  "SELECT task, sha256, bytes FROM task_checkpoints WHERE task BETWEEN ?1 AND ?2 ORDER BY task "
	  "LIMIT 1" },
	{ SQL_READY_NEXT_GROUP, /* >= of the next job: SQLite would walk the group for > */
	  "SELECT rank, job FROM tasks WHERE state = 2 AND (rank, job) >= (?1, ?2 + 1) ORDER BY rank, "
	  "job LIMIT 1" },
	{ SQL_READY_IN_GROUP,
	  "SELECT t.pk, t.job, t.kind, t.epoch, t.attempts, t.layer, t.rank, t.work FROM tasks t WHERE t.state "
	  "= 2 AND t.rank = ?1 AND t.job = ?2 ORDER BY t.pk" },
	{ SQL_READY_READERS,
	  "SELECT DISTINCT t.pk, t.job, t.kind, t.epoch, t.attempts, t.layer, t.rank, t.work FROM task_outputs "
	  "o CROSS JOIN task_inputs i ON i.from_task = o.task AND i.output = o.name CROSS JOIN tasks t "
	  "ON t.pk = i.task WHERE o.sha256 = ?1 AND t.state = 2 AND t.rank = ?2 ORDER BY t.pk LIMIT 16" },
	{ SQL_READY_BETWEEN,
	  "SELECT 1 FROM tasks WHERE pk BETWEEN ?1 AND ?2 AND state + 0 = 2 AND attempts = 0 LIMIT 1" },
	{ SQL_ANY_READY,
	  "SELECT 1 FROM tasks WHERE state = 2 LIMIT 1" },
	{ SQL_ANY_LAPSED,
	  "SELECT 1 FROM tasks WHERE state = 3 AND deadline_ms < ?1 LIMIT 1" },
	{ SQL_LAPSED,
	  "SELECT t.pk, t.job, t.kind, t.epoch, t.attempts, t.accepted, t.worker, w.name FROM tasks t "
	  "LEFT JOIN workers w ON w.pk = t.worker WHERE t.state = 3 AND t.deadline_ms < ?1 ORDER BY "
	  "t.deadline_ms, t.pk LIMIT ?2" },
	{ SQL_LEASES_REFRESH,
	  "UPDATE tasks SET deadline_ms = ?1 WHERE state = 3" },
	{ SQL_ATTEMPT_ADD,
	  "INSERT INTO attempts (task, epoch, worker, worker_name, ended_ms, error, detail, log, computes, "
	  "counted) SELECT ?1, ?2, ?3, coalesce((SELECT name FROM workers WHERE pk = ?3), '?'), ?4, ?5, ?6, "
	  "?7, t.computes, ?8 FROM tasks t WHERE t.pk = ?1 AND (?8 = 1 OR t.accepted = 1)" },
	{ SQL_ATTEMPT_BY,
	  "SELECT 1 FROM attempts WHERE task = ?1 AND worker = ?2 AND counted = 1 LIMIT 1" },
	{ SQL_ATTEMPTS,
	  "SELECT a.worker_name, a.error, a.detail, a.log, a.ended_ms, b.backend, b.identity FROM attempts a "
	  "LEFT JOIN backends b ON b.pk = a.computes WHERE a.task = ?1 AND a.counted = 1 ORDER BY a.epoch" },
	{ SQL_ATTEMPTS_OF_JOB,
	  "SELECT a.task, t.kind, t.layer, a.worker_name, a.error, b.backend, b.identity, r.stats, r.worker, "
	  "r.result FROM attempts a JOIN tasks t ON t.pk = a.task JOIN task_results r ON r.task = a.task JOIN "
	  "backends b ON b.pk = a.computes WHERE a.task BETWEEN ?1 AND ?2 ORDER BY a.task, a.epoch" },
	{ SQL_TASKS_IN_PIECES, /* most tasks do not tell of pieces */
	  "SELECT t.pk, t.kind, t.layer, NULL, NULL, NULL, NULL, r.stats, r.worker, r.result FROM tasks t JOIN "
	  "task_results r ON r.task = t.pk WHERE t.pk BETWEEN ?1 AND ?2 AND instr(r.stats, '\"piece_tokens\"') > 0 "
	  "ORDER BY t.pk" },
	{ SQL_ATTEMPTS_LOST,
	  "SELECT count(*) FROM attempts WHERE task = ?1 AND error = ?2 AND counted = 0" },
	{ SQL_ATTEMPTS_FORGET,
	  "UPDATE attempts SET counted = -1 WHERE task BETWEEN ?1 AND ?2" },
	{ SQL_READY_WORK,
	  "SELECT kind, work FROM tasks WHERE state = 2 ORDER BY rank, job, pk LIMIT ?1" },
	{ SQL_HELD_WORK,
	  "SELECT t.worker, t.kind, t.work, t.progress, t.leased_ms FROM tasks t JOIN workers w ON w.pk = "
	  "t.worker WHERE t.state = 3 AND w.draining = 0 AND w.last_seen_ms >= ?1 ORDER BY t.worker, t.pk" },
	{ SQL_COUNT, NULL },
};
