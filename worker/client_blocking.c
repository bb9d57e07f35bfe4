/* One blocking handle for the compute thread: reading a checkpoint by ranges. The handle keeps its
 * connection between requests. */
#include <string.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "worker/client_curl.h"

struct client_blocking {
	const struct client_config *config;
	CURL *easy;
	struct curl_slist *headers;
	/* the request under way */
	char *out;
	size_t len, got;
	struct buf problem;             /* the body of a failure */
	bool (*stop)(void *ctx);
	void *stop_ctx;
	bool stopped;
};

struct client_blocking *client_blocking_new(const struct client_config *config, struct err *err)
{
	struct client_blocking *cb = mem_alloc(1, sizeof(*cb));

	if (!cb)
		goto nomem;
	cb->config = config;
	buf_init(&cb->problem, CLIENT_JSON_LIMIT);
	cb->headers = client_curl_append(NULL, "Expect:");
	if (cb->headers && config->token)
		cb->headers = client_curl_headers(config, cb->headers);
	cb->easy = curl_easy_init();
	if (cb->headers && cb->easy)
		return cb;
nomem:
	client_blocking_free(cb);
	err_set_nomem(err, "the HTTP client of the compute thread");
	return NULL;
}

void client_blocking_free(struct client_blocking *cb)
{
	if (!cb)
		return;
	if (cb->easy)
		curl_easy_cleanup(cb->easy);
	curl_slist_free_all(cb->headers);
	buf_deinit(&cb->problem);
	mem_free(cb);
}

static size_t take_range(char *bytes, size_t size, size_t count, void *ctx)
{
	struct client_blocking *cb = ctx;
	size_t len = size * count;
	long status = 0;

	curl_easy_getinfo(cb->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status != 206)
		return status != 200 && buf_append(&cb->problem, bytes, len) == 0 ? len : 0;
	if (len > cb->len - cb->got)
		return 0;
	memcpy(cb->out + cb->got, bytes, len);
	cb->got += len;
	return len;
}

static int ask_stop(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
	struct client_blocking *cb = ctx;

	(void)a, (void)b, (void)c, (void)d;
	cb->stopped = cb->stop && cb->stop(cb->stop_ctx);
	return cb->stopped;
}

static int set_request(struct client_blocking *cb, const char *path, uint64_t offset, size_t len)
{
	char range[64];

	curl_easy_reset(cb->easy); /* keeps the connection */
	snprintf(range, sizeof(range), "%llu-%llu", (unsigned long long)offset,
		 (unsigned long long)(offset + len - 1));
	if (client_curl_setup(cb->easy, cb->config, path) != 0 ||
	    curl_easy_setopt(cb->easy, CURLOPT_RANGE, range) != CURLE_OK)
		return -1;
	curl_easy_setopt(cb->easy, CURLOPT_HTTPHEADER, cb->headers);
	curl_easy_setopt(cb->easy, CURLOPT_WRITEFUNCTION, take_range);
	curl_easy_setopt(cb->easy, CURLOPT_WRITEDATA, cb);
	curl_easy_setopt(cb->easy, CURLOPT_XFERINFOFUNCTION, ask_stop);
	curl_easy_setopt(cb->easy, CURLOPT_XFERINFODATA, cb);
	curl_easy_setopt(cb->easy, CURLOPT_NOPROGRESS, 0L);
	return 0;
}

static int judge(struct client_blocking *cb, CURLcode code, const char *path, struct err *err)
{
	long status = 0;

	curl_easy_getinfo(cb->easy, CURLINFO_RESPONSE_CODE, &status);
	if (cb->stopped)
		return err_set(err, ERR_CANCELLED, "reading %s was stopped", path);
	if (status == 200)
		return err_set(err, ERR_INTERNAL,
			       "the coordinator answered a Range request for %s with the whole file", path);
	if (status == 206 && cb->got == cb->len && code == CURLE_OK)
		return 0;
	if (status >= 300 && code == CURLE_OK)
		return client_curl_problem(err, path, status, buf_text(&cb->problem), cb->problem.len);
	return client_curl_failure(err, cb->config, code,
				   code == CURLE_OK ? "the reply ended too early" : NULL);
}

int client_fetch_range(struct client_blocking *cb, const char *path, uint64_t offset, void *bytes,
		       size_t len, bool (*stop)(void *ctx), void *ctx, struct err *err)
{
	if (len == 0)
		return 0;
	cb->out = bytes;
	cb->len = len;
	cb->got = 0;
	cb->stop = stop;
	cb->stop_ctx = ctx;
	cb->stopped = false;
	buf_reset(&cb->problem);
	if (set_request(cb, path, offset, len) != 0)
		return err_set_nomem(err, "a request");
	return judge(cb, curl_easy_perform(cb->easy), path, err);
}
