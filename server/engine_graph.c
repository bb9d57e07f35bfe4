/* The task graph moves on: consumers become ready, outputs that nobody needs are dropped. */
#include <stdio.h>

#include "common/alloc.h"
#include "server/engine_complete.h"

enum { STEP_MAX = 256 }; /* rows handled per walk: statements must not nest */

/* Consumers of the task: one producer less to wait for. */
int graph_unblock(struct tx *tx, const struct task_ref *t, struct err *err)
{
	int64_t pks[STEP_MAX], last = -1;
	size_t count;

	do {
		struct query *q = store_select(tx->db, SQL_CONSUMERS, err, sql_i(t->pk), sql_i(last), sql_i(STEP_MAX));
		int more;

		for (count = 0; (more = query_next(q, err)) == 1 && count < STEP_MAX;)
			pks[count++] = query_int(q, 0);
		query_done(q);
		if (more < 0)
			return -1;
		for (size_t i = 0; i < count; i++) {
			struct task_change c = { .to = TASK_READY, .now_ms = tx->now_ms };
			struct task_ref consumer;
			int64_t left = -1;

			last = pks[i];
			if (store_exec(tx->db, SQL_DEP_DONE, err, sql_i(last)) < 0 ||
			    store_get_int(tx->db, SQL_DEPS_LEFT, &left, err, sql_i(last)) < 0)
				return -1;
			if (left != 0)
				continue;
			if (task_load(tx->db, last, &consumer, err) != 0)
				return -1;
			c.attempts = consumer.attempts;
			if (consumer.state == TASK_BLOCKED &&
			    (task_move(tx->db, &consumer, &c, err) != 0 ||
			     effects_wake(tx->fx, WAKE_LEASE, "", err) != 0))
				return -1;
		}
	} while (count == STEP_MAX);
	return 0;
}

/* An output that nobody needs any more goes, and its blob with it. */
static int drop_output(struct tx *tx, int64_t task, const char *name, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_OUTPUT_UNREAD, err, sql_i(task), sql_t(name));
	char sha256[DIGEST_HEX] = "";
	int found = query_next(q, err);

	if (found == 1)
		snprintf(sha256, sizeof(sha256), "%s", query_text(q, 0));
	query_done(q);
	if (found != 1)
		return found;
	if (store_exec(tx->db, SQL_OUTPUT_REMOVE, err, sql_i(task), sql_t(name)) < 0)
		return -1;
	return blob_drop_if_unused(tx, sha256, err);
}

/* This task has read its inputs for the last time. */
int graph_release_inputs(struct tx *tx, const struct task_ref *t, struct err *err)
{
	struct { int64_t task; char name[16]; } read[STEP_MAX];
	int64_t last = -1;
	size_t count;

	do {
		struct query *q = store_select(tx->db, SQL_INPUTS_FROM, err, sql_i(t->pk), sql_i(last), sql_i(STEP_MAX));
		int more;

		for (count = 0; (more = query_next(q, err)) == 1 && count < STEP_MAX; count++) {
			last = query_int(q, 0);
			read[count].task = query_int(q, 1);
			snprintf(read[count].name, sizeof(read[count].name), "%s", query_text(q, 2));
		}
		query_done(q);
		if (more < 0)
			return -1;
		for (size_t i = 0; i < count; i++)
			if (store_exec(tx->db, SQL_OUTPUT_READ, err, sql_i(read[i].task), sql_t(read[i].name)) < 0 ||
			    drop_output(tx, read[i].task, read[i].name, err) != 0)
				return -1;
	} while (count == STEP_MAX);
	return 0;
}

int job_drop_outputs(struct tx *tx, const struct job_ref *job, struct err *err)
{
	int64_t end = job->first_task + job->task_count - 1;
	char (*list)[DIGEST_HEX] = mem_alloc((size_t)job->task_count, sizeof(*list));
	struct query *q;
	size_t count = 0;
	int more, rc;

	if (!list)
		return err_set_nomem(err, "the outputs of a job");
	q = store_select(tx->db, SQL_OUTPUTS_OF, err, sql_i(job->first_task), sql_i(end));
	while ((more = query_next(q, err)) == 1 && count < (size_t)job->task_count)
		snprintf(list[count++], DIGEST_HEX, "%s", query_text(q, 0));
	query_done(q);
	rc = more < 0 ? -1 : 0;
	if (rc == 0 && store_exec(tx->db, SQL_OUTPUTS_REMOVE, err, sql_i(job->first_task), sql_i(end)) < 0)
		rc = -1;
	for (size_t i = 0; rc == 0 && i < count; i++)
		rc = blob_drop_if_unused(tx, list[i], err);
	mem_free(list);
	return rc;
}
