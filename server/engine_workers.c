/* Workers: registration, drain, and how they look from outside. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/engine_internal.h"

enum { DEVICE_TEXT_MAX = 100 };

/* What makes a worker as fast as it is. */
struct worker_facts { const char *backend, *identity; char *device; int64_t threads; };

static int worker_fields(struct query *q, struct worker_ref *w, struct err *err)
{
	int found = query_next(q, err);

	if (found == 1) {
		w->pk = query_int(q, 0);
		snprintf(w->id, sizeof(w->id), "%s", query_text(q, 1));
		snprintf(w->name, sizeof(w->name), "%s", query_text(q, 2));
		w->draining = query_int(q, 3);
		w->last_seen_ms = query_int(q, 4);
		w->memory_bytes = query_int(q, 5);
		w->sees_paths = query_int(q, 6);
	}
	query_done(q);
	return found;
}

int worker_of_request(struct tx *tx, const struct engine_request *r, struct worker_ref *w, struct err *err)
{
	const char *id;
	int found;

	if (json_require_string(r->body, "worker", &id, err) != 0)
		return -1;
	found = worker_fields(store_select(tx->db, SQL_WORKER_OF, err, sql_t(id), sql_t(r->subject)), w, err);
	if (found == 0)
		err_set(err, ERR_NOT_FOUND, "the worker '%.80s' is not registered with this token; register again", id);
	if (found != 1)
		return -1;
	/* Once a second is enough to tell who is alive. */
	if (tx->now_ms - w->last_seen_ms < 1000)
		return 0;
	return store_exec(tx->db, SQL_WORKER_SEEN, err, sql_i(w->pk), sql_i(tx->now_ms)) < 0 ? -1 : 0;
}

static int check_registration(const struct json *body, const char **name, struct err *err)
{
	if (json_require_string(body, "name", name, err) != 0)
		return -1;
	if ((*name)[0] == '\0' || strlen(*name) > 100)
		return err_set(err, ERR_INVALID, "\"name\" of a worker must have 1 to 100 bytes");
	return 0;
}

/* Its device as it is stored, to be freed with mem_free(): the members that are known, in one order. *out NULL: none. */
static int read_device(const struct json *body, char **out, struct err *err)
{
	const struct json *d = json_get(body, "device");
	const char *name = json_get_string(d, "name", ""), *driver = json_get_string(d, "driver", "");
	struct json *o;
	int64_t number, clock_mhz, bytes;
	int rc;

	*out = NULL;
	if (!d || json_type(d) == JSON_NULL)
		return 0;
	if (json_type(d) != JSON_OBJECT || strlen(name) > DEVICE_TEXT_MAX || strlen(driver) > DEVICE_TEXT_MAX ||
	    json_require_int(d, "number", 0, 1 << 20, &number, err) != 0 ||
	    json_require_int(d, "clock_mhz", 0, 1 << 30, &clock_mhz, err) != 0 ||
	    json_require_int(d, "memory_bytes", 0, INT64_C(1) << 53, &bytes, err) != 0)
		return err_set(err, ERR_INVALID, "\"device\" of a worker must be null or {\"number\",\"name\",\"driver\","
			       "\"clock_mhz\",\"memory_bytes\"}, with texts of at most %d bytes", DEVICE_TEXT_MAX);
	o = json_new_object();
	rc = json_set_int(o, "number", number) | json_set_string(o, "name", name) |
	     json_set_string(o, "driver", driver) | json_set_int(o, "clock_mhz", clock_mhz) |
	     json_set_int(o, "memory_bytes", bytes);
	if (rc == 0)
		*out = json_print(o, false);
	json_free(o);
	return *out ? 0 : err_set_nomem(err, "a worker");
}

/* How fast it was tells nothing once it computes with something else. */
static int forget_rates(struct tx *tx, const char *subject, const char *name, const struct worker_facts *f,
			struct err *err)
{
	int64_t one;
	int same = store_get_int(tx->db, SQL_WORKER_SAME, &one, err, sql_t(subject), sql_t(name), sql_t(f->backend),
				 sql_t(f->identity), sql_i(f->threads), sql_t(f->device));

