/* What differs from run to run: times, workers, memory, ids. */
#include <string.h>

#include "server/engine_distill.h"
#include "server/finish.h"
#include "server/finish_backends.h"

struct kind_stats { int64_t tasks; double wall_ms, cpu_ms, peak_rss_bytes; struct json *backends; };

/* One line per worker name; the last task's description of it wins. */
static int note_worker(struct json *workers, const char *name, const struct json *stats)
{
	static const char *const keys[] = { "backend", "identity", "version" };
	const struct json *old = json_get(workers, name);
	int64_t tasks = json_get_int(old, "tasks", 0);
	struct json *o = json_new_object();
	int rc = json_set_int(o, "tasks", tasks + 1);

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (json_get(stats, keys[i]))
			rc |= json_set(o, keys[i], json_copy(json_get(stats, keys[i])));
	json_remove(workers, name);
	return rc | json_set(workers, name, o);
}

static int note_task(struct kind_stats *k, struct json *workers, struct query *q, struct err *err)
{
	struct json *stats = json_parse_stored(query_text(q, 2), err);
	double peak = json_get_number(stats, "peak_rss_bytes", 0);
	int rc = stats ? note_worker(workers, query_text(q, 3), stats) : -1;

	if (!k->backends)
		k->backends = json_new_array();
	rc |= backends_note(k->backends, stats);
	k->tasks++;
	k->wall_ms += json_get_number(stats, "wall_ms", query_real(q, 1));
	k->cpu_ms += json_get_number(stats, "cpu_ms", 0);
	k->peak_rss_bytes = peak > k->peak_rss_bytes ? peak : k->peak_rss_bytes;
	json_free(stats);
	return rc;
}

/* Takes the lists of backends. */
static struct json *kinds_json(struct kind_stats kinds[KIND_COUNT])
{
	struct json *all = json_new_object();
	int rc = 0;

	for (int i = 0; i < KIND_COUNT - 1; i++) {
		enum task_kind k = task_kinds_in_order[i];
		struct json *o;

		if (kinds[k].tasks == 0)
			continue;
		o = json_new_object();
		rc |= json_set_int(o, "tasks", kinds[k].tasks) | json_set_number(o, "wall_ms", kinds[k].wall_ms) |
		      json_set_number(o, "cpu_ms", kinds[k].cpu_ms) |
		      json_set_number(o, "peak_rss_bytes", kinds[k].peak_rss_bytes);
		rc |= json_set(o, "backends", kinds[k].backends);
		kinds[k].backends = NULL;
		rc |= json_set(all, task_kind_name(k), o);
	}
	if (rc == 0)
		return all;
	json_free(all);
	return NULL;
}

static int read_tasks(struct store *db, const struct job_ref *job, struct kind_stats kinds[KIND_COUNT],
		      struct json *workers, struct err *err)
{
	struct query *q = store_select(db, SQL_TASK_STATS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1));
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		int64_t kind = more == 1 ? query_int(q, 0) : 0;

		rc = kind > 0 && kind < KIND_COUNT ? note_task(&kinds[kind], workers, q, err) : -1;
	}
	query_done(q);
	return rc;
}

static struct json *run_ids(struct store *db, const struct job_ref *job, struct err *err)
{
	struct json *o = json_new_object();
	struct query *q = store_select(db, SQL_JOB_MODEL, err, sql_i(job->pk));
	int found = query_next(q, err), rc = json_set_string(o, "job", job->id);

	if (found == 1) {
		rc |= json_set_string(o, "model", query_text(q, 1));
		rc |= query_is_null(q, 2) ? json_set_null(o, "path") : json_set_string(o, "path", query_text(q, 2));
	}
	query_done(q);
	if (rc == 0 && found >= 0)
		return o;
	json_free(o);
	return NULL;
}

/* Where the last lease of the distill task took the work up: "resumed_at", when there is such a task. */
static int add_resumed(struct store *db, const struct job_ref *job, struct json *o, struct err *err)
{
	struct json *end = distill_end_json(db, job, DISTILL_RUN, err);
	int rc = end ? 0 : -1;

	if (json_type(end) == JSON_OBJECT)
		rc = json_set_int(o, "resumed_at", json_get_int(end, "resumed_at", 0));
	json_free(end);
	return rc;
}

/* How long it took, and how long the plan said it would on the workers of then. */
static int add_seconds(struct store *db, const struct job_ref *job, int64_t now_ms, struct json *o, struct err *err)
{
	struct query *q = store_select(db, SQL_JOB_DETAILS, err, sql_i(job->pk));
	int found = query_next(q, err);
	struct json *plan = found == 1 ? json_parse_stored(query_text(q, 3), err) : NULL;
	double predicted = json_get_number(json_get(plan, "estimate"), "seconds", -1);
	int rc = plan ? json_set_number(o, "seconds", (double)(now_ms - job->started_ms) / 1000) : -1;

	query_done(q);
	if (predicted >= 0) /* a job planned by an earlier version has none */
		rc |= json_set_number(o, "predicted_seconds", predicted);
	json_free(plan);
	return rc;
}

struct json *finish_run(struct store *db, const struct job_ref *job, int64_t now_ms, struct err *err)
{
	struct kind_stats kinds[KIND_COUNT] = { 0 };
	struct json *o = run_ids(db, job, err), *workers = json_new_object();
	double peak = 0;
	int rc = o && workers ? read_tasks(db, job, kinds, workers, err) : -1;

	for (int k = 1; k < KIND_COUNT; k++)
		peak = kinds[k].peak_rss_bytes > peak ? kinds[k].peak_rss_bytes : peak;
	rc |= json_set_int(o, "started_ms", job->started_ms) | json_set_int(o, "finished_ms", now_ms) |
	      json_set_int(o, "wall_ms", now_ms - job->started_ms) | json_set_number(o, "peak_rss_bytes", peak);
	rc |= json_set(o, "kinds", kinds_json(kinds));
	rc |= json_set(o, "workers", workers);
	for (int k = 0; k < KIND_COUNT; k++)
		json_free(kinds[k].backends);
	rc |= json_set(o, "warnings", rc == 0 ? backends_warnings(db, job, err) : NULL);
	if (rc == 0 && add_seconds(db, job, now_ms, o, err) == 0 && add_resumed(db, job, o, err) == 0)
		return o;
	json_free(o);
	return NULL;
}
