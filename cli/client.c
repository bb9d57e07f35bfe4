#include "cli/client.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli/interrupt.h"
#include "common/alloc.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/file.h"

enum {
	CONNECT_MS = 10000, REPLY_S = 120, STALL_S = 60, PAUSE_FIRST_MS = 100, PAUSE_MOST_MS = 3000,
	PATIENCE_MS = 5000, URL_MAX_BYTES = 2048,
};

struct client {
	CURL *curl;
	char *url;              /* without a trailing slash */
	char *authorization;    /* header line, or NULL */
	int64_t patience_ms;
};

/* Where one exchange goes: text into `text`, or a file's bytes from `offset` on. */
struct exchange {
	struct buf text;
	int fd;                 /* -1: everything into text */
	const char *file;
	uint64_t offset, end;   /* next byte of the file and the first one not wanted */
	uint64_t asked;         /* offset of this try */
	uint64_t moved;
	client_moved tell;
	void *tell_ctx;
	char etag[128];
	int64_t retry_after_ms;
	struct err err;         /* of our own side: disk full, too large */
	CURL *curl;
};

static int64_t now_ms(void)
{
	return clock_system.mono_ms(clock_system.ctx);
}

/* --- life ------------------------------------------------------------------------------------ */

static bool is_http_url(const char *url)
{
	size_t scheme = strncasecmp(url, "http://", 7) == 0 ? 7 : strncasecmp(url, "https://", 8) == 0 ? 8 : 0;

	if (scheme == 0 || url[scheme] == '\0' || url[scheme] == '/' || strlen(url) > URL_MAX_BYTES)
		return false;
	for (const char *p = url; *p; p++)
		if ((unsigned char)*p <= 0x20 || (unsigned char)*p >= 0x7f)
			return false;
	return true;
}

static int set_token(struct client *c, const char *token, struct err *err)
{
	size_t len = strlen(token) + sizeof("Authorization: Bearer ");

	if (!*token)
		return err_set(err, ERR_INVALID, "the token is empty");
	for (const char *p = token; *p; p++)
		if ((unsigned char)*p <= 0x20 || (unsigned char)*p >= 0x7f)
			return err_set(err, ERR_INVALID, "the token holds characters that no token has");
	c->authorization = mem_alloc(len, 1);
	if (!c->authorization)
		return err_set_nomem(err, "the token");
	snprintf(c->authorization, len, "Authorization: Bearer %s", token);
	return 0;
}

struct client *client_new(const char *url, const char *token, struct err *err)
{
	struct client *c;
	size_t len = strlen(url);

	if (!is_http_url(url)) {
		err_set(err, ERR_INVALID, "server '%s' is not an http:// or https:// URL", url);
		return NULL;
	}
	while (len > 0 && url[len - 1] == '/')
		len--;
	c = mem_alloc(1, sizeof(*c));
	if (!c || !(c->url = mem_strndup(url, len)) || !(c->curl = curl_easy_init())) {
		err_set_nomem(err, "the HTTP client");
		client_free(c);
		return NULL;
	}
	c->patience_ms = PATIENCE_MS;
	if (token && set_token(c, token, err) != 0) {
		client_free(c);
		return NULL;
	}
	return c;
}

void client_free(struct client *c)
{
	if (!c)
		return;
	if (c->curl)
		curl_easy_cleanup(c->curl);
	mem_free(c->url);
	mem_free(c->authorization);
	mem_free(c);
}

void client_set_patience(struct client *c, int64_t patience_ms)
{
	c->patience_ms = patience_ms;
}

const char *client_url(const struct client *c)
{
	return c->url;
}

