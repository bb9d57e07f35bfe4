/* SQL about jobs and what belongs to them. Parameters and columns: store_sql.h. */
#include "server/store_sql.h"

#include <stddef.h>

const struct sql_text store_sql_jobs[] = {
	{ SQL_JOB_BY_ID,
	  "SELECT pk, id, subject, state, change, kind, first_task, task_count, first_quantize, "
	  "unfinished, unfinished_main, created_ms, started_ms, finished_ms FROM jobs WHERE id = ?1" },
	{ SQL_JOB_BY_PK,
	  "SELECT pk, id, subject, state, change, kind, first_task, task_count, first_quantize, "
	  "unfinished, unfinished_main, created_ms, started_ms, finished_ms FROM jobs WHERE pk = ?1" },
	{ SQL_JOB_PK,
	  "SELECT pk FROM jobs WHERE id = ?1" },
	{ SQL_JOB_ADD,
	  "INSERT INTO jobs (id, subject, kind, state, change, first_task, task_count, first_quantize, "
	  "unfinished, unfinished_main, leased, created_ms) VALUES (?1, ?2, ?3, 1, 1, ?4, ?5, ?6, ?5, "
	  "?7, 0, ?8)" },
	{ SQL_JOB_DETAILS_ADD,
	  "INSERT INTO job_details (job, name, model, summary, recipe, plan, reference) VALUES (?1, ?2, "
	  "?3, ?4, ?5, ?6, ?7)" },
	{ SQL_JOB_DETAILS,
	  "SELECT name, summary, recipe, plan, failure, failed_task FROM job_details WHERE job = ?1" },
	{ SQL_JOB_DATASET_ADD,
	  "INSERT INTO job_datasets (job, ord, role, dataset, name, sha256, bytes) VALUES (?1, ?2, ?3, "
	  "?4, ?5, ?6, ?7)" },
	{ SQL_JOB_DATASETS,
	  "SELECT ord, role, name, sha256, bytes FROM job_datasets WHERE job = ?1 ORDER BY ord" },
	{ SQL_JOB_MOVE,
	  "UPDATE jobs SET state = ?3, change = change + 1, started_ms = CASE WHEN ?4 THEN "
	  "coalesce(started_ms, ?6) ELSE started_ms END, finished_ms = CASE WHEN ?5 THEN ?6 END WHERE "
	  "pk = ?1 AND state = ?2" },
	{ SQL_JOB_COUNT,
	  "UPDATE jobs SET change = change + 1, leased = leased + ?2, unfinished = unfinished - ?3, "
	  "unfinished_main = unfinished_main - ?4 WHERE pk = ?1" },
	{ SQL_JOB_TOUCH,
	  "UPDATE jobs SET change = change + 1 WHERE pk = ?1" },
	{ SQL_JOB_SET_FAILURE,
	  "UPDATE job_details SET failure = ?2, failed_task = ?3 WHERE job = ?1" },
	{ SQL_JOB_SET_REPORT,
	  "UPDATE job_details SET report = ?2 WHERE job = ?1" },
	{ SQL_JOB_REMOVE,
	  "DELETE FROM jobs WHERE pk = ?1" },
	{ SQL_JOB_LIST,
	  "SELECT j.pk, j.id, j.subject, j.state, j.kind, j.created_ms, j.started_ms, j.finished_ms, "
	  "j.first_task, j.task_count, d.name, d.summary ->> '$.name' FROM jobs j JOIN job_details d ON "
	  "d.job = j.pk WHERE (?1 = 0 OR j.state = ?1) AND j.pk < ?2 ORDER BY j.pk DESC LIMIT ?3" },
	{ SQL_JOB_COUNTS,
	  "SELECT state, count(*) FROM jobs GROUP BY state" },
	{ SQL_JOBS_TO_FINISH,
	  "SELECT pk FROM jobs WHERE state = 3 AND unfinished = 0" },
	{ SQL_JOB_FAIRNESS,
	  "SELECT j.first_quantize, (SELECT coalesce(sum(k.leased), 0) FROM jobs k WHERE k.subject = "
	  "j.subject AND k.leased > 0) FROM jobs j WHERE j.pk = ?1" },
	{ SQL_JOB_PROGRESS,
	  "SELECT kind, state, count(*), total(work), total(work * progress), sum(coalesce(wall_ms, 0)) "
	  "FROM tasks WHERE pk BETWEEN ?1 AND ?2 GROUP BY kind, state" },
	{ SQL_JOB_TASKS,
	  "SELECT t.pk, t.kind, t.state, t.layer, t.shard, t.epoch, t.attempts, w.name, t.progress, "
	  "t.note, t.wall_ms, t.work FROM tasks t LEFT JOIN workers w ON w.pk = t.worker WHERE t.pk "
	  "BETWEEN ?1 AND ?2 ORDER BY t.pk LIMIT ?3" },
	{ SQL_JOB_MODULES,
	  "SELECT m.layer, m.name, m.skip, m.bits, m.group_size, m.loss, m.energy, t.state, t.progress, "
	  "w.name FROM job_modules m JOIN tasks t ON t.pk = m.task LEFT JOIN workers w ON w.pk = "
	  "t.worker WHERE m.job = ?1 ORDER BY m.layer, m.ord" },
	{ SQL_MODULE_ADD,
	  "INSERT INTO job_modules (job, layer, ord, name, skip, bits, group_size, task) VALUES (?1, "
	  "?2, ?3, ?4, ?5, ?6, ?7, ?8)" },
	{ SQL_MODULE_RESULT,
	  "UPDATE job_modules SET loss = ?4, energy = ?5, result = ?6 WHERE job = ?1 AND layer = ?2 AND "
	  "name = ?3" },
	{ SQL_MODULES_MISSING,
	  "SELECT count(*) FROM job_modules WHERE job = ?1 AND layer = ?2 AND result IS NULL" },
	{ SQL_MODULE_RESULTS,
	  "SELECT layer, result, loss, energy FROM job_modules WHERE job = ?1 AND result IS NOT NULL "
	  "ORDER BY layer, ord" },
	{ SQL_EVENT_ADD,
	  "INSERT INTO events (job, seq, at_ms, kind, text) VALUES (?1, coalesce((SELECT seq FROM "
	  "events WHERE job = ?1 ORDER BY seq DESC LIMIT 1), 0) + 1, ?2, ?3, ?4)" },
	{ SQL_EVENTS,
	  "SELECT seq, at_ms, kind, text FROM events WHERE job = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3" },
	{ SQL_FILE_ADD,
	  "INSERT INTO job_files (job, path, sha256, bytes) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (job, "
	  "path) DO UPDATE SET sha256 = ?3, bytes = ?4" },
	{ SQL_FILE_GET,
	  "SELECT path, sha256, bytes FROM job_files WHERE job = ?1 AND path = ?2" },
	{ SQL_FILES_REMOVE,
	  "DELETE FROM job_files WHERE job = ?1" },
	{ SQL_FILE_COUNT,
	  "SELECT count(*) FROM job_files WHERE job = ?1" },
	{ SQL_FILES,
	  "SELECT path, sha256, bytes FROM job_files WHERE job = ?1 AND path > ?2 ORDER BY path LIMIT "
	  "?3" },
	{ SQL_IDEMPOTENCY_ADD,
	  "INSERT INTO idempotency (subject, key, body, job) VALUES (?1, ?2, ?3, ?4)" },
	{ SQL_IDEMPOTENCY_GET,
	  "SELECT i.body, j.id, j.state FROM idempotency i JOIN jobs j ON j.pk = i.job WHERE i.subject "
	  "= ?1 AND i.key = ?2" },
	{ SQL_COUNT, NULL },
};
