/* Counts for the dashboard (VERB_STATS) and for Prometheus (GET /metrics). */
#include <inttypes.h>
#include <string.h>

#include "common/buf.h"
#include "common/file.h"
#include "common/version.h"
#include "server/engine_internal.h"

struct counts {
	int64_t jobs[JOB_STATES], tasks[TASK_STATES];
	int64_t idle, busy, draining, lost;
	int64_t blobs, blob_bytes;
	uint64_t disk_free;
};

static int count_states(struct store *db, enum sql which, int64_t *out, int64_t states, struct err *err)
{
	struct query *q = store_select(db, which, err);
	int more;

	while ((more = query_next(q, err)) == 1)
		if (query_int(q, 0) > 0 && query_int(q, 0) < states)
			out[query_int(q, 0)] = query_int(q, 1);
	query_done(q);
	return more < 0 ? -1 : 0;
}

static int count_workers(struct tx *tx, struct counts *c, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_WORKER_COUNTS, err, sql_i(tx->now_ms - tx->e->config.lease_ms));
	int found = query_next(q, err);

	if (found == 1) {
		c->lost = query_int(q, 0);
		c->draining = query_int(q, 1);
		c->busy = query_int(q, 2);
		c->idle = query_int(q, 3);
	}
	query_done(q);
	return found < 0 ? -1 : 0;
}

static int count_all(struct tx *tx, struct counts *c, struct err *err)
{
	struct query *q;
	int found;

	memset(c, 0, sizeof(*c));
	if (count_states(tx->db, SQL_JOB_COUNTS, c->jobs, JOB_STATES, err) != 0 ||
	    count_states(tx->db, SQL_TASK_COUNTS, c->tasks, TASK_STATES, err) != 0 ||
	    count_workers(tx, c, err) != 0 || disk_free(tx->e->config.data_dir, &c->disk_free, err) != 0)
		return -1;
	q = store_select(tx->db, SQL_BLOB_COUNTS, err);
	found = query_next(q, err);
	if (found == 1) {
		c->blobs = query_int(q, 0);
		c->blob_bytes = query_int(q, 1);
	}
	query_done(q);
	return found < 0 ? -1 : 0;
}

/* --- STATS -------------------------------------------------------------------- */

static struct json *states_json(const int64_t *counts, int states, const char *(*name)(int64_t))
{
	struct json *o = json_new_object();

	for (int s = 1; s < states; s++)
		if (json_set_int(o, name(s), counts[s]) != 0) {
			json_free(o);
			return NULL;
		}
	return o;
}

static struct json *workers_json(const struct counts *c)
{
	struct json *o = json_new_object();

	if ((json_set_int(o, "idle", c->idle) | json_set_int(o, "busy", c->busy) |
	     json_set_int(o, "draining", c->draining) | json_set_int(o, "lost", c->lost)) == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *blobs_json(const struct counts *c)
{
	struct json *o = json_new_object();

	if ((json_set_int(o, "count", c->blobs) | json_set_int(o, "bytes", c->blob_bytes)) == 0)
		return o;
	json_free(o);
	return NULL;
}

int verb_stats(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct counts c;

	(void)r;
	if (count_all(tx, &c, &reply->err) != 0)
		return -1;
	reply->status = 200;
	reply->body = json_new_object();
	if ((json_set(reply->body, "jobs", states_json(c.jobs, JOB_STATES, job_state_name)) |
	     json_set(reply->body, "tasks", states_json(c.tasks, TASK_STATES, task_state_name)) |
	     json_set(reply->body, "workers", workers_json(&c)) | json_set(reply->body, "blobs", blobs_json(&c)) |
	     json_set_number(reply->body, "disk_free_bytes", (double)c.disk_free) |
	     json_set_string(reply->body, "version", QUARRY_VERSION)) == 0)
		return 0;
	return err_set_nomem(&reply->err, "the counts");
}

/* --- metrics ------------------------------------------------------------------ */

static void put_head(struct buf *out, const char *name, const char *type, const char *help)
{
	buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_states(struct buf *out, const char *name, const char *help, const int64_t *counts, int states,
		       const char *(*state_name)(int64_t))
{
	put_head(out, name, "gauge", help);
	for (int s = 1; s < states; s++)
		buf_printf(out, "%s{state=\"%s\"} %" PRId64 "\n", name, state_name(s), counts[s]);
}

static void put_one(struct buf *out, const char *name, const char *type, const char *help, uint64_t value)
{
	put_head(out, name, type, help);
	buf_printf(out, "%s %" PRIu64 "\n", name, value);
}

int engine_metrics(struct engine *e, struct buf *out, struct err *err)
{
	struct tx tx = { .e = e, .now_ms = engine_now(e) };
	struct counts c;
	int rc;

	tx.db = reader_take(e, err);
	if (!tx.db)
		return -1;
	rc = count_all(&tx, &c, err);
	reader_give(e, tx.db);
	if (rc != 0)
		return -1;
	put_states(out, "quarry_jobs", "Jobs by state.", c.jobs, JOB_STATES, job_state_name);
	put_states(out, "quarry_tasks", "Tasks by state.", c.tasks, TASK_STATES, task_state_name);
	put_head(out, "quarry_workers", "gauge", "Workers by state.");
	buf_printf(out, "quarry_workers{state=\"idle\"} %" PRId64 "\nquarry_workers{state=\"busy\"} %" PRId64 "\n",
		   c.idle, c.busy);
	buf_printf(out, "quarry_workers{state=\"draining\"} %" PRId64 "\nquarry_workers{state=\"lost\"} %" PRId64 "\n",
		   c.draining, c.lost);
	put_one(out, "quarry_blobs", "gauge", "Stored blobs.", (uint64_t)c.blobs);
	put_one(out, "quarry_blob_bytes", "gauge", "Bytes of stored blobs.", (uint64_t)c.blob_bytes);
	put_one(out, "quarry_disk_free_bytes", "gauge", "Bytes free for the data folder.", c.disk_free);
	put_one(out, "quarry_write_requests_total", "counter", "Write requests since the start.", e->writes);
	put_one(out, "quarry_write_transactions_total", "counter", "Transactions that held them.", e->commits);
	put_one(out, "quarry_write_failures_total", "counter", "Transactions that failed.", e->failed_commits);
	return buf_failed(out) ? err_set_nomem(err, "the metrics") : 0;
}
