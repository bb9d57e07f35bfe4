/* Blob rows: which digests are stored and who still needs them. The bytes are blobs.h's.
 *
 * Invariants:
 *  1. A row exists only while the file exists: the row is added after the file is in place (checked here, under
 *     the write lock), and the file is deleted after the COMMIT that removed the row.
 *  2. A blob that a dataset, a model, a job's result or an unread task output names is never dropped.
 */
#include <inttypes.h>

#include "server/blobs.h"
#include "server/engine_internal.h"

int blob_drop_if_unused(struct tx *tx, const char *sha256, struct err *err)
{
	int64_t one;
	int used = store_get_int(tx->db, SQL_BLOB_USED, &one, err, sql_t(sha256));
	int removed;

	if (used != 0)
		return used < 0 ? -1 : 0;
	removed = store_exec(tx->db, SQL_BLOB_REMOVE, err, sql_t(sha256));
	if (removed <= 0)
		return removed;
	return effects_delete_blob(tx->fx, sha256, err);
}

int blob_require(struct store *db, const char *sha256, int64_t *bytes, struct err *err)
{
	int found = store_get_int(db, SQL_BLOB_BYTES, bytes, err, sql_t(sha256));

	if (found == 0)
		err_set(err, ERR_CORRUPT, "the blob %.80s is not stored; upload it first", sha256);
	return found == 1 ? 0 : -1;
}

int verb_blob_add(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	const char *sha256 = json_get_string(r->body, "sha256", r->id);
	uint64_t bytes;

	if (!digest_is_hex(sha256))
		return reply_fail(reply, ERR_INVALID, "\"sha256\" must be 64 lower-case hex characters");
	if (!blobs_has(tx->e->config.blobs, sha256, &bytes))
		return reply_fail(reply, ERR_CORRUPT, "the blob %s is not stored; upload it again", sha256);
	if (store_exec(tx->db, SQL_BLOB_ADD, &reply->err, sql_t(sha256), sql_i((int64_t)bytes),
		       sql_i(tx->now_ms)) < 0)
		return -1;
	reply->status = 201;
	reply->body = json_new_object();
	if (json_set_string(reply->body, "sha256", sha256) != 0 ||
	    json_set_int(reply->body, "bytes", (int64_t)bytes) != 0)
		return err_set_nomem(&reply->err, "a reply");
	return 0;
}