char *url_escape(const char *text)
{
	static const char keep[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
	char *out = mem_alloc(strlen(text) + 1, 3);
	size_t used = 0;

	for (; out && *text; text++) {
		if (strchr(keep, *text))
			out[used++] = *text;
		else
			used += (size_t)snprintf(out + used, 4, "%%%02X", (unsigned char)*text);
	}
	return out;
}

/* --- callbacks of curl ------------------------------------------------------------------------ */

static long status_of(CURL *curl)
{
	long status = 0;

	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	return status;
}

static size_t on_body(char *bytes, size_t size, size_t count, void *ctx)
{
	struct exchange *x = ctx;
	size_t len = size * count;
	long status = status_of(x->curl);

	if (x->fd < 0 || (status != 200 && status != 206)) {
		if (buf_append(&x->text, bytes, len) == 0)
			return len;
		if (len > x->text.limit - x->text.len)
			err_set(&x->err, ERR_TOO_LARGE, "the server's reply is larger than %zu bytes", x->text.limit);
		else
			err_set_nomem(&x->err, "a reply");
		return 0;
	}
	if (status == 200 && x->asked != 0) {
		err_set(&x->err, ERR_INVALID, "the server does not continue downloads (no Range)");
		return 0;
	}
	if (len > x->end - x->offset) {
		err_set(&x->err, ERR_CORRUPT, "the server sends more bytes for %s than it announced", x->file);
		return 0;
	}
	if (file_pwrite(x->fd, bytes, len, x->offset, x->file, &x->err) != 0)
		return 0;
	x->offset += len;
	x->moved += len;
	if (x->tell)
		x->tell(x->tell_ctx, x->moved);
	return len;
}

static size_t on_upload(char *bytes, size_t size, size_t count, void *ctx)
{
	struct exchange *x = ctx;
	uint64_t left = x->end - x->offset;
	size_t len = size * count < left ? size * count : (size_t)left;

	if (len == 0)
		return 0;
	if (file_pread(x->fd, bytes, len, x->offset, x->file, &x->err) != 0)
		return CURL_READFUNC_ABORT;
	x->offset += len;
	x->moved += len;
	if (x->tell)
		x->tell(x->tell_ctx, x->moved);
	return len;
}

static bool header_value(const char *line, size_t len, const char *name, char *out, size_t cap)
{
	size_t at = strlen(name), used = 0;

	if (len <= at || strncasecmp(line, name, at) != 0 || line[at] != ':')
		return false;
	for (at++; at < len && used + 1 < cap; at++)
		if (line[at] > 0x20 && line[at] < 0x7f && line[at] != '"')
			out[used++] = line[at];
	out[used] = '\0';
	return true;
}

static size_t on_header(char *line, size_t size, size_t count, void *ctx)
{
	struct exchange *x = ctx;
	char seconds[16];

	header_value(line, size * count, "etag", x->etag, sizeof(x->etag));
	if (header_value(line, size * count, "retry-after", seconds, sizeof(seconds)))
		x->retry_after_ms = strtol(seconds, NULL, 10) * 1000;
	return size * count;
}

static int on_progress(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
	(void)ctx, (void)a, (void)b, (void)c, (void)d;
	return interrupted();
}

/* --- one exchange ----------------------------------------------------------------------------- */

static void set_common(struct client *c, const char *url, struct exchange *x, struct curl_slist *headers,
		       int64_t wait_s)
{
	CURL *curl = c->curl;

	curl_easy_reset(curl); /* keeps the connection */
	x->curl = curl;
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
	if (x->fd < 0)
		curl_easy_setopt(curl, CURLOPT_TIMEOUT, (long)(REPLY_S + wait_s));
	curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)(STALL_S + wait_s));
	curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
	curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, x);
	curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(curl, CURLOPT_HEADERDATA, x);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_USERAGENT, "quarry");
}

/* What a failed transfer means. ERR_UNAVAILABLE may be repeated. */
static int transfer_error(struct client *c, const struct exchange *x, CURLcode rc, struct err *err)
{
	if (interrupted())
		return err_set(err, ERR_CANCELLED, "interrupted");
	if (x->err.code != ERR_NONE)
		return err_set(err, x->err.code, "%s", x->err.text);
	if (rc == CURLE_COULDNT_RESOLVE_HOST)
		return err_set(err, ERR_UNAVAILABLE, "cannot find the host of server %s", c->url);
	if (rc == CURLE_COULDNT_CONNECT)
		return err_set(err, ERR_UNAVAILABLE, "cannot reach the server %s: no connection", c->url);
	if (rc == CURLE_PEER_FAILED_VERIFICATION || rc == CURLE_SSL_CACERT_BADFILE)
		return err_set(err, ERR_UNAUTHORIZED, "the certificate of server %s is not trusted", c->url);
	if (rc == CURLE_OUT_OF_MEMORY)
		return err_set_nomem(err, "the HTTP client");
	return err_set(err, ERR_UNAVAILABLE, "the exchange with server %s failed: %s", c->url,
		       curl_easy_strerror(rc));
}

