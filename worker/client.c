/* Calls: one easy handle each, from client_send() to done(). client_poll.c drives them. */
#include "worker/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "worker/client_curl.h"

struct client_call {
	struct client *client;
	struct client_call *next, **prev_link;
	CURL *easy;
	struct curl_slist *headers;
	char *path, *json;
	struct client_request request;
	uint64_t sent;                  /* PUT: bytes read from the file so far */
	struct buf body;
	struct client_reply reply;
	bool sink_failed, too_large;
	char detail[CURL_ERROR_SIZE];
};

/* --- calls -------------------------------------------------------------------------------------------- */

static void call_free(struct client_call *call)
{
	*call->prev_link = call->next;
	if (call->next)
		call->next->prev_link = call->prev_link;
	if (call->easy)
		curl_easy_cleanup(call->easy);
	curl_slist_free_all(call->headers);
	buf_deinit(&call->body);
	mem_free(call->path);
	mem_free(call->json);
	mem_free(call);
}

void client_cancel(struct client_call *call)
{
	if (!call)
		return;
	curl_multi_remove_handle(call->client->multi, call->easy);
	call_free(call);
}

static bool has_body(long status)
{
	return status == 200 || status == 206;
}

static size_t take_body(char *bytes, size_t size, size_t count, void *ctx)
{
	struct client_call *call = ctx;
	size_t len = size * count;
	long status = 0;

	curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
	if (call->request.sink && has_body(status)) {
		uint64_t start = status == 206 ? call->reply.range_start : 0;

		if (call->request.sink(call->request.ctx, start, bytes, len) == 0)
			return len;
		call->sink_failed = true;
		return 0;
	}
	if (buf_append(&call->body, bytes, len) == 0)
		return len;
	call->too_large = true;
	return 0;
}

static size_t take_header(char *line, size_t size, size_t count, void *ctx)
{
	struct client_call *call = ctx;
	size_t len = size * count;
	char text[256];

	snprintf(text, sizeof(text), "%.*s", (int)(len < 255 ? len : 255), line);
	if (strncasecmp(text, "Quarry-Drain: true", 18) == 0)
		call->reply.drain = true;
	else if (strncasecmp(text, "Content-Range: bytes ", 21) == 0)
		call->reply.range_start = strtoull(text + 21, NULL, 10);
	return len;
}

static size_t give_body(char *bytes, size_t size, size_t count, void *ctx)
{
	struct client_call *call = ctx;
	uint64_t left = call->request.length - call->sent;
	size_t len = size * count;
	ssize_t got;

	if (len > left)
		len = (size_t)left;
	if (len == 0)
		return 0;
	got = pread(call->request.fd, bytes, len, (off_t)(call->request.offset + call->sent));
	if (got <= 0)
		return CURL_READFUNC_ABORT;
	call->sent += (uint64_t)got;
	return (size_t)got;
}

/* curl asks to start over, after a kept connection turned out to be closed. */
static int rewind_body(void *ctx, curl_off_t offset, int origin)
{
	struct client_call *call = ctx;

	if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > call->request.length)
		return CURL_SEEKFUNC_FAIL;
	call->sent = (uint64_t)offset;
	return CURL_SEEKFUNC_OK;
}

static int add_header(struct client_call *call, const char *line)
{
	call->headers = client_curl_append(call->headers, line);
	return call->headers ? 0 : -1;
}

static int set_headers(struct client_call *call)
{
	const struct client_request *rq = &call->request;
	char line[64];

	if (add_header(call, "Expect:") != 0)
		return -1;
	if (call->client->config->token &&
	    !(call->headers = client_curl_headers(call->client->config, call->headers)))
		return -1;
	if (call->json && add_header(call, "Content-Type: application/json") != 0)
		return -1;
	snprintf(line, sizeof(line), "Prefer: wait=%d", rq->wait_s);
	if (rq->wait_s > 0 && add_header(call, line) != 0)
		return -1;
	return curl_easy_setopt(call->easy, CURLOPT_HTTPHEADER, call->headers) == CURLE_OK ? 0 : -1;
}

static void set_put(struct client_call *call)
{
	curl_easy_setopt(call->easy, CURLOPT_UPLOAD, 1L);
	curl_easy_setopt(call->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)call->request.length);
	curl_easy_setopt(call->easy, CURLOPT_READFUNCTION, give_body);
	curl_easy_setopt(call->easy, CURLOPT_READDATA, call);
	curl_easy_setopt(call->easy, CURLOPT_SEEKFUNCTION, rewind_body);
	curl_easy_setopt(call->easy, CURLOPT_SEEKDATA, call);
}

