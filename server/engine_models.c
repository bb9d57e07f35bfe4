/* Models: the second half of adding one (see engine_model_scan.c), looking at them, removing them. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/model_config.h"
#include "server/engine_internal.h"

/* --- views -------------------------------------------------------------------- */

static int add_tensor(void *ctx, const struct model_tensor *t)
{
	double *sum = ctx;

	*sum += (double)t->dim[0] * (double)(t->dim[1] ? t->dim[1] : 1);
	return 0;
}

static double count_parameters(const struct model_config *mc, bool *failed)
{
	double sum = 0;

	*failed = model_each_tensor(mc, add_tensor, &sum) != 0;
	return sum;
}

struct json *model_config_json(const char *config_text, struct err *err)
{
	struct json *o = json_new_object();
	struct model_config mc;
	bool failed;
	double parameters;
	int rc;

	if (model_config_parse(&mc, config_text, strlen(config_text), NULL, err) != 0) {
		json_free(o);
		return NULL;
	}
	parameters = count_parameters(&mc, &failed);
	rc = json_set_string(o, "family", mc.family) | json_set_string(o, "architecture", mc.architecture) |
	     json_set_int(o, "layers", (int64_t)mc.layers) | json_set_int(o, "hidden", (int64_t)mc.hidden) |
	     json_set_int(o, "intermediate", (int64_t)mc.intermediate) |
	     json_set_int(o, "heads", (int64_t)mc.heads) | json_set_int(o, "kv_heads", (int64_t)mc.kv_heads) |
	     json_set_int(o, "head_dim", (int64_t)mc.head_dim) | json_set_int(o, "vocab", (int64_t)mc.vocab) |
	     json_set_int(o, "max_position", (int64_t)mc.max_position) |
	     json_set_bool(o, "tied_embeddings", mc.tied_embeddings) | json_set_string(o, "dtype", mc.dtype) |
	     json_set_number(o, "parameters", parameters);
	if (rc == 0 && !failed)
		return o;
	json_free(o);
	err_set_nomem(err, "a model's summary");
	return NULL;
}

struct json *model_files_json(struct store *db, int64_t model, struct err *err)
{
	struct json *list = json_new_array();
	struct query *q = store_select(db, SQL_MODEL_FILES, err, sql_i(model));
	int more = 0, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, err)) == 1) {
		struct json *o = json_new_object();

		rc = json_set_string(o, "name", query_text(q, 0)) | json_set_int(o, "bytes", query_int(q, 2)) |
		     (query_is_null(q, 3) ? json_set_null(o, "sha256")
					  : json_set_string(o, "sha256", query_text(q, 3))) |
		     json_set_string(o, "header_sha256", query_text(q, 4));
		rc |= json_push(list, o);
	}
	query_done(q);
	if (rc == 0 && more == 0)
		return list;
	json_free(list);
	if (more == 0 || rc != 0)
		err_set_nomem(err, "a model's files");
	return NULL;
}

/* The row that `q` stands on: pk id name path bytes created config. */
static struct json *model_row(struct query *q, struct err *err)
{
	struct json *o = json_new_object();
	int rc = json_set_string(o, "model", query_text(q, 1)) | json_set_string(o, "name", query_text(q, 2)) |
		 (query_is_null(q, 3) ? json_set_null(o, "path") : json_set_string(o, "path", query_text(q, 3))) |
		 json_set_int(o, "bytes", query_int(q, 4)) | json_set_int(o, "created_ms", query_int(q, 5));

	rc |= json_set(o, "config", model_config_json(query_text(q, 6), err));
	if (rc == 0)
		return o;
	json_free(o);
	if (err->code == ERR_NONE)
		err_set_nomem(err, "a model");
	return NULL;
}

static int reply_model(struct tx *tx, const char *id, int status, struct engine_reply *reply)
{
	struct query *q = store_select(tx->db, SQL_MODEL_BY_ID, &reply->err, sql_t(id));
	int found = query_next(q, &reply->err);
	int64_t pk = 0;

	if (found == 1) {
		pk = query_int(q, 0);
		snprintf(reply->etag, sizeof(reply->etag), "%.64s", query_text(q, 7));
		reply->body = model_row(q, &reply->err);
	}
	query_done(q);
	if (found == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "there is no model '%.80s'", id);
	if (found < 0 || !reply->body)
		return -1;
	reply->status = status;
	if (json_set(reply->body, "files", model_files_json(tx->db, pk, &reply->err)) == 0)
		return 0;
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a model");
}

int verb_model_get(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	return reply_model(tx, r->id, 200, reply);
}

