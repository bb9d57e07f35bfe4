#include "worker/agent_wire.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "common/file.h"

enum { PART_BYTES_MIN = 1024, PARTS_MAX = 1 << 20, LOG_MAX = 16 * 1024 };

/* An id that may stand in a path or a URL as it is. */
static bool is_id(const char *text)
{
	return path_is_plain_name(text) && strlen(text) <= WIRE_ID_MAX;
}

static int require_id(const struct json *o, const char *key, const char **out, struct err *err)
{
	if (json_require_string(o, key, out, err) != 0)
		return -1;
	if (!is_id(*out))
		return err_set(err, ERR_INVALID, "\"%s\" is \"%.120s\", which is not an id", key, *out);
	return 0;
}

/* An absolute path whose last part is `name` and `ending`: whoever tells it cannot mean another file of this host. */
static int check_path(const char *path, const char *name, const char *ending, struct err *err)
{
	const char *last = strrchr(path, '/');
	size_t len = strlen(name);

	if (path[0] == '/' && strlen(path) < PATH_MAX && strncmp(last + 1, name, len) == 0 &&
	    strcmp(last + 1 + len, ending) == 0)
		return 0;
	return err_set(err, ERR_INVALID, "the path \"%.200s\" is not that of a file %s%s", path, name, ending);
}

/* --- the lease ------------------------------------------------------------------------------------------ */

static int parse_input(struct lease_input *in, const struct json *o, struct err *err)
{
	int64_t bytes;

	if (json_require_string(o, "name", &in->name, err) != 0 ||
	    json_require_string(o, "sha256", &in->sha256, err) != 0 ||
	    json_require_int(o, "bytes", 0, (int64_t)1 << 50, &bytes, err) != 0)
		return -1;
	if (!path_is_plain_name(in->name) || !digest_is_hex(in->sha256))
		return err_set(err, ERR_INVALID, "input \"%.100s\" has no plain name or no SHA-256", in->name);
	in->bytes = (uint64_t)bytes;
	if (json_type(json_get(o, "path")) == JSON_NULL)
		return 0;
	if (json_require_string(o, "path", &in->path, err) != 0 || check_path(in->path, in->sha256, "", err) != 0)
		return err_prefix(err, "input %s", in->name);
	return 0;
}

static int parse_inputs(struct lease *lease, struct err *err)
{
	const struct json *inputs = json_get(lease->json, "inputs"), *o;
	size_t count = json_size(inputs);

	if (count > LEASE_INPUTS_MAX)
		return err_set(err, ERR_INVALID, "%zu inputs; at most %d are accepted", count, LEASE_INPUTS_MAX);
	lease->inputs = mem_alloc(count, sizeof(*lease->inputs));
	if (!lease->inputs)
		return err_set_nomem(err, "the inputs of a lease");
	for (o = json_first(inputs); o; o = json_next(o))
		if (parse_input(&lease->inputs[lease->input_count++], o, err) != 0)
			return -1;
	return 0;
}

/* The model's id and file names become URLs and paths. */
static int check_model(const struct json *model, struct err *err)
{
	const char *text;
	const struct json *file;
	int64_t bytes;

	if (require_id(model, "id", &text, err) != 0)
		return err_prefix(err, "model");
	for (file = json_first(json_get(model, "files")); file; file = json_next(file)) {
		if (json_require_string(file, "name", &text, err) != 0 ||
		    json_require_int(file, "bytes", 0, (int64_t)1 << 53, &bytes, err) != 0)
			return err_prefix(err, "model.files");
		if (!path_is_plain_name(text))
			return err_set(err, ERR_INVALID, "model file \"%.100s\" has no plain name", text);
	}
	return 0;
}

static int parse_fields(struct lease *lease, struct err *err)
{
	int64_t seconds;

	if (require_id(lease->json, "task", &lease->task, err) != 0 ||
	    json_require_string(lease->json, "kind", &lease->kind, err) != 0 ||
	    json_require_int(lease->json, "epoch", 0, (int64_t)1 << 53, &lease->epoch, err) != 0 ||
	    json_require_int(lease->json, "lease_seconds", 1, LEASE_SECONDS_MAX, &seconds, err) != 0)
		return -1;
	lease->lease_ms = seconds * 1000;
	lease->spec = json_get(lease->json, "spec");
	if (json_type(lease->spec) != JSON_OBJECT)
		return err_set(err, ERR_INVALID, "\"spec\" must be an object");
	lease->model = json_get(lease->json, "model");
	if (json_type(lease->model) != JSON_OBJECT)
		lease->model = NULL;
	if (lease->model && check_model(lease->model, err) != 0)
		return -1;
	return parse_inputs(lease, err);
}

