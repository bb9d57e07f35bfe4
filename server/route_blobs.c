/* Uploads and downloads of blobs.
 *
 * A blob is announced to the engine (VERB_BLOB_ADD) only after its file has its name on disk, and "exists" is
 * said only after the engine has its row: a crash in between leaves a file that the next upload of it finds.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "server/reply.h"
#include "server/request.h"
#include "server/route_handlers.h"

static struct json *blob_json(const char *sha256, uint64_t bytes)
{
	struct json *o = json_new_object();

	if (o && (json_set_string(o, "sha256", sha256) | json_set_int(o, "bytes", (int64_t)bytes))) {
		json_free(o);
		return NULL;
	}
	return o;
}

/* Replies and frees; out of memory when NULL. */
static void reply_own(struct request *r, int status, struct json *body)
{
	if (body)
		reply_json(r->x, status, body, "");
	else
		reply_problem_status(r->x, 503, ERR_NOMEM, "out of memory for an answer");
	json_free(body);
}

static void add_row(struct request *r, void (*next)(struct request *r))
{
	struct json *body = blob_json(r->sha256, r->bytes);

	if (body)
		request_post(r, VERB_BLOB_ADD, body, next);
	else
		reply_own(r, 503, NULL);
}

/* --- POST /v1/uploads ----------------------------------------------------------------- */

static void exists_done(struct request *r)
{
	struct json *body;

	if (r->call->reply.err.code != ERR_NONE) {
		reply_engine(r->x, &r->call->reply);
		return;
	}
	body = blob_json(r->sha256, r->bytes);
	if (body && json_set_bool(body, "exists", true) != 0) {
		json_free(body);
		body = NULL;
	}
	reply_own(r, 200, body);
}

/* place: where the bytes may be put instead of sending them, or NULL. */
static struct json *upload_json(const char *sha256, const unsigned char *done, size_t parts, const char *place)
{
	struct json *o = json_new_object(), *list = json_new_array();
	char id[2 + DIGEST_HEX] = "u_";
	int failed = !o || !list;

	memcpy(id + 2, sha256, DIGEST_HEX);
	for (size_t i = 0; !failed && i < parts; i++)
		if (done[i])
			failed = json_push(list, json_new_number((double)i));
	if (!failed)
		failed = json_set_bool(o, "exists", false) | json_set_string(o, "upload", id) |
			 json_set_int(o, "part_bytes", BLOB_PART_BYTES);
	if (!failed && place)
		failed = json_set_string(o, "place", place);
	if (!failed) {
		failed = json_set(o, "parts_done", list);
		list = NULL;
	}
	json_free(list);
	if (failed) {
		json_free(o);
		return NULL;
	}
	return o;
}

/* Only who works here may put files into our folder. */
static bool may_place(const struct request *r)
{
	return access_allows(ACCESS_WORK, r->role);
}

static void upload_open(struct request *r)
{
	bool place = json_get_bool(r->json, "place", false) && may_place(r);
	unsigned char *done = NULL;
	char path[PATH_MAX];
	size_t parts = 0;

	if (blobs_upload_begin(r->app->blobs, r->sha256, r->bytes, &done, &parts, &r->err) != 0)
		reply_problem(r->x, &r->err, NULL);
	else
		reply_own(r, 201, upload_json(r->sha256, done, parts,
					      place && blobs_place_path(r->app->blobs, r->sha256, path) ? path : NULL));
	mem_free(done);
}

void route_upload_begin(struct request *r)
{
	const char *sha256;
	int64_t bytes;
	uint64_t have;

	if (json_require_string(r->json, "sha256", &sha256, &r->err) != 0 ||
	    json_require_int(r->json, "bytes", 0, INT64_C(1) << 53, &bytes, &r->err) != 0) {
		reply_problem(r->x, &r->err, NULL);
		return;
	}
	if (!digest_is_hex(sha256)) {
		reply_problem_status(r->x, 400, ERR_INVALID, "sha256 must be 64 lower-case hex characters");
		return;
	}
	memcpy(r->sha256, sha256, DIGEST_HEX);
	r->bytes = (uint64_t)bytes;
	if (!blobs_has(r->app->blobs, r->sha256, &have))
		upload_open(r);
	else if (have != r->bytes)
		reply_problem_status(r->x, 409, ERR_CONFLICT,
				     "blob %s is stored and has %llu bytes, not %llu", r->sha256,
				     (unsigned long long)have, (unsigned long long)r->bytes);
	else
		add_row(r, exists_done);
}

