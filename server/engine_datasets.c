/* Texts for calibration and evaluation: uploaded blobs with a name, and the shipped ones ("builtin"). */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/blobs.h"
#include "server/embedded.h"
#include "server/engine_internal.h"

enum { NAME_BYTES_MAX = 100 };

static const char *format_of(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && strcmp(dot, ".jsonl") == 0 ? "jsonl" : "text";
}

/* --- views -------------------------------------------------------------------- */

/* pk id name sha256 bytes format created */
static struct json *dataset_row(struct query *q)
{
	struct json *o = json_new_object();

	if ((json_set_string(o, "dataset", query_text(q, 1)) | json_set_string(o, "name", query_text(q, 2)) |
	     json_set_string(o, "sha256", query_text(q, 3)) | json_set_int(o, "bytes", query_int(q, 4)) |
	     json_set_string(o, "format", query_text(q, 5)) | json_set_int(o, "created_ms", query_int(q, 6))) == 0)
		return o;
	json_free(o);
	return NULL;
}

static int reply_dataset(struct tx *tx, const char *id, int status, struct engine_reply *reply)
{
	struct query *q = store_select(tx->db, SQL_DATASET_BY_ID, &reply->err, sql_t(id));
	int found = query_next(q, &reply->err);

	if (found == 1)
		reply->body = dataset_row(q);
	query_done(q);
	reply->status = status;
	if (found == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "there is no dataset '%.80s'", id);
	if (found < 0)
		return -1;
	return reply->body ? 0 : err_set_nomem(&reply->err, "a dataset");
}

int verb_dataset_get(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	return reply_dataset(tx, r->id, 200, reply);
}

int verb_dataset_list(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct json *items = json_new_array();
	int64_t below, last = 0;
	int limit = list_limit(r), count = 0, more = 0, rc;
	struct query *q;

	rc = list_cursor(r, INT64_MAX, &below, &reply->err);
	q = rc == 0 ? store_select(tx->db, SQL_DATASET_LIST, &reply->err, sql_i(below), sql_i(limit + 1)) : NULL;
	while (rc == 0 && (more = query_next(q, &reply->err)) == 1 && count < limit) {
		rc = json_push(items, dataset_row(q));
		last = query_int(q, 0);
		count++;
	}
	query_done(q);
	if (rc == 0 && more >= 0)
		return list_reply(reply, items, more == 1, last);
	json_free(items);
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a list");
}

/* --- changes ------------------------------------------------------------------ */

static int store_dataset(struct tx *tx, const char *id, const char *name, const char *sha256, int64_t bytes,
			 const char *subject, struct err *err)
{
	return store_exec(tx->db, SQL_DATASET_ADD, err, sql_t(id), sql_t(name), sql_t(sha256), sql_i(bytes),
			  sql_t(format_of(name)), sql_t(subject), sql_i(tx->now_ms)) < 0 ? -1 : 0;
}

int verb_dataset_add(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	const char *name, *sha256;
	char id[ID_MAX];
	int64_t bytes;

	if (json_require_string(r->body, "name", &name, &reply->err) != 0 ||
	    json_require_string(r->body, "sha256", &sha256, &reply->err) != 0)
		return -1;
	if (name[0] == '\0' || strlen(name) > NAME_BYTES_MAX)
		return reply_fail(reply, ERR_INVALID, "\"name\" of a dataset must have 1 to %d bytes", NAME_BYTES_MAX);
	if (!digest_is_hex(sha256))
		return reply_fail(reply, ERR_INVALID, "\"sha256\" must be 64 lower-case hex characters");
	if (blob_require(tx->db, sha256, &bytes, &reply->err) != 0)
		return -1;
	if (bytes == 0)
		return reply_fail(reply, ERR_REFUSED, "the dataset %.100s is empty", name);
	if (engine_new_id(tx->e, "d_", id, &reply->err) != 0 ||
	    store_dataset(tx, id, name, sha256, bytes, r->subject, &reply->err) != 0)
		return -1;
	return reply_dataset(tx, id, 201, reply);
}