int lease_parse(struct lease *lease, const char *text, size_t len, struct err *err)
{
	*lease = (struct lease){ .json = json_parse(text, len, err) };
	if (lease->json && parse_fields(lease, err) == 0)
		return 0;
	err_prefix(err, "a lease");
	lease_deinit(lease);
	return -1;
}

void lease_deinit(struct lease *lease)
{
	mem_free(lease->inputs);
	json_free(lease->json);
	*lease = (struct lease){ 0 };
}

/* --- bodies ----------------------------------------------------------------------------------------------- */

/* Prints and frees. `ok`: every member was set. */
static char *finish(struct json *o, bool ok)
{
	char *text = o && ok ? json_print(o, false) : NULL;

	json_free(o);
	return text;
}

static struct json *device_json(const struct backend_device *d)
{
	struct json *o = json_new_object();

	if (o && json_set_int(o, "number", d->number) == 0 && json_set_string(o, "name", d->name) == 0 &&
	    json_set_string(o, "driver", d->driver) == 0 && json_set_int(o, "clock_mhz", d->clock_mhz) == 0 &&
	    json_set_int(o, "memory_bytes", (int64_t)d->memory_bytes) == 0)
		return o;
	json_free(o);
	return NULL;
}

char *wire_register(const struct wire_worker *w)
{
	struct json *o = json_new_object();

	return finish(o, o && json_set_string(o, "name", w->name) == 0 &&
			 json_set_string(o, "backend", w->backend) == 0 &&
			 json_set_string(o, "identity", w->identity) == 0 &&
			 json_set_int(o, "threads", w->threads) == 0 &&
			 json_set_int(o, "memory_bytes", (int64_t)w->memory_bytes) == 0 &&
			 json_set_string(o, "version", w->version) == 0 &&
			 json_set_bool(o, "sees_paths", w->sees_paths) == 0 &&
			 (!w->device || json_set(o, "device", device_json(w->device)) == 0));
}

char *wire_parse_worker(const char *text, size_t len, struct err *err)
{
	struct json *o = json_parse(text, len, err);
	const char *id;
	char *copy = NULL;

	if (o && require_id(o, "worker", &id, err) == 0 && !(copy = mem_strdup(id)))
		err_set_nomem(err, "the worker's id");
	json_free(o);
	return copy;
}

static struct json *strings(const char *const *text, size_t count)
{
	struct json *list = json_new_array();

	for (size_t i = 0; list && i < count; i++)
		if (json_push(list, json_new_string(text[i])) != 0) {
			json_free(list);
			return NULL;
		}
	return list;
}

char *wire_lease_request(const char *worker, const char *const *have, size_t count, const char *const *holds,
			 size_t holds_count)
{
	struct json *o = json_new_object();
	bool ok = o && json_set_string(o, "worker", worker) == 0 && json_set(o, "have", strings(have, count)) == 0;

	if (ok && holds_count <= WIRE_HOLDS_MAX)
		ok = json_set(o, "holds", strings(holds, holds_count)) == 0;
	return finish(o, ok);
}

static struct json *about(const char *worker, int64_t epoch)
{
	struct json *o = json_new_object();

	if (o && (json_set_string(o, "worker", worker) != 0 || json_set_int(o, "epoch", epoch) != 0)) {
		json_free(o);
		return NULL;
	}
	return o;
}

char *wire_heartbeat(const char *worker, int64_t epoch, double progress, const char *note)
{
	struct json *o = about(worker, epoch);

	return finish(o, o && json_set_number(o, "progress", progress) == 0 &&
			 json_set_string(o, "note", note) == 0);
}

char *wire_complete(const char *worker, int64_t epoch, const struct json *complete)
{
	static const char *const members[] = { "outputs", "result", "stats" };
	struct json *o = about(worker, epoch);
	bool ok = o != NULL;

	for (size_t i = 0; ok && i < 3; i++) {
		const struct json *value = json_get(complete, members[i]);

		ok = !value || json_set(o, members[i], json_copy(value)) == 0;
	}
	return finish(o, ok);
}