/* --- PUT /v1/uploads/{id}/parts/{n} ------------------------------------------------------ */

/* Reads {id}: "u_" and a digest. */
static int upload_id(struct request *r)
{
	const char *id = r->captures.first;

	if (strncmp(id, "u_", 2) != 0 || !digest_is_hex(id + 2))
		return err_set(&r->err, ERR_NOT_FOUND, "no upload %s is open; begin it with POST /v1/uploads",
			       id);
	memcpy(r->sha256, id + 2, DIGEST_HEX);
	return 0;
}

static int part_number(struct request *r)
{
	const char *n = r->captures.second;
	size_t len = strlen(n);

	if (upload_id(r) != 0)
		return -1;
	if (len == 0 || len > 7 || strspn(n, "0123456789") != len)
		return err_set(&r->err, ERR_INVALID, "a part is a number from 0");
	r->part = strtoul(n, NULL, 10);
	return 0;
}

void route_upload_bytes(struct request *r, const void *bytes, size_t len)
{
	if ((r->bytes == 0 && part_number(r) != 0) ||
	    blobs_upload_write(r->app->blobs, r->sha256, r->part, r->bytes, bytes, len, &r->err) != 0) {
		reply_problem(r->x, &r->err, NULL);
		return;
	}
	r->bytes += len;
}

void route_upload_part(struct request *r)
{
	if (part_number(r) != 0 ||
	    blobs_upload_part_done(r->app->blobs, r->sha256, r->part, r->bytes, &r->err) != 0)
		reply_problem(r->x, &r->err, NULL);
	else
		reply_empty(r->x, 204);
}

/* --- POST /v1/uploads/{id}/complete ------------------------------------------------------- */

static bool is_placed(const struct request *r)
{
	return json_get_bool(r->json, "placed", false);
}

static void complete_run(struct offload_job *job)
{
	struct request *r = (struct request *)((char *)job - offsetof(struct request, job));

	if (is_placed(r))
		blobs_place_complete(r->app->blobs, r->sha256, &r->bytes, &r->err);
	else
		blobs_upload_complete(r->app->blobs, r->sha256, &r->bytes, &r->err);
	http_resume(r->x);
}

static void row_done(struct request *r)
{
	if (r->call->reply.err.code != ERR_NONE)
		reply_engine(r->x, &r->call->reply);
	else
		reply_own(r, 201, blob_json(r->sha256, r->bytes));
}

static void complete_done(struct request *r)
{
	if (r->err.code != ERR_NONE)
		reply_problem(r->x, &r->err, NULL);
	else
		add_row(r, row_done);
}

void route_upload_complete(struct request *r)
{
	if (upload_id(r) != 0)
		reply_problem(r->x, &r->err, NULL);
	else if (is_placed(r) && !may_place(r))
		reply_problem_status(r->x, 403, ERR_FORBIDDEN, "only a worker may place a file; send the parts");
	else
		request_offload(r, complete_run, complete_done);
}

/* --- GET /v1/blobs/{sha256} ------------------------------------------------------------------ */

void route_blob(struct request *r)
{
	uint64_t bytes;
	int fd;

	if (!digest_is_hex(r->captures.first)) {
		reply_problem_status(r->x, 404, ERR_NOT_FOUND,
				     "a blob is named by 64 lower-case hex characters");
		return;
	}
	fd = blobs_open_fd(r->app->blobs, r->captures.first, &bytes, &r->err);
	if (fd < 0)
		reply_problem(r->x, &r->err, NULL);
	else
		reply_file(r->x, fd, bytes, r->captures.first, "application/octet-stream");
}