	if (same != 0)
		return same < 0 ? -1 : 0;
	return store_exec(tx->db, SQL_RATES_REMOVE, err, sql_t(subject), sql_t(name)) < 0 ? -1 : 0;
}

static int store_worker(struct tx *tx, const struct engine_request *r, const char *id, const char *name,
			const struct worker_facts *f, struct err *err)
{
	const struct json *b = r->body;

	if (forget_rates(tx, r->subject, name, f, err) != 0 ||
	    store_exec(tx->db, SQL_BACKEND_ADD, err, sql_t(f->backend), sql_t(f->identity)) < 0 ||
	    store_exec(tx->db, SQL_WORKER_ADD, err, sql_t(id), sql_t(r->subject), sql_t(name), sql_t(f->backend),
		       sql_t(f->identity), sql_t(json_get_string(b, "version", "")), sql_i(f->threads),
		       sql_i(json_get_int(b, "memory_bytes", 0)), sql_i(json_get_bool(b, "sees_paths", false)),
		       sql_i(tx->now_ms), sql_t(f->device)) < 0)
		return -1;
	return 0;
}

int verb_worker_add(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	const struct json *b = r->body;
	struct worker_facts f = { .backend = json_get_string(b, "backend", "cpu"),
				  .identity = json_get_string(b, "identity", ""),
				  .threads = json_get_int(b, "threads", 1) };
	char id[ID_MAX];
	const char *name;
	struct query *q;
	int rc;

	rc = check_registration(b, &name, &reply->err) == 0 && read_device(b, &f.device, &reply->err) == 0 &&
	     engine_new_id(tx->e, "w_", id, &reply->err) == 0 ? store_worker(tx, r, id, name, &f, &reply->err) : -1;
	mem_free(f.device);
	if (rc != 0)
		return -1;
	q = store_select(tx->db, SQL_WORKER_ID_OF, &reply->err, sql_t(r->subject), sql_t(name));
	rc = query_next(q, &reply->err);
	if (rc == 1)
		snprintf(id, sizeof(id), "%s", query_text(q, 0));
	query_done(q);
	reply->status = 201;
	reply->body = json_new_object();
	if (rc != 1 || json_set_string(reply->body, "worker", id) != 0)
		return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a reply");
	if (effects_wake(tx->fx, WAKE_WORKER, id, &reply->err) != 0)
		return -1;
	return 0;
}

int verb_worker_drain(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	/* A worker drains itself; an administrator any. */
	const char *subject = r->role == ROLE_ADMIN ? NULL : r->subject;
	int changed = store_exec(tx->db, SQL_WORKER_DRAIN, &reply->err, sql_t(r->id), sql_t(subject));

	if (changed < 0)
		return -1;
	if (changed == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "there is no worker '%.80s'", r->id);
	reply->status = 200;
	reply->body = json_new_object();
	if (json_set_string(reply->body, "worker", r->id) != 0 ||
	    json_set_string(reply->body, "state", "draining") != 0)
		return err_set_nomem(&reply->err, "a reply");
	/* Its parked lease request should hear of it. */
	if (effects_wake(tx->fx, WAKE_LEASE, "", &reply->err) != 0)
		return -1;
	return effects_wake(tx->fx, WAKE_WORKER, r->id, &reply->err);
}

/* --- views -------------------------------------------------------------------- */

static struct json *held_tasks(struct tx *tx, int64_t worker, struct err *err)
{
	struct json *list = json_new_array();
	struct query *q = store_select(tx->db, SQL_WORKER_TASKS, err, sql_i(worker));
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		struct json *o = more == 1 ? json_new_object() : NULL;
		char id[ID_MAX];

