/* Set-up shared by the loop's client and the blocking one, and the translation of outcomes into errors. */
#include <string.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/json.h"
#include "worker/client_curl.h"

enum { URL_MAX = 2048, TOKEN_MAX = 512 };

/* --- configuration -------------------------------------------------------------------------------- */

static int check_url(const char *url, struct err *err)
{
	const char *host = strncmp(url, "http://", 7) == 0 ? url + 7 :
			   strncmp(url, "https://", 8) == 0 ? url + 8 : NULL;

	if (!host || !*host || *host == '/' || strlen(url) > URL_MAX || strpbrk(url, " \t\r\n?#"))
		return err_set(err, ERR_INVALID,
			       "--server %s is not a URL of a coordinator; write http://HOST:PORT", url);
	return 0;
}

static int check_token(const char *token, struct err *err)
{
	size_t len = strlen(token);

	if (len == 0 || len > TOKEN_MAX)
		return err_set(err, ERR_INVALID, "the token has %zu characters; 1 to %d are right", len,
			       TOKEN_MAX);
	for (size_t i = 0; i < len; i++)
		if (token[i] <= ' ' || token[i] > '~')
			return err_set(err, ERR_INVALID,
				       "the token has a blank or unprintable character at position %zu",
				       i + 1);
	return 0;
}

int client_config_init(struct client_config *config, const char *url, const char *token,
		       const char *user_agent, struct err *err)
{
	size_t len = strlen(url);

	*config = (struct client_config){ 0 };
	if (check_url(url, err) != 0 || (token && check_token(token, err) != 0))
		return -1;
	while (len > 0 && url[len - 1] == '/')
		len--;
	config->base_url = mem_strndup(url, len);
	config->token = token ? mem_strdup(token) : NULL;
	config->user_agent = mem_strdup(user_agent);
	if (config->base_url && config->user_agent && (!token || config->token))
		return 0;
	client_config_deinit(config);
	return err_set_nomem(err, "the client's settings");
}

void client_config_deinit(struct client_config *config)
{
	mem_free(config->base_url);
	mem_free(config->token);
	mem_free(config->user_agent);
	*config = (struct client_config){ 0 };
}

/* --- curl ------------------------------------------------------------------------------------------- */

int client_curl_setup(CURL *easy, const struct client_config *config, const char *path)
{
	struct buf url;
	CURLcode code = CURLE_OUT_OF_MEMORY;

	buf_init(&url, URL_MAX * 2);
	if (buf_puts(&url, config->base_url) == 0 && buf_puts(&url, path) == 0)
		code = curl_easy_setopt(easy, CURLOPT_URL, url.data);
	buf_deinit(&url);
	if (code == CURLE_OK)
		code = curl_easy_setopt(easy, CURLOPT_USERAGENT, config->user_agent);
	if (code == CURLE_OK)
		code = curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_NOPROXY, "localhost,127.0.0.1,::1");
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, 10L);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long)CLIENT_STALL_S);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	return code == CURLE_OK ? 0 : -1;
}

struct curl_slist *client_curl_append(struct curl_slist *list, const char *line)
{
	struct curl_slist *longer = curl_slist_append(list, line);

	if (!longer)
		curl_slist_free_all(list);
	return longer;
}

struct curl_slist *client_curl_headers(const struct client_config *config, struct curl_slist *list)
{
	char line[TOKEN_MAX + 64];

	if (!config->token)
		return list;
	snprintf(line, sizeof(line), "Authorization: Bearer %s", config->token);
	return client_curl_append(list, line);
}

int client_curl_failure(struct err *err, const struct client_config *config, CURLcode code,
			const char *detail)
{
	const char *why = detail && *detail ? detail : curl_easy_strerror(code);

	return err_set(err, code == CURLE_OPERATION_TIMEDOUT ? ERR_TIMEOUT : ERR_UNAVAILABLE,
		       "the coordinator at %s does not answer: %s", config->base_url, why);
}

static enum err_code code_of_status(long status)
{
	switch (status) {
	case 401: return ERR_UNAUTHORIZED;
	case 403: return ERR_FORBIDDEN;
	case 404: return ERR_NOT_FOUND;
	case 409: return ERR_CONFLICT;
	case 413: return ERR_TOO_LARGE;
	case 422: return ERR_REFUSED;
	case 429: return ERR_BUSY;
	case 503: return ERR_UNAVAILABLE;
	case 504: return ERR_TIMEOUT;
	case 507: return ERR_NOSPC;
	default:  return status >= 500 ? ERR_INTERNAL : ERR_INVALID;
	}
}

int client_curl_problem(struct err *err, const char *path, long status, const char *body, size_t len)
{
	struct json *problem = len ? json_parse(body, len, NULL) : NULL;
	const char *type = json_get_string(problem, "type", "");
	const char *name = strncmp(type, "/problems/", 10) == 0 ? type + 10 : NULL;
	const char *detail = json_get_string(problem, "detail", "");

	err_set(err, name ? err_from_name(name) : code_of_status(status),
		"the coordinator answered %ld to %s%s%s", status, path, *detail ? ": " : "", detail);
	json_free(problem);
	return -1;
}