int verb_model_list(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct json *items = json_new_array();
	int64_t below, last = 0;
	int limit = list_limit(r), count = 0, more = 0, rc;
	struct query *q;

	rc = list_cursor(r, INT64_MAX, &below, &reply->err);
	q = rc == 0 ? store_select(tx->db, SQL_MODEL_LIST, &reply->err, sql_i(below), sql_i(limit + 1)) : NULL;
	while (rc == 0 && (more = query_next(q, &reply->err)) == 1 && count < limit) {
		rc = json_push(items, model_row(q, &reply->err));
		last = query_int(q, 0);
		count++;
	}
	query_done(q);
	if (rc == 0 && more >= 0)
		return list_reply(reply, items, more == 1, last);
	json_free(items);
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a list");
}

/* --- adding ------------------------------------------------------------------- */

/* The id of a model with this digest: 1, 0 or -1. */
static int known_model(struct tx *tx, const char *digest, char id[ID_MAX], struct err *err)
{
	struct query *q = store_select(tx->db, SQL_MODEL_BY_DIGEST, err, sql_t(digest));
	int found = query_next(q, err);

	if (found == 1)
		snprintf(id, ID_MAX, "%s", query_text(q, 0));
	query_done(q);
	return found;
}

static int store_files(struct tx *tx, const char *id, const struct json *files, bool uploaded, struct err *err)
{
	for (const struct json *f = json_first(files); f; f = json_next(f)) {
		const char *sha256 = json_get_string(f, "sha256", NULL);
		int64_t bytes;

		if (uploaded && blob_require(tx->db, sha256 ? sha256 : "", &bytes, err) != 0)
			return -1;
		if (store_exec(tx->db, SQL_MODEL_FILE_ADD, err, sql_t(id), sql_t(json_get_string(f, "name", "")),
			       sql_i(json_get_int(f, "role", 0)), sql_i(json_get_int(f, "bytes", 0)), sql_t(sha256),
			       sql_t(json_get_string(f, "header_sha256", ""))) < 0)
			return -1;
	}
	return 0;
}

static int store_model(struct tx *tx, const struct engine_request *r, char id[ID_MAX], struct err *err)
{
	const struct json *b = r->body;
	const char *path = json_get_string(b, "path", NULL);
	char *tensors = json_print(json_get(b, "tensors"), false);
	int rc;

	if (!tensors)
		return err_set_nomem(err, "the model's tensors");
	rc = engine_new_id(tx->e, "m_", id, err);
	if (rc == 0 && store_exec(tx->db, SQL_MODEL_ADD, err, sql_t(id), sql_t(json_get_string(b, "name", "")),
				  sql_t(path), sql_t(json_get_string(b, "digest", "")), sql_t(r->subject),
				  sql_i(tx->now_ms), sql_i(json_get_int(b, "bytes", 0)),
				  sql_t(json_get_string(b, "config", "")), sql_t(tensors)) < 0)
		rc = -1;
	mem_free(tensors);
	return rc == 0 ? store_files(tx, id, json_get(b, "files"), path == NULL, err) : -1;
}

int verb_model_add(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	char id[ID_MAX];
	int known = known_model(tx, json_get_string(r->body, "digest", ""), id, &reply->err);

	if (known < 0 || (known == 0 && store_model(tx, r, id, &reply->err) != 0))
		return -1;
	return reply_model(tx, id, known ? 200 : 201, reply);
}

/* --- removing ----------------------------------------------------------------- */

int verb_model_delete(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct json *files;
	int64_t pk, job;
	int found = store_get_int(tx->db, SQL_MODEL_PK, &pk, &reply->err, sql_t(r->id)), rc = 0;

	if (found == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "there is no model '%.80s'", r->id);
	if (found < 0)
		return -1;
	found = store_get_int(tx->db, SQL_MODEL_IN_USE, &job, &reply->err, sql_i(pk));
	if (found == 1)
		return reply_fail(reply, ERR_CONFLICT,
				  "a job that is not over uses model %.80s; cancel or delete the job first", r->id);
	files = found == 0 ? model_files_json(tx->db, pk, &reply->err) : NULL;
	if (!files)
		return -1;
	if (store_exec(tx->db, SQL_MODEL_REMOVE, &reply->err, sql_i(pk)) < 0)
		rc = -1;
	for (const struct json *f = json_first(files); rc == 0 && f; f = json_next(f))
		if (json_get_string(f, "sha256", NULL))
			rc = blob_drop_if_unused(tx, json_get_string(f, "sha256", ""), &reply->err);
	json_free(files);
	reply->status = 204;
	return rc;
}