static int set_method(struct client_call *call)
{
	const struct client_request *rq = &call->request;
	CURLcode code = CURLE_OK;
	char range[32];

	if (strcmp(rq->method, "PUT") == 0) {
		set_put(call);
	} else if (strcmp(rq->method, "POST") == 0) {
		curl_easy_setopt(call->easy, CURLOPT_POST, 1L);
		curl_easy_setopt(call->easy, CURLOPT_POSTFIELDS, call->json ? call->json : "");
		curl_easy_setopt(call->easy, CURLOPT_POSTFIELDSIZE_LARGE,
				 (curl_off_t)(call->json ? strlen(call->json) : 0));
	} else if (rq->range_from > 0) {
		snprintf(range, sizeof(range), "%llu-", (unsigned long long)rq->range_from);
		code = curl_easy_setopt(call->easy, CURLOPT_RANGE, range);
	}
	return code == CURLE_OK ? 0 : -1;
}

static int call_setup(struct client_call *call)
{
	const struct client_request *rq = &call->request;
	long stall = CLIENT_STALL_S + rq->wait_s + rq->quiet_s;

	call->easy = curl_easy_init();
	if (!call->easy || client_curl_setup(call->easy, call->client->config, call->path) != 0 ||
	    set_headers(call) != 0 || set_method(call) != 0)
		return -1;
	curl_easy_setopt(call->easy, CURLOPT_LOW_SPEED_TIME, stall);
	curl_easy_setopt(call->easy, CURLOPT_TIMEOUT, (long)rq->timeout_s);
	curl_easy_setopt(call->easy, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(call->easy, CURLOPT_WRITEDATA, call);
	curl_easy_setopt(call->easy, CURLOPT_HEADERFUNCTION, take_header);
	curl_easy_setopt(call->easy, CURLOPT_HEADERDATA, call);
	curl_easy_setopt(call->easy, CURLOPT_ERRORBUFFER, call->detail);
	curl_easy_setopt(call->easy, CURLOPT_PRIVATE, call);
	return 0;
}

struct client_call *client_send(struct client *client, const struct client_request *request)
{
	struct client_call *call = client_reserve(client) == 0 ? mem_alloc(1, sizeof(*call)) : NULL;

	if (!call)
		return NULL;
	call->client = client;
	call->request = *request;
	call->next = client->calls;
	call->prev_link = &client->calls;
	if (call->next)
		call->next->prev_link = &call->next;
	client->calls = call;
	buf_init(&call->body, request->limit ? request->limit : CLIENT_JSON_LIMIT);
	call->path = mem_strdup(request->path);
	call->json = request->json ? mem_strdup(request->json) : NULL;
	if (!call->path || (request->json && !call->json) || call_setup(call) != 0 ||
	    curl_multi_add_handle(client->multi, call->easy) != CURLM_OK) {
		call_free(call);
		return NULL;
	}
	return call;
}

/* --- outcomes ------------------------------------------------------------------------------------------ */

static void fill_reply(struct client_call *call, CURLcode code)
{
	struct client_reply *reply = &call->reply;
	long status = 0;

	curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
	reply->body = buf_text(&call->body);
	reply->len = call->body.len;
	if (call->too_large)
		err_set(&reply->err, ERR_TOO_LARGE, "the reply to %s has more than %zu bytes", call->path,
			call->body.limit);
	else if (call->sink_failed)
		err_set(&reply->err, ERR_CANCELLED, "the body of %s was not wanted", call->path);
	else if (code != CURLE_OK)
		client_curl_failure(&reply->err, call->client->config, code, call->detail);
	else
		reply->status = (int)status;
	if (reply->status >= 300)
		client_curl_problem(&reply->err, call->path, status, reply->body, reply->len);
}

static void finish_call(struct client_call *call, CURLcode code)
{
	curl_multi_remove_handle(call->client->multi, call->easy);
	fill_reply(call, code);
	call->request.done(call->request.ctx, &call->reply);
	call_free(call);
}

void client_collect(struct client *client)
{
	CURLMsg *msg;
	int left;

	while ((msg = curl_multi_info_read(client->multi, &left))) {
		struct client_call *call = NULL;

		if (msg->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **)&call);
		finish_call(call, msg->data.result);
	}
}
