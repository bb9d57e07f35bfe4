#include "server/routes.h"

#include <stdio.h>
#include <string.h>

#include "server/percent.h"
#include "server/route_handlers.h"

#define LIST "cursor limit"

const struct route routes[] = {
	{ "GET", "/", NO_VERB, route_static, ACCESS_PUBLIC, BODY_NONE, "" },
	{ "GET", "/app.js", NO_VERB, route_static, ACCESS_PUBLIC, BODY_NONE, "" },
	{ "GET", "/style.css", NO_VERB, route_static, ACCESS_PUBLIC, BODY_NONE, "" },
	{ "GET", "/icon.svg", NO_VERB, route_static, ACCESS_PUBLIC, BODY_NONE, "" },
	{ "GET", "/api.yaml", NO_VERB, route_static, ACCESS_PUBLIC, BODY_NONE, "" },
	{ "GET", "/livez", NO_VERB, route_livez, ACCESS_PUBLIC, BODY_NONE, "" },
	{ "GET", "/readyz", NO_VERB, route_readyz, ACCESS_PUBLIC, BODY_NONE, "" },
	{ "GET", "/metrics", NO_VERB, route_metrics, ACCESS_VIEW, BODY_NONE, "" },
	{ "GET", "/v1/stats", VERB_STATS, route_verb, ACCESS_VIEW, BODY_NONE, "" },

	{ "GET", "/v1/jobs", VERB_JOB_LIST, route_verb, ACCESS_VIEW, BODY_NONE, "state " LIST },
	{ "POST", "/v1/jobs", VERB_JOB_SUBMIT, route_verb, ACCESS_SUBMIT, BODY_JSON, "dry_run" },
	{ "GET", "/v1/jobs/{id}", VERB_JOB_GET, route_job, ACCESS_VIEW, BODY_NONE, "wait_for_change" },
	{ "DELETE", "/v1/jobs/{id}", VERB_JOB_DELETE, route_verb, ACCESS_RELEASE, BODY_NONE, "" },
	{ "GET", "/v1/jobs/{id}/curves", VERB_JOB_CURVES, route_verb, ACCESS_VIEW, BODY_NONE, "" },
	{ "GET", "/v1/jobs/{id}/tasks", VERB_JOB_TASKS, route_verb, ACCESS_VIEW, BODY_NONE, "state " LIST },
	{ "GET", "/v1/jobs/{id}/events", VERB_JOB_EVENTS, route_events, ACCESS_VIEW, BODY_NONE, "after" },
	{ "GET", "/v1/jobs/{id}/report", VERB_JOB_REPORT, route_verb, ACCESS_VIEW, BODY_NONE, "" },
	{ "GET", "/v1/jobs/{id}/files", VERB_JOB_FILES, route_verb, ACCESS_VIEW, BODY_NONE, "" },
	{ "GET", "/v1/jobs/{id}/files/{path*}", VERB_JOB_FILES, route_job_file, ACCESS_SUBMIT, BODY_NONE,
	  "" },
	{ "POST", "/v1/jobs/{id}/cancel", VERB_JOB_CANCEL, route_verb, ACCESS_SUBMIT, BODY_NONE, "" },
	{ "POST", "/v1/jobs/{id}/retry", VERB_JOB_RETRY, route_verb, ACCESS_SUBMIT, BODY_NONE, "" },

	{ "GET", "/v1/models", VERB_MODEL_LIST, route_verb, ACCESS_VIEW, BODY_NONE, LIST },
	{ "POST", "/v1/models", VERB_MODEL_ADD, route_verb, ACCESS_SUBMIT, BODY_JSON, "" },
	{ "GET", "/v1/models/{id}", VERB_MODEL_GET, route_verb, ACCESS_VIEW, BODY_NONE, "" },
	{ "DELETE", "/v1/models/{id}", VERB_MODEL_DELETE, route_verb, ACCESS_RELEASE, BODY_NONE, "" },
	{ "GET", "/v1/models/{id}/files/{name}", VERB_MODEL_GET, route_model_file, ACCESS_BLOBS, BODY_NONE,
	  "" },

	{ "GET", "/v1/datasets", VERB_DATASET_LIST, route_verb, ACCESS_VIEW, BODY_NONE, LIST },
	{ "POST", "/v1/datasets", VERB_DATASET_ADD, route_verb, ACCESS_SUBMIT, BODY_JSON, "" },
	{ "GET", "/v1/datasets/{id}", VERB_DATASET_GET, route_verb, ACCESS_VIEW, BODY_NONE, "" },
	{ "DELETE", "/v1/datasets/{id}", VERB_DATASET_DELETE, route_verb, ACCESS_RELEASE, BODY_NONE, "" },

	{ "GET", "/v1/workers", VERB_WORKER_LIST, route_verb, ACCESS_VIEW, BODY_NONE, LIST },
	{ "POST", "/v1/workers", VERB_WORKER_ADD, route_verb, ACCESS_WORK, BODY_JSON, "" },
	{ "GET", "/v1/workers/{id}", VERB_WORKER_GET, route_verb, ACCESS_VIEW, BODY_NONE, "" },
	{ "POST", "/v1/workers/{id}/drain", VERB_WORKER_DRAIN, route_verb, ACCESS_WORK, BODY_NONE, "" },

	{ "POST", "/v1/leases", VERB_LEASE, route_lease, ACCESS_WORK, BODY_JSON, "" },
	{ "POST", "/v1/leases/{id}/heartbeat", VERB_HEARTBEAT, route_verb, ACCESS_WORK, BODY_JSON, "" },
	{ "POST", "/v1/leases/{id}/checkpoint", VERB_CHECKPOINT, route_verb, ACCESS_WORK, BODY_JSON, "" },
	{ "POST", "/v1/leases/{id}/complete", VERB_COMPLETE, route_verb, ACCESS_WORK, BODY_JSON, "" },
	{ "POST", "/v1/leases/{id}/fail", VERB_FAIL, route_verb, ACCESS_WORK, BODY_JSON, "" },
	{ "POST", "/v1/leases/{id}/release", VERB_RELEASE, route_verb, ACCESS_WORK, BODY_JSON, "" },

	{ "POST", "/v1/uploads", VERB_BLOB_ADD, route_upload_begin, ACCESS_BLOBS, BODY_JSON, "" },
	{ "PUT", "/v1/uploads/{id}/parts/{n}", NO_VERB, route_upload_part, ACCESS_BLOBS, BODY_RAW, "" },
	{ "POST", "/v1/uploads/{id}/complete", VERB_BLOB_ADD, route_upload_complete, ACCESS_BLOBS, BODY_NONE,
	  "" },
	{ "GET", "/v1/blobs/{sha256}", NO_VERB, route_blob, ACCESS_BLOBS, BODY_NONE, "" },
	{ NULL, NULL, 0, NULL, 0, 0, NULL },
};