static int dataset_fields(struct tx *tx, const char *id, struct dataset_ref *d, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_DATASET_BY_ID, err, sql_t(id));
	int found = query_next(q, err);

	if (found == 1) {
		d->pk = query_int(q, 0);
		snprintf(d->id, sizeof(d->id), "%s", query_text(q, 1));
		snprintf(d->name, sizeof(d->name), "%s", query_text(q, 2));
		snprintf(d->sha256, sizeof(d->sha256), "%s", query_text(q, 3));
		d->bytes = query_int(q, 4);
		snprintf(d->format, sizeof(d->format), "%s", query_text(q, 5));
	}
	query_done(q);
	return found;
}

int verb_dataset_delete(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct dataset_ref d;
	int64_t job;
	int found = dataset_fields(tx, r->id, &d, &reply->err);

	if (found == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "there is no dataset '%.80s'", r->id);
	if (found < 0)
		return -1;
	found = store_get_int(tx->db, SQL_DATASET_IN_USE, &job, &reply->err, sql_i(d.pk));
	if (found == 1)
		return reply_fail(reply, ERR_CONFLICT,
				  "a job that is not over uses dataset %.80s; cancel or delete the job first", r->id);
	if (found < 0 || store_exec(tx->db, SQL_DATASET_REMOVE, &reply->err, sql_i(d.pk)) < 0 ||
	    blob_drop_if_unused(tx, d.sha256, &reply->err) != 0)
		return -1;
	reply->status = 204;
	return 0;
}

/* --- shipped texts ------------------------------------------------------------ */

static const struct { const char *role, *id, *path; } builtins[] = {
	{ "calibration", "d_builtin-calibration", "examples/texts/calibration.jsonl" },
	{ "eval", "d_builtin-evaluation", "examples/texts/evaluation.txt" },
};

static const struct embedded_file *embedded_find(const char *path)
{
	for (const struct embedded_file *f = embedded_files; f->path; f++)
		if (strcmp(f->path, path) == 0)
			return f;
	return NULL;
}

static int describe_builtin(const struct embedded_file *f, const char *id, struct dataset_ref *d,
			    struct err *err)
{
	*d = (struct dataset_ref){ .bytes = (int64_t)f->size };
	snprintf(d->id, sizeof(d->id), "%s", id);
	snprintf(d->name, sizeof(d->name), "%s", strrchr(f->path, '/') + 1);
	snprintf(d->format, sizeof(d->format), "%s", format_of(d->name));
	return digest_of(f->bytes, f->size, d->sha256) == 0 ? 0 : err_set_nomem(err, "a digest");
}

static int store_builtin(struct tx *tx, const struct embedded_file *f, const char *id, struct dataset_ref *d,
			 struct err *err)
{
	char sha256[DIGEST_HEX];

	if (blobs_put(tx->e->config.blobs, f->bytes, f->size, sha256, err) != 0 ||
	    store_exec(tx->db, SQL_BLOB_ADD, err, sql_t(sha256), sql_i((int64_t)f->size), sql_i(tx->now_ms)) < 0 ||
	    store_dataset(tx, id, strrchr(f->path, '/') + 1, sha256, (int64_t)f->size, "builtin", err) != 0)
		return -1;
	return dataset_fields(tx, id, d, err) == 1 ? 0 : err_set(err, ERR_INTERNAL, "the shipped text %s is missing", id);
}

int dataset_resolve(struct tx *tx, const char *id, const char *role, bool store, struct dataset_ref *d,
		    struct err *err)
{
	const struct embedded_file *f = NULL;
	const char *wanted = id;
	int found;

	for (size_t i = 0; i < sizeof(builtins) / sizeof(builtins[0]); i++)
		if (strcmp(id, "builtin") == 0 && strcmp(role, builtins[i].role) == 0) {
			wanted = builtins[i].id;
			f = embedded_find(builtins[i].path);
		}
	found = dataset_fields(tx, wanted, d, err);
	if (found != 0)
		return found == 1 ? 0 : -1;
	if (!f)
		return err_set(err, ERR_REFUSED, "there is no dataset '%.80s' for \"%s\"", id, role);
	return store ? store_builtin(tx, f, wanted, d, err) : describe_builtin(f, wanted, d, err);
}