/* problem+json (or anything else) of a reply outside 2xx into a sentence. */
static int problem_error(struct client *c, long status, const struct json *body, struct err *err)
{
	const char *type = json_get_string(body, "type", ""), *slash = strrchr(type, '/');
	const char *detail = json_get_string(body, "detail", NULL);
	enum err_code code = *type ? err_from_name(slash ? slash + 1 : type) : ERR_INTERNAL;

	if (*type && code == ERR_NONE)
		code = ERR_INTERNAL;
	if (detail && *detail)
		return err_set(err, code, "%s", detail);
	if (status == 401)
		return err_set(err, ERR_UNAUTHORIZED, "the server %s does not accept the token", c->url);
	if (status == 429 || status == 502 || status == 503 || status == 504)
		return err_set(err, ERR_UNAVAILABLE, "the server %s answered with status %ld", c->url, status);
	return err_set(err, status == 404 ? ERR_NOT_FOUND : ERR_INTERNAL,
		       "the server %s answered with status %ld and no explanation", c->url, status);
}

static bool worth_repeating(const struct err *err, long status, const struct json *body)
{
	if (err->code == ERR_CANCELLED)
		return false;
	if (status == 0)
		return err->code == ERR_UNAVAILABLE;
	return json_get_bool(body, "retryable", status == 502 || status == 503 || status == 504 || status == 429);
}

/* Waits before another try; false when patience is at its end. */
static bool pause_before_retry(const struct client *c, int64_t started, int64_t *pause_ms, int64_t asked_ms)
{
	int64_t pause = asked_ms > *pause_ms ? asked_ms : *pause_ms;

	if (now_ms() - started + pause > c->patience_ms)
		return false;
	interruptible_sleep_ms(pause);
	*pause_ms = *pause_ms * 2 < PAUSE_MOST_MS ? *pause_ms * 2 : PAUSE_MOST_MS;
	return !interrupted();
}

static struct curl_slist *add_header(struct curl_slist *list, bool *failed, const char *fmt, const char *value)
{
	char line[512];
	struct curl_slist *grown;

	snprintf(line, sizeof(line), fmt, value);
	grown = curl_slist_append(list, line);
	*failed = *failed || !grown;
	return grown ? grown : list;
}

static struct curl_slist *request_headers(const struct client *c, const struct client_request *r, bool *failed)
{
	struct curl_slist *list = NULL;
	char wait[32];

	snprintf(wait, sizeof(wait), "%lld", (long long)r->wait_s);
	list = add_header(list, failed, "%s", "Expect:");
	if (c->authorization)
		list = add_header(list, failed, "%s", c->authorization);
	if (r->body)
		list = add_header(list, failed, "%s", "Content-Type: application/json");
	if (r->idempotency_key)
		list = add_header(list, failed, "Idempotency-Key: %s", r->idempotency_key);
	if (r->if_none_match)
		list = add_header(list, failed, "If-None-Match: \"%s\"", r->if_none_match);
	if (r->wait_s > 0)
		list = add_header(list, failed, "Prefer: wait=%s", wait);
	return list;
}

static char *full_url(const struct client *c, const char *path)
{
	size_t len = strlen(c->url) + strlen(path) + 1;
	char *url = mem_alloc(len, 1);

	if (url)
		snprintf(url, len, "%s%s", c->url, path);
	return url;
}

/* --- JSON requests ----------------------------------------------------------------------------- */

static void set_body(CURL *curl, const char *method, const char *body)
{
	if (strcmp(method, "GET") == 0)
		return;
	if (body) {
		curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	}
	curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
}

/* The reply's text as JSON; an unreadable one counts only when the status promises a body. */
static int read_reply(struct client *c, struct exchange *x, long status, struct client_reply *reply,
		      struct err *err)
{
	struct err parse = ERR_INIT;

