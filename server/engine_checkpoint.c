/* Checkpoints of tasks that are not over: what a worker has so far, so that another can go on from there.
 *
 * Invariants:
 *  1. A task has at most one, the newest; the blob of the one before is released with the same COMMIT.
 *  2. Only the holder of the lease, at its epoch, may leave one.
 *  3. It lives while the task may be leased again: what ends the task for good drops it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/engine_internal.h"

/* The checkpoint of the first task in first..last that has one: 1, 0 or -1. */
static int find_first(struct store *db, int64_t first, int64_t last, int64_t *task, char sha256[DIGEST_HEX],
		      struct err *err)
{
	struct query *q = store_select(db, SQL_CHECKPOINTS, err, sql_i(first), sql_i(last));
	int found = query_next(q, err);

	if (found == 1) {
		*task = query_int(q, 0);
		snprintf(sha256, DIGEST_HEX, "%s", query_text(q, 1));
	}
	query_done(q);
	return found;
}

int checkpoints_drop(struct tx *tx, int64_t first, int64_t last, struct err *err)
{
	char sha256[DIGEST_HEX];
	int64_t task;
	int found;

	while ((found = find_first(tx->db, first, last, &task, sha256, err)) == 1)
		if (store_exec(tx->db, SQL_CHECKPOINT_REMOVE, err, sql_i(task)) < 0 ||
		    blob_drop_if_unused(tx, sha256, err) != 0)
			return -1;
	return found;
}

int checkpoint_add_input(struct store *db, int64_t task, struct json *inputs, struct err *err)
{
	struct query *q = store_select(db, SQL_CHECKPOINTS, err, sql_i(task), sql_i(task));
	int found = query_next(q, err), rc = 0;

	if (found == 1) {
		struct json *o = json_new_object();

		rc = json_set_string(o, "name", "checkpoint") | json_set_string(o, "sha256", query_text(q, 1)) |
		     json_set_int(o, "bytes", query_int(q, 2));
		rc |= json_push(inputs, o);
	}
	query_done(q);
	if (rc != 0)
		err_set_nomem(err, "a lease");
	return found < 0 || rc != 0 ? -1 : 0;
}

/* The blob that the request names: stored, and as long as it says. */
static int read_blob(struct tx *tx, const struct json *body, const char **sha256, int64_t *bytes, struct err *err)
{
	int64_t stored;

	*sha256 = json_get_string(body, "sha256", "");
	*bytes = json_get_int(body, "bytes", -1);
	if (!digest_is_hex(*sha256) || *bytes < 0)
		return err_set(err, ERR_INVALID,
			       "a checkpoint needs \"sha256\" (64 lower-case hex characters) and \"bytes\"");
	if (blob_require(tx->db, *sha256, &stored, err) != 0)
		return -1;
	if (stored != *bytes)
		return err_set(err, ERR_INVALID, "\"bytes\" of the checkpoint is %" PRId64 ", the stored blob has %" PRId64,
			       *bytes, stored);
	return 0;
}

static int replace(struct tx *tx, int64_t task, const char *sha256, int64_t bytes, struct err *err)
{
	char old[DIGEST_HEX] = "";
	int64_t holder;
	int found = find_first(tx->db, task, task, &holder, old, err);

	if (found < 0 || (found == 1 && strcmp(old, sha256) == 0))
		return found < 0 ? -1 : 0; /* the same again: nothing changes */
	if (store_exec(tx->db, SQL_CHECKPOINT_SET, err, sql_i(task), sql_t(sha256), sql_i(bytes)) < 0)
		return -1;
	return found == 1 ? blob_drop_if_unused(tx, old, err) : 0;
}

int verb_checkpoint(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct worker_ref w;
	struct task_ref t;
	struct job_ref job;
	const char *sha256;
	int64_t bytes;

	if (lease_held(tx, r, &w, &t, &job, &reply->err) != 0 ||
	    read_blob(tx, r->body, &sha256, &bytes, &reply->err) != 0 ||
	    replace(tx, t.pk, sha256, bytes, &reply->err) != 0)
		return -1;
	reply->status = 200;
	reply->body = json_new_object();
	return reply->body ? 0 : err_set_nomem(&reply->err, "a reply");
}