/* "error" and "log": what went wrong, and the end of what led to it. */
static bool add_failure(struct json *o, const struct err *why, const char *log)
{
	struct json *e = json_new_object();
	size_t len = strlen(log);

	if (e && (json_set_string(e, "name", err_name(why->code)) != 0 ||
		  json_set_string(e, "detail", why->text) != 0)) {
		json_free(e);
		return false;
	}
	return json_set(o, "error", e) == 0 &&
	       json_set_string(o, "log", len > LOG_MAX ? log + len - LOG_MAX : log) == 0;
}

char *wire_fail(const char *worker, int64_t epoch, const struct err *why, const char *log)
{
	struct json *o = about(worker, epoch);

	return finish(o, o && add_failure(o, why, log));
}

char *wire_checkpoint(const char *worker, int64_t epoch, const char *sha256, uint64_t bytes)
{
	struct json *o = about(worker, epoch);

	return finish(o, o && json_set_string(o, "sha256", sha256) == 0 &&
			 json_set_int(o, "bytes", (int64_t)bytes) == 0);
}

char *wire_release(const char *worker, int64_t epoch, const char *reason, const struct err *why, const char *log)
{
	struct json *o = about(worker, epoch);

	return finish(o, o && json_set_string(o, "reason", reason) == 0 && (!why || add_failure(o, why, log)));
}

char *wire_upload_begin(const char *sha256, uint64_t bytes, bool place)
{
	struct json *o = json_new_object();

	return finish(o, o && json_set_string(o, "sha256", sha256) == 0 &&
			 json_set_int(o, "bytes", (int64_t)bytes) == 0 &&
			 (!place || json_set_bool(o, "place", true) == 0));
}

/* --- uploads ------------------------------------------------------------------------------------------------ */

static int parse_parts(struct wire_upload *up, uint64_t bytes, const struct json *o, struct err *err)
{
	const char *id;
	int64_t part_bytes, n;
	const struct json *part;
	uint64_t parts;

	if (require_id(o, "upload", &id, err) != 0 ||
	    json_require_int(o, "part_bytes", PART_BYTES_MIN, (int64_t)1 << 40, &part_bytes, err) != 0)
		return -1;
	snprintf(up->id, sizeof(up->id), "%s", id);
	up->part_bytes = (uint64_t)part_bytes;
	parts = bytes / up->part_bytes + (bytes % up->part_bytes != 0);
	if (parts > PARTS_MAX)
		return err_set(err, ERR_INVALID, "an upload of %llu parts; at most %d are accepted",
			       (unsigned long long)parts, PARTS_MAX);
	up->parts = (size_t)parts;
	up->done = mem_alloc(up->parts, 1);
	if (!up->done)
		return err_set_nomem(err, "the parts of an upload");
	for (part = json_first(json_get(o, "parts_done")); part; part = json_next(part))
		if (json_int(part, &n) && n >= 0 && (uint64_t)n < parts)
			up->done[n] = 1;
	return 0;
}

static int parse_place(struct wire_upload *up, const char *sha256, const struct json *o, struct err *err)
{
	const char *place;

	if (json_type(json_get(o, "place")) == JSON_NULL)
		return 0;
	if (json_require_string(o, "place", &place, err) != 0 || check_path(place, sha256, ".placed", err) != 0)
		return -1;
	up->place = mem_strdup(place);
	return up->place ? 0 : err_set_nomem(err, "an upload");
}

void wire_upload_deinit(struct wire_upload *up)
{
	mem_free(up->done);
	mem_free(up->place);
	*up = (struct wire_upload){ 0 };
}

int wire_parse_upload(struct wire_upload *up, const char *sha256, uint64_t bytes, const char *text, size_t len,
		      struct err *err)
{
	struct json *o = json_parse(text, len, err);
	int rc = o ? 0 : -1;

	*up = (struct wire_upload){ .exists = json_get_bool(o, "exists", false) };
	if (rc == 0 && !up->exists)
		rc = parse_parts(up, bytes, o, err);
	if (rc == 0 && !up->exists)
		rc = parse_place(up, sha256, o, err);
	if (rc != 0)
		wire_upload_deinit(up);
	json_free(o);
	return rc;
}