	reply->status = (int)status;
	snprintf(reply->etag, sizeof(reply->etag), "%s", x->etag);
	if (x->text.len > 0)
		reply->body = json_parse(buf_text(&x->text), x->text.len, &parse);
	if ((status >= 200 && status < 300) || status == 304) {
		if (x->text.len > 0 && !reply->body)
			return err_set(err, ERR_INTERNAL, "the server %s sent something that is not JSON: %s",
				       c->url, parse.text);
		return 0;
	}
	if (json_type(json_get(reply->body, "problems")) == JSON_ARRAY)
		reply->problems = json_copy(json_get(reply->body, "problems"));
	return problem_error(c, status, reply->body, err);
}

/* One try. *status = 0 when no reply came. */
static int call_once(struct client *c, const struct client_request *r, const char *url, const char *body,
		     struct client_reply *reply, int64_t *retry_after_ms, struct err *err)
{
	struct exchange x = { .fd = -1, .err = ERR_INIT };
	bool failed = false;
	struct curl_slist *headers = request_headers(c, r, &failed);
	CURLcode rc = CURLE_OUT_OF_MEMORY;
	int result;

	buf_init(&x.text, CLIENT_JSON_MAX);
	if (!failed) {
		set_common(c, url, &x, headers, r->wait_s);
		set_body(c->curl, r->method, body);
		rc = curl_easy_perform(c->curl);
	}
	result = rc == CURLE_OK ? read_reply(c, &x, status_of(c->curl), reply, err)
				: transfer_error(c, &x, rc, err);
	*retry_after_ms = x.retry_after_ms;
	curl_slist_free_all(headers);
	buf_deinit(&x.text);
	return result;
}

static int call_patiently(struct client *c, const struct client_request *r, const char *url, const char *body,
			  struct client_reply *reply, struct err *err)
{
	int64_t started = now_ms(), pause_ms = PAUSE_FIRST_MS, asked_ms = 0;

	for (;;) {
		if (interrupt_count() > 1)
			return interrupt_check(err);
		if (call_once(c, r, url, body, reply, &asked_ms, err) == 0)
			return 0;
		if (!worth_repeating(err, reply->status, reply->body) ||
		    !pause_before_retry(c, started, &pause_ms, asked_ms))
			return -1;
		client_reply_deinit(reply);
		err_clear(err);
	}
}

int client_call(struct client *c, const struct client_request *request, struct client_reply *reply,
		struct err *err)
{
	char *url = full_url(c, request->path);
	char *body = request->body ? json_print(request->body, false) : NULL;
	int rc = -1;

	*reply = (struct client_reply){ 0 };
	if (!url || (request->body && !body))
		err_set_nomem(err, "a request");
	else
		rc = call_patiently(c, request, url, body, reply, err);
	mem_free(url);
	mem_free(body);
	return rc;
}

void client_reply_deinit(struct client_reply *r)
{
	json_free(r->body);
	json_free(r->problems);
	*r = (struct client_reply){ 0 };
}

static struct json *take_body(struct client *c, const struct client_request *request, struct err *err)
{
	struct client_reply reply;
	struct json *body = NULL;

	if (client_call(c, request, &reply, err) == 0) {
		body = reply.body ? reply.body : json_new_object();
		reply.body = NULL;
		if (!body)
			err_set_nomem(err, "a reply");
	}
	client_reply_deinit(&reply);
	return body;
}

struct json *client_get(struct client *c, const char *path, struct err *err)
{
	return take_body(c, &(struct client_request){ .method = "GET", .path = path }, err);
}

struct json *client_post(struct client *c, const char *path, const struct json *body, struct err *err)
{
	struct json *empty = body ? NULL : json_new_object();
	struct json *reply = take_body(c, &(struct client_request){ .method = "POST", .path = path,
					       .body = body ? body : empty }, err);

	json_free(empty);
	return reply;
}

/* --- bytes ------------------------------------------------------------------------------------- */

/* After a transfer of bytes: 0, or the sentence, and whether to try again. */
static int bytes_result(struct client *c, struct exchange *x, CURLcode rc, bool *again, struct err *err)
{
	long status = rc == CURLE_OK ? status_of(c->curl) : 0;
	struct json *body = NULL;

	*again = false;
	if (rc == CURLE_OK && status >= 200 && status < 300)
		return 0;
	if (rc != CURLE_OK) {
		transfer_error(c, x, rc, err);
	} else {
		body = json_parse(buf_text(&x->text), x->text.len, NULL);
		problem_error(c, status, body, err);
	}
	*again = worth_repeating(err, status, body);
	json_free(body);
	return -1;
}

