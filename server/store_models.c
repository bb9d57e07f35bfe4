/* SQL about blobs, models, datasets, workers. Parameters and columns: store_sql.h. */
#include "server/store_sql.h"

#include <stddef.h>

const struct sql_text store_sql_models[] = {
	{ SQL_BLOB_ADD,
	  "INSERT INTO blobs (sha256, bytes, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT (sha256) DO "
	  "UPDATE SET created_ms = ?3" },
	{ SQL_BLOB_BYTES,
	  "SELECT bytes FROM blobs WHERE sha256 = ?1" },
	{ SQL_BLOB_USED,
	  "SELECT 1 WHERE EXISTS (SELECT 1 FROM task_outputs WHERE sha256 = ?1) OR EXISTS (SELECT 1 "
	  "FROM task_checkpoints WHERE sha256 = ?1) OR EXISTS (SELECT 1 FROM datasets WHERE sha256 = "
	  "?1) OR EXISTS (SELECT 1 FROM job_files WHERE sha256 = ?1) OR EXISTS (SELECT 1 FROM "
	  "model_files f JOIN models m ON m.pk = f.model WHERE f.sha256 = ?1 AND m.path IS NULL)" },
	{ SQL_BLOB_REMOVE,
	  "DELETE FROM blobs WHERE sha256 = ?1" },
	{ SQL_BLOB_ORPHANS,
	  "SELECT b.sha256 FROM blobs b WHERE b.created_ms < ?1 AND NOT (EXISTS (SELECT 1 FROM "
	  "task_outputs WHERE sha256 = b.sha256) OR EXISTS (SELECT 1 FROM task_checkpoints WHERE "
	  "sha256 = b.sha256) OR EXISTS (SELECT 1 FROM datasets WHERE sha256 = b.sha256) OR EXISTS (SELECT 1 FROM job_files WHERE sha256 = b.sha256) OR EXISTS (SELECT 1 "
	  "FROM model_files f JOIN models m ON m.pk = f.model WHERE f.sha256 = b.sha256 AND m.path IS "
	  "NULL)) LIMIT ?2" },
	{ SQL_BLOB_COUNTS,
	  "SELECT count(*), coalesce(sum(bytes), 0) FROM blobs" },
	{ SQL_MODEL_ADD,
	  "INSERT INTO models (id, name, path, digest, subject, created_ms, bytes, config, tensors) "
	  "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)" },
	{ SQL_MODEL_FILE_ADD,
	  "INSERT INTO model_files (model, name, role, bytes, sha256, header_sha256) SELECT pk, ?2, ?3, "
	  "?4, ?5, ?6 FROM models WHERE id = ?1" },
	{ SQL_MODEL_PK,
	  "SELECT pk FROM models WHERE id = ?1" },
	{ SQL_MODEL_BY_ID,
	  "SELECT pk, id, name, path, bytes, created_ms, config, digest FROM models WHERE id = ?1" },
	{ SQL_MODEL_BY_DIGEST,
	  "SELECT id FROM models WHERE digest = ?1" },
	{ SQL_MODEL_LIST,
	  "SELECT pk, id, name, path, bytes, created_ms, config, digest FROM models WHERE pk < ?1 ORDER "
	  "BY pk DESC LIMIT ?2" },
	{ SQL_MODEL_PLAN,
	  "SELECT pk, id, name, path, bytes, config, tensors FROM models WHERE id = ?1" },
	{ SQL_MODEL_FILES,
	  "SELECT name, role, bytes, sha256, header_sha256 FROM model_files WHERE model = ?1 ORDER BY "
	  "name" },
	{ SQL_MODEL_IN_USE,
	  "SELECT j.pk FROM job_details d JOIN jobs j ON j.pk = d.job WHERE (d.model = ?1 OR "
	  "d.reference = ?1) AND j.state IN (1, 2, 3, 5) LIMIT 1" },
	{ SQL_MODEL_REMOVE,
	  "DELETE FROM models WHERE pk = ?1" },
	{ SQL_JOB_MODEL,
	  "SELECT m.pk, m.id, m.path, m.config FROM job_details d JOIN models m ON m.pk = d.model WHERE "
	  "d.job = ?1" },
	{ SQL_JOB_REFERENCE,
	  "SELECT m.pk, m.id, m.path, m.config, m.name FROM job_details d JOIN models m ON m.pk = "
	  "d.reference WHERE d.job = ?1" },
	{ SQL_JOB_MODEL_FILES,
	  "SELECT f.name, f.role, f.bytes, f.sha256, f.header_sha256 FROM job_details d JOIN "
	  "model_files f ON f.model = d.model WHERE d.job = ?1 ORDER BY f.name" },
	{ SQL_DATASET_ADD,
	  "INSERT INTO datasets (id, name, sha256, bytes, format, subject, created_ms) VALUES (?1, ?2, "
	  "?3, ?4, ?5, ?6, ?7)" },
	{ SQL_DATASET_BY_ID,
	  "SELECT pk, id, name, sha256, bytes, format, created_ms FROM datasets WHERE id = ?1" },
	{ SQL_DATASET_LIST,
	  "SELECT pk, id, name, sha256, bytes, format, created_ms FROM datasets WHERE pk < ?1 ORDER BY "
	  "pk DESC LIMIT ?2" },
	{ SQL_DATASET_IN_USE,
	  "SELECT j.pk FROM job_datasets d JOIN jobs j ON j.pk = d.job WHERE d.dataset = ?1 AND j.state "
	  "IN (1, 2, 3, 5) LIMIT 1" },
	{ SQL_DATASET_REMOVE,
	  "DELETE FROM datasets WHERE pk = ?1" },
	{ SQL_BACKEND_ADD,
	  "INSERT INTO backends (backend, identity) VALUES (?1, ?2) ON CONFLICT DO NOTHING" },
	{ SQL_WORKER_ADD,
	  "INSERT INTO workers (id, subject, name, backend, identity, version, threads, memory_bytes, "
	  "sees_paths, draining, registered_ms, last_seen_ms, done, failed, device, computes) SELECT ?1, ?2, "
	  "?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, ?10, ?10, 0, 0, ?11, b.pk FROM backends b WHERE b.backend = ?4 AND "
	  "b.identity = ?5 ON CONFLICT (subject, name) DO UPDATE SET backend = ?4, identity = ?5, version = ?6, "
	  "threads = ?7, memory_bytes = ?8, sees_paths = ?9, draining = 0, last_seen_ms = ?10, device = ?11, "
	  "computes = excluded.computes" },
	{ SQL_WORKER_SAME,
	  "SELECT 1 FROM workers WHERE subject = ?1 AND name = ?2 AND backend = ?3 AND identity = ?4 AND "
	  "threads = ?5 AND device IS ?6" },
	{ SQL_RATE_ADD, /* a later lease of distill (8) did a part of the work only */
	  "INSERT INTO worker_rates (worker, kind, work, seconds) SELECT ?1, t.kind, t.work, t.wall_ms / 1000.0 "
	  "FROM tasks t WHERE t.pk = ?2 AND t.work >= ?3 AND t.wall_ms > 0 AND (t.kind <> 8 OR t.epoch = 1) ON "
	  "CONFLICT (worker, kind) DO UPDATE SET work = 0.75 * work + excluded.work, seconds = 0.75 * seconds + "
	  "excluded.seconds" },
	{ SQL_RATES_REMOVE,
	  "DELETE FROM worker_rates WHERE worker = (SELECT pk FROM workers WHERE subject = ?1 AND name = ?2)" },
	{ SQL_RATES,
	  "SELECT r.worker, r.kind, r.work, r.seconds FROM worker_rates r JOIN workers w ON w.pk = r.worker "
	  "WHERE w.pk = ?1 OR (w.draining = 0 AND w.last_seen_ms >= ?2) ORDER BY r.worker, r.kind" },
	{ SQL_WORKER_ID_OF,
	  "SELECT id FROM workers WHERE subject = ?1 AND name = ?2" },
	{ SQL_WORKER_OF,
	  "SELECT pk, id, name, draining, last_seen_ms, memory_bytes, sees_paths FROM workers WHERE id = ?1 AND "
	  "subject = ?2" },
	{ SQL_WORKER_OTHER,
	  "SELECT 1 FROM workers w WHERE w.pk <> ?2 AND w.draining = 0 AND w.last_seen_ms >= ?3 AND NOT "
	  "EXISTS (SELECT 1 FROM attempts a WHERE a.task = ?1 AND a.worker = w.pk AND a.counted = 1) LIMIT 1" },
	{ SQL_WORKER_SEEN,
	  "UPDATE workers SET last_seen_ms = ?2 WHERE pk = ?1" },
	{ SQL_HOLDERS_SEEN,
	  "UPDATE workers SET last_seen_ms = ?1 WHERE pk IN (SELECT worker FROM tasks WHERE state = 3)" },
	{ SQL_WORKER_DONE,
	  "UPDATE workers SET done = done + 1 WHERE pk = ?1" },
	{ SQL_WORKER_FAILED,
	  "UPDATE workers SET failed = failed + 1 WHERE pk = ?1" },
	{ SQL_WORKER_DRAIN,
	  "UPDATE workers SET draining = 1 WHERE id = ?1 AND (?2 IS NULL OR subject = ?2)" },
	{ SQL_WORKER_GET,
	  "SELECT w.pk, w.id, w.name, w.backend, w.identity, w.version, w.threads, w.memory_bytes, "
	  "w.sees_paths, w.draining, w.registered_ms, w.last_seen_ms, w.done, w.failed, (SELECT "
	  "count(*) FROM tasks t WHERE t.state = 3 AND t.worker = w.pk), w.device FROM workers w WHERE w.id = ?1" },
	{ SQL_WORKER_LIST,
	  "SELECT w.pk, w.id, w.name, w.backend, w.identity, w.version, w.threads, w.memory_bytes, "
	  "w.sees_paths, w.draining, w.registered_ms, w.last_seen_ms, w.done, w.failed, (SELECT "
	  "count(*) FROM tasks t WHERE t.state = 3 AND t.worker = w.pk), w.device FROM workers w WHERE w.pk < ?1 "
	  "ORDER BY w.pk DESC LIMIT ?2" },
	{ SQL_WORKER_UNACCEPTED,
	  "SELECT t.pk, t.job, t.kind, t.epoch, t.attempts, t.leased_ms, j.id, j.first_task FROM tasks t "
	  "JOIN jobs j ON j.pk = t.job WHERE t.state = 3 AND t.accepted = 0 AND t.worker = ?1 ORDER BY t.pk" },
	{ SQL_WORKER_TASKS,
	  "SELECT t.pk, j.id, j.first_task, t.kind, t.layer, t.progress, t.note, t.leased_ms FROM tasks "
	  "t JOIN jobs j ON j.pk = t.job WHERE t.state = 3 AND t.worker = ?1 ORDER BY t.pk" },
	{ SQL_WORKER_COUNTS,
	  "SELECT coalesce(sum(lost), 0), coalesce(sum(NOT lost AND draining), 0), coalesce(sum(NOT "
	  "lost AND NOT draining AND busy), 0), coalesce(sum(NOT lost AND NOT draining AND NOT busy), "
	  "0) FROM (SELECT w.last_seen_ms < ?1 AS lost, w.draining AS draining, EXISTS (SELECT 1 FROM "
	  "tasks t WHERE t.state = 3 AND t.worker = w.pk) AS busy FROM workers w)" },
	{ SQL_WORKER_THREADS,
	  "SELECT count(*), coalesce(sum(threads), 0), count(device), coalesce(sum(threads) FILTER (WHERE device IS NOT "
	  "NULL), 0) FROM workers WHERE last_seen_ms >= ?1 AND draining = 0" },
	{ SQL_WORKER_MOST_MEMORY,
	  "SELECT coalesce(max(memory_bytes), 0) FROM workers WHERE last_seen_ms >= ?1" },
	{ SQL_COUNT, NULL },
};