		if (more < 0) {
			rc = -1;
			break;
		}
		task_id_text(id, query_text(q, 1), query_int(q, 2), query_int(q, 0));
		rc = json_set_string(o, "task", id) | json_set_string(o, "job", query_text(q, 1)) |
		     json_set_string(o, "kind", task_kind_name(query_int(q, 3))) |
		     (query_int(q, 4) < 0 ? json_set_null(o, "layer") : json_set_int(o, "layer", query_int(q, 4))) |
		     json_set_number(o, "progress", query_real(q, 5)) |
		     json_set_string(o, "note", query_text(q, 6)) | json_set_int(o, "leased_ms", query_int(q, 7));
		rc |= json_push(list, o);
	}
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	return NULL;
}

static const char *worker_state(struct tx *tx, int64_t last_seen_ms, bool draining, bool busy)
{
	if (tx->now_ms - last_seen_ms > tx->e->config.lease_ms)
		return "lost";
	if (draining)
		return "draining";
	return busy ? "busy" : "idle";
}

static struct json *device_json(struct query *q, int column)
{
	return query_is_null(q, column) ? json_new_null() : json_parse_stored(query_text(q, column), NULL);
}

struct worker_row {
	int64_t pk;
	struct json *json;
};

/* The row that `q` stands on, without its tasks. */
static int read_row(struct tx *tx, struct query *q, struct worker_row *row)
{
	struct json *o = json_new_object();
	int rc = json_set_string(o, "worker", query_text(q, 1)) | json_set_string(o, "name", query_text(q, 2)) |
		 json_set_string(o, "backend", query_text(q, 3)) | json_set_string(o, "identity", query_text(q, 4)) |
		 json_set_string(o, "version", query_text(q, 5)) | json_set_int(o, "threads", query_int(q, 6)) |
		 json_set_int(o, "memory_bytes", query_int(q, 7)) |
		 json_set_bool(o, "sees_paths", query_int(q, 8) != 0) |
		 json_set_string(o, "state", worker_state(tx, query_int(q, 11), query_int(q, 9) != 0,
							  query_int(q, 14) > 0)) |
		 json_set_int(o, "registered_ms", query_int(q, 10)) |
		 json_set_int(o, "last_seen_ms", query_int(q, 11)) | json_set_int(o, "done", query_int(q, 12)) |
		 json_set_int(o, "failed", query_int(q, 13));

	rc |= json_set(o, "device", device_json(q, 15));

	*row = (struct worker_row){ query_int(q, 0), o };
	return rc;
}

int verb_worker_list(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct worker_row rows[LIST_MAX];
	struct json *items = json_new_array();
	int64_t below;
	int count = 0, more = 0, rc, limit = list_limit(r);
	struct query *q;

	rc = list_cursor(r, INT64_MAX, &below, &reply->err);
	q = rc == 0 ? store_select(tx->db, SQL_WORKER_LIST, &reply->err, sql_i(below), sql_i(limit + 1)) : NULL;
	while (rc == 0 && (more = query_next(q, &reply->err)) == 1 && count < limit)
		rc = read_row(tx, q, &rows[count++]);
	query_done(q);
	if (more < 0)
		rc = -1;
	for (int i = 0; i < count; i++) {
		rc |= json_set(rows[i].json, "tasks", rc == 0 ? held_tasks(tx, rows[i].pk, &reply->err) : NULL);
		rc |= json_push(items, rows[i].json);
	}
	if (rc == 0)
		return list_reply(reply, items, more == 1, count > 0 ? rows[count - 1].pk : 0);
	json_free(items);
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a list");
}

int verb_worker_get(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct query *q = store_select(tx->db, SQL_WORKER_GET, &reply->err, sql_t(r->id));
	int found = query_next(q, &reply->err), rc = 0;
	struct worker_row row = { 0 };

	if (found == 1)
		rc = read_row(tx, q, &row);
	query_done(q);
	if (found == 0)
		return reply_fail(reply, ERR_NOT_FOUND, "there is no worker '%.80s'", r->id);
	if (found < 0)
		return -1;
	rc |= json_set(row.json, "tasks", held_tasks(tx, row.pk, &reply->err));
	reply->status = 200;
	reply->body = row.json;
	if (rc == 0)
		return 0;
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "a reply");
}