static CURLcode download_once(struct client *c, const char *url, struct exchange *x)
{
	bool failed = false;
	struct curl_slist *headers = request_headers(c, &(struct client_request){ 0 }, &failed);
	CURLcode rc = CURLE_OUT_OF_MEMORY;
	char range[64];

	if (!failed) {
		set_common(c, url, x, headers, 0);
		x->asked = x->offset;
		snprintf(range, sizeof(range), "%llu-", (unsigned long long)x->offset);
		if (x->offset > 0)
			curl_easy_setopt(c->curl, CURLOPT_RANGE, range);
		rc = curl_easy_perform(c->curl);
	}
	curl_slist_free_all(headers);
	return rc;
}

static int download_patiently(struct client *c, const char *url, struct exchange *x, struct err *err)
{
	int64_t started = now_ms(), pause_ms = PAUSE_FIRST_MS;

	for (;;) {
		uint64_t before = x->offset;
		bool again;

		buf_reset(&x->text);
		if (bytes_result(c, x, download_once(c, url, x), &again, err) == 0)
			return x->offset == x->end ? 0
				: err_set(err, ERR_CORRUPT, "the server ends %s %llu bytes early", x->file,
					  (unsigned long long)(x->end - x->offset));
		if (x->offset > before) { /* it moves: patience starts again */
			started = now_ms();
			pause_ms = PAUSE_FIRST_MS;
		}
		if (!again || !pause_before_retry(c, started, &pause_ms, x->retry_after_ms))
			return -1;
		err_clear(err);
	}
}

int client_download(struct client *c, const char *path, int fd, const char *file, uint64_t from, uint64_t total,
		    client_moved moved, void *ctx, struct err *err)
{
	struct exchange x = { .fd = fd, .file = file, .offset = from, .end = total, .tell = moved,
			      .tell_ctx = ctx, .err = ERR_INIT };
	char *url;
	int rc;

	if (from == total)
		return 0;
	url = full_url(c, path);
	if (!url)
		return err_set_nomem(err, "a request");
	buf_init(&x.text, 1 << 20);
	rc = download_patiently(c, url, &x, err);
	buf_deinit(&x.text);
	mem_free(url);
	return rc;
}

static CURLcode upload_once(struct client *c, const char *url, struct exchange *x)
{
	bool failed = false;
	struct curl_slist *headers = request_headers(c, &(struct client_request){ 0 }, &failed);
	CURLcode rc = CURLE_OUT_OF_MEMORY;

	headers = add_header(headers, &failed, "%s", "Content-Type: application/octet-stream");
	if (!failed) {
		set_common(c, url, x, headers, 0);
		curl_easy_setopt(c->curl, CURLOPT_UPLOAD, 1L);
		curl_easy_setopt(c->curl, CURLOPT_READFUNCTION, on_upload);
		curl_easy_setopt(c->curl, CURLOPT_READDATA, x);
		curl_easy_setopt(c->curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)(x->end - x->offset));
		rc = curl_easy_perform(c->curl);
	}
	curl_slist_free_all(headers);
	return rc;
}

static int upload_patiently(struct client *c, const char *url, struct exchange *x, struct err *err)
{
	int64_t started = now_ms(), pause_ms = PAUSE_FIRST_MS;
	uint64_t first = x->offset;

	for (;;) {
		bool again;

		buf_reset(&x->text);
		x->offset = first;
		x->moved = 0;
		if (bytes_result(c, x, upload_once(c, url, x), &again, err) == 0)
			return 0;
		if (!again || !pause_before_retry(c, started, &pause_ms, x->retry_after_ms))
			return -1;
		err_clear(err);
	}
}

int client_upload(struct client *c, const char *path, int fd, const char *file, uint64_t offset, uint64_t len,
		  client_moved moved, void *ctx, struct err *err)
{
	struct exchange x = { .fd = fd, .file = file, .offset = offset, .end = offset + len, .tell = moved,
			      .tell_ctx = ctx, .err = ERR_INIT };
	char *url = full_url(c, path);
	int rc;

	if (!url)
		return err_set_nomem(err, "a request");
	buf_init(&x.text, 1 << 20);
	rc = upload_patiently(c, url, &x, err);
	buf_deinit(&x.text);
	mem_free(url);
	return rc;
}
