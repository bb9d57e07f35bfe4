#include "server/reply.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "server/engine.h"
#include "server/range.h"

static const char json_type_name[] = "application/json";
static const char problem_type_name[] = "application/problem+json";

static void common_fields(struct http_reply *r)
{
	http_field(r, "X-Content-Type-Options", "nosniff");
	http_field(r, "Cache-Control", "no-cache");
}

/* --- bodies ------------------------------------------------------------------------ */

static void set_bytes(struct http_reply *r, const char *type, char *text)
{
	r->type = type;
	r->kind = HTTP_BYTES;
	r->bytes = text;
	r->length = strlen(text);
}

/* When even an error cannot be built. */
static void reply_out_of_memory(struct http_exchange *x)
{
	static char text[] = "{\"type\":\"/problems/out-of-memory\",\"title\":\"Out of memory\","
			     "\"status\":503,\"detail\":\"the coordinator is out of "
				     "memory\",\"retryable\":true}";

	http_reply_deinit(&x->reply);
	x->reply.status = 503;
	x->reply.type = problem_type_name;
	x->reply.kind = HTTP_STATIC;
	x->reply.bytes = text;
	x->reply.length = sizeof(text) - 1;
}

bool etag_listed(const char *header, const char *etag)
{
	size_t len = strlen(etag);

	while (header && *header) {
		size_t n;

		header += strspn(header, " \t,");
		if (*header == '*')
			return true;
		if (strncmp(header, "W/", 2) == 0)
			header += 2;
		n = strcspn(header, ",");
		while (n > 0 && (header[n - 1] == ' ' || header[n - 1] == '\t'))
			n--;
		if (n == len + 2 && header[0] == '"' && strncmp(header + 1, etag, len) == 0 &&
		    header[n - 1] == '"')
			return true;
		header += strcspn(header, ",");
	}
	return false;
}

void reply_not_modified(struct http_exchange *x, const char *etag)
{
	x->reply.status = 304;
	common_fields(&x->reply);
	http_field(&x->reply, "ETag", "\"%s\"", etag);
}

void reply_empty(struct http_exchange *x, int status)
{
	x->reply.status = status;
	common_fields(&x->reply);
}

static bool is_read(const struct http_exchange *x)
{
	return strcmp(x->method, "GET") == 0 || strcmp(x->method, "HEAD") == 0;
}

void reply_json(struct http_exchange *x, int status, const struct json *body, const char *etag)
{
	char digest[DIGEST_HEX];
	char *text;

	if (!body) {
		reply_empty(x, status);
		return;
	}
	text = json_print(body, false);
	if (!text || (!*etag && digest_of(text, strlen(text), digest) != 0)) {
		mem_free(text);
		reply_out_of_memory(x);
		return;
	}
	if (!*etag) {
		digest[32] = '\0';
		etag = digest;
	}
	if (is_read(x) && status == 200 && etag_listed(http_header(x, "If-None-Match"), etag)) {
		mem_free(text);
		reply_not_modified(x, etag);
		return;
	}
	x->reply.status = status;
	set_bytes(&x->reply, json_type_name, text);
	common_fields(&x->reply);
	if (is_read(x))
		http_field(&x->reply, "ETag", "\"%s\"", etag);
}

/* --- problems ------------------------------------------------------------------------- */

static const char *title_of(enum err_code code)
{
	switch (code) {
	case ERR_NONE: return "No error";
	case ERR_INVALID: return "Invalid request";
	case ERR_UNAUTHORIZED: return "Token missing or not known";
	case ERR_FORBIDDEN: return "Not allowed with this token";
	case ERR_NOT_FOUND: return "Not found";
	case ERR_CONFLICT: return "Conflict with the current state";
	case ERR_TOO_LARGE: return "Too large";
	case ERR_REFUSED: return "Refused";
	case ERR_UNSUPPORTED: return "Not supported";
	case ERR_CORRUPT: return "Corrupt data";
	case ERR_NUMERIC: return "Numerical failure";
	case ERR_BUSY: return "Busy";
	case ERR_INTERNAL: return "Internal error";
	case ERR_IO: return "Input/output error";
	case ERR_NOMEM: return "Out of memory";
	case ERR_UNAVAILABLE: return "Unavailable";
	case ERR_TIMEOUT: return "Time-out";
	case ERR_NOSPC: return "No space left on disk";
	case ERR_CANCELLED: return "Cancelled";
	}
	return "Error";
}

static struct json *problem_json(int status, const struct err *err, const struct json *problems)
{
	struct json *o = json_new_object();
	char type[64];
	int failed;