/* --- who may ---------------------------------------------------------------------- */

#define BIT(role) (1u << (role))
#define SUBMITTERS (BIT(ROLE_SUBMITTER) | BIT(ROLE_RELEASER) | BIT(ROLE_ADMIN))

static const struct access_row { unsigned roles; const char *name; } access_rows[ACCESS_COUNT] = {
	[ACCESS_PUBLIC] = { ~0u, "none" },
	[ACCESS_VIEW] = { SUBMITTERS | BIT(ROLE_VIEWER), "viewer" },
	[ACCESS_SUBMIT] = { SUBMITTERS, "submitter" },
	[ACCESS_WORK] = { BIT(ROLE_WORKER) | BIT(ROLE_ADMIN), "worker" },
	[ACCESS_BLOBS] = { SUBMITTERS | BIT(ROLE_WORKER), "submitter or worker" },
	[ACCESS_RELEASE] = { BIT(ROLE_RELEASER) | BIT(ROLE_ADMIN), "releaser" },
};

bool access_allows(enum access access, enum role role)
{
	return access_rows[access].roles & BIT(role);
}

const char *access_name(enum access access)
{
	return access_rows[access].name;
}

const char *role_name(enum role role)
{
	static const char *const names[ROLE_COUNT] = { "viewer", "submitter", "worker", "releaser", "admin" };

	return names[role];
}

/* --- matching ------------------------------------------------------------------------ */

/* Decodes one captured part. The first is an identifier; the second a name or a path. */
static bool capture(struct captures *c, unsigned nth, const char *text, size_t len)
{
	if (len == 0)
		return false;
	if (nth == 0)
		return percent_decode(text, len, c->first, sizeof(c->first)) == 0 && !strchr(c->first, '/');
	return percent_decode(text, len, c->second, sizeof(c->second)) == 0;
}

static bool matches(const char *pattern, const char *path, struct captures *c)
{
	unsigned captured = 0;

	*c = (struct captures){ "", "" };
	while (*pattern) {
		size_t len;

		if (*pattern != '{') {
			if (*pattern++ != *path++)
				return false;
			continue;
		}
		pattern = strchr(pattern, '}') + 1;
		len = pattern[-2] == '*' ? strlen(path) : strcspn(path, "/");
		if (!capture(c, captured++, path, len))
			return false;
		path += len;
	}
	return *path == '\0';
}

static bool method_fits(const char *wanted, const char *method)
{
	return strcmp(wanted, method) == 0 || (strcmp(wanted, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

static void allow_add(char allow[64], const char *method)
{
	size_t used = strlen(allow);

	snprintf(allow + used, 64 - used, "%s%s%s", used ? ", " : "", method,
		 strcmp(method, "GET") == 0 ? ", HEAD" : "");
}

enum match route_find(const char *method, const char *path, const struct route **route,
		      struct captures *captures, char allow[64])
{
	*allow = '\0';
	for (const struct route *r = routes; r->method; r++) {
		if (!matches(r->pattern, path, captures))
			continue;
		if (method_fits(r->method, method)) {
			*route = r;
			return MATCH_FOUND;
		}
		if (!strstr(allow, r->method)) /* at most GET, HEAD, POST, PUT, DELETE */
			allow_add(allow, r->method);
	}
	return *allow ? MATCH_METHOD : MATCH_NONE;
}