	if (!o)
		return NULL;
	snprintf(type, sizeof(type), "/problems/%s", err_name(err->code));
	failed = json_set_string(o, "type", type) | json_set_string(o, "title", title_of(err->code)) |
		 json_set_int(o, "status", status) | json_set_string(o, "detail", err->text) |
		 json_set_bool(o, "retryable", err_retryable(err->code));
	if (problems)
		failed |= json_set(o, "problems", json_copy(problems));
	if (failed) {
		json_free(o);
		return NULL;
	}
	return o;
}

static void reply_problem_of(struct http_exchange *x, int status, const struct err *err,
			     const struct json *problems)
{
	bool close = x->reply.close;
	struct json *o = problem_json(status, err, problems);
	char *text = o ? json_print(o, false) : NULL;

	json_free(o);
	http_reply_deinit(&x->reply);
	if (!text) {
		reply_out_of_memory(x);
		return;
	}
	x->reply.status = status;
	x->reply.close = close;
	set_bytes(&x->reply, problem_type_name, text);
	common_fields(&x->reply);
	if (err_retryable(err->code))
		http_field(&x->reply, "Retry-After", "1");
}

void reply_problem(struct http_exchange *x, const struct err *err, const struct json *problems)
{
	reply_problem_of(x, err_http_status(err->code), err, problems);
}

void reply_problem_status(struct http_exchange *x, int status, enum err_code code, const char *fmt, ...)
{
	struct err err = { .code = code };
	va_list args;

	va_start(args, fmt);
	vsnprintf(err.text, sizeof(err.text), fmt, args);
	va_end(args);
	reply_problem_of(x, status, &err, NULL);
}

void reply_engine(struct http_exchange *x, const struct engine_reply *reply)
{
	if (reply->err.code != ERR_NONE)
		reply_problem(x, &reply->err, reply->problems);
	else
		reply_json(x, reply->status, reply->body, reply->etag);
}

/* --- bytes and files ------------------------------------------------------------------- */

void reply_static(struct http_exchange *x, const void *bytes, size_t len, const char *type)
{
	char digest[DIGEST_HEX];

	if (digest_of(bytes, len, digest) != 0) {
		reply_out_of_memory(x);
		return;
	}
	digest[32] = '\0';
	if (etag_listed(http_header(x, "If-None-Match"), digest)) {
		reply_not_modified(x, digest);
		return;
	}
	x->reply.status = 200;
	x->reply.type = type;
	x->reply.kind = HTTP_STATIC;
	x->reply.bytes = (char *)bytes;
	x->reply.length = len;
	common_fields(&x->reply);
	http_field(&x->reply, "ETag", "\"%s\"", digest);
}

/* Range counts for GET only, and with If-Range only while the file is the one the client knows. */
static enum range_kind wanted_range(const struct http_exchange *x, uint64_t bytes, const char *etag,
				    uint64_t *first, uint64_t *last)
{
	const char *if_range = http_header(x, "If-Range");

	if (strcmp(x->method, "GET") != 0)
		return RANGE_ALL;
	if (if_range && (strncmp(if_range, "W/", 2) == 0 || !etag_listed(if_range, etag)))
		return RANGE_ALL;
	return range_parse(http_header(x, "Range"), bytes, first, last);
}

void reply_file(struct http_exchange *x, int fd, uint64_t bytes, const char *etag, const char *type)
{
	uint64_t first = 0, last = 0;
	enum range_kind range = wanted_range(x, bytes, etag, &first, &last);

	if (etag_listed(http_header(x, "If-None-Match"), etag)) {
		close(fd);
		reply_not_modified(x, etag);
		return;
	}
	if (range == RANGE_NONE) {
		close(fd);
		reply_problem_status(x, 416, ERR_INVALID, "the range %.64s is not part of these %llu bytes",
				     http_header(x, "Range"), (unsigned long long)bytes);
		http_field(&x->reply, "Content-Range", "bytes */%llu", (unsigned long long)bytes);
		return;
	}
	x->reply.status = range == RANGE_PART ? 206 : 200;
	x->reply.type = type;
	x->reply.kind = HTTP_FILE;
	x->reply.fd = fd;
	x->reply.offset = first;
	x->reply.length = range == RANGE_PART ? last - first + 1 : bytes;
	common_fields(&x->reply);
	http_field(&x->reply, "ETag", "\"%s\"", etag);
	http_field(&x->reply, "Accept-Ranges", "bytes");
	if (range == RANGE_PART)
		http_field(&x->reply, "Content-Range", "bytes %llu-%llu/%llu", (unsigned long long)first,
			   (unsigned long long)last, (unsigned long long)bytes);
}
